import struct

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from qpnuclei.errors import FormatError
from qpnuclei.qupath.qpdata import java_classes as jc
from qpnuclei.qupath.qpdata import java_fields as jf
from qpnuclei.qupath.qpdata.java_instances import Catalog
from qpnuclei.qupath.qpdata.java_nodes import (
    SC_SERIALIZABLE,
    ClassDesc,
    Field,
    JavaArray,
    JavaObject,
    JavaString,
    Part,
)
from qpnuclei.qupath.qpdata.rois import ellipses, make_roi, polygons, read_rois
from qpnuclei.qupath.qpdata.values import Single
from tests.qupath.samples import array_values


def read(roi):
    rois = read_rois(roi, Single())
    return rois.roi_type, rois.geometries[0], rois.centroids()[0]


def test_polygon_vertices_are_not_repeated_in_the_file():
    square = shapely.box(1, 2, 4, 6)
    roi = make_roi(Catalog(), square)
    x = array_values(jf.array_field(roi, "x", jc.FLOAT_ARRAY))
    assert len(x) == 4
    kind, geometry, centroid = read(roi)
    assert kind == "PolygonROI"
    assert geometry.equals_exact(square)
    assert centroid.tolist() == [2.5, 4.0]


@pytest.mark.parametrize(
    ("geometry", "kind"),
    [
        (shapely.box(0, 0, 9, 9) - shapely.box(3, 3, 6, 6), "GeometryROI"),
        (shapely.box(0, 0, 1, 1) | shapely.box(5, 5, 6, 6), "GeometryROI"),
        (shapely.LineString([(0, 0), (3, 4), (3, 8)]), "PolylineROI"),
        (shapely.MultiPoint([(0, 0), (3, 4)]), "PointsROI"),
    ],
)
def test_other_rois_round_trip(geometry, kind):
    found_kind, found, _ = read(make_roi(Catalog(), geometry))
    assert found_kind == kind
    assert found.equals_exact(geometry)


def test_point_becomes_points():
    assert read(make_roi(Catalog(), shapely.Point(1, 2)))[1].equals(shapely.MultiPoint([(1, 2)]))


@pytest.mark.parametrize("geometry", [shapely.Polygon(), shapely.GeometryCollection()])
def test_empty_makes_no_roi(geometry):
    with pytest.raises(ValueError, match="empty"):
        make_roi(Catalog(), geometry)


def test_polygons_of_few_vertices_are_degenerate_not_wrong():
    # 0, 1, 2 and 3 vertices, and a triangle that repeats its first vertex (QuPath 0.2, 0.3).
    xy = np.array([(1, 1), (1, 1), (2, 2), *[(0, 0), (1, 0), (0, 1)] * 2, (0, 0)], np.float32)
    made = polygons(xy, np.array([0, 0, 1, 3, 6, 10]))
    assert made[0].is_empty
    assert [p.area for p in made] == [0, 0, 0, 0.5, 0.5]
    assert made[3].equals_exact(made[4])


def test_ellipse_is_the_polygon_of_qupath():
    # JTS: 100 vertices from angle 0, on a grid of 0.01 px.
    (ellipse,) = ellipses(*(np.array([v], float) for v in (10, 20, 30, 26)))
    points = shapely.get_coordinates(ellipse)
    assert len(points) == 101
    assert points[0].tolist() == [30, 23]
    assert points[25].tolist() == [20, 26]
    np.testing.assert_allclose(points[1], [20 + 10 * np.cos(0.02 * np.pi), 23.19], atol=0.005)
    np.testing.assert_array_equal(points, np.round(points, 2))


def test_x_and_y_of_different_lengths():
    catalog = Catalog()
    roi = catalog.make(jc.POLYGON, {"x": catalog.floats([1, 2, 3]), "y": catalog.floats([1, 2])})
    with pytest.raises(FormatError, match="x and y have different lengths"):
        read(roi)


def test_broken_well_known_binary():
    catalog = Catalog()
    wkb = JavaArray(catalog.desc(jc.BYTE_ARRAY), b"\0\0\0\0\3\xff\xff\xff\xff", None)
    with pytest.raises(FormatError, match="well-known binary"):
        read(catalog.make(jc.GEOMETRY, {"wkb": wkb}))


@pytest.mark.parametrize("kind", [6, 7])
def test_nested_well_known_binary_does_not_crash_the_interpreter(kind):
    catalog = Catalog()
    deep = struct.pack(">BII", 0, kind, 1) * 200_000 + struct.pack(">BII", 0, 3, 0)
    wkb = JavaArray(catalog.desc(jc.BYTE_ARRAY), deep, None)
    with pytest.raises(FormatError, match="nested too deeply"):
        read(catalog.make(jc.GEOMETRY, {"wkb": wkb}))


@pytest.mark.parametrize(
    "geometry",
    [
        shapely.box(0, 0, 9, 9) - shapely.box(3, 3, 6, 6),
        shapely.MultiPoint([(1, 2), (3, 4)]),
        shapely.MultiLineString([[(1, 2), (3, 4)], [(0, 0), (1, 1)]]),
        shapely.GeometryCollection([shapely.box(0, 0, 1, 1), shapely.Point(5, 5, 5)]),
    ],
)
@pytest.mark.parametrize("options", [{"byte_order": 0}, {"byte_order": 1, "flavor": "iso"}])
def test_every_well_known_binary_is_read(geometry, options):
    catalog = Catalog()
    wkb = JavaArray(catalog.desc(jc.BYTE_ARRAY), shapely.to_wkb(geometry, **options), None)
    assert read(catalog.make(jc.GEOMETRY, {"wkb": wkb}))[1].equals_exact(geometry)


def legacy_areas(catalog, areas):
    """Make AreaROIs, as QuPath before 0.2 did, from lists of polygons without holes."""
    nested = ClassDesc("[[F", 1, SC_SERIALIZABLE)
    fields = [("I", "c"), ("I", "t"), ("I", "z"), ("[", "x"), ("[", "y")]
    text = JavaString.of("[[F")
    desc = ClassDesc(
        "qupath.lib.roi.AreaROI$SerializationProxy",
        1,
        SC_SERIALIZABLE,
        tuple(Field(code, name, text if code == "[" else None) for code, name in fields),
    )
    for parts in areas:
        rings = [shapely.get_coordinates(p)[:-1] for p in parts]
        x, y = (JavaArray(nested, None, [catalog.floats(r[:, k]) for r in rings]) for k in (0, 1))
        yield JavaObject(desc, [Part(desc, bytes(12), [x, y], None)])


def test_legacy_area_is_filled_by_even_odd():
    """AreaROI of QuPath before 0.2: an outer ring, a hole in it, and a part beside it."""
    parts = [shapely.box(0, 0, 9, 9), shapely.box(3, 3, 6, 6), shapely.box(20, 0, 22, 2)]
    (roi,) = legacy_areas(Catalog(), [parts])
    kind, area, _ = read(roi)
    assert kind == "AreaROI"
    assert area.equals((parts[0] - parts[1]) | parts[2])


def test_nan_gives_no_warning():
    catalog = Catalog()
    roi = catalog.make(jc.POLYGON, {k: catalog.floats([np.nan, np.inf, 0]) for k in "xy"})
    assert read(roi)[1].is_empty
    points = catalog.make(jc.POINTS, {k: catalog.floats([np.nan, np.inf, 0]) for k in "xy"})
    assert read(points)[0] == "PointsROI"


def test_a_polygon_that_is_not_finite_does_not_harm_its_neighbours():
    xy = np.array([(0, 0), (1, 0), (0, 1), (0, 0), (np.nan, 0), (0, 1), (5, 5), (6, 5), (5, 6)])
    made = polygons(xy, np.array([0, 3, 3, 6, 9]))
    assert [p.area for p in made] == [0.5, 0, 0, 0.5]
    assert [p.is_empty for p in made] == [False, True, True, False]


@given(
    st.lists(
        st.tuples(st.floats(-1e5, 1e5, width=32), st.floats(-1e5, 1e5, width=32)),
        min_size=3,
        max_size=9,
        unique=True,
    )
)
def test_any_ring_keeps_its_vertices(vertices):
    polygon = shapely.Polygon(vertices)
    kind, found, _ = read(make_roi(Catalog(), polygon))
    assert kind == "PolygonROI"
    np.testing.assert_array_equal(shapely.get_coordinates(found), shapely.get_coordinates(polygon))
