"""Compare the nuclei of neighbouring tiles by the area that their outlines have in common.

Outlines follow pixel edges, so that area is a sum over vertical edges, computed in compiled loops.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from qpnuclei.nuclei.outlines import bounds
from qpnuclei.nuclei.table import NucleiTable
from qpnuclei.system.compiled import compiled
from qpnuclei.tiling.box import Box

FloatArray = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.int64]

#: Two outlines show the same nucleus if they share more than this part of the smaller one.
SAME_SHARE = 0.5


@dataclass(frozen=True, eq=False)
class TileOutlines:
    """Nuclei of a tile, with the data for comparing them."""

    nuclei: NucleiTable

    @cached_property
    def boxes(self) -> FloatArray:
        """(N, 4) bounding boxes."""
        return bounds(self.nuclei)

    @cached_property
    def hull(self) -> FloatArray:
        """The box around all of them."""
        return _hull(self.boxes)

    @cached_property
    def areas(self) -> FloatArray:
        """(N,) areas."""
        if len(self.nuclei) == 0:
            return np.empty(0)
        starts, stops = self.exteriors
        x, y = self.nuclei.vertices.T.astype(np.float64)
        strips = np.append(x[:-1] * np.diff(y), 0)
        strips[stops] = 0  # from the end of one outline to the start of the next
        return np.abs(np.add.reduceat(strips, starts))

    @cached_property
    def exteriors(self) -> tuple[IndexArray, IndexArray]:
        """First and last vertex of each outline."""
        rings, ring_offsets = self.nuclei.polygon_offsets[:-1], self.nuclei.ring_offsets
        return ring_offsets[rings], ring_offsets[rings + 1] - 1


def overlaps(
    a: TileOutlines, b: TileOutlines, rows: IndexArray | None = None
) -> tuple[IndexArray, IndexArray, FloatArray]:
    """Return the pairs of rows of `a` and `b` whose boxes overlap, and their common area.

    If rows of `b` are given, only those are compared.
    """
    near = meets(b.boxes if rows is None else b.boxes[rows], a.hull)
    theirs = np.flatnonzero(near) if rows is None else rows[near]
    mine = np.flatnonzero(meets(a.boxes, _hull(b.boxes[theirs])))
    first, second = np.nonzero(meets(a.boxes[mine, None], b.boxes[theirs].T))
    first, second = mine[first], theirs[second]
    common = _areas_in_common(
        a.nuclei.vertices, *a.exteriors, first, b.nuclei.vertices, *b.exteriors, second
    )
    return first, second, common


@compiled
def _areas_in_common(
    a: npt.NDArray[np.float32],
    a_starts: IndexArray,
    a_stops: IndexArray,
    first: IndexArray,
    b: npt.NDArray[np.float32],
    b_starts: IndexArray,
    b_stops: IndexArray,
    second: IndexArray,
) -> FloatArray:
    """Return the area in common of rings ``first[k]`` of a and ``second[k]`` of b.

    Both run along pixel edges. In every pixel row, a ring's indicator function is a sum of step
    functions, from 1 to 0 at each vertical edge, with the sign of the edge's direction. The product
    of two such steps ends at the edge farther left.
    """
    common = np.empty(len(first))
    for pair in range(len(first)):
        area = 0.0
        for i in range(a_starts[first[pair]], a_stops[first[pair]]):
            x, y0, y1 = np.float64(a[i, 0]), a[i, 1], a[i + 1, 1]
            if y0 == y1:
                continue
            for j in range(b_starts[second[pair]], b_stops[second[pair]]):
                v0, v1 = b[j, 1], b[j + 1, 1]
                height = min(max(y0, y1), max(v0, v1)) - max(min(y0, y1), min(v0, v1))
                if height > 0:
                    width = min(x, b[j, 0])
                    area += height * width if (y1 > y0) == (v1 > v0) else -height * width
        common[pair] = abs(area)
    return common


def _hull(boxes: FloatArray) -> FloatArray:
    """Return the bounding box of boxes; one that intersects nothing if there are none."""
    low = boxes[:, :2].min(axis=0, initial=np.inf)
    high = boxes[:, 2:].max(axis=0, initial=-np.inf)
    return np.concatenate([low, high])


def meets(boxes: FloatArray, other: Box | FloatArray) -> npt.NDArray[np.bool_]:
    """Return which boxes overlap another one: x0, y0, x1, y1, or an array of each."""
    x0, y0, x1, y1 = other
    meets: npt.NDArray[np.bool_] = (
        (boxes[..., 0] < x1) & (boxes[..., 2] > x0) & (boxes[..., 1] < y1) & (boxes[..., 3] > y0)
    )
    return meets


def within(boxes: FloatArray, other: Box) -> npt.NDArray[np.bool_]:
    """Return which boxes lie inside another one without touching its border."""
    x0, y0, x1, y1 = other
    within: npt.NDArray[np.bool_] = (
        (boxes[:, 0] > x0) & (boxes[:, 2] < x1) & (boxes[:, 1] > y0) & (boxes[:, 3] < y1)
    )
    return within
