"""Find nuclei that are counted twice: of another program or of another run on the same nucleus."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import shapely

from qpnuclei.nuclei.overlap import are_among, are_same
from qpnuclei.qupath.areas import valid_areas
from qpnuclei.qupath.class_counts import Classes
from qpnuclei.qupath.model import Detections


@dataclass(frozen=True, eq=False)
class RepeatedNuclei:
    """Which of N detections show a nucleus that another detection shows, too.

    Two nuclei are the same if their outlines share more than half of the smaller area.

    Parameters
    ----------
    of_others : (N,) bool ndarray
        Nuclei of other programs that are the same as one of qpnuclei's.
    of_runs : (N,) bool ndarray
        Nuclei of qpnuclei that are the same as an earlier one in the file, which another run found.
    """

    of_others: npt.NDArray[np.bool_]
    of_runs: npt.NDArray[np.bool_]

    @classmethod
    def among(cls, detections: Detections, classes: Classes) -> Self:
        """Find them among N detections, of which `classes` says which count as nuclei."""
        others, ours = classes.nuclei & ~classes.ours, classes.nuclei & classes.ours
        of_others, of_runs = np.zeros(len(detections), bool), np.zeros(len(detections), bool)
        for plane in np.unique(detections.planes[ours], axis=0):
            on_plane = (detections.planes == plane).all(axis=1)
            rows = np.flatnonzero(ours & on_plane)
            of_runs[rows] = _of_runs(detections, rows)
            foreign = np.flatnonzero(others & on_plane)
            of_others[foreign] = _of_others(detections, foreign, rows)
        return cls(of_others, of_runs)

    def note(self, rows: npt.NDArray[np.int64]) -> str:
        """Return a note on the number of repeated nuclei among some detections; empty for none."""
        number = int(np.count_nonzero(self.of_others[rows]))
        again = int(np.count_nonzero(self.of_runs[rows]))
        parts = [f"nuclei of other programs on nuclei of qpnuclei ({number})"] if number else []
        parts += [f"nuclei of qpnuclei on those of another run ({again})"] if again else []
        return f"counted twice: {', '.join(parts)}" if parts else ""


def _of_others(
    detections: Detections, others: npt.NDArray[np.int64], ours: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    repeated = np.zeros(len(others), bool)
    if not len(others):
        return repeated
    outlines = detections.nucleus_geometries
    others_with = np.flatnonzero(_is_finite(outlines[others]))
    ours = ours[_is_finite(outlines[ours])]
    # Only outlines that may intersect are made valid, because that takes longest.
    tree = shapely.STRtree(outlines[others[others_with]])
    met, meets = map(np.unique, tree.query(outlines[ours]))
    near = others_with[meets]
    repeated[near] = are_among(
        valid_areas(outlines[others[near]]), valid_areas(outlines[ours[met]])
    )
    return repeated


def _of_runs(detections: Detections, ours: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    repeated = np.zeros(len(ours), bool)
    outlines = detections.nucleus_geometries[ours]
    rows = np.flatnonzero(_is_finite(outlines))
    later, earlier = _pairs_to_compare(outlines[rows])
    is_repeated = are_same(valid_areas(outlines[rows[later]]), valid_areas(outlines[rows[earlier]]))
    repeated[rows[later[is_repeated]]] = True
    return repeated


def _pairs_to_compare(
    outlines: npt.NDArray[np.object_],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the pairs of finite outlines that may share more than half of the smaller area.

    Their bounding boxes do. Nuclei of one run touch, but their boxes rarely share so much, so that
    few outlines are intersected: that would take longest.

    Returns
    -------
    ((K,) int64 ndarray, (K,) int64 ndarray)
        For each pair the indices of the later and the earlier outline.
    """
    later, earlier = shapely.STRtree(outlines).query(outlines)
    is_pair = later > earlier
    later, earlier = later[is_pair], earlier[is_pair]
    bounds, areas = shapely.bounds(outlines), shapely.area(outlines)
    met = np.unique([later, earlier])
    # The computed area of an outline that crosses itself may be too large.
    areas[met[~shapely.is_valid(outlines[met])]] = 0.0
    low = np.maximum(bounds[later, :2], bounds[earlier, :2])
    high = np.minimum(bounds[later, 2:], bounds[earlier, 2:])
    may = np.prod(high - low, axis=1) > np.minimum(areas[later], areas[earlier]) / 2
    return later[may], earlier[may]


def _is_finite(outlines: npt.NDArray[np.object_]) -> npt.NDArray[np.bool_]:
    """Tell which outlines have finite coordinates; the others have no area."""
    finite: npt.NDArray[np.bool_] = np.isfinite(shapely.bounds(outlines)).all(axis=1)
    return finite
