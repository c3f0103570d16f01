"""The rules of counting; `tests.test_qupath_scripts` tests QuPath's script with the same cases."""

from __future__ import annotations

import json
import math
import uuid
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import shapely

from qpnuclei.choices import Grouping
from qpnuclei.errors import MppError
from qpnuclei.nuclei.table import NucleiTable
from qpnuclei.qupath.analysed import PROPERTY, Record, Status, UsedMpp
from qpnuclei.qupath.analysed_area import rows_of_json
from qpnuclei.qupath.class_counts import ALL_DETECTIONS, Classes
from qpnuclei.qupath.counted_image import CountedImage
from qpnuclei.qupath.counts import count_objects
from qpnuclei.qupath.model import (
    Annotation,
    DetectionGroup,
    Edit,
    ImageObjects,
    NewAnnotation,
    PathClass,
)
from qpnuclei.qupath.native import open_project
from qpnuclei.qupath.pixel_size import pixel_size
from qpnuclei.qupath.project_counts import count_project
from qpnuclei.qupath.repeated_nuclei import RepeatedNuclei
from qpnuclei.slides.calibration import PixelCalibration
from tests.ids import nucleus_id
from tests.qupath.counted import OTHER, RECTANGLE, annotation, detections, image
from tests.qupath.counting_cases import CASES, id_of, record_of, rings
from tests.qupath.samples import copy_project


def names(kind: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", CASES[kind], ids=lambda case: case["case"])


@names("annotations")
def test_status_and_doubts(case: dict[str, Any]) -> None:
    record = Record.of({PROPERTY: json.dumps(record_of(case))}, "a.svs")
    assert len(record.areas) == len(case["areas"])
    polygons = [shapely.Polygon(polygon[0]) for polygon in rings(case["annotation"])]
    geometry = polygons[0] if polygons else shapely.LineString([(0, 0), (9, 9)])
    drawn = Annotation(
        0, uuid.UUID(id_of(case["annotation"]["id"])), None, "Tumor", "PolygonROI", geometry
    )
    assert record.status(drawn) == case["status"]
    if record.status(drawn) is not Status.NOT_ANALYSED:
        assert record.doubts(drawn) == case["check"]
    objects = ImageObjects((drawn,), detections([]), "", {PROPERTY: json.dumps(record_of(case))})
    stains = rows_of_json(case.get("present stains", []))
    calibration = PixelCalibration(0.5, 0.5)
    (row,) = count_objects(CountedImage("p", "a.svs", objects, calibration, stains=stains))
    parts = [case.get("check"), case.get("sizes"), case.get("stains"), case.get("gone")]
    assert (row["check"] or "") == "; ".join(filter(None, parts))


@pytest.mark.parametrize(
    "case",
    [
        case
        for case in CASES["annotations"]
        if case["status"] != "not analysed" and "box" in case["annotation"]
    ],
    ids=lambda case: case["case"],
)
@pytest.mark.parametrize("by", ["annotation", "class"])
def test_nuclei_and_area_are_those_of_the_analysed_part(by: Grouping, case: dict[str, Any]) -> None:
    whole = case["annotation"]["box"]
    geometry = shapely.box(*whole)
    drawn = Annotation(
        0, uuid.UUID(id_of(case["annotation"]["id"])), None, "Tumor", "PolygonROI", geometry
    )
    # Nuclei of another program everywhere, one in the middle of each square of 5 px.
    points = [(x + 2.5, y + 2.5) for x in range(0, 320, 5) for y in range(0, 220, 5)]
    found = detections(points, measurements={"x": np.array([x for x, _ in points])})
    objects = ImageObjects((drawn,), found, "", {PROPERTY: json.dumps(record_of(case))})
    counted = CountedImage("p", "a.svs", objects, PixelCalibration(0.5, 0.5))
    (row,) = count_objects(counted, by)
    x0, y0, x1, y1 = case.get("part", whole)
    inside = [x for x, y in points if x0 < x < x1 and y0 < y < y1]
    assert row["nuclei"] == len(inside)
    assert row["analysed_mm2"] == pytest.approx((x1 - x0) * (y1 - y0) / 4e6)
    assert row["nuclei_per_mm2"] == pytest.approx(row["nuclei"] / row["analysed_mm2"])
    assert row["x (mean)"] == pytest.approx(np.mean(inside))
    # QuPath's own count, and the area, are those of the whole annotation.
    assert row["Num Detections"] == sum(
        whole[0] < x < whole[2] and whole[1] < y < whole[3] for x, y in points
    )
    assert row["area_mm2"] == pytest.approx(geometry.area / 4e6)


@names("classes")
def test_counts_of_classes(case: dict[str, Any]) -> None:
    entries = []
    for number, counts in enumerate(case["images"]):
        class_names = [name or None for name, count in counts.items() for _ in range(count)]
        found = detections([(15, 15)] * len(class_names), class_names)
        objects = image([annotation(RECTANGLE)], found).objects
        entries.append(
            SimpleNamespace(
                id=str(number),
                name=f"image {number}",
                calibration=image([], found).calibration,
                stains=None,
                server=SimpleNamespace(width=100, height=50),
                read=lambda objects=objects: objects,
            )
        )
    project: Any = SimpleNamespace(path=Path("p/q"))
    rows = count_project(project, entries)
    fixed = set(count_project(project, [bare_entry()])[0])
    for row, columns in zip(rows, case["columns"], strict=True):
        found_columns = {name: value for name, value in row.items() if name not in fixed}
        assert found_columns == pytest.approx(columns)
        assert row[ALL_DETECTIONS] == sum(case["images"][rows.index(row)].values())
        assert not any(math.isnan(value) for value in found_columns.values())


def bare_entry() -> Any:
    counted = image([annotation(RECTANGLE)], detections([]))
    return SimpleNamespace(
        id="1",
        name="a",
        calibration=counted.calibration,
        stains=None,
        server=SimpleNamespace(width=100, height=50),
        read=lambda: counted.objects,
    )


@names("nuclei")
def test_nuclei_that_are_counted_twice(case: dict[str, Any]) -> None:
    outlines = [shapely.box(*nucleus["box"]) for nucleus in case["nuclei"]]
    found = detections(
        [(outline.centroid.x, outline.centroid.y) for outline in outlines],
        ids=[
            nucleus_id(bytes([number]) * 10) if nucleus["ours"] else OTHER
            for number, nucleus in enumerate(case["nuclei"])
        ],
        planes=[(nucleus.get("z", 0), 0) for nucleus in case["nuclei"]],
    )
    vars(found)["geometries"] = np.array(outlines, dtype=object)
    repeated = RepeatedNuclei.among(found, Classes.of(found, None))
    assert repeated.note(np.arange(len(outlines))) == case["check"]


@names("rows")
def test_rows_of_what_a_project_holds(case: dict[str, Any], tmp_path: Path) -> None:
    entry = open_project(copy_project("0.5.1", tmp_path)).images[2]  # without detections
    ((ring,),) = rings(case.get("annotation", {"box": [0, 0, 100, 100]}))
    drawn, own_id = shapely.Polygon(ring), uuid.UUID(id_of("A"))
    groups = []
    for number, detection in enumerate(case["detections"]):
        nuclei = NucleiTable.from_polygons(
            [shapely.box(*detection["nucleus"])], {"M": [float(detection["M"])]}
        )
        if "cell" in detection:
            cells = NucleiTable.from_polygons([shapely.box(*detection["cell"])])
            nuclei = replace(nuclei, cells=cells)
        is_ours = detection.get("ours", True)
        ids = [nucleus_id(bytes([number]) * 10) if is_ours else uuid.UUID(int=number)]
        name = detection.get("class", "Nucleus")
        groups.append(DetectionGroup(None, nuclei, ids, name and PathClass(name)))
    edit = Edit(
        add=groups,
        annotations=[NewAnnotation(drawn, own_id, "a", PathClass("Tumor"))],
        properties={PROPERTY: json.dumps(record_of(case))},
    )
    entry.write(edit, entry.read().fingerprint)
    objects = entry.read()
    counted = CountedImage("p", "a.svs", objects, PixelCalibration(0.5, 0.5))
    rows = count_objects(counted, nucleus_classes=case.get("classes"))
    (row,) = (row for row in rows if row["uuid"] == own_id)
    for column, value in case["row"].items():
        expected = math.nan if value is None and column != "check" else value
        if isinstance(expected, float):
            expected = pytest.approx(expected, nan_ok=True)
        assert row[column] == expected, column


@names("pixel sizes")
def test_pixel_sizes(case: dict[str, Any]) -> None:
    record = Record()
    if case["used"]:
        record = Record(used=UsedMpp.of_json({"source": "--mpp", **case["used"]}))
    calibration = PixelCalibration(*(case["project"] or ()))
    entry: Any = SimpleNamespace(id="1", name="a", unique_name="a", calibration=calibration)
    if case["size"] is None:
        with pytest.raises(MppError):
            pixel_size(entry, record, slide_mpp=lambda: case["slide"])
    else:
        size, _ = pixel_size(entry, record, slide_mpp=lambda: case["slide"])
        assert size == pytest.approx(case["size"], rel=1e-6)
