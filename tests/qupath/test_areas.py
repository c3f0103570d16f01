"""The areas of outlines of every kind, against counting crossings by hand."""

from __future__ import annotations

import math
import uuid

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from qpnuclei.pipeline.selection import Selection, select_regions
from qpnuclei.qupath.areas import ROUNDING_PX, Parts, union, valid_area, without_slivers
from qpnuclei.qupath.counted_image import CountedImage
from qpnuclei.qupath.counts import count_objects
from qpnuclei.qupath.inventory import _describe_image
from qpnuclei.qupath.model import Annotation, Detections, ImageObjects, ImageServer
from qpnuclei.slides.calibration import PixelCalibration

SQUARE = shapely.box(0, 0, 10, 10)
BOW_TIE = shapely.Polygon([(0, 0), (100, 100), (100, 0), (0, 100)])
SPIKE = shapely.Polygon([(0, 0), (10, 0), (10, 10), (0, 10), (0, 0), (0, -20), (0, 0)])
CLICK = shapely.Polygon([(60, 60), (160, 60), (60, 60), (60, 60)])

#: Outlines and the area that each encloses, in px².
OUTLINES = {
    "square": (SQUARE, 100),
    "bow tie": (BOW_TIE, 5000),
    "spike": (SPIKE, 100),
    "click": (CLICK, 0),
    "one place": (shapely.Polygon([(5, 5)] * 4), 0),
    "empty polygon": (shapely.Polygon(), 0),
    "empty rectangle": (shapely.box(0, 0, 0, 0), 0),
    "line": (shapely.LineString([(0, 0), (9, 9)]), 0),
    "point": (shapely.Point(3, 3), 0),
    "not finite": (shapely.Polygon([(0, 0), (1, 0), (np.inf, 1)]), 0),
    "two parts": (shapely.MultiPolygon([SQUARE, shapely.box(20, 0, 30, 10)]), 200),
    "parts that overlap": (shapely.MultiPolygon([SQUARE, shapely.box(5, 0, 15, 10)]), 150),
    "nested parts": (shapely.MultiPolygon([SQUARE, shapely.box(2, 2, 4, 4)]), 100),
    "hole": (SQUARE.difference(shapely.box(2, 2, 4, 4)), 96),
    "hole outside": (shapely.Polygon(SQUARE.exterior, [shapely.box(20, 0, 22, 2).exterior]), 104),
    "parts with nothing": (shapely.MultiPolygon([BOW_TIE, CLICK]), 5000),
    "collection": (shapely.GeometryCollection([shapely.MultiPolygon([SQUARE]), CLICK]), 100),
}


def annotation(geometry: shapely.Geometry) -> Annotation:
    return Annotation(0, uuid.UUID(int=1), "a", "Tumor", "GeometryROI", geometry)


@pytest.mark.parametrize("name", OUTLINES)
def test_the_area_is_valid_and_the_same_everywhere(name: str) -> None:
    geometry, expected = OUTLINES[name]
    area = valid_area(geometry)
    assert area.is_valid
    assert area.geom_type in ("Polygon", "MultiPolygon")
    assert area.area == expected
    assert area.is_empty == (expected == 0)
    drawn = annotation(geometry)
    assert drawn.is_area == (expected > 0)

    none = np.empty(0, np.int64)
    nothing = Detections(
        [], [], [], np.empty(0, object), np.empty((0, 2)), none.reshape(0, 2), none
    )
    objects = ImageObjects((drawn,), nothing, "")
    calibration = PixelCalibration(1, 1)
    for by in ("annotation", "class"):
        image = CountedImage("p", "i", objects, calibration)
        (row,) = count_objects(image, by, nucleus_classes=("Nucleus",))
        assert row["area_mm2"] == pytest.approx(expected * 1e-6)
        assert math.isnan(row["nuclei_per_mm2"]) == (expected == 0)

    class Image:
        id, name, path, image_type, stains = "1", "i", None, None, None
        server = ImageServer(("uri",), "", ())

        def read(self) -> ImageObjects:
            return objects

    Image.calibration = calibration
    described = _describe_image(Image())
    assert described["annotations"]["Tumor"]["area_mm2"] == pytest.approx(expected * 1e-6)


@pytest.mark.parametrize("name", OUTLINES)
def test_an_outline_beside_a_good_one_never_stops_it(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    geometry, expected = OUTLINES[name]
    good = annotation(shapely.box(300, 300, 400, 400))
    regions = select_regions(Selection(everything=True), [annotation(geometry), good], 500, 500)
    assert [r.geometry.area for r in regions] == [*([expected] if expected else []), 10_000]
    assert all(r.geometry.is_valid for r in regions)
    assert ("encloses no area" in caplog.text) == (expected == 0)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=3, max_size=9))
def test_whatever_is_drawn_its_area_is_valid(points: list[tuple[float, float]]) -> None:
    area = valid_area(shapely.Polygon(points))
    assert area.is_valid
    assert area.area <= shapely.MultiPoint(points).convex_hull.area * (1 + 1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(3, 9))
def test_a_ring_encloses_what_is_inside_by_the_even_odd_rule(seed: int, corners: int) -> None:
    rng = np.random.default_rng(seed)
    ring = rng.uniform(0, 100, (corners, 2))
    area = valid_area(shapely.Polygon(ring))
    points = rng.uniform(0, 100, (300, 2))
    x, y = points.T[:, :, None]
    (x0, y0), (x1, y1) = ring.T, np.roll(ring, -1, axis=0).T
    meets = (y0 > y) != (y1 > y)
    crossings = (meets & (x < x0 + (x1 - x0) * (y - y0) / (y1 - y0))).sum(axis=1)
    np.testing.assert_array_equal(shapely.contains_xy(area, points), crossings % 2 == 1)


boxes = st.tuples(*[st.integers(0, 30)] * 2, *[st.integers(1, 9)] * 2).map(
    lambda own: shapely.box(own[0], own[1], own[0] + own[2], own[1] + own[3])
)


@settings(max_examples=50)
@given(st.lists(boxes, max_size=12), boxes)
def test_the_parts_near_an_area_are_as_good_as_all(
    areas: list[shapely.Polygon], area: shapely.Polygon
) -> None:
    parts, whole = Parts(areas), shapely.union_all(areas)
    assert union(areas).equals(whole)
    assert parts.meeting(area).tolist() == [i for i, a in enumerate(areas) if a.intersects(area)]
    assert shapely.difference(area, parts.near(area)).equals(shapely.difference(area, whole))
    assert shapely.intersection(area, parts.near(area)).equals(shapely.intersection(area, whole))


def test_slivers_are_told_from_a_small_area_however_long_the_outline() -> None:
    long = shapely.union_all([shapely.box(4 * i, 0, 4 * i + 2, 20_000) for i in range(20)])
    moved = shapely.affinity.translate(long, ROUNDING_PX, ROUNDING_PX)
    slivers = shapely.symmetric_difference(long, moved)
    hole = shapely.box(8, 100, 10, 120)
    assert slivers.area > 100 * hole.area
    assert without_slivers(slivers).is_empty
    assert without_slivers(long).equals(long)
    found = without_slivers(shapely.symmetric_difference(long, shapely.difference(moved, hole)))
    assert found.intersection(hole).area > 0.9 * hole.area
