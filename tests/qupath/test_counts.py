from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

import qpnuclei
from qpnuclei.errors import UsageError
from qpnuclei.qupath.analysed import Record, UsedMpp
from qpnuclei.qupath.count_table import write_counts
from qpnuclei.qupath.counts import count_in_regions, count_objects
from qpnuclei.qupath.model import ImageObjects
from qpnuclei.qupath.project import open_project
from qpnuclei.qupath.project_counts import count_project
from qpnuclei.qupath.regions import Region
from qpnuclei.slides.calibration import PixelCalibration
from qpnuclei.slides.resolution import mpp_text
from tests.ids import nucleus_id
from tests.paths import SAMPLES
from tests.qupath.counted import OTHER, RECTANGLE, annotation, detections, image, nuclei

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


def test_an_image_has_no_annotations_to_choose():
    counted = image([annotation(RECTANGLE)], detections([(15, 15)]))
    with pytest.raises(UsageError, match=r"--by image .*--roi .*--by class"):
        count_objects(counted, "image", roi_classes=["Tumor"])
    project = open_project(SAMPLES / "0.5.1" / "project", backend="native")
    with pytest.raises(UsageError, match=r"by='class'"):
        count_project(project, project.images, "image", roi_classes=["Tumor"])
    # No class chooses no annotation, and says nothing of the image.
    images = count_project(project, project.images, "image")
    assert qpnuclei.count(project, "image", roi_classes=[]) == images
    assert qpnuclei.count(project, "annotation", roi_classes=[]) == []
    assert qpnuclei.count(project, "class", roi_classes=[]) == []


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


def test_nuclei_in_what_was_added_to_an_annotation_do_not_count():
    before = annotation(shapely.box(0, 0, 10, 10))
    wider = annotation(shapely.box(0, 0, 20, 10))
    own = nucleus_id(bytes(10))
    found = detections(
        [(2, 2), (12, 2), (15, 5), (18, 8)],
        ids=[own, OTHER, OTHER, OTHER],
        measurements={"Area µm^2": np.array([1.0, 30, 40, 50])},
    )
    counted = image([wider], found, analysed=[before])
    rows = [count_objects(counted, by)[0] for by in ("annotation", "class", "image")]
    for row in rows:
        assert (row["status"], row["nuclei"]) == ("changed since", 1)
        assert row["analysed_mm2"] == pytest.approx(100 / 8e6)
        assert row["nuclei_per_mm2"] == pytest.approx(1 / row["analysed_mm2"])
        assert row["Area µm^2 (mean)"] == row["Area µm^2 (median)"] == 1
        assert math.isnan(row["Area µm^2 (SD)"])
        assert row["Num Detections"] == 4
    # With a class, all of them count, and the density is that of the whole annotation.
    (row,) = count_objects(counted, nucleus_classes=["Nucleus"])
    assert (row["nuclei"], row["nuclei_per_mm2"]) == (4, pytest.approx(4 / (200 / 8e6)))


def test_an_edited_annotation_beside_others_of_its_class():
    edited = annotation(shapely.box(0, 0, 30, 10))
    beside = annotation(shapely.box(25, 0, 50, 10), handle=1)
    drawn_later = annotation(shapely.box(60, 0, 80, 10), handle=2)
    found = detections([(2, 2), (15, 2), (27, 2), (40, 2), (70, 2)])
    before = replace(edited, geometry=shapely.box(0, 0, 10, 10))
    counted = image([edited, beside, drawn_later], found, analysed=[before, beside])
    # (15, 2) lies where no run has looked; (27, 2) in the part that the other one covers, too.
    assert nuclei(count_objects(counted)) == [2, 2, None]
    for by in ("class", "image"):
        (row,) = count_objects(counted, by)
        assert (row["status"], row["nuclei"]) == ("changed since", 3)
        assert row["analysed_mm2"] == pytest.approx(350 / 8e6)
        assert row["nuclei_per_mm2"] == pytest.approx(3 / (350 / 8e6))


def test_an_ellipse_that_was_made_smaller_is_analysed_wholly():
    before = annotation(shapely.box(0, 0, 40, 40))
    smaller = annotation(ELLIPSE, roi_type="EllipseROI")
    (row,) = count_objects(image([smaller], detections([(20, 10)]), analysed=[before]))
    assert row["status"] == "changed since"
    assert row["analysed_mm2"] == row["area_mm2"] == pytest.approx(math.pi * 50 / 8e6)
    assert row["nuclei_per_mm2"] == pytest.approx(1 / row["area_mm2"])


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


@pytest.mark.filterwarnings("error")
def test_summaries_are_of_the_finite_values():
    # Scripts and other programs write infinite measurements.
    found = detections(
        [(1, 1)] * 4,
        measurements={
            "Ratio": np.array([np.inf, 2.0, 4.0, np.nan], np.float32),
            "Log": np.array([-np.inf, np.inf, np.nan, np.inf], np.float32),
        },
    )
    (row,) = count_objects(image([annotation(shapely.box(0, 0, 2, 2))], found))
    assert row["nuclei"] == 4
    summaries = [row[f"Ratio ({name})"] for name in ("mean", "median", "SD")]
    assert summaries == [3, 3, pytest.approx(math.sqrt(2))]
    assert all(math.isnan(row[f"Log ({name})"]) for name in ("mean", "median", "SD"))


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


def test_an_image_has_all_detections_of_a_named_class_with_or_without_a_run():
    inside = annotation(RECTANGLE)
    found = detections([(15, 15), (90, 90)], ["Lympho", "Lympho"])
    for analysed, status in (([inside], "analysed"), ([], "not analysed")):
        counted = image([inside], found, analysed=analysed)
        (row,) = count_objects(counted, "image", nucleus_classes=["Lympho"])
        assert (row["nuclei"], row["Num Lympho"], row["status"]) == (2, 2, status)
        # Not known is the area in which another program looked for them.
        assert math.isnan(row["nuclei_per_mm2"])
        assert row["area_mm2"] == pytest.approx(0.25)


def test_lines_and_points_do_not_make_a_class_partly_analysed():
    area = annotation(RECTANGLE)
    line = annotation(shapely.LineString([(0, 0), (9, 9)]), roi_type="LineROI", handle=1)
    point = annotation(shapely.MultiPoint([(5, 5)]), roi_type="PointsROI", handle=2)
    counted = image([area, line, point], detections([(15, 15)]), analysed=[area])
    (row,) = count_objects(counted, "class")
    assert (row["status"], row["nuclei"]) == ("analysed", 1)
    assert [row["status"] for row in count_objects(counted)] == [
        "analysed", "not analysed", "not analysed",
    ]  # fmt: skip
    alone = image([line], detections([]), analysed=[area])
    assert [row["status"] for row in count_objects(alone, "class")] == ["not analysed"]


def test_a_wholly_excluded_annotation_has_no_counts():
    outer = annotation(shapely.box(0, 0, 100, 100))
    fold = annotation(shapely.box(40, 40, 60, 60), "Ignore*", handle=1)
    inside = annotation(shapely.box(45, 45, 55, 55), "Inside", handle=2)
    found = detections([(5, 5), (50, 50)], ["Nucleus: Positive", "Nucleus: Negative"])
    part = Region(outer, shapely.difference(outer.geometry, fold.geometry))
    record = Record().with_run([part], UsedMpp((0.5, 0.25), "project", (0.5, 0.25)))
    objects = ImageObjects((outer, fold, inside), found, "", record.to_properties())
    rows = count_objects(replace(image([], found), objects=objects))
    assert [row["status"] for row in rows] == ["analysed", "not analysed", "not analysed"]
    for row in rows[1:]:
        assert {v for n, v in row.items() if n.startswith("Num ") or n == "nuclei"} == {None}
        assert row["analysed_mm2"] == 0


def test_nuclei_found_at_another_pixel_size_than_the_present_are_doubtful():
    first, second = annotation(RECTANGLE), annotation(shapely.box(50, 10, 60, 20), handle=1)
    counted = image([first, second], detections([(15, 15), (55, 15)]), analysed=[first])
    finer = UsedMpp((0.25, 0.25), "--mpp", (0.5, 0.25))
    record = counted.record.with_run([Region.of(second)], finer)
    objects = replace(counted.objects, properties=record.to_properties())
    for mpp, sizes in {
        (0.25, 0.25): ["0.5 x 0.25", None],
        (0.5, 0.25): [None, "0.25"],
        (0.6, 0.6): ["0.5 x 0.25", "0.25"],
    }.items():
        counted = replace(counted, objects=objects, calibration=PixelCalibration(*mpp))
        own = mpp_text(mpp)
        notes = [s and f"analysed at {s} µm/px, counted at {own}: run again" for s in sizes]
        assert [row["check"] for row in count_objects(counted)] == notes
        (of_class,) = count_objects(counted, "class")
        assert of_class["check"] == "; ".join(filter(None, notes))
        (whole,) = count_objects(counted, "image")
        found = " and ".join(filter(None, sizes))
        assert whole["check"] == f"analysed at {found} µm/px, counted at {own}: run again"
    unknown = replace(counted, calibration=PixelCalibration())
    assert [row["check"] for row in count_objects(unknown)] == [None, None]


def test_a_doubt_about_an_annotation_does_not_seem_to_be_about_all():
    boxes = [shapely.box(x, 0, x + 9, 9) for x in (0, 20, 40, 60, 80)]
    areas = [replace(annotation(box, handle=i), name=f"a{i}") for i, box in enumerate(boxes)]
    labels = [area.label for area in areas]
    counted = image(areas, detections([(5, 5)]))
    used = UsedMpp((0.5, 0.25), "project", (0.5, 0.25))

    def checks_of(checks, of_image=""):
        regions = [Region.of(area) for area in areas]
        record = Record().with_run(regions, used, check=of_image, checks=checks)
        objects = replace(counted.objects, properties=record.to_properties())
        now = replace(counted, objects=objects)
        return [
            [row["check"] for row in count_objects(now, by)]
            for by in ("annotation", "class", "image")
        ]

    large, dark = "the median nucleus has 99 µm²", "dark"
    each = ["", large, f"{large}; {dark}", "", ""]
    both = f"{labels[1]}, {labels[2]}: {large}; {labels[2]}: {dark}"
    assert checks_of(each) == [[None, large, f"{large}; {dark}", None, None], [both], [both]]
    # What is doubtful of the whole image has no names.
    assert checks_of(each, dark) == [
        [None, large, f"{large}; {dark}", None, None],
        [both],
        [dark],
    ]
    many = f"{labels[0]}, {labels[1]} and 3 more: {dark}"
    assert checks_of([dark] * 5) == [[dark] * 5, [many], [many]]
