"""Convex hulls of many small sets of points, and their measurements, in compiled loops."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from qpnuclei.system.compiled import compiled

FloatArray = npt.NDArray[np.float64]


@compiled
def measure_hulls(points: FloatArray, counts: npt.NDArray[np.integer]) -> FloatArray:
    """Measure the convex hulls of N sets of points.

    Parameters
    ----------
    points : (P, 2) float64 ndarray
        The sets one after the other, in any order within a set. Points nearer to each other than a
        billionth of the size of their set must be equal.
    counts : (N,) int ndarray
        Number of points of each set.

    Returns
    -------
    (N, 3) float64 ndarray
        Area, diameter of the smallest enclosing circle, and width: the smallest distance between
        two parallel lines that enclose the points. In units of `points` (squared for the area); 0
        for a set without points.
    """
    measured = np.zeros((len(counts), 3))
    stop = 0
    for i, count in enumerate(counts):
        start, stop = stop, stop + count
        if count > 0:
            hull = _convex_hull(points[start:stop])
            measured[i, 0] = _area(hull)
            measured[i, 1] = _enclosing_diameter(hull)
            measured[i, 2] = _width(hull)
    return measured


@compiled
def _convex_hull(points: FloatArray) -> FloatArray:
    """Return the (H, 2) corners of a convex hull; none lies on a line between two others.

    They are in counterclockwise order, with y pointing upwards.

    References
    ----------
    .. [1] Andrew: Another efficient algorithm for convex hulls in two dimensions. Information
       Processing Letters 9 (1979).
    """
    # Of the points with the same x, only the lowest and the highest can be on the hull.
    low, high = np.empty_like(points), np.empty_like(points)
    size = 0
    for i in np.argsort(points[:, 0]):
        x, y = points[i, 0], points[i, 1]
        if size == 0 or x > low[size - 1, 0]:
            low[size, 0] = high[size, 0] = x
            low[size, 1] = high[size, 1] = y
            size += 1
        low[size - 1, 1] = min(low[size - 1, 1], y)
        high[size - 1, 1] = max(high[size - 1, 1], y)
    lower, upper = _chain(low[:size]), _chain(high[:size][::-1].copy())
    # Both chains contain the first (or last) point if it is the only one with that x.
    start = 1 if lower[-1, 1] == upper[0, 1] else 0
    stop = len(upper) - 1 if lower[0, 1] == upper[-1, 1] else len(upper)
    return np.concatenate((lower, upper[start:stop]))


@compiled
def _chain(points: FloatArray) -> FloatArray:
    """Keep the points at which the chain turns left; they are sorted by x, in either order."""
    chain = np.empty_like(points)
    size = 0
    for i in range(len(points)):
        chain[size, 0], chain[size, 1] = points[i, 0], points[i, 1]
        while size > 1 and _cross(chain, size - 1, size, size - 2) <= 0:
            chain[size - 1, 0], chain[size - 1, 1] = chain[size, 0], chain[size, 1]
            size -= 1
        size += 1
    return chain[:size]


@compiled
def _cross(points: FloatArray, corner: int, a: int, b: int) -> float:
    """Return the cross product of the vectors from a corner to two other points."""
    x, y = points[corner, 0], points[corner, 1]
    return float((points[a, 0] - x) * (points[b, 1] - y) - (points[a, 1] - y) * (points[b, 0] - x))


@compiled
def _dot(points: FloatArray, corner: int, a: int, b: int) -> float:
    """Return the dot product of the vectors from a corner to two other points."""
    x, y = points[corner, 0], points[corner, 1]
    return float((points[a, 0] - x) * (points[b, 0] - x) + (points[a, 1] - y) * (points[b, 1] - y))


@compiled
def _area(hull: FloatArray) -> float:
    twice = 0.0
    for i in range(2, len(hull)):
        twice += _cross(hull, 0, i - 1, i)
    return twice / 2


@compiled
def _width(hull: FloatArray) -> float:
    """Return the smallest width; its direction is always perpendicular to an edge."""
    if len(hull) < 3:
        return 0.0
    smallest = np.inf
    for i in range(len(hull)):
        height = 0.0
        for j in range(len(hull)):
            height = max(height, _cross(hull, i - 1, i, j))
        smallest = min(smallest, height / math.sqrt(_dot(hull, i - 1, i, i)))
    return smallest


@compiled
def _enclosing_diameter(hull: FloatArray) -> float:
    """Return the diameter of the smallest circle around the corners of a convex hull.

    Notes
    -----
    Consider the corner from which an edge spans the smallest angle. The circle through this corner
    and both ends of the edge encloses all corners. If the three points form an obtuse triangle, the
    search continues with its longest side instead of the edge. The side grows but the circle does
    not, so this ends.

    References
    ----------
    .. [1] Chrystal: On the problem to construct the minimum circle enclosing n given points in the
       plane. Proceedings of the Edinburgh Mathematical Society 3 (1884).
    """
    a, b = len(hull) - 1, 0
    while True:
        # Find the smallest angle below 90°. The ends of the edge have a dot product of 0. A corner
        # beyond them may lie on its line, although none should: products round differently. Its
        # cotangent is infinite.
        c, cotangent = -1, 0.0
        for i in range(len(hull)):
            cross, dot = abs(_cross(hull, i, a, b)), _dot(hull, i, a, b)
            if dot > cotangent * cross:
                c, cotangent = i, dot / cross
        ab = _dot(hull, a, b, b)
        if c < 0:
            return math.sqrt(ab)
        bc, ca = _dot(hull, b, c, c), _dot(hull, c, a, a)
        if bc > ab + ca:
            a = c
        elif ca > ab + bc:
            b = c
        else:
            return math.sqrt(ab * bc * ca) / abs(_cross(hull, c, a, b))
