"""The area that outlines share, and which of them outline the same nucleus."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

Outlines = npt.NDArray[Any]
Indices = npt.NDArray[np.int64]


def shared_areas(
    outlines: Outlines, others: Outlines
) -> tuple[Indices, Indices, npt.NDArray[np.float64]]:
    """Return which of N and M outlines intersect, and how much area they share.

    Parameters
    ----------
    outlines, others : (N,) and (M,) object ndarray of valid shapely geometries

    Returns
    -------
    ((K,) int64 ndarray, (K,) int64 ndarray, (K,) float64 ndarray)
        For each pair the indices of both, and the shared area: 0 if they only touch.
    """
    a, b = shapely.STRtree(others).query(outlines, predicate="intersects")
    return a, b, shapely.area(shapely.intersection(outlines[a], others[b]))


def are_same(outlines: Outlines, others: Outlines) -> npt.NDArray[np.bool_]:
    """Tell of each of N pairs of outlines whether they show the same nucleus.

    They do if they share more than half of the area of the smaller one.

    Parameters
    ----------
    outlines, others : (N,) object ndarray of valid shapely geometries
    """
    smaller = np.minimum(shapely.area(outlines), shapely.area(others))
    same: npt.NDArray[np.bool_] = shapely.area(shapely.intersection(outlines, others)) > smaller / 2
    return same


def are_among(outlines: Outlines, others: Outlines) -> npt.NDArray[np.bool_]:
    """Tell which of N outlines show the same nucleus as one of the others (see `are_same`).

    Parameters
    ----------
    outlines, others : (N,) and (M,) object ndarray of valid shapely geometries

    Examples
    --------
    >>> import numpy as np, shapely
    >>> nuclei = np.array([shapely.box(0, 0, 4, 4), shapely.box(3, 0, 7, 4)])
    >>> are_among(nuclei, np.array([shapely.box(1, 1, 3, 9)])).tolist()
    [False, False]
    >>> are_among(nuclei, np.array([shapely.box(1, 1, 3, 4)])).tolist()
    [True, False]
    """
    a, b = shapely.STRtree(others).query(outlines, predicate="intersects")
    found = np.zeros(len(outlines), bool)
    found[a[are_same(outlines[a], others[b])]] = True
    return found


def are_in_place_of(outlines: Outlines, others: shapely.STRtree) -> npt.NDArray[np.bool_]:
    """Return the same as `are_among`, for N outlines that may be invalid and are mostly far away.

    Parameters
    ----------
    outlines : (N,) object ndarray of shapely Polygons
        Only those near others are made valid, because that takes much longer than the query.
    others : STRtree
        Tree of valid geometries.
    """
    near, met = map(np.unique, others.query(outlines))
    found = np.zeros(len(outlines), bool)
    found[near] = are_among(shapely.make_valid(outlines[near]), others.geometries[met])
    return found
