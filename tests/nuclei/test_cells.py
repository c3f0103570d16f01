"""Outlines of cells around nuclei."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from qpnuclei.nuclei.cells import cell_outlines, reach_um
from qpnuclei.nuclei.outlines import polygonise
from qpnuclei.nuclei.smoothing import junctions, smooth
from qpnuclei.nuclei.table import NucleiTable
from tests.nuclei.test_smoothing import without_pinches

SIZE = (100, 80)
#: Areas in px², of what float32 rounds away.
ROUNDING = 0.01

Polygons = npt.NDArray[Any]


def scattered(seed: int, count: int) -> NucleiTable:
    """Return discs in an image of 100 x 80 px that touch each other and its border, smooth."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(SIZE[::-1], np.int32)
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    for label in range(1, count + 1):
        cx, cy = rng.uniform(0, SIZE)
        disc = np.hypot(x - cx, (y - cy) * rng.uniform(0.6, 1.6)) < rng.uniform(3, 9)
        parts, _ = ndimage.label(disc & (labels == 0))
        sizes = np.bincount(parts.ravel())[1:]
        if sizes.size and sizes.max() >= 9:
            labels[parts == 1 + sizes.argmax()] = label
    labels = without_pinches(labels)
    outlines, _ = polygonise(labels, (0, 0))
    image = (0.0, 0.0, *map(float, SIZE))
    return smooth(outlines, junctions(outlines, labels, (0, 0)), 0.1, image)


def cells_of(
    nuclei: NucleiTable,
    distance: float,
    mpp: tuple[float, float] = (1.0, 1.0),
    others: NucleiTable | None = None,
) -> Polygons:
    others = NucleiTable.empty() if others is None else others
    return cell_outlines(nuclei, others, distance, mpp, SIZE).polygons()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.floats(0.5, 12), st.floats(1, 6))
def test_cells_hold_their_nuclei_and_do_not_overlap(
    seed: int, count: int, distance: float, more: float
) -> None:
    table = scattered(seed, count)
    nuclei, cells = table.polygons(), cells_of(table, distance)
    assert len(cells) == len(nuclei)
    assert shapely.is_valid(cells).all()
    assert (shapely.get_type_id(cells) == shapely.GeometryType.POLYGON).all()
    assert shapely.area(shapely.difference(nuclei, cells)).max(initial=0) < ROUNDING
    one, other = shapely.STRtree(cells).query(cells)
    apart = one != other
    for them in (cells, nuclei):
        shared = shapely.intersection(cells[one[apart]], them[other[apart]])
        assert shapely.area(shared).max(initial=0) < ROUNDING
    # A longer distance takes nothing away, and none reaches farther.
    larger = cells_of(table, distance + more)
    assert shapely.area(shapely.difference(cells, larger)).max(initial=0) < 0.1
    beyond = shapely.difference(cells, shapely.buffer(nuclei, distance + 0.01, quad_segs=32))
    assert shapely.area(beyond).max(initial=0) < ROUNDING


@pytest.mark.parametrize("mpp", [(1.0, 1.0), (0.5, 0.25)])
@pytest.mark.parametrize("seed", range(3))
def test_every_point_is_in_the_cell_of_the_nearest_nucleus(
    seed: int, mpp: tuple[float, float]
) -> None:
    """Exact distances are the reference."""
    table, distance = scattered(seed, 35), 6 * min(mpp)
    cells = cells_of(table, distance, mpp)
    x, y = (np.arange(size) + 0.5 for size in SIZE)
    points = shapely.points(*(axis.ravel() for axis in np.meshgrid(x, y)))
    found = np.full(len(points), -1)
    inside, cell = shapely.STRtree(cells).query(points, predicate="intersects")
    found[inside] = cell
    scaled = shapely.transform(table.polygons(), lambda xy: xy * mpp)
    places = shapely.transform(points, lambda xy: xy * mpp)
    away = shapely.distance(places[:, None], scaled[None])
    order = np.sort(away, axis=1)
    expected = np.where(order[:, 0] <= distance, away.argmin(axis=1), -1)
    # Borders are those of points at most 0.5 µm apart, arcs have corners.
    is_clear = (order[:, 1] - order[:, 0] > 0.25) & (np.abs(order[:, 0] - distance) > 0.05)
    is_clear |= order[:, 0] == 0
    assert 0.6 < is_clear.mean() < 1
    assert len(np.unique(expected)) > 20
    np.testing.assert_array_equal(found[is_clear], expected[is_clear])


def test_nuclei_of_other_tables_bound_cells_as_those_of_the_same() -> None:
    table = scattered(4, 40)
    whole = cells_of(table, 5)
    rows = np.arange(len(table))
    for half in (rows % 2 == 0, rows % 2 == 1):
        part = cells_of(table.take(half), 5, others=table.take(~half))
        assert shapely.area(shapely.symmetric_difference(part, whole[half])).max() < ROUNDING


def test_nuclei_beyond_the_reach_of_a_cell_change_nothing() -> None:
    table = scattered(7, 60)
    some = shapely.area(table.polygons()).argsort()[-5:]
    apart = shapely.distance(table.take(some).polygons()[:, None], table.polygons()).min(axis=0)
    near = np.setdiff1d(np.flatnonzero(apart <= reach_um(4)), some)
    others = np.setdiff1d(np.arange(len(table)), some)
    assert 0 < len(near) < len(others)
    chosen = table.take(some)
    expected, found = (cells_of(chosen, 4, others=table.take(rows)) for rows in (near, others))
    assert (shapely.to_wkb(found) == shapely.to_wkb(expected)).all()


def test_a_nucleus_alone_has_a_round_cell_and_one_in_another_stays_in_a_hole() -> None:
    alone = NucleiTable.from_polygons([shapely.box(40, 30, 44, 36)])
    (cell,) = cells_of(alone, 8)
    assert cell.area == pytest.approx(24 + 2 * 8 * (4 + 6) + np.pi * 64, rel=0.005)
    assert cells_of(NucleiTable.empty(), 8).tolist() == []
    # At the border of the image the cell ends.
    (cell,) = cells_of(NucleiTable.from_polygons([shapely.box(0, 30, 4, 36)]), 8)
    assert cell.bounds == (0, 22, 12, 44)
    ring = shapely.Polygon(
        [(20, 20), (60, 20), (60, 60), (20, 60), (20, 42), (25, 42), (25, 55), (55, 55), (55, 25),
         (25, 25), (25, 38), (20, 38)]
    )  # fmt: skip
    outer, inner = cells_of(NucleiTable.from_polygons([ring, shapely.box(38, 38, 42, 42)]), 20)
    assert len(outer.interiors) == 1
    assert shapely.area(shapely.intersection(outer, inner)) < ROUNDING
    assert shapely.Polygon(outer.interiors[0]).symmetric_difference(inner).area < 1
    # Half way between both: from 25 to 38.
    assert inner.bounds[0] == pytest.approx(31.5, abs=0.2)
