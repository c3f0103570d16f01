"""Nuclei drawn in QuPath as truth."""

from __future__ import annotations

import json
import re
import uuid
from pathlib import Path

import numpy as np
import pytest
import shapely
from PIL import Image
from typer.testing import CliRunner

import qpnuclei
from qpnuclei.cli.app import app
from qpnuclei.errors import MppError, NotFoundError, QpnucleiError, UsageError
from qpnuclei.evaluation.boxes import BoxImage, read_boxes
from qpnuclei.evaluation.formats import read_dataset
from qpnuclei.nuclei.table import NucleiTable
from qpnuclei.qupath.geojson.objects import GeoJsonObject
from qpnuclei.qupath.geojson.writing import write_objects
from qpnuclei.qupath.model import DetectionGroup, Edit, NewAnnotation, PathClass, Project
from tests.evaluation.images import painted
from tests.ids import nucleus_id

#: The painted image has a disc around each of these places.
SIZE = 400


def disc(x: float, y: float, r: float = 8) -> shapely.Polygon:
    return shapely.Point(x, y).buffer(r)


def project_of(folder: Path, rgb: np.ndarray, mpp: float | None = 0.25) -> Project:
    Image.fromarray(rgb).save(folder / "slide.png")
    return qpnuclei.create_project(folder / "project", [folder / "slide.png"], mpp=mpp)


def draw(
    project: Project,
    annotations: list[tuple[str, shapely.Geometry]] = [],  # noqa: B006 - never changed
    detections: list[tuple[str, shapely.Polygon, bool]] = [],  # noqa: B006
    cells: dict[str, shapely.Polygon] | None = None,
) -> None:
    """Draw annotations, detections (by qpnuclei or not) and cells around squares."""
    image = project.images[0]
    groups = [
        DetectionGroup(
            None,
            NucleiTable.from_polygons([shape]),
            [nucleus_id(f"{number}".encode() * 10) if ours else uuid.uuid4()],
            PathClass(name),
        )
        for number, (name, shape, ours) in enumerate(detections)
    ]
    for name, nucleus in (cells or {}).items():
        table = NucleiTable.from_polygons([nucleus])
        cell = NucleiTable.from_polygons([nucleus.buffer(20)])
        with_cell = NucleiTable(table.vertices, table.ring_offsets, table.polygon_offsets, {}, cell)
        groups.append(DetectionGroup(None, with_cell, [uuid.uuid4()], PathClass(name)))
    edit = Edit(
        add=groups,
        annotations=[
            NewAnnotation(shape, uuid.uuid4(), path_class=PathClass(name))
            for name, shape in annotations
        ],
    )
    image.write(edit, image.read().fingerprint)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return project_of(tmp_path, np.full((SIZE, SIZE, 3), 230, np.uint8))


BOX = shapely.box(100, 100, 300, 300)


def test_every_kind_of_drawn_nucleus_is_read_and_none_is_cut(project: Project) -> None:
    draw(
        project,
        [
            ("Box", BOX),
            ("Nucleus", disc(150, 150)),
            ("Nucleus", disc(297, 200)),  # crosses the border, centroid inside
            ("Nucleus", disc(303, 250)),  # centroid outside
            ("Other", disc(200, 280)),
            ("Nucleus", shapely.LineString([(120, 120), (130, 130)])),
        ],
        [("Nucleus", disc(200, 150), False), ("Nucleus", disc(250, 150), True)],
        {"Nucleus": disc(150, 250)},
    )
    drawn = read_boxes(project.path, ["Box"])
    (box,) = drawn.images
    assert drawn.described == {
        "roi": ["Box"], "truth_class": ["Nucleus"], "boxes": 1, "nuclei": 5,
        "nuclei_by_qpnuclei": 1, "mended": 0,
    }  # fmt: skip
    assert drawn.notes[0] == (
        "Truth: 5 nuclei of class Nucleus in 1 box of class Box, 1 of them unchanged detections of "
        "qpnuclei."
    )
    assert drawn.notes[-1] == "Left out: 1 object of class Nucleus without an area."
    # 30 µm around the box are read, as far as the image goes.
    assert box.frame == (0, 0, 400, 400)
    rgb, labels = box.read()
    assert rgb.shape == (400, 400, 3)
    areas = np.bincount(labels.ravel())[1:]
    assert len(areas) == 5
    # A whole disc each: of the cell its nucleus.
    np.testing.assert_allclose(areas, disc(0, 0).area, rtol=0.05)
    assert labels[200, 302] > 0
    assert labels[250, 303] == 0
    # Alone, nothing is beyond the border, and what crosses it is cut.
    rgb, labels = box.read_alone()
    assert labels.shape == (200, 200)
    assert len(np.unique(labels)) == 7
    assert labels[100, 199] > 0
    assert labels[150, 199] > 0


def frame_of(project: Project) -> BoxImage:
    (box,) = read_boxes(project.path, ["Box"]).images
    return box


def test_a_prediction_counts_as_the_drawn_nucleus_that_it_meets(project: Project) -> None:
    draw(
        project,
        [
            ("Box", BOX),
            ("Nucleus", disc(297, 150)),
            ("Nucleus", disc(303, 250)),
            ("Nucleus", disc(150, 200)),
        ],
    )
    predicted = {
        "the first, though its own centroid is outside": (disc(302, 150), True),
        "the second, though its own centroid is inside": (disc(298, 250), False),
        "nothing, inside": (disc(200, 200), True),
        "nothing, outside": (disc(302, 200), False),
        "hardly the second, inside": (disc(289, 250), True),
    }
    nuclei = NucleiTable.from_polygons([shape for shape, _ in predicted.values()])
    kept = frame_of(project).counted(nuclei)
    expected = nuclei.take([counts for _, counts in predicted.values()])
    np.testing.assert_array_equal(kept.vertices, expected.vertices)
    assert len(frame_of(project).counted(NucleiTable.empty())) == 0


def test_a_mended_nucleus_takes_the_place_of_the_detection(project: Project) -> None:
    draw(
        project,
        [("Box", BOX), ("Nucleus", disc(152, 150, 9)), ("Nucleus", disc(212, 200))],
        [("Nucleus", disc(150, 150), True), ("Nucleus", disc(200, 200), True)],
    )
    drawn = read_boxes(project.path, ["Box"])
    assert (drawn.described["nuclei"], drawn.described["mended"]) == (3, 1)
    assert drawn.described["nuclei_by_qpnuclei"] == 1
    (box,) = drawn.images
    np.testing.assert_allclose(
        sorted(shapely.area(box.drawn)), [disc(0, 0).area] * 2 + [disc(0, 0, 9).area], rtol=0.01
    )


def test_boxes_that_overlap_would_count_nuclei_twice(project: Project) -> None:
    beside = [("Box", shapely.box(0, 0, 50, 50)), ("Box", shapely.box(50, 0, 99, 50))]
    draw(project, [*beside, ("Nucleus", disc(20, 20, 6)), ("Nucleus", disc(70, 20, 6))])
    assert len(read_boxes(project.path, ["Box"]).images) == 2
    draw(project, [("Box", shapely.box(40, 0, 60, 50))])
    with pytest.raises(UsageError, match="overlap, and nuclei in both would count twice"):
        read_boxes(project.path, ["Box"])


def test_what_cannot_be_compared_is_an_error(project: Project, tmp_path: Path) -> None:
    def refuse(error: type[QpnucleiError], match: str, *arguments: object, **more: object) -> None:
        with pytest.raises(error, match=match):
            read_boxes(project.path, *arguments, **more)  # type: ignore[arg-type]

    refuse(UsageError, "--roi is missing", [])
    refuse(UsageError, "no annotation of class 'Box' with an area in", ["Box"])
    draw(project, [("Box", BOX)], [("Nucleus", disc(150, 150), True), ("Cell", disc(9, 9), True)])
    refuse(UsageError, r"all nuclei of class 'Nucleus' in the boxes \(1\) are unchanged", ["Box"])
    # With the class named, somebody has looked at them.
    assert read_boxes(project.path, ["Box"], ["Nucleus"]).described["nuclei"] == 1
    refuse(
        UsageError, r"box Box \(.*: no nucleus of class 'Truth' is drawn in it", ["Box"], ["Truth"]
    )
    refuse(UsageError, "no image of .* matches 'no'", ["Box"], images=["no"])
    draw(project, [("Aside", shapely.box(-50, -50, -10, -10))])
    refuse(UsageError, "it lies outside the image", ["Aside"])
    with pytest.raises(UsageError, match="is a project"):
        qpnuclei.evaluate(project.path, split="val", roi=["Box"])
    with pytest.raises(UsageError, match="--roi is for QuPath projects"):
        qpnuclei.evaluate(tmp_path, roi=["Box"])
    with pytest.raises(NotFoundError):
        read_boxes(tmp_path / "no.qpproj", ["Box"])
    (tmp_path / "unknown").mkdir()
    unknown = project_of(tmp_path / "unknown", np.full((99, 99, 3), 230, np.uint8), None)
    draw(unknown, [("Box", shapely.box(0, 0, 99, 99)), ("Nucleus", disc(50, 50))])
    with pytest.raises(MppError):
        read_boxes(unknown.path, ["Box"])
    assert len(read_boxes(unknown.path, ["Box"], mpp=0.5).images) == 1


def test_evaluate_a_project(tmp_path: Path) -> None:
    rgb, labels = painted(3)
    project = project_of(tmp_path, rgb)
    half = rgb.shape[1] // 2
    drawn = []
    for label in range(1, labels.max() + 1):
        y, x = np.nonzero(labels == label)
        drawn.append(("Nucleus", disc(x.mean() + 0.5, y.mean() + 0.5, np.sqrt(len(x) / np.pi))))
    draw(project, [("Box", shapely.box(0, 0, half, rgb.shape[0])), *drawn])
    output = tmp_path / "report.json"
    arguments = [
        "evaluate",
        str(project.path),
        "--roi",
        "Box",
        "-o",
        str(output),
        "--device",
        "cpu",
    ]
    result = CliRunner().invoke(app, [*arguments, "--quiet", "--tune"], catch_exceptions=False)
    assert result.exit_code == 0
    inside = sum(shapely.centroid(shape).x <= half for _, shape in drawn)
    assert f"Truth: {inside} nuclei of class Nucleus in 1 box of class Box." in result.output
    content = json.loads(output.read_text())
    assert content["dataset"]["nuclei"] == inside
    assert content["mean"]["true_count"] == inside < len(drawn)
    # Discs are easy, and none beyond the box counts as false.
    assert content["mean"]["precision"] > 0.9
    assert content["mean"]["recall"] > 0.9
    assert content["mean"]["AJI"] > 0.7
    assert any("centroid is in the box" in note for note in content["notes"])
    page = output.with_suffix(".html").read_text()
    assert page.count("<figure") == 1
    (border,) = re.findall(r'<path class="border" d="M([^"]+)z"', page)
    first, steps = border.split("l")
    corner, *others = np.array([*first.split(), *steps.split()], float).reshape(-1, 2)
    drawn_box = shapely.Polygon(np.cumsum([corner, *others], axis=0))
    assert drawn_box.equals(shapely.box(0, 0, half, rgb.shape[0]))


@pytest.mark.parametrize("mpp", [0.25, 0.5])
@pytest.mark.parametrize(
    "box",
    [
        shapely.box(433, 389, 611, 640),  # it begins between the cells of the network
        shapely.box(0, 0, 300, 250),
        shapely.box(400, 450, 700, 700),
        shapely.box(0, 0, 700, 700),
    ],
    ids=["inside", "first corner", "last corner", "whole slide"],
)
def test_a_model_predicts_what_its_run_wrote(
    tmp_path: Path, mpp: float, box: shapely.Geometry
) -> None:
    """Also at the edge of the slide, which is white beyond, and not reflected."""
    rgb = np.tile(painted(3)[0], (6, 6, 1))[:699, :699]
    project = project_of(tmp_path, rgb, mpp)
    draw(project, [("Box", box)])
    options = qpnuclei.RunOptions(qpnuclei.Selection(tissue=True), device="cpu")
    assert qpnuclei.run(project, options).failures == []
    report = qpnuclei.evaluate(project.path, roi="Box", truth_class="Nucleus", device="cpu")
    assert report.result.mean["true_count"] > 3
    assert report.result.mean["F1"] == 1
    assert report.result.mean["AJI"] > 0.999  # up to rounded outlines


def test_a_limit_is_in_all_numbers_and_what_it_leaves_out_is_not_read(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.fromarray(painted(3)[0]).save(tmp_path / name)
    slides = [tmp_path / "a.png", tmp_path / "b.png"]
    project = qpnuclei.create_project(tmp_path / "project", slides, mpp=0.25)
    boxes = [("Box", shapely.box(0, 0, 60, 60)), ("Box", shapely.box(60, 60, 120, 120))]
    draw(project, [*boxes, ("Nucleus", disc(30, 30)), ("Nucleus", disc(90, 90))])
    (tmp_path / "b.png").unlink()
    damaged = project.images[1].data_path
    damaged.parent.mkdir(exist_ok=True)
    damaged.write_bytes(b"not a data file")
    with pytest.raises(QpnucleiError):
        read_boxes(project.path, ["Box"])
    assert len(read_boxes(project.path, ["Box"], limit=2).images) == 2

    output = tmp_path / "report.json"
    arguments = ["evaluate", str(project.path), "--roi", "Box", "--limit", "1", "-o", str(output)]
    options = ["--method", "hematoxylin", "--quiet"]
    result = CliRunner().invoke(app, [*arguments, *options], catch_exceptions=False)
    assert result.exit_code == 0
    content = json.loads(output.read_text())
    assert (content["dataset"]["boxes"], content["dataset"]["nuclei"]) == (1, 1)
    assert (content["dataset"]["limit"], len(content["images"])) == (1, 1)
    assert content["notes"][0] == "Truth: 1 nucleus of class Nucleus in 1 box of class Box."


def test_the_surroundings_of_a_box_are_its_margin(tmp_path: Path) -> None:
    project = project_of(tmp_path, np.full((900, 900, 3), 230, np.uint8))
    draw(project, [("Box", shapely.box(500, 500, 700, 700)), ("Nucleus", disc(550, 550))])
    (box,) = read_boxes(project.path, ["Box"]).images
    assert box.frame == (256, 256, 820, 820)
    rgb, labels, inside = box.read_around()
    assert rgb.shape[:2] == labels.shape == (440, 440)  # 30 µm on each side
    assert inside[120:320, 120:320].all()
    assert np.count_nonzero(inside) == 200 * 200
    assert labels[170, 170] == 1


def test_geojson_beside_images_is_truth_as_well(tmp_path: Path) -> None:
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    for name in ("a", "b.c"):
        Image.fromarray(np.full((80, 90, 3), 230, np.uint8)).save(tmp_path / f"images/{name}.png")
    shapes = [
        GeoJsonObject("annotation", disc(20, 20), path_class=PathClass("Tumor")),
        GeoJsonObject(
            "cell", disc(60, 20, 15), path_class=PathClass("Other"), nucleus=disc(60, 20)
        ),
        GeoJsonObject("detection", shapely.MultiPolygon([disc(20, 60, 5), disc(40, 60, 5)])),
        GeoJsonObject("annotation", shapely.Point(5, 5)),
    ]
    write_objects(tmp_path / "labels/a.geojson", shapes)
    write_objects(tmp_path / "labels/b.c.geojson.gz", shapes[:1])
    layout, (a, b) = read_dataset(tmp_path)
    assert (layout, a.name, b.name) == ("folder", "a", "b.c")
    _, labels = a.read()
    assert labels.shape == (80, 90)
    # A cell is its nucleus, and a nucleus in two parts is one.
    found = np.bincount(labels.ravel())[1:]
    np.testing.assert_allclose(
        found, [disc(0, 0).area, disc(0, 0).area, 2 * disc(0, 0, 5).area], rtol=0.05
    )
    _, (a, _) = read_dataset(tmp_path, truth_classes=["Tumor"])
    assert len(np.unique(a.read_labels())) == 2
    _, (_, b) = read_dataset(tmp_path, truth_classes=["Other"])
    with pytest.raises(
        QpnucleiError, match=r"b\.c\.geojson\.gz: contains no outline of class 'Other'"
    ):
        b.read_labels()
    with pytest.raises(UsageError, match="--components is for masks"):
        read_dataset(tmp_path, components=True)
