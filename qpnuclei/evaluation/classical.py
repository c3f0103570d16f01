"""The classical baseline: haematoxylin above Otsu's threshold, without training.

A trained model is useful only if it is better than this.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt
from skimage.filters import threshold_otsu

from qpnuclei.models.metadata import PostProcessing
from qpnuclei.nuclei.outlines import polygonise
from qpnuclei.nuclei.table import NucleiTable
from qpnuclei.segmentation.postprocess import segment_instances
from qpnuclei.slides.resolution import working_downsample
from qpnuclei.slides.slide import ImageInMemory
from qpnuclei.slides.stains import estimate_macenko, separate

#: Name of the method in tables and reports.
NAME = "hematoxylin + Otsu"

#: µm/px for which the radii of the post-processing are defined.
_MPP = 0.25
#: Standard deviation of the Gaussian before the threshold, in px.
_SIGMA_PX = 1.0


def haematoxylin_attention(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return the haematoxylin of an image, scaled so that Otsu's threshold is 0.5.

    `qpnuclei.segmentation.postprocess.segment_instances` with its default parameters, which are the
    paper's, turns the result into the classical segmentation.

    Parameters
    ----------
    rgb : (H, W, 3) uint8 ndarray
        Its stain vectors are estimated by Macenko's method.

    Returns
    -------
    (H, W) float32 ndarray
        0..1, with 1 for the maximum; all 0 in an image of one colour.
    """
    haematoxylin = np.ascontiguousarray(separate(rgb, estimate_macenko(rgb))[..., 0])
    haematoxylin = np.asarray(cv2.GaussianBlur(haematoxylin, (0, 0), _SIGMA_PX), np.float32)
    if np.ptp(haematoxylin) < 1e-6:
        return np.zeros(rgb.shape[:2], np.float32)
    threshold = float(threshold_otsu(haematoxylin))  # type: ignore[no-untyped-call]
    spread = np.float32(max(haematoxylin.max() - threshold, 1e-6))
    scaled = (haematoxylin - np.float32(threshold)) / (2 * spread) + np.float32(0.5)
    return np.asarray(np.clip(scaled, 0, 1), np.float32)


def haematoxylin_nuclei(rgb: npt.NDArray[np.uint8], mpp: float) -> NucleiTable:
    """Find nuclei by their haematoxylin alone.

    Parameters
    ----------
    rgb : (H, W, 3) uint8 ndarray
        Tissue; stain vectors and threshold are estimated on the whole image.
    mpp : float
        Resolution in µm/px. The image is resampled to 0.25, unless it is within 10 % of that.

    Returns
    -------
    NucleiTable
        In px of `rgb`, without measurements.

    Notes
    -----
    Stain vectors by Macenko [1]_, colour deconvolution [2]_, a Gaussian of 1 px, Otsu's threshold
    [3]_ on the whole image, and the post-processing of the paper.

    References
    ----------
    .. [1] Macenko et al.: A method for normalizing histology slides for quantitative analysis.
       ISBI 2009.
    .. [2] Ruifrok, Johnston: Quantification of histochemical staining by color deconvolution.
       Anal. Quant. Cytol. Histol. 23 (2001).
    .. [3] Otsu: A threshold selection method from gray-level histograms. IEEE Trans. SMC 9 (1979).
    """
    x, y = working_downsample((mpp, mpp), _MPP)
    image = ImageInMemory(rgb, (mpp, mpp))
    working = image.read(0, 0, math.ceil(image.width / x), math.ceil(image.height / y), (x, y))
    labels = segment_instances(haematoxylin_attention(working), PostProcessing())
    nuclei, _ = polygonise(labels)
    return NucleiTable(
        nuclei.vertices * np.asarray((x, y), np.float32),
        nuclei.ring_offsets,
        nuclei.polygon_offsets,
    )
