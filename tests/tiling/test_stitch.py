from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from qpnuclei.models.metadata import PostProcessing
from qpnuclei.nuclei.outlines import bounds, polygonise
from qpnuclei.nuclei.table import NucleiTable, concatenate
from qpnuclei.segmentation.postprocess import interaction_radius_px, segment_instances
from qpnuclei.tiling.fragments import drop_duplicates
from qpnuclei.tiling.plan import TilePlan
from qpnuclei.tiling.stitch import Stitcher
from tests.segmentation.images import random_attention, random_mask, regions


def stitched(plan, segment, order=None):
    """Run the tiles of a plan, in any order, on ``segment(view) -> labels``."""
    stitcher = Stitcher(plan)
    tiles, found = list(plan), []
    for i in order if order is not None else range(len(tiles)):
        view = tiles[i].view
        labels = segment(np.s_[view.y0 : view.y1, view.x0 : view.x1])
        nuclei, ids = polygonise(labels, origin=(view.x0, view.y0))
        nuclei = nuclei.with_measurements({"Pixels": np.bincount(labels.ravel())[ids]})
        own, cut = plan.divide(tiles[i], nuclei)
        found += stitcher.add(tiles[i], nuclei.take(own), nuclei.take(cut))
    return finished(stitcher, found)


def finished(stitcher, found):
    """Return all nuclei, how many of them were joined, and the duplicates dropped."""
    rest, joined, _ = stitcher.finish()
    found += rest
    kept, duplicates = drop_duplicates(found, joined)
    joined = joined.take(kept & stitcher._plan.answers_for(joined.centroids()))
    return concatenate([*found, joined]), len(joined), stitcher.overlapping + duplicates


def rings(nuclei):
    """Return the outlines as a sorted list, vertex for vertex."""
    return sorted(
        nuclei.vertices[a:b].astype(int).tolist()
        for a, b in zip(nuclei.ring_offsets[:-1], nuclei.ring_offsets[1:], strict=True)
    )


def whole_plan(shape, core, halo, origin=(0, 0), alignment=1):
    height, width = shape
    return TilePlan(
        shapely.box(0, 0, width, height), (width, height), core, halo, alignment, origin
    )


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    shape=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    density=st.floats(0.05, 0.9),
    grain=st.integers(1, 6),
    core=st.integers(6, 40),
    halo=st.integers(1, 16),
    origin=st.tuples(st.integers(-50, 50), st.integers(-50, 50)),
    alignment=st.sampled_from([1, 1, 4, 16]),
)
def test_tiles_give_what_the_whole_image_gives_polygon_for_polygon(
    seed, shape, density, grain, core, halo, origin, alignment
):
    # Regions from single pixels to labyrinths across the whole image, one within the other.
    mask = random_mask(seed, shape, density, grain)
    expected, _ = polygonise(regions(mask))
    plan = whole_plan(shape, core, halo, origin, alignment)
    order = np.random.default_rng(seed).permutation(len(plan))
    nuclei, joined, _ = stitched(plan, lambda view: regions(mask[view]), order)
    assert rings(nuclei) == rings(expected)
    # Whole nuclei keep their measurements, joined ones have none yet.
    pixels = nuclei.measurements["Pixels"]
    area = shapely.area(nuclei.polygons())
    whole = len(nuclei) - joined
    assert np.isnan(pixels[whole:]).all()
    np.testing.assert_array_equal(pixels[:whole], area[:whole])


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32), st.integers(20, 60), st.integers(1, 20))
def test_the_order_of_tiles_does_not_matter(seed, core, halo):
    mask = random_mask(seed, (80, 100), 0.5, 4)
    plan = whole_plan(mask.shape, core, halo)
    first, *counts = stitched(plan, lambda view: regions(mask[view]))
    order = np.random.default_rng(seed).permutation(len(plan))
    second, *again = stitched(plan, lambda view: regions(mask[view]), order)
    np.testing.assert_array_equal(first.vertices, second.vertices)
    np.testing.assert_array_equal(first.ring_offsets, second.ring_offsets)
    assert counts == again


def test_nuclei_are_given_out_row_by_row_and_not_kept():
    mask = random_mask(5, (200, 120), 0.2, 3)
    plan = whole_plan(mask.shape, 20, 10)
    stitcher, held, given = Stitcher(plan), [], 0
    for tile in plan:
        view = tile.view
        nuclei, _ = polygonise(
            regions(mask[view.y0 : view.y1, view.x0 : view.x1]), origin=(view.x0, view.y0)
        )
        own, cut = plan.divide(tile, nuclei)
        given += len(stitcher.add(tile, nuclei.take(own), nuclei.take(cut)))
        held.append(len(stitcher._whole) + len(stitcher._ready))
    # Six tiles a row: a tile waits for the row below it, and that for the one below.
    assert max(held) <= 3 * 6
    assert given == len(plan)


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    core=st.integers(50, 120),
    origin=st.tuples(st.integers(-120, 0), st.integers(-120, 0)),
    alignment=st.sampled_from([1, 16]),
)
def test_nuclei_from_tiles_of_attention_equal_those_of_the_whole_image(
    seed, core, origin, alignment
):
    parameters = PostProcessing(min_area_px=30, min_mean_attention=0.6)
    attention = random_attention(seed, (230, 260), nuclei_per_px=1 / 700)
    # Nuclei here are below 30 px; so are nearly all clusters of them.
    halo = interaction_radius_px(parameters) + 40
    plan = whole_plan(attention.shape, core, halo, origin, alignment)
    expected, _ = polygonise(segment_instances(attention, parameters))
    nuclei, _, overlapping = stitched(
        plan, lambda view: segment_instances(attention[view], parameters)
    )
    assert rings(nuclei) == rings(expected)
    assert overlapping == 0


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32), st.integers(30, 60))
def test_in_a_region_of_interest_every_nucleus_with_its_centroid_inside_is_found(seed, core):
    mask = random_mask(seed, (80, 90), 0.25, 3)
    rng = np.random.default_rng(seed)
    roi = shapely.convex_hull(shapely.multipoints(rng.uniform(-10, 100, (5, 2))))
    expected, _ = polygonise(regions(mask))
    boxes = bounds(expected)
    largest = int((boxes[:, 2:] - boxes[:, :2]).max())
    plan = TilePlan(roi, (90, 80), core, largest + 1)
    nuclei, _, _ = stitched(plan, lambda view: regions(mask[view]))
    wanted = expected.take(shapely.contains_xy(roi, expected.centroids()))
    found = nuclei.take(shapely.contains_xy(roi, nuclei.centroids()))
    assert rings(found) == rings(wanted)
    # Nuclei around the region, some at its outer border, are not in the result.
    assert plan.answers_for(nuclei.centroids()).all()
    assert len(rings(nuclei)) == len({str(ring) for ring in rings(nuclei)})


def test_a_nucleus_larger_than_any_view_comes_out_whole():
    mask = np.zeros((64, 64), bool)
    mask[3:61, 3:61] = True
    mask[20:40, 20:40] = False  # a hole that no tile sees closed
    mask[28:31, 28:31] = True  # and something in it
    nuclei, joined, overlapping = stitched(
        whole_plan(mask.shape, 8, 2), lambda view: regions(mask[view])
    )
    np.testing.assert_array_equal(nuclei.vertices, [[3, 3], [61, 3], [61, 61], [3, 61], [3, 3]])
    assert joined == 1
    assert overlapping == 1


def test_what_two_tiles_see_differently_is_kept_once_and_the_larger_stays():
    plan = whole_plan((20, 40), 20, 10)

    def nucleus(x0, x1):
        polygon = NucleiTable.from_polygons([shapely.box(x0, 5, x1, 15)], {"Pixels": [1]})
        return polygon, polygon.take([False])

    stitcher = Stitcher(plan)
    assert stitcher.add(plan[0], *nucleus(14, 25)) == []
    nuclei, _, overlapping = finished(stitcher, stitcher.add(plan[1], *nucleus(15, 27)))
    assert shapely.bounds(nuclei.polygons()).tolist() == [[15, 5, 27, 15]]
    assert overlapping == 1
    # Half of the smaller one in common is still two nuclei.
    stitcher = Stitcher(plan)
    stitcher.add(plan[0], *nucleus(10, 22))
    assert len(finished(stitcher, stitcher.add(plan[1], *nucleus(16, 29)))[0]) == 2


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_two_equally_large_views_of_a_nucleus_that_of_the_first_tile_stays(order):
    plan = whole_plan((20, 40), 20, 10)
    seen = [shapely.box(14, 5, 25, 15), shapely.box(15, 5, 26, 15)]
    stitcher, found = Stitcher(plan), []
    for index in order:
        nucleus = NucleiTable.from_polygons([seen[index]], {"Pixels": [1]})
        found += stitcher.add(plan[index], nucleus, nucleus.take([False]))
    nuclei, _, overlapping = finished(stitcher, found)
    assert shapely.bounds(nuclei.polygons()).tolist() == [[14, 5, 25, 15]]
    assert overlapping == 1


def test_what_only_the_halo_sees_is_left_out():
    mask = np.zeros((100, 100), bool)
    mask[40:46, 40:46] = True  # in the core
    mask[40:46, 72:78] = True  # in the halo
    mask[40:46, 85:95] = True  # cut by the border of the view
    mask[58:64, 40:46] = True  # across the border of the core, its centroid beyond
    plan = TilePlan(shapely.box(30, 30, 60, 60), (100, 100), 30, 30)
    nuclei, joined, _ = stitched(plan, lambda view: regions(mask[view]))
    assert shapely.bounds(nuclei.polygons()).tolist() == [[40, 40, 46, 46]]
    assert joined == 0


def test_a_tile_cannot_be_added_twice_and_missing_tiles_do_not_hold_up_the_rest():
    plan = whole_plan((20, 40), 20, 10)
    stitcher = Stitcher(plan)
    box = NucleiTable.from_polygons([shapely.box(2, 2, 5, 5)])
    stitcher.add(plan[0], box, NucleiTable.empty())
    with pytest.raises(ValueError, match="tile 0 was added twice"):
        stitcher.add(plan[0], box, NucleiTable.empty())
    nuclei, joined, _ = finished(stitcher, [])
    assert (len(nuclei), joined) == (1, 0)
    nowhere = TilePlan(shapely.Polygon(), (40, 20), 20, 10)
    assert len(nowhere) == 0
    for empty in (plan, nowhere):
        assert len(finished(Stitcher(empty), [])[0]) == 0
