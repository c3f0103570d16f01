"""Nuclei that are counted twice: of another program, on one that qpnuclei wrote."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import shapely

from qpnuclei.nuclei.overlap import are_among
from qpnuclei.qupath.areas import valid_areas
from qpnuclei.qupath.classes import Classes
from qpnuclei.qupath.model import Detections


def repeated_nuclei(detections: Detections, classes: Classes) -> npt.NDArray[np.bool_]:
    """Tell which nuclei of other programs lie on one that qpnuclei wrote: it is counted twice.

    Parameters
    ----------
    detections : Detections
        N of them.
    classes : Classes
        What counts as a nucleus.

    Returns
    -------
    (N,) bool ndarray
        Those that share more than half of the smaller of the two with one of qpnuclei's.
    """
    repeated = np.zeros(len(detections), bool)
    others, ours = classes.nuclei & ~classes.ours, classes.nuclei & classes.ours
    if not others.any() or not ours.any():
        return repeated  # outlines cost more than UUIDs
    outlines = detections.nucleus_geometries
    is_finite = np.isfinite(shapely.bounds(outlines)).all(axis=1)  # others have no area
    for plane in np.unique(detections.planes[others], axis=0):
        here = is_finite & (detections.planes == plane).all(axis=1)
        of_others, of_ours = np.flatnonzero(here & others), np.flatnonzero(here & ours)
        # Valid areas are made only of those that may meet: of most, that takes longest.
        met, meets = map(np.unique, shapely.STRtree(outlines[of_others]).query(outlines[of_ours]))
        rows = of_others[meets]
        repeated[rows] = are_among(valid_areas(outlines[rows]), valid_areas(outlines[of_ours[met]]))
    return repeated


def note_of_repeated(number: int) -> str:
    """Return what to say of so many of them; empty for none."""
    if not number:
        return ""
    return f"counted twice: nuclei of other programs on nuclei of qpnuclei ({number})"
