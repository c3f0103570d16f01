"""Replace pixel edges by smooth outlines, without moving a single pixel to another nucleus.

A *gate* is the line between the centres of two 4-neighbours with different labels. An outline along
pixel edges crosses one gate with each of its edges, in the middle. A smooth outline may cross it
elsewhere, but crosses the same gates in the same order, and never at their ends. It follows that:

* Each outline contains the same pixel centres as before.
* Outlines do not cross each other or themselves. In a square between four centres there is one
  outline, or two that cut off opposite corners, or a junction.
* Nuclei that touch share their border. It is smoothed once, as an *arc* between the two junctions
  at its ends. A junction is a corner of pixels at which three or more labels meet.

An outline depends only on the labels at its own pixel edges, and not on the tile.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from qpnuclei.nuclei.run_lengths import IntArray
from qpnuclei.nuclei.table import NucleiTable
from qpnuclei.system.compiled import compiled

FloatArray = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

#: Largest distance of a crossing from the middle of its gate, in px. The ends of a gate are at 0.5;
#: the margin is larger than the rounding of float32.
_REACH = 0.48
#: The smooth position of a pixel edge is fitted to this many edges on each side.
_WINDOW = 5
#: Largest change of the area by an arc, in px² per pixel edge. A region has at most four edges per
#: pixel, so its area changes by at most four times this share.
_AREA_PER_EDGE = 0.0025
#: Number of attempts to move vertices, and to add a vertex where the outline misses a gate.
_ATTEMPTS = 12
#: Weight of the squared distances of left-out points, in squared tolerances, against one vertex.
_WEIGHT = 0.3


def junctions(nuclei: NucleiTable, labels: IntArray, origin: tuple[int, int]) -> IndexArray:
    """Return the points where the outlines of nuclei meet those of two or more others.

    Parameters
    ----------
    nuclei : NucleiTable
        Some or all nuclei that `qpnuclei.nuclei.outlines.polygonise` made of `labels` and `origin`.
    labels : (H, W) int ndarray
    origin : (x, y) of int

    Returns
    -------
    (J, 2) int64 ndarray
        x and y of the corners of pixels that three or more labels share, without duplicates. The
        background is a label, too. Corners where two labels only touch diagonally are left out.
    """
    vertices = np.rint(nuclei.vertices).astype(np.int64)
    found = _junctions(vertices, nuclei.ring_offsets, np.ascontiguousarray(labels), *origin)
    _, first = np.unique(_key(found[:, 0], found[:, 1]), return_index=True)
    return found[first]


def smooth(
    nuclei: NucleiTable,
    junctions: IndexArray,
    tolerance: float,
    image: tuple[float, float, float, float] = (-math.inf, -math.inf, math.inf, math.inf),
) -> NucleiTable:
    """Smooth outlines along pixel edges.

    Parameters
    ----------
    nuclei : NucleiTable
        N nuclei without holes, in px, from `qpnuclei.nuclei.outlines.polygonise`.
    junctions : (J, 2) int64 ndarray
        x and y of the corners of pixels where outlines meet (see `junctions`); may contain others.
    tolerance : float
        Tolerance for leaving out vertices of the smooth line, in px.
    image : (x0, y0, x1, y1) of float
        Bounds of the image. An outline inside these bounds stays inside.

    Returns
    -------
    NucleiTable
        The same nuclei with smooth, valid outlines. They contain the same pixel centres, do not
        overlap if they did not before, and have the same area up to 1 %. Where an outline cannot
        keep its area, for example at the image border, it keeps its pixel edges.

    Notes
    -----
    The middles of the pixel edges are smoothed by local parabolas [1]_. Of the points where that
    line crosses the gates, the best few are kept [2]_. All of these are moved outwards or inwards
    by the same distance, so that the area equals that of the pixels.

    References
    ----------
    .. [1] Savitzky and Golay: Smoothing and differentiation of data by simplified least squares
       procedures. Analytical Chemistry 36 (1964).
    .. [2] Perez and Vidal: Optimum polygonal approximation of digitized curves. Pattern
       Recognition Letters 15 (1994).
    """
    if tolerance <= 0:
        raise ValueError(f"tolerance must be positive, but is {tolerance!r}")
    if len(nuclei) == 0:
        return nuclei
    vertices = np.rint(nuclei.vertices).astype(np.int64)
    keys = np.sort(_key(junctions[:, 0], junctions[:, 1]))
    smoothed, ring_offsets = _smooth(
        vertices, nuclei.ring_offsets, keys, float(tolerance), np.array(image, np.float64)
    )
    return NucleiTable(
        smoothed.astype(np.float32), ring_offsets, nuclei.polygon_offsets, nuclei.measurements
    )


def _key(x: IndexArray, y: IndexArray) -> IndexArray:
    """Return a unique number for each point."""
    return (y << 32) + x


@compiled
def _edges(ring: IndexArray) -> IndexArray:
    """Return the (n, 2) starts of the n pixel edges of a closed ring."""
    count = 0
    for i in range(len(ring) - 1):
        count += abs(ring[i + 1, 0] - ring[i, 0]) + abs(ring[i + 1, 1] - ring[i, 1])
    points = np.empty((count, 2), np.int64)
    at = 0
    for i in range(len(ring) - 1):
        dx, dy = ring[i + 1, 0] - ring[i, 0], ring[i + 1, 1] - ring[i, 1]
        length = abs(dx) + abs(dy)
        for step in range(length):
            points[at, 0] = ring[i, 0] + dx // length * step
            points[at, 1] = ring[i, 1] + dy // length * step
            at += 1
    return points


@compiled
def _junctions(
    vertices: IndexArray, ring_offsets: IndexArray, labels: IntArray, x0: int, y0: int
) -> IndexArray:
    """Return the junctions of rings; one that several rings share occurs several times."""
    height, width = labels.shape
    found = [(0, 0) for _ in range(0)]
    for ring in range(len(ring_offsets) - 1):
        points = _edges(vertices[ring_offsets[ring] : ring_offsets[ring + 1]])
        for i in range(len(points)):
            x, y = points[i, 0], points[i, 1]
            row, column = y - y0, x - x0
            up, down, left, right = row > 0, row < height, column > 0, column < width
            a = labels[row - 1, column - 1] if up and left else 0
            b = labels[row - 1, column] if up and right else 0
            c = labels[row, column - 1] if down and left else 0
            d = labels[row, column] if down and right else 0
            # With only two labels, there are two changes around the corner, or diagonals are equal.
            edges = int(a != b) + int(b != d) + int(d != c) + int(c != a)
            if edges > 2 and not (a == d or b == c):
                found.append((x, y))
    points = np.empty((len(found), 2), np.int64)
    for i, (x, y) in enumerate(found):
        points[i, 0], points[i, 1] = x, y
    return points


@compiled
def _smooth(
    vertices: IndexArray,
    ring_offsets: IndexArray,
    keys: IndexArray,
    tolerance: float,
    image: FloatArray,
) -> tuple[FloatArray, IndexArray]:
    """Smooth rings, divided into arcs at the junctions with the given sorted keys."""
    total = len(vertices)
    for i in range(len(vertices) - 1):
        total += abs(vertices[i + 1, 0] - vertices[i, 0]) + abs(vertices[i + 1, 1] - vertices[i, 1])
    smoothed = np.empty((total, 2))
    offsets = np.zeros(len(ring_offsets), np.int64)
    size = 0
    for ring in range(len(ring_offsets) - 1):
        points = _edges(vertices[ring_offsets[ring] : ring_offsets[ring + 1]])
        count = len(points)
        cuts = np.empty(count, np.int64)
        n_cuts = 0
        for i in range(count):
            key = (points[i, 1] << 32) + points[i, 0]
            at = np.searchsorted(keys, key)
            if at < len(keys) and keys[at] == key:
                cuts[n_cuts] = i
                n_cuts += 1
        first = size
        if n_cuts == 0:
            arc = np.empty((count + 1, 2), np.int64)
            start = _farthest(points)
            for i in range(count + 1):
                arc[i] = points[(start + i) % count]
            of_arc = _smooth_arc(arc, True, tolerance, image)
            smoothed[size : size + len(of_arc) - 1] = of_arc[:-1]
            size += len(of_arc) - 1
        for cut in range(n_cuts):
            start, stop = cuts[cut], cuts[(cut + 1) % n_cuts]
            if stop <= start:
                stop += count
            arc = np.empty((stop - start + 1, 2), np.int64)
            for i in range(len(arc)):
                arc[i] = points[(start + i) % count]
            # Both nuclei that share the arc must get the same result, bit for bit.
            last = len(arc) - 1
            turned = (arc[last, 1], arc[last, 0]) < (arc[0, 1], arc[0, 0])
            if turned:
                arc = arc[::-1].copy()
            of_arc = _smooth_arc(arc, False, tolerance, image)
            if turned:
                of_arc = of_arc[::-1]
            smoothed[size : size + len(of_arc) - 1] = of_arc[:-1]
            size += len(of_arc) - 1
        smoothed[size] = smoothed[first]
        size += 1
        offsets[ring + 1] = size
    return smoothed[:size], offsets


@compiled
def _farthest(points: IndexArray) -> int:
    """Return the index of the point farthest from the first one: a good place for a vertex."""
    farthest, at = -1, 0
    for i in range(len(points)):
        dx, dy = points[i, 0] - points[0, 0], points[i, 1] - points[0, 1]
        if dx * dx + dy * dy > farthest:
            farthest, at = dx * dx + dy * dy, i
    return at


@compiled
def _smooth_arc(
    points: IndexArray, closed: bool, tolerance: float, image: FloatArray
) -> FloatArray:
    """Smooth the arc along n pixel edges, from the first of (n + 1, 2) points to the last.

    An open arc keeps its ends. A closed arc, with equal ends, may move them.
    """
    n = len(points) - 1
    # The path consists of the points where the gates are crossed, at `middle + offset * normal`. An
    # open arc also has its two ends; a closed one has its first point again at the end.
    size = n + 1 if closed else n + 2
    shift = 0 if closed else 1
    middle, normal = np.empty((n, 2)), np.empty((n, 2))
    low, high = np.full(n, -_REACH), np.full(n, _REACH)
    for i in range(n):
        # Relative to the first point, so that the result does not depend on the arc's position.
        for axis in range(2):
            here, there = points[i, axis] - points[0, axis], points[i + 1, axis] - points[0, axis]
            middle[i, axis] = (here + there) / 2
            normal[i, 1 - axis] = (there - here) * (1 if axis == 0 else -1)
        for axis in range(2):
            if normal[i, axis] != 0:
                # At the border of the image, nothing moves outwards.
                at = points[i, axis]
                if at <= image[axis]:
                    low[i], high[i] = _inwards(low[i], high[i], normal[i, axis] > 0)
                if at >= image[axis + 2]:
                    low[i], high[i] = _inwards(low[i], high[i], normal[i, axis] < 0)
    wanted = _wanted_offsets(points, middle, normal, low, high, closed)
    path = np.empty((size, 2))
    path[0] = 0.0
    for axis in range(2):
        path[size - 1, axis] = points[n, axis] - points[0, axis]
    for i in range(n):
        path[i + shift] = middle[i] + wanted[i] * normal[i]
    if closed:
        path[n] = path[0]
    kept = _few(path, middle, normal, low, high, shift, tolerance)
    offset = wanted.copy()
    area = _area_of_edges(points)
    moved = 0.0
    for _ in range(_ATTEMPTS):
        chosen = np.flatnonzero(kept)
        # Newton's method: the area is a polynomial of the distance that the vertices have moved.
        rest = np.inf
        for _ in range(4):
            for k in chosen:
                gate = k - shift
                if gate >= 0 and gate < n:
                    offset[gate] = min(max(wanted[gate] + moved, low[gate]), high[gate])
                    path[k] = middle[gate] + offset[gate] * normal[gate]
            if closed:
                path[n] = path[0]
            rest = area - _area_of_path(path, chosen)
            slope = 0.0
            for j in range(len(chosen) - 1):
                k = chosen[j]
                gate = k - shift
                if gate < 0 or gate >= n:
                    continue
                before = chosen[j - 1] if j > 0 else chosen[len(chosen) - 2]
                behind = chosen[j + 1]
                if offset[gate] == wanted[gate] + moved:
                    slope += normal[gate, 0] * (path[behind, 1] - path[before, 1]) / 2
                    slope += normal[gate, 1] * (path[before, 0] - path[behind, 0]) / 2
            if abs(rest) <= 1e-9 * n or slope == 0:
                break
            moved = min(max(moved + rest / slope, -1.0), 1.0)
        missed = _add_where_missed(path, kept, middle, normal, low, high, shift)
        if not missed and abs(rest) <= _AREA_PER_EDGE * n:
            chosen = np.flatnonzero(kept)
            found = path[chosen]
            for axis in range(2):
                found[:, axis] += points[0, axis]
            return found
        if not missed:
            if kept.all():
                break
            kept[:] = True
    return _pixel_edges(points)


@compiled
def _inwards(low: float, high: float, rising: bool) -> tuple[float, float]:
    """Return the limits without the part on one side of the middle of a gate."""
    if rising:
        return max(low, 0.0), high
    return low, min(high, 0.0)


@compiled
def _wanted_offsets(
    points: IndexArray,
    middle: FloatArray,
    normal: FloatArray,
    low: FloatArray,
    high: FloatArray,
    closed: bool,
) -> FloatArray:
    """Return where a smooth line through the middles of pixel edges crosses the gates.

    Beyond its ends, an open arc is continued by point reflection.
    """
    n = len(middle)
    h = min(_WINDOW, n // 6 if closed else n // 2)
    around = np.empty((n + 2 * h, 2))
    for j in range(-h, n + h):
        for axis in range(2):
            if 0 <= j < n:
                around[j + h, axis] = middle[j, axis]
            elif closed:
                around[j + h, axis] = middle[j % n, axis]
            elif j < 0:
                around[j + h, axis] = -middle[-1 - j, axis]
            else:
                end = points[n, axis] - points[0, axis]
                around[j + h, axis] = 2 * end - middle[2 * n - 1 - j, axis]
    weights = np.empty(2 * h + 1)
    for k in range(-h, h + 1):
        scale = (2 * h - 1) * (2 * h + 1) * (2 * h + 3)
        weights[k + h] = (3 * (3 * h * h + 3 * h - 1) - 15 * k * k) / scale
    wanted = np.empty(n)
    for i in range(n):
        axis = 0 if normal[i, 0] != 0 else 1
        total = 0.0
        for k in range(2 * h + 1):
            total += weights[k] * (around[i + k, axis] - middle[i, axis])
        wanted[i] = min(max(total * normal[i, axis], low[i]), high[i])
    return wanted


@compiled
def _few(
    path: FloatArray,
    middle: FloatArray,
    normal: FloatArray,
    low: FloatArray,
    high: FloatArray,
    shift: int,
    tolerance: float,
) -> BoolArray:
    """Tell which points of a path to keep: few ones near all others, so that no gate is missed.

    The result is the path with the lowest cost from the first point to the last. The cost of each
    straight line is 1 plus the weighted squared distances of the points that it leaves out.
    """
    size = len(path)
    weight = _WEIGHT / (tolerance * tolerance)
    cost, before = np.full(size, np.inf), np.zeros(size, np.int64)
    cost[0] = 0.0
    for a in range(size - 1):
        xa, ya = path[a, 0], path[a, 1]
        # Lines from this point that cross all gates so far lie between these two directions.
        bounded = False
        first_x, first_y, last_x, last_y = 0.0, 0.0, 0.0, 0.0
        xx, xy, yy = 0.0, 0.0, 0.0
        for b in range(a + 1, size):
            x, y = path[b, 0] - xa, path[b, 1] - ya
            if bounded and (first_x * y - first_y * x < 0 or last_x * y - last_y * x > 0):
                feasible = False
            else:
                feasible = True
            square = x * x + y * y
            if feasible and square > 0:
                rest = (xx * y * y - 2 * xy * x * y + yy * x * x) / square
                total = cost[a] + 1.0 + weight * max(rest, 0.0)
                if total < cost[b]:
                    cost[b], before[b] = total, a
            gate = b - shift
            if gate < 0 or gate >= len(middle):
                break
            xx, xy, yy = xx + x * x, xy + x * y, yy + y * y
            # The normal points to the left of the path (with y pointing upwards).
            low_x = middle[gate, 0] + low[gate] * normal[gate, 0] - xa
            low_y = middle[gate, 1] + low[gate] * normal[gate, 1] - ya
            high_x = middle[gate, 0] + high[gate] * normal[gate, 0] - xa
            high_y = middle[gate, 1] + high[gate] * normal[gate, 1] - ya
            if not bounded:
                first_x, first_y, last_x, last_y = low_x, low_y, high_x, high_y
                bounded = True
            else:
                if first_x * low_y - first_y * low_x > 0:
                    first_x, first_y = low_x, low_y
                if last_x * high_y - last_y * high_x < 0:
                    last_x, last_y = high_x, high_y
            if first_x * last_y - first_y * last_x <= 0:
                break
    kept = np.zeros(size, np.bool_)
    at = size - 1
    while at > 0:
        kept[at] = True
        at = before[at]
    kept[0] = True
    return kept


@compiled
def _distance(path: FloatArray, i: int, a: int, b: int) -> float:
    """Return the distance of a point from the line through two others, which may be equal."""
    dx, dy = path[b, 0] - path[a, 0], path[b, 1] - path[a, 1]
    x, y = path[i, 0] - path[a, 0], path[i, 1] - path[a, 1]
    length = math.sqrt(dx * dx + dy * dy)
    if length == 0:
        return math.sqrt(x * x + y * y)
    return float(abs(x * dy - y * dx) / length)


@compiled
def _area_of_edges(points: IndexArray) -> float:
    """Return the signed area between a path along pixel edges and the line between its ends."""
    twice = 0
    for i in range(len(points) - 1):
        x0, y0 = points[i, 0] - points[0, 0], points[i, 1] - points[0, 1]
        x1, y1 = points[i + 1, 0] - points[0, 0], points[i + 1, 1] - points[0, 1]
        twice += x0 * y1 - x1 * y0
    return twice / 2


@compiled
def _area_of_path(path: FloatArray, chosen: IndexArray) -> float:
    """Return the signed area between a path through chosen points and the line between its ends."""
    twice = 0.0
    for j in range(len(chosen) - 1):
        a, b = chosen[j], chosen[j + 1]
        twice += path[a, 0] * path[b, 1] - path[b, 0] * path[a, 1]
    return twice / 2


@compiled
def _add_where_missed(
    path: FloatArray,
    kept: BoolArray,
    middle: FloatArray,
    normal: FloatArray,
    low: FloatArray,
    high: FloatArray,
    shift: int,
) -> bool:
    """Keep one more point, in place, for each line between two kept points that misses a gate."""
    chosen = np.flatnonzero(kept)
    missed = False
    for j in range(len(chosen) - 1):
        a, b = chosen[j], chosen[j + 1]
        worst, at, crossed = 0.0, -1, 0.0
        for k in range(a + 1, b):
            gate = k - shift
            along = 0 if normal[gate, 0] != 0 else 1
            across = 1 - along
            length = path[b, across] - path[a, across]
            share = -1.0
            if length != 0:
                share = (middle[gate, across] - path[a, across]) / length
            if share <= crossed or share >= 1:
                # A gate that is not crossed, or in the wrong order, needs a vertex.
                beyond = 1.0 + _distance(path, k, a, b)
            else:
                crossed = share
                position = path[a, along] + share * (path[b, along] - path[a, along])
                offset = (position - middle[gate, along]) * normal[gate, along]
                beyond = max(low[gate] - offset, offset - high[gate])
            if beyond > worst:
                worst, at = beyond, k
        if at >= 0:
            kept[at] = True
            missed = True
    return missed


@compiled
def _pixel_edges(points: IndexArray) -> FloatArray:
    """Return the ends of an arc, and the points where its pixel edges turn."""
    corners = np.empty((len(points), 2))
    size = 0
    for i in range(len(points)):
        inner = i > 0 and i < len(points) - 1
        if (
            inner
            and points[i + 1, 0] - points[i, 0] == points[i, 0] - points[i - 1, 0]
            and points[i + 1, 1] - points[i, 1] == points[i, 1] - points[i - 1, 1]
        ):
            continue
        corners[size, 0], corners[size, 1] = points[i, 0], points[i, 1]
        size += 1
    return corners[:size]
