from __future__ import annotations

import math

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from qpnuclei.nuclei.table import NucleiTable
from qpnuclei.tiling.box import Box
from qpnuclei.tiling.plan import TilePlan


def test_a_plan_of_two_by_three_tiles_by_hand():
    plan = TilePlan(shapely.box(0, 0, 300, 200), (300, 200), core_size=100, halo=10)
    assert len(plan) == 6
    assert [tile.core[:2] for tile in plan] == [
        (0, 0), (100, 0), (200, 0), (0, 100), (100, 100), (200, 100),
    ]  # fmt: skip
    assert plan[4].extent == Box(90, 90, 210, 210)
    # The view ends where the image ends.
    assert plan[4].view == Box(90, 90, 210, 200)
    assert plan[0].view == Box(0, 0, 110, 110)
    assert [n.index for n in plan.neighbours(plan[0])] == [1, 3, 4]
    assert repr(plan) == "<TilePlan of 6 tiles, cores of up to 100 px, halos of 10 px>"


def test_a_tile_sees_only_what_the_region_in_it_needs():
    # 40 x 30 px of the second tile, which are not on whole pixels.
    roi = shapely.union(shapely.box(0, 0, 90, 100), shapely.box(120.2, 10.5, 159.8, 40.5))
    plan = TilePlan(roi, (300, 200), 100, 10, alignment=8)
    assert [tile.core for tile in plan] == [Box(0, 0, 90, 100), Box(120, 10, 160, 41)]
    assert plan[1].extent == Box(104, 0, 176, 56)
    assert plan[1].view == Box(104, 0, 176, 56)
    # The first tile sees to 112, the second from 104 on; others have no tile.
    assert plan.owner((118, 20, 126, 30), (121, 25)) == 1
    assert plan.owner((114, 20, 124, 30), (119, 25)) == 1
    assert plan.owner((165, 20, 180, 30), (170, 25)) is None
    np.testing.assert_array_equal(plan.answers_for(np.array([[119, 25], [121, 25]])), [False, True])


def test_extents_start_at_multiples_of_the_alignment_whatever_the_origin():
    plan = TilePlan(shapely.box(0, 0, 300, 300), (300, 300), 100, 10, 32, origin=(7, -3))
    for tile in plan:
        assert tile.extent.x0 % 32 == tile.extent.y0 % 32 == 0
        assert tile.extent.width % 32 == tile.extent.height % 32 == 0
        assert tile.extent.x0 <= tile.core.x0 - 10
        assert tile.extent.x1 >= tile.core.x1 + 10
        assert tile.extent.y0 <= tile.core.y0 - 10
        assert tile.extent.y1 >= tile.core.y1 + 10


def test_only_tiles_whose_core_shares_an_area_with_the_region_are_planned():
    # An L; the core at its inner corner and those that it only touches are left out.
    roi = shapely.union(shapely.box(0, 0, 100, 300), shapely.box(0, 200, 300, 300))
    plan = TilePlan(roi, (1000, 1000), 100, 10)
    assert [(tile.row, tile.column) for tile in plan] == [(0, 0), (1, 0), (2, 0), (2, 1), (2, 2)]
    # Parts of the region beyond the image belong to no tile.
    assert len(TilePlan(roi, (100, 250), 100, 10)) == 3
    assert len(TilePlan(shapely.box(2000, 0, 2100, 100), (1000, 1000), 100, 10)) == 0


PLAN = TilePlan(shapely.box(0, 0, 300, 300), (300, 300), core_size=100, halo=10)


@pytest.mark.parametrize(
    ("box", "centroid", "owner"),
    [
        # Cores are half-open: a centroid on the line belongs to the tile right of it.
        ((95, 40, 105, 50), (99.99, 45), 0),
        ((95, 40, 105, 50), (100, 45), 1),
        ((95, 95, 105, 105), (100, 100), 4),
        # It reaches the border of tile 0's view (110), but lies strictly inside tile 1's (90).
        ((91, 40, 110, 50), (99, 45), 1),
        # At the border of both views: no tile sees it whole.
        ((90, 40, 110, 50), (99, 45), None),
        # The border of the image cuts nothing that could be seen elsewhere.
        ((0, 0, 50, 50), (25, 25), 0),
        ((200, 200, 300, 300), (250, 250), 8),
        # Its centroid lies in tile 4, but only tile 3 sees its left end.
        ((60, 140, 109, 150), (101, 145), 3),
    ],
)
def test_owner(box, centroid, owner):
    assert PLAN.owner(box, centroid) == owner


def test_outside_of_all_cores_the_first_tile_that_sees_it_whole_owns_it():
    plan = TilePlan(shapely.box(100, 100, 300, 200), (400, 400), 100, 20)
    assert len(plan) == 2
    assert plan.owner((185, 205, 195, 215), (190, 210)) == 0
    assert plan.owner((205, 205, 218, 215), (212, 210)) == 0
    assert plan.owner((205, 205, 222, 215), (214, 210)) == 1
    assert plan.owner((305, 150, 315, 160), (310, 155)) == 1
    assert plan.owner((330, 150, 340, 160), (335, 155)) is None


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    number=st.integers(1, 40),
    core=st.integers(20, 60),
    origin=st.tuples(st.integers(-90, 90), st.integers(-90, 90)),
    margin=st.integers(0, 3),
)
def test_the_core_of_a_tile_is_what_a_region_of_many_parts_has_in_its_square(
    seed: int, number: int, core: int, origin: tuple[int, int], margin: int
) -> None:
    rng = np.random.default_rng(seed)
    low = rng.uniform(-20, 150, (number, 2))
    # Some lie on the lines of the grid.
    low[::3] = np.round(low[::3])
    high = low + rng.choice([0.5, 7, 20, 45], (number, 2))
    roi = shapely.union_all(shapely.box(*low.T, *high.T))
    size = np.array([130, 110])
    plan = TilePlan(roi, (130, 110), core, 5, 1, origin, margin)
    assert plan.roi.symmetric_difference(roi & shapely.box(0, 0, *size)).area < 1e-9
    meet = ((low <= size) & (high >= 0)).all(axis=1)
    low, high = np.clip(low[meet], 0, size), np.clip(high[meet], 0, size)
    solid = (low < high).all(axis=1)
    start, end = np.maximum(low - margin, 0), np.minimum(high + margin, size)
    grown = shapely.union_all(shapely.box(*start[solid].T, *end[solid].T))
    cores = shapely.union_all([tile.core.polygon() for tile in plan])
    assert shapely.difference(grown, cores).area < 1e-9
    for tile in plan:
        square = (np.array(tile.core[:2]) - origin) // core * core + origin
        near = (low <= square + core + margin) & (high >= square - margin)
        rows = near.all(axis=1)
        x0, y0 = np.clip(start[rows], square, square + core).min(axis=0)
        x1, y1 = np.clip(end[rows], square, square + core).max(axis=0)
        assert tile.core == Box(math.floor(x0), math.floor(y0), math.ceil(x1), math.ceil(y1))


def naive_owner(plan, box, centroid):
    def sees(tile):
        width, height = plan.image_size
        view = tile.view
        return (
            (box[0] > view.x0 or view.x0 == 0)
            and (box[1] > view.y0 or view.y0 == 0)
            and (box[2] < view.x1 or view.x1 == width)
            and (box[3] < view.y1 or view.y1 == height)
        )

    for tile in plan:
        core = tile.core
        inside = core.x0 <= centroid[0] < core.x1 and core.y0 <= centroid[1] < core.y1
        if inside and sees(tile):
            return tile.index
    return next((tile.index for tile in plan if sees(tile)), None)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    core=st.integers(20, 60),
    halo=st.integers(1, 40),
    alignment=st.sampled_from([1, 8]),
    origin=st.tuples(st.integers(-90, 90), st.integers(-90, 90)),
)
def test_owner_by_its_definition(seed, core, halo, alignment, origin):
    rng = np.random.default_rng(seed)
    roi = shapely.convex_hull(shapely.multipoints(rng.uniform(-20, 150, (4, 2))))
    plan = TilePlan(roi, (130, 110), core, halo, alignment, origin)
    low = rng.integers([0, 0], [130, 110], (30, 2))
    high = np.minimum(low + rng.integers(1, 50, (30, 2)), [130, 110])
    boxes = np.concatenate([low, high], axis=1).astype(float)
    centroids = low + rng.random((30, 2)) * (high - low)
    centroids[:10] = np.round(centroids[:10])
    owners = plan.owners(boxes, centroids)
    for box, centroid, owner in zip(boxes, centroids, owners.tolist(), strict=True):
        expected = naive_owner(plan, box, centroid)
        assert (None if owner < 0 else owner) == expected
    inside = [
        any(t.core.x0 <= x < t.core.x1 and t.core.y0 <= y < t.core.y1 for t in plan)
        for x, y in centroids
    ]
    np.testing.assert_array_equal(plan.answers_for(centroids), inside)
    for tile in plan:
        overlap = [
            n.index
            for n in plan
            if n is not tile and shapely.area(n.view.polygon() & tile.view.polygon()) > 0
        ]
        assert [n.index for n in plan.neighbours(tile)] == overlap


def test_divide_tells_own_from_cut_from_others():
    nuclei = NucleiTable.from_polygons(
        [
            shapely.box(20, 20, 30, 30),  # in the core
            shapely.box(0, 50, 10, 60),  # at the border of the image: whole
            shapely.box(101, 20, 108, 30),  # in the halo: tile 1 owns it
            shapely.box(101, 50, 110, 60),  # cut by the border of the view
        ]
    )
    own, cut = PLAN.divide(PLAN[0], nuclei)
    assert own.tolist() == [0, 1]
    assert cut.tolist() == [3]
    own, cut = PLAN.divide(PLAN[0], NucleiTable.empty())
    assert own.size == cut.size == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"core_size": 0}, "core_size must be at least 1, but is 0"),
        ({"halo": 0}, "halo must be at least 1"),
        ({"alignment": -2}, "alignment must be at least 1"),
        ({"image_size": (0, 5)}, "image width must be at least 1"),
    ],
)
def test_sizes_are_checked(change, message):
    arguments = {"image_size": (10, 10), "core_size": 5, "halo": 1, "alignment": 1} | change
    with pytest.raises(ValueError, match=message):
        TilePlan(shapely.box(0, 0, 10, 10), **arguments)


def test_new_parts_of_a_grid_by_hand():
    plan = TilePlan(shapely.box(100, 100, 300, 300), (400, 400), 100, 10)
    # The first sees 90..210; the others what lies right of, and below, what was seen before.
    assert plan.new_parts() == [
        Box(90, 90, 210, 210),
        Box(210, 90, 310, 210),
        Box(90, 210, 210, 310),
        Box(210, 210, 310, 310),
    ]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    core=st.integers(20, 60),
    halo=st.integers(1, 40),
    alignment=st.sampled_from([1, 8]),
)
def test_new_parts_of_a_tile_and_of_its_neighbours_before_it_cover_its_view(
    seed, core, halo, alignment
):
    rng = np.random.default_rng(seed)
    roi = shapely.convex_hull(shapely.multipoints(rng.uniform(-20, 150, (4, 2))))
    plan = TilePlan(roi, (130, 110), core, halo, alignment)
    parts = plan.new_parts()
    for tile in plan:
        known = [parts[n.index] for n in (tile, *plan.neighbours(tile)) if n.index <= tile.index]
        covered = shapely.union_all([box.polygon() for box in known if box is not None])
        assert shapely.covers(covered, tile.view.polygon())
        part = parts[tile.index]
        if part is not None:
            assert not any(limit % alignment for limit in part)
            assert tile.extent.within(part)
            assert part.intersection(tile.extent) == part


def test_boxes():
    box = Box(2, 3, 10, 7)
    assert (box.width, box.height, box.area) == (8, 4, 32)
    assert box.grown(2) == Box(0, 1, 12, 9)
    assert box.intersection(Box(5, 0, 20, 6)) == Box(5, 3, 10, 6)
    assert box.intersection(Box(10, 3, 12, 7)) is None  # they touch
    assert Box.around([box, Box(-1, 5, 3, 20)]) == Box(-1, 3, 10, 20)
    assert np.arange(120).reshape(10, 12)[box.within(Box(0, 1, 12, 11))][0, 0] == 2 * 12 + 2
