"""Density maps, places, paths, scale bars and histograms, on what can be known by hand."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from qpnuclei.pipeline.planning.tiles import plan_tiles
from qpnuclei.report.density import density_map, viridis
from qpnuclei.report.histogram import histogram
from qpnuclei.report.pictures import legible_tags, outlines, path_data, round_length, scale_bar
from qpnuclei.report.views import (
    SIDE_UM,
    choose_views,
    seam_views,
    tile_borders,
)
from qpnuclei.segmentation.engine import EngineSpec
from qpnuclei.slides.resolution import Scale
from qpnuclei.tiling.box import moved_inside

MPP = (0.5, 0.5)


def lattice(x0: float, y0: float, x1: float, y1: float, step: float) -> np.ndarray:
    xs, ys = np.arange(x0 + step / 2, x1, step), np.arange(y0 + step / 2, y1, step)
    return np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2)


@pytest.mark.parametrize("mpp", [(0.5, 0.5), (0.5, 0.4)])
def test_an_even_lattice_has_one_density_up_to_the_border(mpp: tuple[float, float]) -> None:
    area = shapely.box(100, 200, 2100, 1700)
    found = density_map(lattice(100, 200, 2100, 1700, 20), area, mpp)
    assert found is not None
    # One nucleus on 20 x 20 px.
    expected = 1e6 / (400 * mpp[0] * mpp[1])
    np.testing.assert_allclose(found.values[~np.isnan(found.values)], expected, rtol=0.08)
    assert found.top >= expected
    assert found.box == pytest.approx(area.bounds, abs=5)


def test_nothing_is_said_of_where_nobody_looked() -> None:
    whole, hole = shapely.box(0, 0, 2000, 2000), shapely.box(500, 500, 1500, 1500)
    found = density_map(lattice(0, 0, 2000, 2000, 25), whole.difference(hole), MPP)
    assert found is not None
    height, width = found.values.shape
    assert np.isnan(found.values[height // 2, width // 2])
    assert np.isfinite(found.values[5, 5])
    # Nuclei in the hole would raise the density around it.
    outside = found.values[~np.isnan(found.values)]
    np.testing.assert_allclose(outside, 1e6 / (625 * 0.25), rtol=0.12)
    picture = found.image()
    assert picture.convert("RGBA").getpixel((width // 2, height // 2))[3] == 0
    assert density_map(np.empty((0, 2)), shapely.MultiPolygon(), MPP) is None


def test_the_map_of_a_small_area_has_no_more_px_than_it_shows() -> None:
    area = shapely.box(0, 0, 200, 100)
    found = density_map(lattice(0, 0, 200, 100, 20), area, MPP)
    assert found is not None
    height, width = found.values.shape
    # 24 px in one standard deviation of 25 µm; the area is of 100 x 50 µm.
    assert (height, width) == (48, 96)
    np.testing.assert_allclose(found.values, 1e6 / (400 * 0.25), rtol=0.08)


def test_the_colours_rise_in_brightness() -> None:
    brightness = viridis(np.linspace(0, 1, 20)).astype(float) @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(brightness) > 0).all()


def test_places_are_what_they_are_called() -> None:
    side = SIDE_UM / 0.5
    area = shapely.box(0, 0, 5 * side, 2 * side)
    even = lattice(0, 0, 5 * side, 2 * side, side / 4)
    certainty = np.full(len(even), 0.9)
    in_last = (even[:, 0] > 4 * side) & (even[:, 1] > side)
    certainty[in_last] = 0.5
    empty = (even[:, 0] < side) & (even[:, 1] < side)
    even, certainty = even[~empty], certainty[~empty]
    crowd = lattice(2 * side, 0, 3 * side, side, side / 9)
    centroids = np.concatenate([even, crowd])
    certainty = np.concatenate([certainty, np.full(len(crowd), np.nan)])
    views = {view.title: view.box for view in choose_views(centroids, certainty, area, MPP)}
    assert views["densest"] == (2 * side, 0, 3 * side, side)
    assert views["sparsest"] == (0, 0, side, side)
    assert views["least certain"] == (4 * side, side, 5 * side, 2 * side)
    assert set(views) == {"densest", "typical", "sparsest", "least certain"}


def test_small_annotations_far_apart_are_all_seen() -> None:
    side = SIDE_UM / 0.5
    # One grid over both would have no place that lies well in the second.
    empty = shapely.box(0, 0, 2 * side, 2 * side)
    full = shapely.box(10.5 * side, 7.4 * side, 11.5 * side, 8.4 * side)
    x0, y0, x1, y1 = full.bounds
    centroids = lattice(x0, y0, x1, y1, side / 8)
    views = {v.title: v.box for v in choose_views(centroids, None, empty.union(full), MPP)}
    assert views["densest"] == pytest.approx(full.bounds)
    assert shapely.covers(empty, shapely.box(*views["typical, sparsest"]))


def test_a_small_area_is_one_place_and_an_unknown_pixel_size_no_hindrance() -> None:
    small = shapely.box(10, 10, 90, 60)
    (view,) = choose_views(lattice(10, 10, 90, 60, 10), None, small, MPP)
    assert view.title == "the whole area"
    assert shapely.covers(shapely.box(*view.box), small)
    wider = shapely.box(10, 10, 410, 300)  # 200 x 145 µm: one place of 120 µm, but not all of it
    (view,) = choose_views(lattice(10, 10, 410, 300, 10), None, wider, MPP)
    assert view.title == "the middle"
    assert choose_views(lattice(10, 10, 90, 60, 10), None, small, None)
    assert choose_views(np.empty((0, 2)), None, shapely.MultiPolygon(), MPP) == []


@given(
    st.lists(
        st.tuples(
            st.floats(0, 100), st.floats(0, 100), st.floats(0.1, 50), st.text("aM", max_size=30)
        ),
        max_size=9,
    ),
    st.floats(0.2, 5),
)
def test_tags_of_a_picture_stay_inside_and_apart(
    wanted: list[tuple[float, float, float, str]], aspect: float
) -> None:
    areas = [(shapely.box(x, y, x + side, y + side), text) for x, y, side, text in wanted]
    tags = legible_tags([(area, text, "red") for area, text in areas], aspect)
    assert len(tags) >= min(len(wanted), 1)
    boxes = []
    for tag in tags:
        # In px of the narrowest picture, of 320 x (320 / aspect) px.
        width = min(13 + 7.5 * len(tag.text), 0.45 * 320)
        x, y = tag.left * 3.2, tag.top * 3.2 / aspect
        height = min(18, 320 / aspect)
        boxes.append(shapely.box(x - width / 2, y - height / 2, x + width / 2, y + height / 2))
        assert shapely.box(-0.1, -0.1, 320.1, 320 / aspect + 0.1).covers(boxes[-1])
    assert all(a.intersection(b).area < 1e-6 for a, b in combinations(boxes, 2))


def test_a_tag_does_not_cover_a_small_area() -> None:
    small, large = shapely.box(40, 40, 44, 44), shapely.box(0, 50, 90, 90)
    above, on = legible_tags([(small, "Pen", "red"), (large, "Tumor", "red")], 1.0)
    assert (above.left, above.top) == (42, 40 - 100 * 18 / 320 / 2)
    assert shapely.contains_xy(large, on.left, on.top)


def test_a_view_shows_nothing_beyond_the_image() -> None:
    assert moved_inside((-40, 900, 200, 1140), (2000, 1000)) == (0, 760, 240, 1000)
    assert moved_inside((-40, -10, 200, 230), (300, 100)) == (0, 0, 240, 100)
    inside = (10.5, 20, 30.5, 40)
    assert moved_inside(inside, (100, 100)) == inside


def test_seams_lie_on_the_borders_of_tiles() -> None:
    area = shapely.box(0, 0, 4000, 4000)
    # 2000 µm, seen at 0.25 µm/px: 8000 px, in tiles of 4000.
    xs, ys = tile_borders(area, (4000, 4000), MPP, (0.25, 0.25), 4000)
    assert xs.tolist() == ys.tolist() == [2000]
    crowd = lattice(1900, 700, 2100, 900, 10)
    side_by_side, above, corner = seam_views(xs, ys, crowd, area, MPP)
    for view, axes in ((side_by_side, [0]), (above, [1]), (corner, [0, 1])):
        middle = np.array(view.box).reshape(2, 2).mean(axis=0)
        assert (middle[axes] == 2000).all()
    assert abs(np.mean(side_by_side.box[1::2]) - 800) <= SIDE_UM / MPP[0]


def test_seams_of_a_run_with_cells_are_where_its_tiles_met() -> None:
    area, size = shapely.box(1000, 1200, 2500, 2500), (4000, 4000)
    # Tiles begin 2 px and 5.5 + 10 µm outside the area: 64 px, or 32 of the image.
    plan = plan_tiles(
        area, size, Scale(MPP, (0.5, 0.5)), EngineSpec("", "", 0.25, 83, 1, 0), 1000, 7.5, 2.5
    )
    xs, ys = tile_borders(area, size, MPP, (0.25, 0.25), 1000, 7.5, 2.5)
    (lefts, tops) = ({tile.core[axis] / 2 for tile in plan} for axis in (0, 1))
    assert (min(lefts), min(tops)) == (968, 1168)
    assert xs.tolist() == sorted(lefts)[1:]
    assert ys.tolist() == sorted(tops)[1:]
    assert xs.tolist() != tile_borders(area, size, MPP, (0.25, 0.25), 1000)[0].tolist()


def test_paths_are_in_px_of_the_picture() -> None:
    square = shapely.Polygon([(10, 20), (14, 20), (14, 22), (10, 22)])
    assert outlines([square], (10, 20), (2.0, 2.0)) == "M0 0l8 0 0 4 -8 0z"
    line = shapely.LineString([(10, 20), (12, 21)])
    assert outlines([line, shapely.Point(1, 1)], (10, 20), (1.0, 1.0)) == "M0.0 0.0L2.0 1.0"
    assert path_data(np.array([(0.04, 0), (1.25, 0), (1, 1), (0.04, 0)])).startswith("M0 0l1.2 0")


@given(st.floats(1e-3, 1e7))
def test_a_scale_bar_is_round_and_not_too_long(most: float) -> None:
    length = round_length(most)
    digits = length / 10 ** math.floor(math.log10(length * (1 + 1e-9)))
    assert min(abs(digits - step) for step in (1, 2, 5)) < 1e-6
    assert most / 2.5 * (1 - 1e-9) <= length <= most * (1 + 1e-9)
    bar = scale_bar(most)
    assert bar is not None
    assert 12 - 1e-6 <= bar.percent <= 30 + 1e-6


def test_a_scale_bar_names_its_unit() -> None:
    assert scale_bar(120) == scale_bar(120.0)
    assert [scale_bar(um).label for um in (120, 5000, 400)] == ["20 µm", "1 mm", "100 µm"]
    assert scale_bar(None) is None


@given(st.lists(st.floats(-5, 1e4) | st.just(math.nan), min_size=1, max_size=60))
def test_a_histogram_counts_every_number_once(values: list[float]) -> None:
    numbers = np.array(values)
    numbers = numbers[np.isfinite(numbers)]
    if len(numbers) == 0:
        return
    made = histogram("Size", "µm²", np.array(values))
    assert sum(made.counts) == len(numbers)
    assert made.median == pytest.approx(np.median(numbers))
    assert max(made.heights) == 100
    assert 0 <= made.median_at <= 100
    assert made.ticks[0][0] == 0
    assert made.ticks[-1][0] == pytest.approx(100)
