"""The classical floor: haematoxylin above Otsu's threshold. Nothing is learnt.

A learned model is worth its weights only where it is better than this.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt
from skimage.filters import threshold_otsu

from qpnuclei.nn.metadata import PostProcessing
from qpnuclei.nuclei import NucleiTable
from qpnuclei.segmentation.polygons import polygonise
from qpnuclei.segmentation.postprocess import segment_instances
from qpnuclei.slides.resolution import working_downsample
from qpnuclei.slides.slide import ImageInMemory
from qpnuclei.slides.stains import estimate_macenko, separate

#: How tables and reports call the method.
NAME = "hematoxylin + Otsu"

#: µm/px that the post-processing's radii are meant for.
_MPP = 0.25
_BLUR_SIGMA_PX = 1.0


def hematoxylin_nuclei(
    rgb: npt.NDArray[np.uint8], mpp: float, parameters: PostProcessing | None = None
) -> NucleiTable:
    """Find nuclei by their haematoxylin alone.

    Parameters
    ----------
    rgb : (H, W, 3) uint8 ndarray
        Tissue; stain vectors and threshold are those of all of it.
    mpp : float
        Its resolution in µm/px. It is resampled to 0.25, unless it is within 10 %.
    parameters : PostProcessing, optional
        Radii in px of 0.25 µm (its threshold plays no part); by default those of the paper.

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
    density = separate(working, estimate_macenko(working), n_stains=1)[..., 0]
    density = np.asarray(cv2.GaussianBlur(density, (0, 0), _BLUR_SIGMA_PX), np.float32)
    threshold = threshold_otsu(density)  # type: ignore[no-untyped-call]
    foreground = (density > threshold).astype(np.float32)
    labels = segment_instances(foreground, parameters or PostProcessing())
    nuclei, _ = polygonise(labels)
    return NucleiTable(
        nuclei.vertices * np.asarray((x, y), np.float32),
        nuclei.ring_offsets,
        nuclei.polygon_offsets,
    )
