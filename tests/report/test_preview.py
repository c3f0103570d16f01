"""What a preview shows is what a run with the same options finds."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import shapely
from msgspec.structs import replace
from PIL import Image, ImageFont
from typer.testing import CliRunner

from qpnuclei.api.projects import add_slides
from qpnuclei.cli.app import app
from qpnuclei.errors import QpnucleiError, SlideError, UsageError
from qpnuclei.models.checkpoint import load_model, save_model
from qpnuclei.models.metadata import ColourNormalisation
from qpnuclei.models.registry import resolve_model
from qpnuclei.nuclei.ids import is_ours
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.run import analyse_project
from qpnuclei.pipeline.selection import Selection
from qpnuclei.qupath.create import create_from_slides
from qpnuclei.qupath.model import Project
from qpnuclei.qupath.native import open_project
from qpnuclei.report.density import viridis
from qpnuclei.report.drawing import wrapped
from qpnuclei.report.preview import Field, Setting, preview_project, settings_of
from qpnuclei.report.preview_page import _coloured, picture_of, write_preview
from qpnuclei.slides.files import slides_in
from qpnuclei.slides.stains import DEFAULT_H_DAB, DEFAULT_HE, Stains
from tests.cli.conftest import tree
from tests.projects import annotate
from tests.report.conftest import Made
from tests.report.pages import Page
from tests.slides.pictures import paint
from tests.slides.test_hdab_as_he import SIZE, tissue

EVERYTHING = RunOptions(Selection(everything=True), device="cpu")
SETTINGS = [Setting("default"), Setting("default", 0.8), Setting("default", None, 40.0)]


def areas_in(project: Project, field: shapely.Geometry) -> list[float]:
    """Areas of the nuclei that a run left inside of a part of the image, sorted."""
    detections = project.images[0].read().detections
    ours = np.array([is_ours(identity) for identity in detections.ids])
    inside = shapely.intersects_xy(field, detections.centroids)
    return sorted(detections.measurements["Area µm^2"][ours & inside].tolist())


@pytest.fixture(scope="module")
def fields(made: Made) -> list[Field]:
    return preview_project(made.project.images, EVERYTHING, SETTINGS, 2)[0]


def test_it_finds_what_the_run_found(made: Made, fields: list[Field]) -> None:
    assert len(fields) == 2
    for field in fields:
        of_run = areas_in(made.project, field.analysed)
        own, strict, large = (sorted(n.measurements["Area µm^2"].tolist()) for n in field.found)
        assert own == pytest.approx(of_run)
        assert large == pytest.approx([area for area in of_run if area >= 40])
        assert sum(strict) < sum(own)
        assert field.certainty["default"].shape == field.tissue.shape[:2] == (512, 512)
    assert sum(field.counts[0] for field in fields) > 20


def test_fields_go_from_little_haematoxylin_to_much(fields: list[Field]) -> None:
    darkness = [255 - field.tissue[..., 0].mean() for field in fields]
    assert darkness == sorted(darkness)


@pytest.mark.parametrize("model", ["default", "runs/" + "a-very-long-name-of-a-folder/" * 5 + "m"])
def test_the_text_above_a_panel_stays_above_it(fields: list[Field], model: str) -> None:
    settings = [Setting(model), Setting(model, 0.4, 10.0), Setting("fast", 0.35, 12.5)]
    field = dataclasses.replace(fields[0], image="a", region="b", certainty={})
    picture = picture_of([field], settings)
    # Four panels of 384 px, 8 px apart and 8 px above the end. Their heads are below one line.
    assert picture.shape[1] == 4 * 392 - 8
    heads = picture[4 + 22 : -392]
    for left in range(0, 4 * 392, 392):
        assert (heads[:, left : left + 384] < 128).any()
        assert (heads[:, left : left + 2] == 255).all()
        assert (heads[:, left + 382 : left + 392] == 255).all()
    # A long name of the image takes more lines, and moves the rest down.
    longer = picture_of([dataclasses.replace(field, image="an image µ " * 30)], settings)
    below = len(picture) - 4 - 22
    assert len(longer) > len(picture)
    assert (longer[-below:] == picture[-below:]).all()
    title = longer[:-below]
    assert (title < 128).any()
    assert (title[:, -2:] == 255).all()


@pytest.mark.parametrize(
    ("parts", "lines"),
    [
        (["--threshold 0.4"], 1),
        (["--model default", "--threshold 0.4", "--min-area-um2 10"], 2),
        (["--model " + "x" * 150, "--threshold 0.4"], 4),
        (["one\nname", "Région"], 1),
    ],
)
def test_lines_are_as_wide_as_a_panel_and_lose_nothing(parts: list[str], lines: int) -> None:
    font = ImageFont.load_default(17)
    made = wrapped(parts, 376)
    assert len(made) == lines
    assert "".join("".join(made).split()) == "".join("".join(parts).split())
    assert all(font.getlength(line) <= 376 for line in made)
    for part in parts:
        text = " ".join(part.split())
        if font.getlength(text) < 370:
            assert any(text in line for line in made)


def test_the_page_breaks_no_option_in_the_middle(fields: list[Field], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    settings = [Setting("default", 0.4, 10.0), Setting("fast"), Setting("default")]
    write_preview(fields, settings, page, "a", ["run"] * 3)
    text = page.read_text("utf-8")
    options = '<span class="option">--threshold 0.4</span> <span class="option">--min-area-um2 10<'
    assert text.count(options) == 1 + len(fields)  # in the table, and below a panel of each field
    assert Page.of(page).text.count("--model default --threshold 0.4") == 1 + len(fields)


def test_too_many_settings_are_refused() -> None:
    assert len(settings_of(["default"], [0.3, 0.5, 0.3], [0, 10])) == 4
    with pytest.raises(UsageError, match="15 combinations"):
        settings_of(["default"], [0.1, 0.2, 0.3, 0.4, 0.5], [0, 1, 2])


def call(*arguments: object) -> tuple[int, str, BaseException | None]:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    return result.exit_code, result.stdout, result.exception


def test_its_command_is_the_run_that_it_shows(made: Made, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made.project.path.parent, tmp_path / "project"))
    before = tree(folder)
    page, one = tmp_path / "page.html", ("--fields", 1, "--device", "cpu", "--quiet", "--json")
    asked = ("--roi", "Tumor", "--threshold", "0.5,0.8", "--min-area-um2", "30", "-o", page)
    code, said, _ = call("preview", folder, *asked, *one)
    assert code == 0
    assert tree(folder) == before
    shown = json.loads(said)
    setting = shown["settings"][1]
    assert (setting["threshold"], setting["min_area_um2"]) == (0.8, 30)
    command = shlex.split(setting["command"])
    assert command[2:] == [
        *(str(folder), "--roi", "Tumor", "--threshold", "0.8", "--min-area-um2", "30")
    ]
    parsed = Page.of(page)
    assert setting["command"] in parsed.text
    rows = parsed.table("setting", "field 1", "together")
    assert [row["together"].value for row in rows] == [sum(s["nuclei"]) for s in shown["settings"]]
    for tag, name, value in parsed.attributes:
        if name in ("href", "src"):
            assert value.startswith(("data:image/", "#")), (tag, value[:80])
    with Image.open(shown["picture"]) as picture:
        assert picture.width > picture.height  # tissue, certainty and two settings in a row

    assert call(*command[1:], "--device", "cpu", "--quiet", "--no-report")[0] == 0

    (field,) = shown["fields"]
    project = open_project(folder)
    tumor = [a.area for a in project.images[0].read().annotations if a.class_name == "Tumor"]
    wanted = next(a for a in tumor if shapely.intersects(a, shapely.box(*field["box_px"])))
    part = shapely.intersection(wanted, shapely.box(*field["box_px"]))
    assert len(areas_in(project, part)) == setting["nuclei"][0] > 0


def test_a_slide_alone_is_looked_at_in_its_tissue(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    slide = made.project.images[0].path
    code, _, _ = call("preview", slide, "--threshold", 0.5, "--fields", 1, "--device", "cpu")
    assert code == 0
    text = Page.of(tmp_path / f"{slide.name}-preview.html").text
    assert f"qpnuclei project create my-project {slide}" in text
    assert "qpnuclei run my-project --tissue --threshold 0.5" in text
    Image.new("RGB", (300, 300), "white").save("glass.png")
    assert isinstance(call("preview", "glass.png", "--mpp", 0.25)[2], SlideError)


def test_images_that_cannot_be_analysed_are_named_and_the_others_previewed(tmp_path: Path) -> None:
    slides = [tmp_path / f"{name}.png" for name in ("whole", "unscaled", "gone")]
    for slide in slides:
        paint(slide, (80, 80))
    project = create_from_slides(tmp_path / "project", slides[::2], mpp=0.25)
    add_slides(project.path, slides[1:2])
    project = open_project(project.path)
    slides[2].unlink()
    for image in project.images:
        annotate(image, shapely.box(0, 0, 250, 250))
    one = ("--roi", "Tumor", "--fields", 2, "--threshold", "0.5", "--device", "cpu", "--quiet")
    code, said, _ = call("preview", project.path, *one, "--json")
    assert code == 1
    shown = json.loads(said)
    assert {field["image"] for field in shown["fields"]} == {"whole.png"}
    failures = {failure["image"]: failure for failure in shown["failures"]}
    assert sorted(failures) == ["gone.png", "unscaled.png"]
    assert "--mpp" in failures["unscaled.png"]["hint"]
    assert Path(shown["page"]).is_file()
    # None can be analysed.
    slides[0].unlink()
    assert isinstance(call("preview", project.path, *one)[2], QpnucleiError)


def test_what_was_not_computed_is_not_shown_as_zero() -> None:
    unknown, nothing = _coloured(np.array([[np.nan, 0.0]], np.float32))[0]
    assert unknown.tolist() == [215, 215, 215]
    assert nothing.tolist() == viridis(np.array([0.0]))[0].tolist()


def test_one_nucleus_in_one_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    paint(tmp_path / "a.png", (80, 80))
    one = ("--fields", 2, "--threshold", "0.5", "--mpp", 0.25, "--device", "cpu", "--quiet")
    code, said, _ = call("preview", "a.png", *one)
    assert (code, said.splitlines()[0]) == (0, "--threshold 0.5: 1 nucleus")
    # Its 20 µm are one field.
    assert caplog.messages == ["only 1 field of 2: there is no room for more"]


def test_the_files_of_a_preview_are_beside_those_of_other_slides(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ("a.tif", "a.svs", "n" * 240 + ".tif", "ü" * 125 + ".tif")
    one = ("--threshold", 0.5, "--fields", 1, "--device", "cpu", "--quiet")
    for name in names:
        Path(name).symlink_to(made.project.images[0].path)
        # The second time, it replaces its own files.
        for _ in range(2):
            assert call("preview", name, *one)[0] == 0
    assert len(list(tmp_path.glob("*-preview.html"))) == len(names)
    assert len(list(tmp_path.glob("*-preview.png"))) == len(names)
    assert len(slides_in(tmp_path)) == len(names)


def test_a_preview_does_not_replace_a_slide(tmp_path: Path) -> None:
    slide = tmp_path / "a.png"
    Image.new("RGB", (300, 300), "white").save(slide)
    before = tree(tmp_path)
    error = call("preview", slide, "--mpp", 0.25, "-o", tmp_path / "a.html")[2]
    assert isinstance(error, UsageError)
    assert f"the picture {slide} would replace a file" in error.what
    assert tree(tmp_path) == before


def test_a_preview_replaces_that_of_an_earlier_version(made: Made, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made.project.path.parent, tmp_path / "project"))
    one = ("--roi", "Tumor", "--threshold", 0.5, "--fields", 1, "--device", "cpu", "--quiet")
    for page, output in (
        (folder / "qpnuclei" / "preview.html", ()),
        (tmp_path / "x.html", ("-o", tmp_path / "x.html")),
    ):
        assert call("preview", folder, *one, *output)[0] == 0
        picture = page.with_suffix(".png")
        with Image.open(picture) as image:
            image.save(picture)  # without the mark
        assert not slides_in(page.parent)
        unmarked = picture.read_bytes()
        if not output:
            page.unlink()
        assert call("preview", folder, *one, *output)[0] == 0
        assert picture.read_bytes() != unmarked


@pytest.mark.parametrize("stains", [DEFAULT_HE, DEFAULT_H_DAB], ids=lambda stains: stains.name)
def test_colours_are_normalised_as_in_the_run(tmp_path: Path, stains: Stains) -> None:
    colour = ColourNormalisation("reinhard", (65.0, 22.0, -18.0), (14.0, 8.0, 6.0))
    network, metadata = load_model(resolve_model("default-40x"))
    model = tmp_path / "normalising.safetensors"
    save_model(model, network, replace(metadata, colour=colour))
    picture, _, _ = tissue()
    slide = tmp_path / "stained.png"
    Image.fromarray(picture.read(0, 0, SIZE, SIZE, (1.0, 1.0))).save(slide)
    project = create_from_slides(tmp_path / "project", [slide], 0.25, stains=stains)
    annotate(project.images[0], shapely.box(0, 0, SIZE, SIZE))
    # Many small tiles, and a field with other tiles: colours are those of the whole region.
    options = dataclasses.replace(EVERYTHING, model=str(model), tile_px=128)
    (field,), _ = preview_project(project.images, options, [Setting(str(model))], 1)
    analyse_project(project, project.images, options)
    detections = project.images[0].read().detections
    inside = shapely.intersects_xy(field.analysed, detections.centroids)
    (previewed,) = field.found
    for column in ("Area µm^2", "Attention: Mean"):
        of_run = sorted(detections.measurements[column][inside].tolist())
        assert sorted(previewed.measurements[column].tolist()) == pytest.approx(of_run, abs=1e-3)
    assert inside.sum() > 10


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ("--threshold", "0.5,1.5"),
            "--threshold: '1.5' attention is not in the range: 0.01 to 0.99 attention",
        ),
        (("--threshold", "high"), "--threshold: 'high' is not a number"),
        (("--min-area-um2", "nan"), "--min-area-um2: 'nan' is not a number"),
        (("--roi", "Tumour"), "no annotation of class 'Tumour'"),
        (("-o", "page.pdf"), "'page.pdf' is not the name of a page"),
    ],
)
def test_a_mistake_is_one_error(made: Made, options: tuple[str, ...], said: str) -> None:
    roi = () if "--roi" in options else ("--roi", "Tumor")
    error = call("preview", made.project.path, *roi, *options)[2]
    assert isinstance(error, UsageError)
    assert said in error.what
