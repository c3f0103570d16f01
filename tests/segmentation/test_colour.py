from __future__ import annotations

import numpy as np
import pytest
import shapely

from qpnuclei.pipeline.planning.tiles import plan_tiles
from qpnuclei.segmentation.colour import colour_statistics
from qpnuclei.segmentation.engine import EngineSpec
from qpnuclei.slides.pixels import RGB
from qpnuclei.slides.reinhard import ReinhardStatistics, reinhard_statistics
from qpnuclei.slides.resolution import Scale
from qpnuclei.tiling.box import Box

WIDTH, HEIGHT = 2500, 1700
SPEC = EngineSpec("any", "", 0.5, 0, 8, 2, needs_colour=True)
REGIONS = {
    "left": shapely.box(0, 500, 400.5, 1100),
    "right": shapely.box(WIDTH - 110, 300, WIDTH, 420),
    "top": shapely.box(700, 0, 1500, 90),
    "bottom": shapely.Polygon([(300, 1000), (2100, 1300), (1400, HEIGHT), (500, HEIGHT)]),
    "small": shapely.Point(1000, 800).buffer(60),
    "ring": shapely.Point(1200, 850).buffer(700) - shapely.Point(1200, 850).buffer(600),
    "two": shapely.box(10, 10, 250, 700) | shapely.box(2000, 1000, 2400, 1650),
    "all": shapely.box(0, 0, WIDTH, HEIGHT),
}


@pytest.fixture(scope="module")
def slide() -> RGB:
    """Return tissue whose colour and structure change from place to place."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH] / 300
    base = np.stack([170 + 40 * np.sin(x), 110 + 40 * np.cos(y), 160 + 40 * np.sin(x + y)], -1)
    return np.asarray(base + rng.integers(-20, 21, base.shape), np.uint8)


def measured(slide: RGB, roi: shapely.Geometry, tile_px: int = 512) -> ReinhardStatistics | None:
    def read(box: Box) -> RGB:
        assert 0 <= box.x0 < box.x1 <= WIDTH
        assert 0 <= box.y0 < box.y1 <= HEIGHT
        return slide[box.y0 : box.y1, box.x0 : box.x1]

    plan = plan_tiles(roi, (WIDTH, HEIGHT), Scale((0.5, 0.5)), SPEC, tile_px)
    return colour_statistics(read, plan)


@pytest.mark.parametrize("name", REGIONS)
def test_colours_depend_on_the_region_alone_and_are_read_within_the_image(
    slide: RGB, name: str
) -> None:
    of = {measured(slide, REGIONS[name], tile_px) for tile_px in (64, 300, 512, 2048)}
    assert len(of) == 1
    assert None not in of


@pytest.mark.parametrize("name", ["left", "top", "ring", "two"])
def test_a_region_of_up_to_64_fields_is_measured_pixel_by_pixel(slide: RGB, name: str) -> None:
    roi = REGIONS[name]
    x, y = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    expected = reinhard_statistics(slide[shapely.contains_xy(roi, x, y)])
    found = measured(slide, roi)
    assert found is not None
    assert found.brightness == expected.brightness
    np.testing.assert_allclose([*found.mean, *found.std], [*expected.mean, *expected.std])


@pytest.mark.parametrize("name", sorted(REGIONS.keys() - {"small", "right"}))
def test_a_region_of_one_colour_has_this_colour_whatever_is_around(slide: RGB, name: str) -> None:
    roi, colour = REGIONS[name], (150, 80, 140)
    x, y = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    painted = np.full_like(slide, 255)
    painted[shapely.contains_xy(roi, x, y)] = colour
    expected = reinhard_statistics(np.full((9, 9, 3), colour, np.uint8))
    found = measured(painted, roi)
    assert found is not None
    assert found.brightness == expected.brightness
    np.testing.assert_allclose(found.mean, expected.mean, atol=1e-4)
    np.testing.assert_allclose(found.std, 0, atol=1e-4)


def test_glass_in_the_region_is_not_measured_if_there_is_tissue(slide: RGB) -> None:
    half = slide.copy()
    half[:, 896:] = 245  # a line of the grid of fields
    assert measured(half, shapely.box(448, 448, 1344, 896)) == measured(
        half, shapely.box(448, 448, 896, 896)
    )
    glass = measured(half, shapely.box(1000, 0, 1100, 100))
    assert glass is not None
    assert glass.brightness == 245


@pytest.mark.parametrize(
    "roi",
    [
        shapely.box(500.1, 500.1, 500.2, 500.3),  # without the centre of a pixel
        shapely.Point(540, 560).buffer(8),  # a nucleus
        shapely.box(448.5, 448.5, 671.5, 671.5),
    ],
)
def test_a_region_smaller_than_a_field_is_measured_with_what_is_around_it(
    slide: RGB, roi: shapely.Geometry
) -> None:
    assert measured(slide, roi) == reinhard_statistics(slide[448:672, 448:672])


def test_what_is_around_a_small_region_ends_at_the_border_of_the_image(slide: RGB) -> None:
    found = measured(slide, shapely.box(WIDTH - 20, HEIGHT - 20, WIDTH, HEIGHT))
    assert found == reinhard_statistics(slide[1568:, 2464:])


def test_an_empty_region_is_not_measured(slide: RGB) -> None:
    assert measured(slide, shapely.Polygon()) is None


def fields_of(roi: shapely.Geometry, size: tuple[int, int]) -> list[Box]:
    boxes: list[Box] = []

    def read(box: Box) -> RGB:
        boxes.append(box)
        return np.full((box.height, box.width, 3), (150, 80, 140), np.uint8)

    colour_statistics(read, plan_tiles(roi, size, Scale((0.5, 0.5)), SPEC, 4096))
    return boxes


def test_a_large_region_is_measured_on_64_fields() -> None:
    boxes = fields_of(shapely.Point(20_000, 20_000).buffer(19_000), (40_000, 40_000))
    assert len(boxes) == 64
    assert max(box.area for box in boxes) == 224**2


@pytest.mark.parametrize("columns", [1, 3, 20, 63, 64, 90])
@pytest.mark.parametrize("rows", [1, 5, 62, 63, 64, 126, 189])
def test_fields_are_spread_over_both_axes(columns: int, rows: int) -> None:
    size = columns * 224, rows * 224
    boxes = fields_of(shapely.box(0, 0, *size), size)
    assert len(boxes) == min(64, rows * columns)
    for places, number in (({b.x0 for b in boxes}, columns), ({b.y0 for b in boxes}, rows)):
        thirds = np.histogram([place / 224 for place in places], 3, (0, number))[0]
        assert thirds.min() >= min(number // 3, 3)


def test_the_part_of_an_outline_in_a_field_has_its_pixels(slide: RGB) -> None:
    rng = np.random.default_rng(3)
    angles = np.sort(rng.random(400)) * 2 * np.pi
    radii = 300 + 500 * rng.random(400)
    star = shapely.Polygon(np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None] + 850)
    hole = shapely.Point(850, 850).buffer(150)
    roi = shapely.make_valid(star) - hole
    x, y = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    expected = reinhard_statistics(slide[shapely.contains_xy(roi, x, y)])
    found = measured(slide, roi)
    assert found is not None
    np.testing.assert_allclose([*found.mean, *found.std], [*expected.mean, *expected.std])
