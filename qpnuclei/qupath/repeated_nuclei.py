"""Find nuclei that are counted twice: as detections of qpnuclei and of another program."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import shapely

from qpnuclei.nuclei.overlap import are_among
from qpnuclei.qupath.areas import valid_areas
from qpnuclei.qupath.classes import Classes
from qpnuclei.qupath.model import Detections


def repeated_nuclei(detections: Detections, classes: Classes) -> npt.NDArray[np.bool_]:
    """Tell which nuclei of other programs show the same nucleus as a detection of qpnuclei.

    Parameters
    ----------
    detections : Detections
        N detections.
    classes : Classes
        Determines which of them count as nuclei.

    Returns
    -------
    (N,) bool ndarray
        Whether each nucleus shares more than half of the smaller area with one of qpnuclei's.
    """
    repeated = np.zeros(len(detections), bool)
    others, ours = classes.nuclei & ~classes.ours, classes.nuclei & classes.ours
    if not others.any() or not ours.any():
        return repeated  # without reading outlines, which takes longer than UUIDs
    outlines = detections.nucleus_geometries
    is_finite = np.isfinite(shapely.bounds(outlines)).all(axis=1)  # others have no area
    for plane in np.unique(detections.planes[others], axis=0):
        on_plane = is_finite & (detections.planes == plane).all(axis=1)
        of_others, of_ours = np.flatnonzero(on_plane & others), np.flatnonzero(on_plane & ours)
        # Only outlines that may intersect are made valid, because that takes longest.
        met, meets = map(np.unique, shapely.STRtree(outlines[of_others]).query(outlines[of_ours]))
        rows = of_others[meets]
        repeated[rows] = are_among(valid_areas(outlines[rows]), valid_areas(outlines[of_ours[met]]))
    return repeated


def note_of_repeated(number: int) -> str:
    """Return a note on the number of repeated nuclei; empty for none."""
    if not number:
        return ""
    return f"counted twice: nuclei of other programs on nuclei of qpnuclei ({number})"
