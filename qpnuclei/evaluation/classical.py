"""The floor that every learned model must beat: haematoxylin and Otsu's threshold."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
from skimage.filters import threshold_otsu

from qpnuclei.qupath.model import Stains
from qpnuclei.slides.stains import estimate_macenko, separate


def haematoxylin_attention(
    rgb: npt.NDArray[np.uint8], stains: Stains | None = None, *, sigma_px: float = 1.0
) -> npt.NDArray[np.float32]:
    """Return the haematoxylin of an image, scaled so that Otsu's threshold is 0.5.

    With `qpnuclei.segmentation.postprocess.segment_instances` and its default parameters, which
    are the paper's, it makes the classical segmentation.

    Parameters
    ----------
    rgb : (H, W, 3) uint8 ndarray
    stains : Stains, optional
        Stain vectors; estimated on this image by Macenko's method if not given.
    sigma_px : float
        Gaussian before the threshold.

    Returns
    -------
    (H, W) float32 ndarray
        0..1, 1 being the most there is; all 0 in an image of one colour.
    """
    haematoxylin = separate(rgb, stains or estimate_macenko(rgb))[..., 0]
    if sigma_px > 0:
        haematoxylin = np.asarray(
            cv2.GaussianBlur(np.ascontiguousarray(haematoxylin), (0, 0), sigma_px), np.float32
        )
    if np.ptp(haematoxylin) < 1e-6:
        return np.zeros(rgb.shape[:2], np.float32)
    threshold = float(threshold_otsu(haematoxylin))  # type: ignore[no-untyped-call]
    spread = np.float32(max(haematoxylin.max() - threshold, 1e-6))
    scaled = (haematoxylin - np.float32(threshold)) / (2 * spread) + np.float32(0.5)
    return np.asarray(np.clip(scaled, 0, 1), np.float32)
