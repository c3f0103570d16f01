"""The report of a run: what it says is what is exported, and what it shows is what was found."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import shapely
import tifffile
from typer.testing import CliRunner

import qpnuclei
from qpnuclei import RunOptions, Selection
from qpnuclei.choices import CERTAINTY
from qpnuclei.cli.app import app
from qpnuclei.datasets.synthetic.slide import make_slide
from qpnuclei.errors import FormatError, NotFoundError, UsageError
from qpnuclei.pipeline.planning.image_plan import ImagePlan, plan_images
from qpnuclei.pipeline.run import analyse_project
from qpnuclei.qupath.analysed import Record
from qpnuclei.qupath.certainty_filter import OwnNuclei
from qpnuclei.qupath.create import create_from_slides
from qpnuclei.qupath.model import (
    Detections,
    Edit,
    ImageObjects,
    NewAnnotation,
    PathClass,
    Project,
)
from qpnuclei.qupath.native import NativeImage, open_project
from qpnuclei.qupath.pixel_size import AskedMpp
from qpnuclei.qupath.project_counts import count_project
from qpnuclei.report import content, image_pictures
from qpnuclei.report.measured_nuclei import MeasuredNuclei
from qpnuclei.report.methods import methods
from qpnuclei.report.page import ReportOptions, write_report, write_report_of_run
from qpnuclei.report.pictures import PALETTE, Picture
from qpnuclei.report.runs import Run, project_of, read_run, run_that_wrote, runs_of
from qpnuclei.report.tables import readable
from qpnuclei.report.views import View
from tests.paths import SAMPLES
from tests.pipeline.killing import make_project
from tests.projects import lock
from tests.report.conftest import NAME, Made
from tests.report.pages import Page, same
from tests.slides.pictures import paint


def test_numbers_are_those_of_the_export(made: Made) -> None:
    rows = count_project(made.project, made.project.images)
    shown = made.page.table("annotation", "per mm²", "check")
    assert len(rows) == len(shown) == 3
    names = {
        "annotation": "annotation",
        "class": "class",
        "status": "status",
        "mm²": "area_mm2",
        "analysed mm²": "analysed_mm2",
        "nuclei": "nuclei",
        "per mm²": "nuclei_per_mm2",
        "median µm²": "Area µm^2 (median)",
        "haematoxylin": "Hematoxylin: Mean (mean)",
        "certainty": "Attention: Mean (mean)",
        "check": "check",
    }
    for row, cells in zip(rows, shown, strict=True):
        assert {h for h, column in names.items() if not same(cells[h], row[column])} == set()
    everything = made.page.table("annotation", "uuid", "Solidity (SD)")
    for row, cells in zip(rows, everything, strict=True):
        assert set(cells) == set(row) - {"project", "image", "image_id"}
        assert all(same(cell, row[column]) for column, cell in cells.items())


def test_ignored_annotations_are_not_compared_with_others(made: Made, tmp_path: Path) -> None:
    project = open_project(shutil.copytree(made.project.path.parent, tmp_path / "project"))
    (image,) = project.images
    marks = [
        NewAnnotation(shapely.box(0, 0, 9, 9), uuid4(), name, PathClass("Ignore*"))
        for name in ("Pen", "Fold")
    ]
    image.write(Edit(annotations=marks), image.read().fingerprint)
    write_report(project, project.images, tmp_path / "page.html")
    page = Page.of(tmp_path / "page.html")
    compared = page.table("annotation", "per mm²", "check")
    assert {row["annotation"].text for row in compared}.isdisjoint({"Pen", "Fold"})
    assert len(compared) == 3
    assert "Not listed: 2 annotations of class Ignore*, not analysed." in page.text
    assert "Ignore*" not in {row["class"].text for row in page.table("class", "images")}
    assert len(page.table("annotation", "uuid", "Solidity (SD)")) == 5


def test_drawn_nuclei_are_no_areas_to_compare(made: Made, tmp_path: Path) -> None:
    project = open_project(shutil.copytree(made.project.path.parent, tmp_path / "project"))
    (image,) = project.images
    drawn = [
        NewAnnotation(shapely.box(x, 20, x + 9, 29), uuid4(), None, PathClass("Nucleus"))
        for x in (20, 40)
    ]
    write_report(project, project.images, tmp_path / "before.html")
    image.write(Edit(annotations=drawn), image.read().fingerprint)
    write_report(project, project.images, tmp_path / "page.html")
    before, page = (Page.of(tmp_path / f"{name}.html") for name in ("before", "page"))
    assert "Not listed: 2 drawn nuclei (annotations of class Nucleus)." in page.text
    for headings in (("annotation", "per mm²", "check"), ("annotation", "uuid"), ("class", "mm²")):
        assert page.table(*headings) == before.table(*headings)
    assert page.captions == before.captions
    assert page.tags.count("path") == before.tags.count("path")
    # Areas that a run was asked to analyse are shown, whatever their class.
    options = RunOptions(Selection(("Nucleus",)))
    qpnuclei.run(project.path, options)
    write_report(project, project.images, tmp_path / "page.html")
    page = Page.of(tmp_path / "page.html")
    assert len(page.table("annotation", "per mm²", "check")) == 5
    assert "Not listed" not in page.text


def test_a_class_has_one_colour_in_all_images(tmp_path: Path) -> None:
    slides = [paint(tmp_path / name, (80, 80)) for name in ("a.png", "b.png")]
    project = create_from_slides(tmp_path / "project", slides, mpp=0.25)
    orders = ("Tumor", "Stroma"), ("Stroma", "Tumor")
    for image, names in zip(project.images, orders, strict=True):
        marks = [
            NewAnnotation(shapely.box(x, 0, x + 90, 90), uuid4(), None, PathClass(name))
            for x, name in zip((0, 120), names, strict=True)
        ]
        image.write(Edit(annotations=marks), image.read().fingerprint)
    page = tmp_path / "page.html"
    write_report(project, project.images, page)
    text = page.read_text(encoding="utf-8")
    colours = dict(zip(("Tumor", "Stroma"), PALETTE, strict=False))
    shown = re.findall(r'"swatch" style="background:(#\w+)"></span> <bdi>(\w+)</bdi>', text)
    assert Counter(shown) == {(colour, name): 2 for name, colour in colours.items()}
    tags = re.findall(r'class="tag" style="[^"]*color:(#\w+)"><span><bdi>(\w+)</bdi>', text)
    assert Counter(tags) == Counter(shown)


def test_cores_are_named_in_the_legend(tmp_path: Path) -> None:
    project = open_project(SAMPLES / "0.7.0" / "project")
    (image,) = [image for image in project.images if image.read().cores]
    assert {core.class_name for core in image.read().cores} == {None}
    write_report(project, [image], tmp_path / "page.html")
    (caption,) = [c for c in Page.of(tmp_path / "page.html").captions if "Annotations" in c]
    assert "TMA core" in caption


def test_pixels_that_are_not_square(tmp_path: Path) -> None:
    wide = np.full((100, 400, 3), 200, np.uint8)  # 100 x 50 µm
    path = tmp_path / "wide.tif"
    px_per_cm = 40_000, 20_000
    tifffile.imwrite(path, wide, photometric="rgb", resolution=px_per_cm, resolutionunit=3)
    project = create_from_slides(tmp_path / "project", [path])
    assert project.images[0].calibration.mpp_xy == (0.25, 0.5)
    write_report(project, project.images, tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "0.25 x 0.5 µm/px" in html
    assert 'viewBox="0 0 200 100"' in html


def test_classes_are_sums_of_the_export(made: Made) -> None:
    by_class = {r["class"]: r for r in count_project(made.project, made.project.images, "class")}
    shown = made.page.table("class", "annotations", "per mm²")
    assert {row["class"].text for row in shown} == set(by_class)
    for row in shown:
        expected = by_class[row["class"].text]
        assert row["nuclei"].value == expected["nuclei"]
        assert row["per mm²"].value == expected["nuclei_per_mm2"]
    assert sum(row["annotations"].value or 0 for row in shown) == 3
    (of_image,) = count_project(made.project, made.project.images, "image")
    assert ("dd", "title", str(of_image["nuclei"])) in made.page.attributes


def test_overlapping_annotations_of_a_class_count_once(tmp_path: Path) -> None:
    folder = shutil.copytree(SAMPLES / "0.5.1" / "project", tmp_path / "project")
    project = open_project(folder)
    entry = max(project.images, key=lambda entry: len(entry.read().detections))
    objects = entry.read()
    x0, y0, x1, y1 = shapely.MultiPoint(objects.detections.centroids).bounds
    two = [shapely.box(x0, y0, x1 - 10, y1), shapely.box(x0 + 10, y0, x1, y1)]
    edit = Edit(annotations=[NewAnnotation(one, uuid4(), None, PathClass("Over")) for one in two])
    entry.write(edit, objects.fingerprint)
    names = sorted({name or "" for name in objects.detections.class_names})
    asked = ReportOptions(tuple(names), AskedMpp(0.5))
    rows, (expected,) = (
        count_project(
            *(project, [entry], by),
            roi_classes=["Over"],
            nucleus_classes=names,
            pixel_sizes=asked.pixel_sizes,
        )
        for by in ("annotation", "class")
    )
    for column in ("nuclei", "area_mm2"):
        assert sum(row[column] for row in rows) > expected[column] > 0
    path = tmp_path / "page.html"
    assert write_report(project, [entry], path, options=asked) == []
    shown = Page.of(path).table("class", "annotations", "per mm²")
    (row,) = [row for row in shown if row["class"].text == "Over"]
    assert row["annotations"].value == 2
    assert row["mm²"].value == expected["area_mm2"]
    assert row["nuclei"].value == expected["nuclei"]
    assert row["per mm²"].value == expected["nuclei_per_mm2"]


def test_it_needs_nothing_from_elsewhere_and_is_small(made: Made) -> None:
    for tag, name, value in made.page.attributes:
        if name in ("href", "src"):
            assert value.startswith(("data:image/", "#")), (tag, value[:80])
    assert not {"script", "link", "iframe", "object"} & set(made.page.tags)
    style = made.page.html[: made.page.html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert len(made.page.html) < 1_000_000


def test_names_are_text(made: Made) -> None:
    assert NAME in made.page.text
    assert "img" not in made.page.tags
    assert not [name for _, name, _ in made.page.attributes if name.startswith("on")]


def test_each_kind_of_place_is_shown_once(made: Made) -> None:
    shown = " ".join(made.page.captions)
    for title in (
        "densest",
        "typical",
        "sparsest",
        "least certain",
        "seam: two tiles side by side",
        "seam: two tiles one above the other",
        "seam: a corner of four tiles",
    ):
        assert shown.count(title) == 1, title
    # Every view is embedded once and shown twice.
    uses = [value for tag, name, value in made.page.attributes if (tag, name) == ("use", "href")]
    ids = [value for tag, name, value in made.page.attributes if (tag, name) == ("image", "id")]
    assert sorted(uses) == sorted(f"#{identity}" for identity in ids)


def test_close_ups_are_marked_on_the_picture_of_the_image(made: Made) -> None:
    marks = [
        v for tag, name, v in made.page.attributes if (tag, name, v) == ("path", "class", "mark")
    ]
    titles = ("densest", "typical", "sparsest", "least certain", "seam: ")
    crops = [caption for caption in made.page.captions if any(t in caption for t in titles)]
    assert [caption.split()[0] for caption in crops] == [str(i + 1) for i in range(len(marks))]
    # 1 px of the picture is 10 px of the image.
    whole = Picture("data:", 1000, 500)
    boxes = [(2000, 1000, 3000, 2000), (2100, 1010, 2990, 1990), (9990, 4000, 10000, 4010)]
    shown = image_pictures._marks(whole, [View("", box) for box in boxes], (10_000, 5000))
    assert [mark.number for mark in shown] == ["1", "2", "3"]
    assert shown[0].data == "M300 100l0 100 -100 0 0 -100z"
    assert (shown[0].left, shown[0].top) == (30, 20)
    assert shown[1].top > 22  # not on the number before it
    # Small ones are large enough to be seen, and their numbers are in the picture.
    assert shown[2].data == "M1003.5 396.5l0 8 -8 0 0 -8z"
    assert shown[2].left == 97


def check_seams(
    project: Project, plan: ImagePlan, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check that a report takes seams from the borders between the tiles of a run."""
    borders: list[Any] = []
    real = image_pictures.seam_views

    def watched(*args: Any) -> Any:
        borders.append(args)
        return real(*args)

    monkeypatch.setattr(image_pictures, "seam_views", watched)
    content.image_content(project, project.images[0], 1, [read_run(run_dir)], None, AskedMpp(), {})
    ((xs, ys, *_),) = borders
    scale = plan.scale.downsample
    lefts = {tile.core.x0 * scale[0] for tile in plan.tiles}
    tops = {tile.core.y0 * scale[1] for tile in plan.tiles}
    assert len(xs) > 0
    assert len(ys) > 0
    assert set(xs) <= lefts
    assert set(ys) <= tops


def test_seams_are_where_the_tiles_of_the_run_met(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_seams(made.project, made.plan, made.path.parent, monkeypatch)


def test_seams_of_a_run_with_cells_are_where_its_tiles_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide = make_slide(tmp_path / "synthetic.tif", (700, 700))
    project = create_from_slides(tmp_path / "project", [slide.path])
    (entry,) = project.images
    # Far from the border of the slide: tiles begin outside it, farther for cells.
    inside = NewAnnotation(shapely.box(150, 120, 450, 380), uuid4(), "", PathClass("Tumor"))
    entry.write(Edit(annotations=[inside]), entry.read().fingerprint)
    options = RunOptions(
        Selection(everything=True),
        device="cpu",
        tile_px=200,
        max_nucleus_um=12,
        cell_expansion_um=3,
    )
    (plan,), _ = plan_images(project.images, options)
    summary = analyse_project(project, project.images, options)
    check_seams(project, plan, summary.run_dir, monkeypatch)


def test_positive_nuclei_are_counted_and_drawn_apart(
    made: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = content.counted_image

    def graded(*args: Any, **options: Any) -> Any:
        image = real(*args, **options)
        detections = image.objects.detections
        number = len(detections.ids)
        names = ["Nucleus: Positive" if i % 3 == 0 else "Nucleus: Negative" for i in range(number)]
        dab = {**detections.measurements, "DAB: Mean": np.linspace(0, 1, number)}
        changed = Detections(
            *(detections.ids, detections.kinds, names, detections.geometries),
            *(detections.centroids, detections.planes, detections.parents, dab),
        )
        return replace(image, objects=replace(image.objects, detections=changed))

    monkeypatch.setattr(content, "counted_image", graded)
    path = tmp_path / "page.html"
    runs = runs_of(made.project.path.parent)
    assert write_report(made.project, made.project.images, path, runs) == []
    page = Page.of(path)
    drawn = [value for tag, name, value in page.attributes if (tag, name) == ("path", "class")]
    assert {"nucleus", "nucleus positive"} <= set(drawn)
    crops = [caption for caption in page.captions if " positive" in caption]
    assert crops
    for caption in crops:
        nuclei, positive = re.findall(r"(\d+) (?:nuclei|positive)", caption)
        assert 0 < int(positive) < int(nuclei)
    assert any("DAB, mean" in caption for caption in page.captions)
    shares = [row["Nucleus: Positive %"].value for row in page.table("annotation", "per mm²")]
    assert all(share == pytest.approx(100 / 3, abs=10) for share in shares)
    assert "outlined in yellow" in page.text
    assert "outlined in yellow" not in made.page.text


def test_nuclei_with_and_without_cells_are_summarised_together() -> None:
    # Nuclei of cells have names of their own; 3 of 4 are measured.
    squares = shapely.box(0, 0, [1, 1, 1, 2], [1, 1, 1, 2])
    unknown = np.nan
    measured = {
        "Area µm^2": np.array([10.0, unknown, unknown, unknown]),
        "Nucleus: Area µm^2": np.array([unknown, 30.0, 50.0, unknown]),
    }
    nowhere = np.zeros((4, 2))
    nuclei = MeasuredNuclei(
        np.arange(4), squares, nowhere, measured, np.zeros(4, bool), shapely.Point(), (0.5, 0.5)
    )
    assert nuclei.sizes is not None
    np.testing.assert_array_equal(nuclei.sizes, [10, 30, 50, unknown])  # as the tables
    unmeasured = replace(nuclei, measurements={})
    assert unmeasured.sizes is not None
    assert unmeasured.sizes.tolist() == [0.25, 0.25, 0.25, 1]  # 1 x 1 and 2 x 2 px of 0.5 µm
    assert nuclei.dab is None
    size, of_cells = "Area µm^2 (median)", "Nucleus: Area µm^2 (median)"
    stain, stain_of_cells = "Hematoxylin: Mean (mean)", "Nucleus: Hematoxylin: Mean (mean)"
    rows = [
        {size: 40.0, of_cells: unknown, stain: 0.4, stain_of_cells: unknown},
        {size: unknown, of_cells: 50.0, stain: unknown, stain_of_cells: 0.5},
        {size: 40.0, of_cells: 50.0, stain: unknown, stain_of_cells: 0.5},
        {size: 60.0},
    ]
    shown = [(row.get(size), row.get(stain)) for row in readable(rows)]
    assert shown == [(40, 0.4), (50, 0.5), (None, None), (60, None)]


def paragraph(
    runs: Sequence[tuple[Run, set[int]]],
    images: Mapping[str | None, int],
    annotations: int = 1,
    *,
    otherwise: int = 0,
    locked: int = 0,
    foreign: int = 0,
    counts_all: Collection[bool] = (False,),
) -> str:
    """Return the methods paragraph of images that no filter has changed."""
    text, _ = methods(
        runs,
        0,
        images,
        annotations,
        0,
        [],
        stained=False,
        otherwise=otherwise,
        locked=locked,
        foreign=foreign,
        filters={},
        counts_all=counts_all,
    )
    return text


def test_the_methods_name_stains_and_say_nothing_twice(tmp_path: Path) -> None:
    def run(model: str, expansion: float) -> Run:
        arguments = {"cell_expansion_um": expansion}
        return Run(tmp_path / "run.json", {"models": [{"name": model}], "arguments": arguments})

    types = {"BRIGHTFIELD_H_DAB": 2, "BRIGHTFIELD_H_E": 1, "UNSET": 3, None: 1}
    runs = [(run(name, 5), {image}) for name in "ab" for image in (0, 1)]
    text = paragraph(runs, types, 8, otherwise=12345)
    assert "on 1 H&E image, 2 H-DAB images and 4 other images of a QuPath project" in text
    assert [text.count(f"model '{name}'") for name in "ab"] == [1, 1]
    assert text.count("Cells reach up to 5 µm") == 2  # of either model
    assert text.count("Nuclei on 2 images were segmented with") == 2
    assert "The thresholds do not hold for 12,345 nuclei, whose classes" in text
    text = paragraph(runs[:2], types, 8)
    assert text.startswith("Nuclei were segmented with")


def test_the_methods_say_how_many_nuclei_are_of_other_programs(made: Made, tmp_path: Path) -> None:
    run = Run(tmp_path / "run.json", {"models": [{"name": "a"}]})
    assert "1 counted nucleus is a detection of other" in paragraph([(run, {0})], {}, foreign=1)
    assert "1,000 counted nuclei are" in paragraph([(run, {0})], {}, foreign=1000)
    # Without runs, all are, and another sentence says so.
    assert "other programs" not in paragraph([], {}, foreign=5)

    folder = Path(shutil.copytree(made.project.path.parent, tmp_path / "project"))
    (entry,) = open_project(folder).images
    before = count_project(open_project(folder), [entry])
    inside = next(a.area for a in entry.read().annotations if a.is_area).representative_point()
    x, y = inside.x, inside.y
    features = [
        {
            "type": "Feature",
            "geometry": shapely.geometry.mapping(shapely.box(left, top, left + 9, top + 9)),
            "properties": {"objectType": "detection", "classification": {"name": name}},
        }
        for left, top, name in (
            (x, y, "Nucleus"),
            (x - 20, y, "Nucleus"),
            (x + 20, y, "Vessel"),  # no nucleus
            (-50, -50, "Nucleus"),  # outside of the analysed area
        )
    ]
    source = tmp_path / "others.geojson"
    source.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    code, _, error = call("geojson", "import", folder, source, "--image", entry.name)
    assert code == 0, error
    project = open_project(folder)
    after = count_project(project, project.images)
    assert sum(row["nuclei"] or 0 for row in after) > sum(row["nuclei"] or 0 for row in before)
    qpnuclei.write_report(folder, tmp_path / "page.html")
    said = "2 counted nuclei are detections of other programs."
    text = " ".join(Page.of(tmp_path / "page.html").text.split())
    assert said in text
    assert "of other programs." not in made.page.text
    # They have no measurements: the histogram has the nuclei of the tables.
    (of_image,) = count_project(project, project.images, "image")
    (shown,) = re.findall(r"Size in µm² median ([\d.]+)", text)
    assert shown == f"{of_image['Area µm^2 (median)']:.3g}"
    assert shown in " ".join(made.page.text.split()).split("Size in µm² median ")[1][:9]


def test_the_methods_say_every_setting_that_is_not_the_default() -> None:
    def described(**changed: Any) -> str:
        options = RunOptions(**{"selection": Selection(classes=("Tumor",)), **changed})
        run = Run(Path("run.json"), {"arguments": json.loads(json.dumps(options.to_json()))})
        return paragraph([(run, {0})], {None: 1})

    usual = described()
    for changed, said in (
        ({"threshold": 0.8}, "Pixels with an attention above 0.8 were assigned to nuclei."),
        ({"min_area_um2": 30}, "Nuclei smaller than 30 µm² were left out."),
        ({"tta": True}, "maps of 8 flipped and rotated views were averaged."),
        ({"tta": False}, "one view of each tile (no test-time augmentation)."),
        ({"on_existing": "append"}, "Nuclei were added to those of earlier runs."),
        ({"on_existing": "skip"}, "Areas that earlier runs had analysed were not analysed again."),
        ({"qc": True}, "Areas with pen, folds or tissue out of focus were detected"),
        ({"mpp": 0.5}, "Pixel sizes were given by hand."),
        ({"selection": Selection(tissue=True)}, "The analysed area was the tissue"),
        (
            {"selection": Selection(classes=("Tumor",), excluded=("Necrosis", "Pen*"))},
            "Annotations of classes Necrosis, Pen* were excluded.",
        ),
        (
            {"selection": Selection(classes=("Tumor",), excluded=("Necrosis",))},
            "Annotations of class Necrosis were excluded.",
        ),
        (
            {"selection": Selection(classes=("Tumor",), excluded=())},
            "No annotations were excluded.",
        ),
    ):
        text = described(**changed)
        assert said in text, changed
        assert said not in usual
        assert text.count(". ") == usual.count(". ") + 1, changed
    # A record of another version may hold anything.
    damaged = Run(Path("run.json"), {"arguments": {"threshold": "?", "selection": [], "tta": 3}})
    assert paragraph([(damaged, {0})], {None: 1}) == usual


def test_runs_with_other_settings_are_described_apart(tmp_path: Path) -> None:
    project = make_project(tmp_path / "place", 2) / "project"
    first, second = open_project(project).images
    stroma = NewAnnotation(shapely.box(20, 232, 240, 250), uuid4(), None, PathClass("Stroma"))
    first.write(Edit(annotations=[stroma]), first.read().fingerprint)
    for chosen, image, threshold in (
        ("Tumor", first, 0.8),
        ("Stroma", first, None),
        ("Tumor", second, None),
    ):
        options = RunOptions(Selection(classes=(chosen,)), device="cpu", threshold=threshold)
        qpnuclei.run(project, options, images=[image.name])
    qpnuclei.write_report(project, tmp_path / "page.html")
    text = " ".join(Page.of(tmp_path / "page.html").text.split())
    assert "Nuclei in annotations of class Tumor on 1 image were segmented with" in text
    assert "Nuclei in annotations of classes Stroma, Tumor on 2 images were segmented" in text
    assert text.count("were segmented with") == 2
    assert text.count("with an attention above") == text.count("with an attention above 0.8") == 1


def test_the_methods_name_the_filter_of_nuclei_that_are_still_there(
    made: Made, tmp_path: Path
) -> None:
    shutil.copytree(made.project.path.parent, tmp_path / "project")
    project = open_project(tmp_path / "project")
    (image,) = project.images
    page = tmp_path / "page.html"

    def text() -> str:
        write_report(project, project.images, page, runs_of(tmp_path / "project"))
        return " ".join(Page.of(page).text.split())

    certainty = image.read().detections.measurements[CERTAINTY]
    low, high = (round(float(np.quantile(certainty, share)), 3) for share in (0.1, 0.3))
    assert "Afterwards" not in text()
    assert OwnNuclei.of(image, ["Tumor"]).remove_below(low) > 0
    said = f"nuclei in annotations of class Tumor with a mean attention below {low:g} were removed"
    assert f"Afterwards, {said} from 1 image." in text()
    # A stricter filter of all nuclei says it all.
    assert OwnNuclei.of(image).remove_below(high) > 0
    assert f"nuclei with a mean attention below {high:g} were removed from 1 image." in text()
    assert text().count("Afterwards") == 1
    # A run adds them again to those that the filter left.
    options = RunOptions(Selection(everything=True), device="cpu", tile_px=256)
    qpnuclei.run(project.path, replace(options, on_existing="append"))
    assert f"Before the last run, nuclei with a mean attention below {high:g} were" in text()
    assert "Afterwards" not in text()
    # A run finds them again.
    qpnuclei.run(project.path, options)
    assert "with a mean attention below" not in text()
    assert "locked" not in text()
    lock(image, [own_id for own_id in image.read().detections.ids if own_id is not None][:3])
    assert "3 nuclei are locked in QuPath: runs and filters leave such nuclei as" in text()


def test_a_filter_of_one_class_is_gone_with_the_nuclei_of_its_annotations(tmp_path: Path) -> None:
    project, tumor, _ = two_classes(tmp_path)
    page = tmp_path / "page.html"
    (image,) = open_project(project).images
    nuclei = OwnNuclei.of(image, ["Tumor"])
    assert nuclei.remove_below(float(np.sort(nuclei.certainty)[4])) > 0
    qpnuclei.write_report(project, page)
    assert "Afterwards, nuclei in annotations of class Tumor" in Page.of(page).text
    qpnuclei.run(project, tumor)
    qpnuclei.write_report(project, page)
    assert "with a mean attention below" not in Page.of(page).text


def test_an_earlier_run_without_a_record_is_not_described_as_another_one(tmp_path: Path) -> None:
    project, _, folders = two_classes(tmp_path)
    page = folders[1] / "report.html"
    said = "Nuclei of 1 image were segmented by a run of qpnuclei whose record is missing"

    def text(source: Path) -> str:
        done = CliRunner().invoke(app, ["report", str(source), "-o", str(page)])
        assert done.exit_code == 0, done.output
        return " ".join(Page.of(page).text.split())

    # The page of one run describes the other one, too.
    for whole in (" ".join(Page.of(page).text.split()), text(project), text(folders[1])):
        assert "Nuclei in annotations of class Tumor on 1 image were segmented" in whole
        assert "Nuclei in annotations of class Stroma on 1 image were segmented" in whole
        assert "record is missing" not in whole
    shutil.rmtree(folders[0])
    assert said in text(project)
    assert "Nuclei in annotations of class Stroma on 1 image were segmented" in text(project)
    assert "Some nuclei are from a run of qpnuclei whose record is missing" in text(project)


def two_classes(tmp_path: Path) -> tuple[Path, RunOptions, list[Path]]:
    """Return a project whose Tumor and then Stroma were run, the options, the runs' folders."""
    project = make_project(tmp_path / "place", 1) / "project"
    (image,) = open_project(project).images
    stroma = NewAnnotation(shapely.box(150, 0, 240, 58), uuid4(), None, PathClass("Stroma"))
    image.write(Edit(annotations=[stroma]), image.read().fingerprint)
    tumor, other = (
        RunOptions(Selection(classes=(name,)), device="cpu", threshold=threshold)
        for name, threshold in (("Tumor", None), ("Stroma", 0.3))
    )
    folders = [qpnuclei.run(project, options).run_dir for options in (tumor, other)]
    write_report_of_run(open_project(project), folders[1])
    return project, tumor, folders


@pytest.mark.parametrize(
    ("labels", "learned"),
    [
        ({"labels": "none"}, "that was trained without outlined nuclei, on pseudo-labels"),
        ({"labels": "9 nuclei drawn in 1 box"}, "trained on pseudo-labels and on outlined nuclei"),
        ({}, "that was trained on pseudo-labels"),  # a record of an earlier run
        ({"labels": "not stated"}, "that was trained on pseudo-labels"),
    ],
)
def test_the_methods_say_whether_a_model_learned_from_outlined_nuclei(
    tmp_path: Path, labels: dict[str, str], learned: str
) -> None:
    run = Run(tmp_path / "run.json", {"models": [{"name": "a", "family": "student", **labels}]})
    text = paragraph([(run, {0})], {})
    assert f"{learned} [1]." in text


def test_the_methods_say_which_area_densities_refer_to(tmp_path: Path) -> None:
    run = Run(tmp_path / "run.json", {"models": [{"name": "a"}]})

    def text(runs: list[Run], *counts_all: bool) -> str:
        used = [(one, {0}) for one in runs]
        return paragraph(used, {}, counts_all=set(counts_all))

    assert "densities refer to the analysed area." in text([run], False)
    assert "densities refer to the area of the annotation." in text([], True)
    assert (
        "densities refer to the analysed area, and in images with nuclei of other programs to the "
        "area of the annotation."
    ) in text([run], True, False)


def test_it_says_what_was_run_and_how_to_cite_it(made: Made) -> None:
    record = json.loads((made.path.parent / "run.json").read_text())
    text = " ".join(made.page.text.split())
    assert record["models"][0]["sha256"] in text
    assert f"torch {record['versions']['torch']}" in text
    assert "Nuclei were segmented with qpnuclei" in text
    assert "3 annotations (classes Tumor, Stroma) on 1 H&E image of a QuPath project" in text
    assert "doi:10.1007/978-3-030-59722-1_38" in text


def test_a_project_is_reported_with_what_its_runs_noted(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "again.html"
    runs = runs_of(made.project.path.parent)
    assert [run.path.parent for run in runs] == [made.path.parent]
    assert project_of(runs[0]) == made.project.path.parent
    write_report(made.project, made.project.images, path, runs)
    assert Page.of(path).captions == made.page.captions
    # Without a record, the nuclei are the same, and there are no seams.
    write_report(made.project, made.project.images, path)
    bare = Page.of(path)
    assert not any("seam" in caption for caption in bare.captions)
    assert bare.table("annotation", "check") == made.page.table("annotation", "check")
    assert "No run of qpnuclei is recorded" in bare.text


def test_an_image_that_the_last_run_did_not_finish_says_so(made: Made, tmp_path: Path) -> None:
    (entry,) = made.project.images
    failed = {"entry": entry.id, "image": entry.name, "error": "its tiles <cannot> be read"}
    failing = Run(tmp_path / "run.json", {"failures": [failed]})
    (done,) = runs_of(made.project.path.parent)
    path = tmp_path / "page.html"

    def text(*runs: Run) -> str:
        write_report(made.project, made.project.images, path, runs)
        return " ".join(Page.of(path).text.split())

    after = text(failing, done)
    assert "its tiles <cannot> be read (its numbers are those of an earlier run)" in after
    assert (
        "did not finish this image: its tiles <cannot> be read. The results are those of" in after
    )
    never = text(failing)
    assert "its tiles <cannot> be read" in never
    assert "are from a run of qpnuclei whose record is missing" in never
    # What failed first and was done later is done.
    assert "its tiles" not in text(done, failing)


def test_an_image_is_of_the_run_that_wrote_its_nuclei(made: Made, tmp_path: Path) -> None:
    (entry,) = made.project.images
    (done,) = runs_of(made.project.path.parent)
    marker = Record.of(entry.read().properties, entry.name).run
    (of_image,) = done.content["images"]
    assert of_image["marker"] == marker != ""
    # Its nuclei were replaced since, and the run after that did not find the image.
    other = {**of_image, "marker": "another"}
    replaced = Run(tmp_path / "other.json", {"images": [other], "models": [{"name": "wrong"}]})
    failed = {"entry": entry.id, "image": entry.name, "error": "no file"}
    failing = Run(tmp_path / "run.json", {"failures": [failed]})
    path = tmp_path / "page.html"
    write_report(made.project, made.project.images, path, [failing, replaced])
    text = " ".join(Page.of(path).text.split())
    assert "wrong" not in text
    assert "of 1 image were segmented by a run of qpnuclei whose record is missing" in text
    assert "The nuclei are from a run of qpnuclei whose record is missing" in text
    assert "From a run whose record is missing: synthetic.tif." in text
    assert "· model not recorded" in text
    assert "no file. The results are those of an earlier run" in text
    assert run_that_wrote([failing, replaced, done], entry.id, marker) is done


def test_a_record_without_markers_is_of_the_newest_run_alone() -> None:
    def run(**content: Any) -> Run:
        return Run(Path("run.json"), content)

    old = run(images=[{"entry": "1"}])
    older = run(images=[{"entry": "1"}])
    unrelated = run(images=[{"entry": "2", "marker": "m"}], failures=[{"entry": "3"}])
    assert run_that_wrote([unrelated, old, older], "1", "m") is old
    assert run_that_wrote([run(failures=[{"entry": "1"}]), old], "1", "m") is None
    assert run_that_wrote([run(images=[{"entry": "1", "marker": "n"}]), old], "1", "m") is None
    assert run_that_wrote([unrelated], "1", "m") is None


def test_a_record_of_many_images_is_gone_through_once() -> None:
    asked: list[str] = []

    class Watched(dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            asked.append(key)
            return super().get(key, default)

    images = [{"entry": str(number), "tiles": number} for number in range(9)]
    failures = [{"entry": str(number), "error": f"reason {number}"} for number in range(9, 12)]
    content = Watched(
        images=[*images, {"entry": "0", "tiles": 99}],  # one has two records: the first counts
        failures=failures,
        not_done=[{"entry": "9", "reason": "stopped"}],
    )
    run = Run(Path("run.json"), content)

    found = [run.of_image(str(number)) for number in range(12)]
    reasons = [run.why_unfinished(str(number)) for number in range(12)]

    assert [None if one is None else one.tiles for one in found] == [*range(9), None, None, None]
    assert reasons == [None] * 9 + [f"reason {number}" for number in range(9, 12)]
    assert len(run.unfinished) == 4
    assert sorted(asked) == ["failures", "images", "not_done"]


def test_what_a_report_without_seams_does_not_need_is_not_loaded(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(SAMPLES / "0.5.1", tmp_path / "0.5.1")) / "project"
    page = tmp_path / "page.html"
    code = """
import sys
from qpnuclei.cli.app import app
app(["report", *sys.argv[1:]], standalone_mode=False)
unneeded = {"torch", "numba", "scipy.spatial", "pyarrow", "PIL.TiffImagePlugin"}
print(*sorted(unneeded & set(sys.modules)))
"""
    command = [sys.executable, "-c", code, str(folder), "-o", str(page)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
    assert Page.of(page).tags.count("image") > 0


def test_detections_of_other_programs_count_where_no_run_was(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(SAMPLES / "0.5.1", tmp_path / "0.5.1")) / "project"
    project = open_project(folder)
    path = tmp_path / "page.html"
    assert write_report(project, project.images, path) == []
    page = Page.of(path)
    assert "No run of qpnuclei is recorded for this image" in page.text
    rows = []
    for entry in project.images:
        detections = entry.read().detections
        kinds = zip(detections.class_names, detections.kinds, strict=True)
        classes = {name or "" for name, kind in kinds if kind != "tile"}
        rows += count_project(project, [entry], nucleus_classes=sorted(classes) or None)
    shown = page.table("image", "annotation", "check")
    assert len(shown) == len(rows)
    assert sum(row["nuclei"] or 0 for row in rows) > 0
    assert all(same(c["nuclei"], r["nuclei"]) for c, r in zip(shown, rows, strict=True))
    # The same classes for all images, as for export.
    write_report(project, project.images, path, options=ReportOptions(("Immune cells",)))
    rows = count_project(project, project.images, nucleus_classes=("Immune cells",))
    shown = Page.of(path).table("image", "annotation", "check")
    assert all(same(c["nuclei"], r["nuclei"]) for c, r in zip(shown, rows, strict=True))


def test_an_image_that_is_gone_has_numbers_and_no_pictures(made: Made, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made.project.path.parent, tmp_path / "moved"))
    project = open_project(folder)
    slide = project.images[0].path
    assert slide is not None
    hidden = slide.rename(slide.with_suffix(".hidden"))
    try:
        project = open_project(folder)
        assert write_report(project, project.images, tmp_path / "page.html") == []
    finally:
        hidden.rename(slide)
    page = Page.of(tmp_path / "page.html")
    assert "No pictures: image 'synthetic.tif'" in page.text
    assert "image" not in page.tags
    assert page.table("annotation", "check") == made.page.table("annotation", "check")


@dataclass
class Many:
    """A project of many images without slides."""

    path: Path
    images: list[Any]


def test_many_images_have_a_page_each(made: Made, tmp_path: Path) -> None:
    (entry,) = made.project.images
    objects = entry.read()
    nothing = Detections(
        *([], [], [], np.empty(0, object), np.empty((0, 2)), np.empty((0, 2), int), np.empty(0))
    )
    square = replace(objects.annotations[0], geometry=shapely.box(0, 0, 9, 9))
    bare = ImageObjects((square,), nothing, "")

    class Stub(NativeImage):
        def __init__(self, number: int) -> None:
            self.number = number

        id = property(lambda self: str(self.number))
        name = property(lambda self: f"<{self.number}>.svs")
        server = entry.server
        calibration = entry.calibration
        image_type = None
        stains = None
        path = None

        def read(self) -> ImageObjects:
            if self.number == 7:
                raise FormatError("data.qpdata is damaged")
            return bare

    project = Many(made.project.path, [Stub(number) for number in range(1, 501)])
    path = tmp_path / "all images.html"
    ((failed, _),) = write_report(project, project.images, path)
    assert failed.name == "<7>.svs"
    index = Page.of(path)
    assert "data.qpdata is damaged" in index.text
    links = [v for t, n, v in index.attributes if (t, n) == ("a", "href")]
    assert len(links) == 499
    assert all((tmp_path / link.replace("%20", " ")).is_file() for link in links)
    assert path.stat().st_size < 500_000
    second = Page.of(tmp_path / "all images-images" / "0002.html")
    assert "<2>.svs" in second.text
    back = [v for t, n, v in second.attributes if (t, n) == ("a", "href")]
    assert back == ["0001.html", "../all%20images.html", "0003.html"]

    # Every link leads to a page of this report, also beside the image that cannot be read.
    pages = sorted((tmp_path / "all images-images").iterdir())
    assert len(pages) == 499
    assert links_of(pages[0]) == ["../all%20images.html", "0002.html"]
    assert links_of(tmp_path / "all images-images/0006.html")[-1] == "0008.html"
    assert links_of(tmp_path / "all images-images/0008.html")[0] == "0006.html"
    assert links_of(pages[-1]) == ["0499.html", "../all%20images.html"]

    # A smaller report has no pages of the larger one, and leaves everything else.
    kept = {"0600.html": "of another index", "notes.html": pages[0].read_text()}
    for name, text in kept.items():
        (tmp_path / "all images-images" / name).write_text(text)
    write_report(project, project.images[:25], path)
    left = {page.name for page in (tmp_path / "all images-images").iterdir()}
    assert left == {f"{n:04d}.html" for n in range(1, 26) if n != 7} | kept.keys()
    assert links_of(tmp_path / "all images-images/0025.html") == [
        "0024.html",
        "../all%20images.html",
    ]
    write_report(project, project.images[:2], path)
    assert {page.name for page in (tmp_path / "all images-images").iterdir()} == kept.keys()


def links_of(page: Path) -> list[str]:
    return [v for t, n, v in Page.of(page).attributes if (t, n) == ("a", "href")]


def call(*arguments: object) -> tuple[int, str, BaseException | None]:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    return result.exit_code, result.stdout + result.stderr, result.exception


def test_the_command_takes_a_project_or_a_run(made: Made, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made.project.path.parent, tmp_path / "project"))
    run = next(folder.glob("qpnuclei/*/run.json")).parent
    (run / "report.html").unlink()
    code, said, _ = call("report", run, "--quiet", "--json")
    assert code == 0
    assert json.loads(said[: said.rindex("}") + 1])["report"] == str(run / "report.html")
    assert Page.of(run / "report.html").captions == made.page.captions
    assert call("report", folder, "--quiet")[0] == 0
    assert (folder / "qpnuclei" / "report.html").is_file()
    wrong = call("report", folder, "-o", tmp_path / "page.pdf")[2]
    assert isinstance(wrong, UsageError)
    assert ".html" in wrong.hint
    assert isinstance(call("report", tmp_path / "nothing")[2], NotFoundError)
    (run / "run.json").write_text("{")
    assert isinstance(call("report", run)[2], FormatError)
    # A damaged record does not keep the project from being reported.
    assert call("report", folder, "--quiet")[0] == 0


def test_a_run_writes_its_report_and_does_not_need_it(made: Made, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made.project.path.parent, tmp_path / "project"))
    run = ("run", folder, "--roi", "Stroma", "--device", "cpu", "--quiet")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    code, said, _ = call(*run, "--run-dir", tmp_path / "one")
    assert code == 0
    assert f"report: {tmp_path / 'one' / 'report.html'}" in said
    page = Page.of(tmp_path / "one" / "report.html")
    assert len(page.table("annotation", "check")) == 3  # those of earlier runs, too
    assert call(*run, "--run-dir", tmp_path / "two", "--no-report")[0] == 0
    assert not (tmp_path / "two" / "report.html").exists()
    (tmp_path / "three" / "report.html").mkdir(parents=True)
    code, said, _ = call(*run, "--run-dir", tmp_path / "three")
    assert code == 0
    assert "error: no report: " in said
    assert (tmp_path / "three" / "run.json").is_file()


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
_DECODE = """<script>
const images = [...document.querySelectorAll("image")];
let decoded = 0;
for (const image of images) {
  const alone = new Image();
  alone.onload = () => document.body.dataset.decoded = `${++decoded} of ${images.length}`;
  alone.src = image.getAttribute("href");
}
document.body.dataset.overflow = document.documentElement.scrollWidth - innerWidth;
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
def test_a_browser_shows_it_from_a_file_without_complaint(made: Made, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(made.page.html.replace("</body>", f"{_DECODE}</body>"), encoding="utf-8")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=390,800"]
    command = [CHROMIUM, *options, "--enable-logging=stderr", "--virtual-time-budget=9000"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert "CONSOLE" not in done.stderr
    attributes = Page(done.stdout).attributes
    shown = {name: value for tag, name, value in attributes if tag == "body"}
    images = made.page.tags.count("image")
    assert images > 5
    assert shown["data-decoded"] == f"{images} of {images}"
    assert int(shown["data-overflow"]) <= 0  # nothing is wider than a phone
