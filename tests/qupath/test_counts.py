from __future__ import annotations

import csv
import json
import math
import uuid
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from qpnuclei.errors import SaveError, UsageError
from qpnuclei.qupath.analysed import Record, UsedMpp
from qpnuclei.qupath.areas import valid_area
from qpnuclei.qupath.classes import Classes
from qpnuclei.qupath.count_table import FIRST_COLUMNS, LAST_COLUMNS, write_counts, write_table
from qpnuclei.qupath.counts import (
    CountedImage,
    count_in_regions,
    count_objects,
    count_project,
    repeated_nuclei,
)
from qpnuclei.qupath.model import Annotation, Detections, ImageObjects
from qpnuclei.qupath.project import open_project
from qpnuclei.qupath.regions import Region
from qpnuclei.slides.calibration import PixelCalibration
from tests.ids import nucleus_id
from tests.paths import SAMPLES

OTHER = uuid.UUID("0f8fad5b-d9cb-469f-a165-70867728950e")
OURS = uuid.UUID("71706e75-636c-8123-8123-000000000000")


def annotation(geometry, class_name="Tumor", roi_type="PolygonROI", handle=0, **more):
    return Annotation(
        handle, uuid.UUID(int=handle + 1), None, class_name, roi_type, geometry, **more
    )


def detections(points, class_names=None, ids=None, measurements=None, planes=None):
    points = np.array(points, float).reshape(-1, 2)
    n = len(points)
    return Detections(
        ids=ids or [OTHER] * n,
        kinds=["detection"] * n,
        class_names=class_names or ["Nucleus"] * n,
        geometries=shapely.buffer(shapely.points(points), 1.0),
        centroids=points,
        planes=np.zeros((n, 2), int) if planes is None else np.array(planes),
        parents=np.full(n, -1),
        measurements=measurements or {},
    )


def image(
    annotations,
    found,
    calibration=PixelCalibration(0.5, 0.25),  # noqa: B008
    size=(2000, 1000),
    analysed=None,
):
    """Return an image all of whose annotations a run has analysed, or only those that are named."""
    regions = [Region.of(a) for a in (annotations if analysed is None else analysed)]
    record = Record().with_run(regions, UsedMpp((0.5, 0.25), "project", (0.5, 0.25)))
    objects = ImageObjects(tuple(annotations), found, "", record.to_properties())
    return CountedImage("p/project.qpproj", "a.svs", objects, calibration, size)


def nuclei(rows):
    return [row["nuclei"] for row in rows]


RECTANGLE = shapely.box(10, 10, 20, 20)
TRIANGLE = shapely.Polygon([(0, 0), (10, 0), (0, 10)])
RING = shapely.difference(shapely.box(0, 0, 30, 30), shapely.box(10, 10, 20, 20))
ANGLES = np.linspace(0, 2 * np.pi, 64, endpoint=False)
ELLIPSE = shapely.Polygon(np.stack([20 + 10 * np.cos(ANGLES), 10 + 5 * np.sin(ANGLES)], axis=1))


@pytest.mark.parametrize(
    ("geometry", "roi_type", "point", "inside"),
    [
        # QuPath locates the centroid in the ROI's geometry: only the exterior is outside. So the
        # border counts on all four sides, though RectangleROI.contains alone is half-open.
        (RECTANGLE, "RectangleROI", (15, 15), True),
        (RECTANGLE, "RectangleROI", (10, 15), True),
        (RECTANGLE, "RectangleROI", (20, 15), True),
        (RECTANGLE, "RectangleROI", (20, 20), True),
        (RECTANGLE, "RectangleROI", (20.0001, 20), False),
        (TRIANGLE, "PolygonROI", (5, 5), True),
        (TRIANGLE, "PolygonROI", (0, 0), True),
        (TRIANGLE, "PolygonROI", (5.01, 5), False),
        # The border of a hole is not in the hole.
        (RING, "GeometryROI", (10, 15), True),
        (RING, "GeometryROI", (15, 15), False),
        (RING, "GeometryROI", (5, 5), True),
        (shapely.MultiPolygon([RECTANGLE, TRIANGLE]), "GeometryROI", (2, 2), True),
        (ELLIPSE, "EllipseROI", (20, 10), True),
        (ELLIPSE, "EllipseROI", (30, 10), True),
        (ELLIPSE, "EllipseROI", (29, 14), False),
        # An annotation without area contains nothing.
        (shapely.LineString([(0, 0), (10, 10)]), "LineROI", (5, 5), False),
        (shapely.MultiPoint([(5, 5)]), "PointsROI", (5, 5), False),
        # Self-intersecting: both triangles of a bow tie are inside.
        (shapely.Polygon([(0, 0), (4, 4), (4, 0), (0, 4)]), "PolygonROI", (3.5, 2), True),
        (shapely.Polygon([(0, 0), (4, 4), (4, 0), (0, 4)]), "PolygonROI", (2, 3.5), False),
    ],
)
def test_a_detection_counts_where_its_centroid_is_not_outside(geometry, roi_type, point, inside):
    counted = image([annotation(geometry, roi_type=roi_type)], detections([point]))
    rows = count_objects(counted, nucleus_classes=["Nucleus"])
    assert nuclei(rows) == [int(inside)]
    assert rows[0]["Num Detections"] == int(inside)


def test_a_detection_counts_in_every_annotation_around_it_whatever_the_hierarchy():
    nested = [
        annotation(shapely.box(0, 0, 100, 100), "Tissue", handle=0),
        annotation(shapely.box(10, 10, 50, 50), "Tumor", handle=1, parent=0),
        annotation(shapely.box(40, 40, 90, 90), "Tumor", handle=2),
    ]
    found = detections([(5, 5), (45, 45), (45, 45.5), (70, 70), (200, 200)])
    assert nuclei(count_objects(image(nested, found))) == [4, 2, 3]
    # Per class, each nucleus once; in the image, all.
    rows = count_objects(image(nested, found), "class")
    assert [(row["class"], row["nuclei"]) for row in rows] == [("Tissue", 4), ("Tumor", 3)]
    # In the image those in what was analysed; and all detections, as QuPath has it.
    (whole,) = count_objects(image(nested, found), "image")
    assert (whole["nuclei"], whole["Num Detections"]) == (4, 5)
    assert nuclei(count_objects(image(nested, found), roi_classes=["Tumor"])) == [2, 3]


def test_a_run_counts_as_export_does():
    nested = [
        annotation(shapely.box(0, 0, 100, 100), "Tissue", handle=0),
        annotation(shapely.box(10, 10, 50, 50), "Tumor", handle=1, parent=0),
        annotation(ELLIPSE, "Stroma", "EllipseROI", handle=2),
    ]
    found = detections([(5, 5), (45, 45), (45, 45.5), (20, 10), (200, 200)])
    # A run has analysed what lies in the image alone, and both say so.
    clip = shapely.box(0, 0, 30, 99)
    regions = [Region(a, shapely.intersection(a.geometry, clip)) for a in nested]
    record = Record().with_run(regions, UsedMpp((0.5, 0.25), "project", (0.5, 0.25)))
    objects = ImageObjects(tuple(nested), found, "", record.to_properties())
    counted = replace(image(nested, found), objects=objects)
    rows = count_objects(counted)
    for row, (area, number, density, _) in zip(
        rows, count_in_regions(counted, regions), strict=True
    ):
        assert row["analysed_mm2"] == pytest.approx(area, rel=1e-3)
        assert row["nuclei"] == number
        assert row["nuclei_per_mm2"] == pytest.approx(density, rel=1e-3)
    assert nuclei(rows) == [2, 1, 1]  # (20, 10) lies on the border of Tumor
    # Tissue without an annotation.
    (alone,) = count_in_regions(counted, [Region(None, shapely.box(0, 0, 8, 8))])
    assert alone[:2] == (pytest.approx(64 / 8e6), 1)


def test_nuclei_that_two_programs_found_are_said_to_be_counted_twice():
    # Discs of radius 1: the second lies on the first, the third beside it, the fourth elsewhere.
    points = [(12, 12), (12.4, 12), (14.5, 12), (40, 40), (40.2, 40), (60, 60), (60, 60)]
    ids = [OURS, OTHER, OTHER, OURS, OTHER, OTHER, OURS]
    planes = [(0, 0)] * 5 + [(0, 0), (1, 0)]  # the last two lie in two planes
    found = detections(points, ids=ids, planes=planes)
    two = [annotation(RECTANGLE), annotation(shapely.box(30, 30, 70, 70), handle=1)]
    counted = image(two, found)
    said = "counted twice: nuclei of other programs on nuclei of qpnuclei ({})"
    rows = count_objects(counted)
    assert [(row["nuclei"], row["check"]) for row in rows] == [
        (3, said.format(1)),
        (3, said.format(1)),
    ]
    assert [row["check"] for row in count_objects(counted, "image")] == [said.format(2)]
    assert [count[3] for count in count_in_regions(counted, [Region.of(a) for a in two])] == [
        said.format(1)
    ] * 2
    # Who asks for a class of one program counts nothing twice.
    found = detections(
        points, ["ours" if i == OURS else "Nucleus" for i in ids], ids, planes=planes
    )
    rows = count_objects(image(two, found), nucleus_classes=["Nucleus"])
    assert [(row["nuclei"], row["check"]) for row in rows] == [(2, None), (2, None)]


#: Outlines of nuclei around (0, 0), some as damaged or hand-drawn files have them.
NUCLEI = [
    shapely.box(-2, -2, 2, 2),
    shapely.box(-5, -1, 5, 1),
    shapely.Polygon([(-3, -3), (3, 3), (3, -3), (-3, 3)]),  # crosses itself
    shapely.Polygon([(-1, 0), (1, 0), (0, 0)]),  # no area
    shapely.LineString([(-3, 0), (3, 0)]),
    shapely.Polygon(),
    shapely.Polygon([(0, 0), (math.inf, 0), (1, 1)]),
]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(NUCLEI), st.integers(0, 12), st.integers(0, 12),
            st.sampled_from([OURS, OTHER]), st.integers(0, 1),
        ),
        max_size=20,
    )
)  # fmt: skip
def test_nuclei_counted_twice_are_those_of_one_comparison_after_the_other(made):
    found = detections(
        [(x, y) for _, x, y, _, _ in made],
        ids=[own_id for *_, own_id, _ in made],
        planes=np.array([(z, 0) for *_, z in made], int).reshape(-1, 2),
    )
    outlines = np.empty(len(made), object)
    outlines[:] = [shapely.transform(shape, partial(np.add, (x, y))) for shape, x, y, _, _ in made]
    found = replace(found, geometries=outlines)
    areas = [valid_area(outline) for outline in outlines]

    def is_repeated(row):
        return made[row][3] == OTHER and any(
            made[other][3] == OURS
            and made[other][4] == made[row][4]
            and areas[row].intersection(areas[other]).area
            > min(areas[row].area, areas[other].area) / 2
            for other in range(len(made))
        )

    repeated = repeated_nuclei(found, Classes.of(found, None))
    assert repeated.tolist() == [is_repeated(row) for row in range(len(made))]


def test_planes_are_counted_separately():
    deep = [
        annotation(RECTANGLE),
        annotation(RECTANGLE, handle=1, z=2),
        annotation(RECTANGLE, handle=2, z=2, t=1),
        annotation(shapely.box(15, 10, 25, 20), handle=3, z=2),
    ]
    found = detections([(15, 15)] * 3, planes=[(0, 0), (2, 0), (2, 0)])
    rows = count_objects(image(deep, found), nucleus_classes=["Nucleus"])
    assert nuclei(rows) == [1, 2, 0, 2]
    # Areas on different planes add up, overlaps on one plane do not.
    (row,) = count_objects(image(deep, found), "class", nucleus_classes=["Nucleus"])
    assert row["nuclei"] == 3
    assert row["area_mm2"] == pytest.approx((100 + 150 + 100) / 8e6)


def test_an_area_that_was_not_analysed_has_no_count():
    outer = annotation(shapely.box(0, 0, 100, 100), "Outer")
    inner = annotation(shapely.box(10, 10, 50, 50), "Inner", handle=1)
    found = detections([(20, 20), (30, 30)], measurements={"Area µm^2": np.array([1.0, 3.0])})
    counted = image([outer, inner], found, analysed=[inner])
    first, second = count_objects(counted)
    assert (first["status"], second["status"]) == ("not analysed", "analysed")
    assert {first[name] for name in ("nuclei", "Num Detections", "Num Nucleus")} == {None}
    assert math.isnan(first["nuclei_per_mm2"])
    assert math.isnan(first["Area µm^2 (mean)"])
    assert first["area_mm2"] == pytest.approx(1e4 / 8e6)
    assert first["analysed_mm2"] == 0
    assert (second["nuclei"], second["analysed_mm2"]) == (2, second["area_mm2"])
    # With a class, all detections are counted, and the status is unchanged.
    asked = count_objects(counted, nucleus_classes=["Nucleus"])
    assert nuclei(asked) == [2, 2]
    assert asked[0]["status"] == "not analysed"
    # The image's density is that of what was analysed.
    (row,) = count_objects(counted, "image")
    assert (row["status"], row["nuclei"]) == ("analysed", 2)
    assert row["area_mm2"] == pytest.approx(0.25)
    assert row["analysed_mm2"] == pytest.approx(1600 / 8e6)
    assert row["nuclei_per_mm2"] == pytest.approx(2 / (1600 / 8e6))
    (row,) = count_objects(image([outer], found, analysed=[]), "image")
    assert (row["status"], row["nuclei"], row["Num Detections"]) == ("not analysed", None, None)


def test_a_class_of_which_a_part_was_analysed():
    both = [
        annotation(shapely.box(0, 0, 10, 10)),
        annotation(shapely.box(5, 0, 25, 10), handle=1),
    ]
    found = detections([(2, 2), (20, 2)])
    (row,) = count_objects(image(both, found, analysed=both[:1]), "class")
    assert (row["status"], row["nuclei"]) == ("partly analysed", 1)
    assert row["area_mm2"] == pytest.approx(250 / 8e6)
    assert row["nuclei_per_mm2"] == pytest.approx(1 / (100 / 8e6))


def test_an_annotation_that_was_edited_after_the_run():
    before = annotation(shapely.box(0, 0, 10, 10))
    wider = annotation(shapely.box(0, 0, 20, 10))
    found = detections([(2, 2), (5, 5)])
    (row,) = count_objects(image([wider], found, analysed=[before]))
    assert (row["status"], row["nuclei"]) == ("changed since", 2)
    # Only its left half was analysed: that is what the density is of.
    assert row["area_mm2"] == pytest.approx(200 / 8e6)
    assert row["nuclei_per_mm2"] == pytest.approx(2 / (100 / 8e6))


def test_classes_of_intensity_have_the_base_that_qupath_gives_them():
    names = ["Tumor: Positive", "Tumor: Negative", "Tumor", "Tumors", "Stroma: Big", "Positive"]
    found = detections([(15, 15)] * 6, names)
    (row,) = count_objects(image([annotation(RECTANGLE)], found))
    assert [(name, value) for name, value in row.items() if name.startswith("Num ")] == [
        ("Num Detections", 6), ("Num Tumor (base)", 3), ("Num Positive", 1), ("Num Stroma: Big", 1),
        ("Num Tumor", 1), ("Num Tumor: Negative", 1), ("Num Tumor: Positive", 1), ("Num Tumors", 1),
    ]  # fmt: skip


def test_shares_of_positive_nuclei_as_qupath_computes_them(tmp_path: Path):
    graded = ["Tumor: Negative"] * 4 + ["Tumor: 1+"] * 3 + ["Tumor: 2+"] * 2 + ["Tumor: 3+"]
    stroma = ["Stroma: Positive", "Stroma: Negative", "Stroma: Negative", "Stroma", "Nucleus"]
    outside = [*[(15, 15)] * 15, (90, 90)]
    found = detections(outside, [*graded, *stroma, "Tumor: 3+"])
    counted = image([annotation(RECTANGLE), annotation(shapely.box(0, 0, 1, 1))], found)
    row, empty = count_objects(counted)
    shares = {n: v for n, v in row.items() if n.endswith(("Positive %", "H-score"))}
    # By hand: 6 of 10, 1 of 3, 7 of 13; (3 + 2 * 2 + 3 * 1) / 10. Stroma has no grades.
    assert shares == {
        "Stroma: Positive %": pytest.approx(100 / 3), "Tumor: Positive %": 60,
        "Stroma + Tumor: Positive %": pytest.approx(700 / 13), "Tumor: H-score": 100,
    }  # fmt: skip
    assert (row["Num Tumor (base)"], row["Num Tumor: 1+"]) == (10, 3)
    assert all(math.isnan(empty[name]) for name in shares)
    # Beside the counts, even if the first image has none of them; empty where there are none.
    plain = {"image": "b", "Num Detections": 0, "Area µm^2 (mean)": 1.5}
    write_counts([plain, row, empty], tmp_path / "t.csv")
    header, *rows = csv.reader((tmp_path / "t.csv").read_text("utf-8-sig").splitlines())
    at = header.index("Stroma: Positive %")
    assert header[at - 1].startswith("Num ")
    assert header[at : at + 4] == list(shares)
    assert [cells[at + 1] for cells in rows] == ["", "60.0", ""]


def test_positive_without_a_base_class():
    names = ["Positive", "Negative", "Negative", "Negative", "Tumor: Negative"]
    (row,) = count_objects(image([annotation(RECTANGLE)], detections([(15, 15)] * 5, names)))
    assert (row["Positive %"], row["Tumor: Positive %"], row[" + Tumor: Positive %"]) == (25, 0, 20)
    assert not any(name.endswith("H-score") for name in row)


def test_a_class_called_as_another_column_takes_nothing_over():
    names = ["Detections", "Tumor (base)", "Tumor: Positive", "Nucleus"]
    (row,) = count_objects(
        image([annotation(RECTANGLE)], detections([(15, 15)] * 5, [*names, "Detections"]))
    )
    assert {name: value for name, value in row.items() if name.startswith("Num ")} == {
        "Num Detections": 5, "Num Detections (class)": 2, "Num Tumor (base)": 1,
        "Num Tumor (base) (class)": 1, "Num Tumor: Positive": 1, "Num Nucleus": 1,
    }  # fmt: skip


def test_areas_and_densities():
    # 0.5 x 0.25 µm: 8 million px are one mm².
    annotations = [
        annotation(shapely.box(0, 0, 2000, 1000)),
        annotation(shapely.box(1000, 0, 3000, 1000), handle=1),
        annotation(ELLIPSE, "Stroma", "EllipseROI", handle=2),
    ]
    found = detections([(500, 500), (1500, 500)])
    rows = count_objects(image(annotations, found))
    assert rows[0]["area_mm2"] == pytest.approx(0.25)
    assert rows[0]["nuclei_per_mm2"] == pytest.approx(8)
    # The ellipse itself, not the 64-gon.
    assert rows[2]["area_mm2"] == pytest.approx(math.pi * 50 / 8e6)
    # A class has the area of the union.
    assert count_objects(image(annotations, found), "class")[0]["area_mm2"] == pytest.approx(0.375)
    assert count_objects(image(annotations, found), "image")[0]["area_mm2"] == pytest.approx(0.25)
    uncalibrated = count_objects(image(annotations, found, PixelCalibration()))
    assert math.isnan(uncalibrated[0]["area_mm2"])
    assert math.isnan(uncalibrated[0]["nuclei_per_mm2"])
    unknown = count_objects(image(annotations, found, size=None), "image")
    assert math.isnan(unknown[0]["area_mm2"])


def test_which_detections_are_nuclei():
    ours = nucleus_id(bytes(10))
    found = detections(
        [(1, 1)] * 5,
        ["Nucleus", "Tumor", None, "Positive", "Nucleus"],
        [OTHER, ours, ours, OTHER, None],
    )
    counted = image([annotation(shapely.box(0, 0, 2, 2))], found)
    (row,) = count_objects(counted)
    # Those of the class, and those that qpnuclei wrote, whatever their class has become.
    assert row["nuclei"] == 4
    assert row["Num Detections"] == 5
    assert (row["Num Nucleus"], row["Num Tumor"], row["Num Positive"]) == (2, 1, 1)
    assert [name for name in row if name.startswith("Num")] == [
        "Num Detections", "Num Nucleus", "Num Positive", "Num Tumor",
    ]  # fmt: skip
    assert nuclei(count_objects(counted, nucleus_classes=["Positive", "Tumor"])) == [2]


def test_measurements_of_the_nuclei_are_summarised():
    found = detections(
        [(1, 1), (1, 1), (1, 1), (1, 1), (9, 9)],
        ["Nucleus", "Nucleus", "Nucleus", "Other", "Nucleus"],
        measurements={
            "Area µm^2": np.array([1.0, 2.0, 6.0, 100.0, 1000.0]),
            "Eosin: Mean": np.array([np.nan, 5.0, np.nan, 1.0, 1.0]),
        },
    )
    (row,) = count_objects(image([annotation(shapely.box(0, 0, 2, 2))], found))
    assert row["Area µm^2 (mean)"] == 3
    assert row["Area µm^2 (median)"] == 2
    assert row["Area µm^2 (SD)"] == pytest.approx(math.sqrt((4 + 1 + 9) / 2))
    assert row["Eosin: Mean (mean)"] == 5
    assert math.isnan(row["Eosin: Mean (SD)"])
    (row,) = count_objects(image([annotation(shapely.box(50, 50, 60, 60))], found))
    assert row["nuclei"] == 0
    assert math.isnan(row["Area µm^2 (mean)"])


def test_an_image_without_objects():
    assert count_objects(image([], detections([]))) == []
    assert count_objects(image([], detections([])), "class") == []
    assert nuclei(count_objects(image([], detections([])), "image")) == [None]
    assert nuclei(count_objects(image([annotation(RECTANGLE)], detections([])))) == [0]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_counts_equal_those_of_one_test_after_the_other(seed):
    rng = np.random.default_rng(seed)
    # Coordinates on a coarse grid: many centroids lie on borders and corners.
    annotations = [
        annotation(
            shapely.convex_hull(shapely.multipoints(rng.integers(0, 12, (5, 2)))),
            str(rng.integers(3)),
            handle=i,
        )
        for i in range(6)
    ]
    found = detections(rng.integers(0, 12, (60, 2)))
    expected = [
        sum(shapely.intersects_xy(a.geometry, x, y) for x, y in found.centroids) if a.is_area else 0
        for a in annotations
    ]
    assert nuclei(count_objects(image(annotations, found))) == expected


ROWS = [
    {
        "image": "ä, b",
        "class": None,
        "uuid": OTHER,
        "nuclei": 3,
        "area_mm2": 0.5,
        "x (SD)": math.nan,
    },
    {"image": "c\td", "class": "Tumor", "uuid": None, "nuclei": 0, "new": 1.25, "x (SD)": math.nan},
]


def test_tables_as_text(tmp_path):
    write_table(ROWS, tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_bytes().startswith(b"\xef\xbb\xbfimage,")
    assert (tmp_path / "t.csv").read_text("utf-8-sig").splitlines() == [
        "image,class,uuid,nuclei,area_mm2,x (SD),new",
        f'"ä, b",,{OTHER},3,0.5,,',
        "c\td,Tumor,,0,,,1.25",
    ]
    write_table(ROWS, tmp_path / "t.TSV")
    with (tmp_path / "t.TSV").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    assert rows[1]["image"] == "c\td"
    assert rows[0]["nuclei"] == "3"


def test_numbers_for_people_have_six_digits_and_others_all(tmp_path):
    numbers = [123.456789, 0.000123456789, 1234567.891, -2 / 3, 1e-300, math.inf]
    for suffix in ("csv", "json"):
        write_table([{"number": number} for number in numbers], tmp_path / f"t.{suffix}")
    text = (tmp_path / "t.csv").read_text("utf-8-sig").splitlines()[1:]
    assert text == ["123.457", "0.000123457", "1234568.0", "-0.666667", "1e-300", '""']
    found = [row["number"] for row in json.loads((tmp_path / "t.json").read_text())]
    assert found == [*numbers[:-1], None]


def test_columns_stand_in_the_same_order_whatever_the_rows_have(tmp_path):
    first = {"image": "a", "Num Detections": 1, "Area µm^2 (mean)": 1.5, "uuid": None}
    second = {"image": "b", "Num Detections": 2, "Num Tumor": 2, "Area µm^2 (mean)": 2.5}
    write_counts([first, second], tmp_path / "t.csv")
    (header, *_) = (tmp_path / "t.csv").read_text("utf-8-sig").splitlines()
    between = ("Num Detections", "Num Tumor", "Area µm^2 (mean)")
    assert tuple(header.split(",")) == (*FIRST_COLUMNS, *between, *LAST_COLUMNS)
    counted = image([annotation(RECTANGLE)], detections([(15, 15)]))
    for by in ("annotation", "class", "image"):
        (row,) = count_objects(counted, by)
        assert tuple(row) == (
            *FIRST_COLUMNS, "Num Detections", "Num Nucleus", *LAST_COLUMNS
        )  # fmt: skip


def test_a_table_without_rows_has_its_header(tmp_path):
    for suffix in ("csv", "tsv", "parquet"):
        write_counts([], tmp_path / f"t.{suffix}")
    for suffix, separator in (("csv", ","), ("tsv", "\t")):
        text = (tmp_path / f"t.{suffix}").read_text("utf-8-sig")
        assert text == separator.join((*FIRST_COLUMNS, *LAST_COLUMNS)) + "\n"
    table = pyarrow.parquet.read_table(tmp_path / "t.parquet")
    assert table.column_names == [*FIRST_COLUMNS, *LAST_COLUMNS]
    assert table.schema.field("nuclei").type == "int64"


@pytest.mark.parametrize("version", sorted(path.name for path in SAMPLES.iterdir()))
def test_cores_of_a_tma_count_as_qupath_counts_them(version):
    """Against the centroids, and the cores' ellipses, that QuPath itself states."""
    project = open_project(SAMPLES / version / "project", backend="native")
    (entry,) = [entry for entry in project.images if entry.read().cores]
    rows = count_project(project, [entry], nucleus_classes=["Nucleus"])
    expected = json.loads((SAMPLES / version / f"expected-{entry.id}.json").read_text("utf-8"))
    cores = [o for o in expected["root"]["children"] if o["cls"] == "TMACoreObject"]
    assert len(cores) == 6
    found = entry.read().detections.centroids
    for row, core in zip(rows, cores, strict=False):
        _, _, _, _, (x, y, width, height) = core["roi"]
        inside = ((found - (x + width / 2, y + height / 2)) / (width / 2, height / 2)) ** 2
        assert row["annotation"] == core["name"]
        assert row["type"] == ("missing TMA core" if core["missing"] else "TMA core")
        assert row["nuclei"] == np.count_nonzero(inside.sum(axis=1) <= 1)
        assert str(row["uuid"]) == core.get("id", "None")
    assert sum(row["nuclei"] for row in rows[:6]) > 0
    assert {row["type"] for row in rows[6:]} == {"annotation"}
    assert {row["type"] for row in count_project(project, [entry], "class")} == {"class"}


def test_tables_with_types(tmp_path):
    write_table(ROWS, tmp_path / "t.json")
    rows = json.loads((tmp_path / "t.json").read_text("utf-8"))
    assert rows[0] == {
        "image": "ä, b", "class": None, "uuid": str(OTHER), "nuclei": 3, "area_mm2": 0.5,
        "x (SD)": None, "new": None,
    }  # fmt: skip
    write_table(ROWS, tmp_path / "t.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "t.parquet")
    assert table.to_pylist() == rows
    assert [str(field.type) for field in table.schema] == [
        "string", "string", "string", "int64", "double", "double", "double",
    ]  # fmt: skip


def test_an_empty_table_and_an_unknown_format(tmp_path):
    write_table([], tmp_path / "t.json")
    assert json.loads((tmp_path / "t.json").read_text()) == []
    with pytest.raises(UsageError, match=r"t\.xlsx.*\.csv, \.tsv, \.json, \.parquet"):
        write_table(ROWS, tmp_path / "t.xlsx")
    (tmp_path / "file").touch()
    with pytest.raises(SaveError):
        write_table(ROWS, tmp_path / "file" / "t.csv")


class Entry:
    id = "1"
    name = "a.svs"
    calibration = PixelCalibration(0.5, 0.5)
    server = SimpleNamespace(width=100, height=50)

    def read(self):
        return image([annotation(RECTANGLE)], detections([(15, 15)])).objects


def test_images_of_a_project():
    project = SimpleNamespace(path=Path("/data/Study 1/project.qpproj"))
    rows = count_project(project, [Entry(), Entry()], roi_classes=["Tumor"])
    assert [(row["project"], row["nuclei"]) for row in rows] == [("Study 1/project.qpproj", 1)] * 2
    with pytest.raises(UsageError, match=r"'Stroma'.*classes there: Tumor"):
        count_project(project, [Entry()], roi_classes=["Tumor", "Stroma"])


@pytest.mark.parametrize("version", ["0.2.3", "0.3.2", "0.4.4", "0.5.1", "0.6.0", "0.7.0"])
def test_counts_in_a_project_of_each_qupath_version(version):
    samples = SAMPLES
    project = open_project(samples / version / "project", "native")
    rows = count_project(project, project.images, nucleus_classes=["Nucleus"])
    # As QuPath nests them: five detections in the annotation "nested", which lies in "polygon".
    rows = [row for row in rows if row["type"] == "annotation"]
    found = {row["annotation"]: row["Num Detections"] for row in rows if row["Num Detections"]}
    assert found == {"nested": 5, "polygon": 5, None: 1}
    by_image = count_project(project, project.images, "image", nucleus_classes=["Nucleus"])
    assert nuclei(by_image) == [3, 50, 0]
    # No run of ours has looked there: unless a class is named, there are no numbers.
    rows = count_project(project, project.images)
    assert {row["status"] for row in rows} == {"not analysed"}
    assert {row["nuclei"] for row in rows} == {row["Num Detections"] for row in rows} == {None}
