"""A slide is one image, whichever of its files are named, how they are spelled, and how often."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import generate_uid
from shapely import box

import qpnuclei as package
from qpnuclei.demo import demonstration
from qpnuclei.errors import SlideError
from qpnuclei.qupath.native import open_project
from qpnuclei.training.sources import find_sources
from tests.cli.conftest import Outcome
from tests.cli.slide_runs import RUN, counts
from tests.projects import annotate
from tests.slides.dicom import write_level
from tests.slides.pictures import paint, reduced

Call = Callable[..., Outcome]

SERIES = generate_uid()


@pytest.fixture
def painted(tmp_path: Path) -> Image.Image:
    """Return tissue of 256 x 256 px with three nuclei."""
    with Image.open(paint(tmp_path / "painted.bmp", (80, 80), (170, 160), (60, 190))) as image:
        return image.convert("RGB")


def level(folder: Path, painted: Image.Image, number: int) -> Path:
    """Write level 0 (number 2) or level 1 (number 1) of one DICOM slide, of 0.25 µm/px."""
    folder.mkdir(exist_ok=True)
    rgb = np.asarray(painted)
    pixels = reduced(rgb, 2) if number == 1 else rgb
    path = folder / f"{number}.dcm"
    write_level(path, pixels, 0.25 * 256 / len(pixels), SERIES, 3 - number)
    return path


@pytest.fixture
def dicom(tmp_path: Path, painted: Image.Image) -> Path:
    """Return a folder with the two files of a DICOM slide."""
    level(tmp_path / "dicom", painted, 1)
    return level(tmp_path / "dicom", painted, 2).parent


@pytest.fixture
def hamamatsu(tmp_path: Path, painted: Image.Image) -> Path:
    """Return a folder with a Hamamatsu slide: an index, and the JPEGs that it names."""
    folder = tmp_path / "hamamatsu"
    folder.mkdir()
    for name, side in (("a.jpg", 256), ("a_map.jpg", 64), ("a_macro.jpg", 64)):
        picture = painted.resize((side, side))
        picture.save(folder / name, quality=95, subsampling=0, restart_marker_blocks=4)
    (folder / "a.vms").write_text(
        "[Virtual Microscope Specimen]\nNoLayers=1\nNoJpegColumns=1\nNoJpegRows=1\n"
        "ImageFile=a.jpg\nMapFile=a_map.jpg\nMacroImage=a_macro.jpg\nSourceLens=40\n"
        "PhysicalWidth=64000\nPhysicalHeight=64000\n"
    )
    return folder


def names(project: Path) -> list[str]:
    return [entry.name for entry in open_project(project).images]


@pytest.mark.parametrize("kind", ["dicom", "hamamatsu"])
def test_a_slide_of_several_files_stays_one_image_when_its_run_is_repeated(
    kind: str, tmp_path: Path, qpnuclei: Call, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(kind)
    command = ("run", folder, "-o", tmp_path / "r", *RUN, "--no-report")
    assert qpnuclei(*command).exit_code == 0
    (image,) = names(tmp_path / "r")
    table = (tmp_path / "r" / "counts.csv").read_bytes()
    assert counts(tmp_path / "r" / "counts.csv") == {image: 3}

    planned = json.loads(qpnuclei(*command, "--dry-run", "--json").stdout)
    assert [area["image"] for area in planned["plan"]] == [image]
    assert qpnuclei(*command).exit_code == 0
    assert names(tmp_path / "r") == [image]
    assert (tmp_path / "r" / "counts.csv").read_bytes() == table
    # Each other file is one of the same slide.
    for file in sorted(folder.iterdir()):
        assert qpnuclei("run", file, "-o", tmp_path / "r", *RUN, "--no-report").exit_code == 0
        assert names(tmp_path / "r") == [image]


def test_a_level_that_is_added_to_a_dicom_slide_later_is_no_new_image(
    tmp_path: Path, painted: Image.Image, qpnuclei: Call
) -> None:
    folder = level(tmp_path / "dicom", painted, 2).parent
    command = ("run", folder, "-o", tmp_path / "r", *RUN, "--no-report")
    assert qpnuclei(*command).exit_code == 0
    level(folder, painted, 1)
    assert qpnuclei(*command).exit_code == 0
    assert counts(tmp_path / "r" / "counts.csv") == {"2.dcm": 3}


def test_a_pixel_size_means_a_slide_by_any_of_its_files(
    dicom: Path, tmp_path: Path, qpnuclei: Call
) -> None:
    # A single slide takes --mpp, whatever the number of its files.
    command = ("run", dicom, "-o", tmp_path / "r", *RUN, "--no-report", "--json")
    first = json.loads(qpnuclei(*command, "--mpp", "0.3").stdout)
    assert first["images"][0]["mpp"] == [0.3, 0.3]
    other = ("run", dicom / "2.dcm", *command[2:], "--mpp", "0.24")
    assert json.loads(qpnuclei(*other).stdout)["images"][0]["mpp"] == [0.24, 0.24]


def test_a_pixel_size_means_the_image_that_is_named_of_two_of_one_series(
    tmp_path: Path, painted: Image.Image, qpnuclei: Call
) -> None:
    # Such projects were made before the files of a series were one image.
    for number in (1, 2):
        (tmp_path / "dicom").mkdir(exist_ok=True)
        path = tmp_path / "dicom" / f"{number}.dcm"
        write_level(path, np.asarray(painted), 0.25, generate_uid(), 1)
    options = ("-o", tmp_path / "r", *RUN, "--no-report", "--json")
    assert len(json.loads(qpnuclei("run", tmp_path / "dicom", *options).stdout)["images"]) == 2
    for number in (1, 2):
        level(tmp_path / "dicom", painted, number)
    done = qpnuclei("run", tmp_path / "dicom" / "2.dcm", *options, "--mpp", "0.3", "--dry-run")
    planned = json.loads(done.stdout)["plan"]
    assert {area["image"]: area["mpp"] for area in planned} == {
        "1.dcm": [0.25, 0.25],
        "2.dcm": [0.3, 0.3],
    }


@pytest.mark.parametrize("kind", ["dicom", "hamamatsu"])
def test_files_of_the_same_slide_are_not_added_to_a_project(
    kind: str, tmp_path: Path, qpnuclei: Call, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(kind)
    assert qpnuclei("project", "create", tmp_path / "p", folder).exit_code == 0
    (image,) = names(tmp_path / "p")
    added = json.loads(qpnuclei("project", "add", tmp_path / "p", folder, "--json").stdout)
    assert (added["added"], added["failures"]) == ([], [])
    files = sorted(folder.iterdir())
    assert [e.name for e in package.add_slides(tmp_path / "p", files).images] == [image]
    assert [e.name for e in package.create_project(tmp_path / "q", files).images] == [image]
    assert [e.name for e in package.add_slides(tmp_path / "q", files).images] == [image]


def test_a_slide_in_several_spellings_is_one_image(
    tmp_path: Path,
    qpnuclei: Call,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    slide = paint(tmp_path / "one" / "a.png", (80, 80))
    (tmp_path / "two").symlink_to("one", target_is_directory=True)
    (tmp_path / "b.png").symlink_to("one/a.png")
    relative, linked = Path("one/a.png"), Path("two/a.png")

    spelled = (relative, slide, "two", "one/../two/a.png", "b.png")
    options = ("--mpp", "0.25", *RUN, "--no-report")
    for inputs in (spelled, ["two"], [slide]):
        assert qpnuclei("run", *inputs, "-o", "r", *options).exit_code == 0
        assert counts(Path("r/counts.csv")) == {"a.png": 1}
    paths = [relative, relative, slide, linked]
    assert [e.name for e in package.create_project("p", paths, mpp=0.25).images] == ["a.png"]
    assert [e.name for e in package.add_slides("p", paths, mpp=0.25).images] == ["a.png"]
    for sources in (paths, [Path("one"), *paths, Path("two")]):
        assert [s.path for s in find_sources(sources, mpp=[0.25])] == [relative]
    assert "skipped" not in caplog.text  # each is the slide itself


def test_a_project_in_two_spellings_is_one_project(
    tmp_path: Path, qpnuclei: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    package.create_project("p", [paint(tmp_path / "a.png", (80, 80))], mpp=0.25)
    (tmp_path / "q").symlink_to("p", target_is_directory=True)
    spelled = ("p", tmp_path / "p", "q", "p/project.qpproj")
    done = qpnuclei("run", *spelled, "--tissue", *RUN, "--no-report", "--json")
    assert (done.exit_code, json.loads(done.stdout)["nuclei"]) == (0, 1)


def test_training_learns_once_from_each_slide(
    tmp_path: Path, qpnuclei: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    slide = paint(tmp_path / "slides" / "a.png", (80, 80), (170, 160), (60, 190))
    other = paint(tmp_path / "slides" / "b.png", (80, 80))
    package.create_project("p", [slide], mpp=0.25)
    package.create_project("r", [slide, other], mpp=0.25)
    (tmp_path / "q").symlink_to("p", target_is_directory=True)

    spelled = [Path(name) for name in ("p", "./p", "q", "p/project.qpproj", "slides/../p")]
    assert [source.name for source in find_sources([*spelled, tmp_path / "p"])] == ["a.png"]
    # The image of a project has a pixel size, so that is the one to learn from.
    for paths in ([slide, "p"], ["p", slide], ["slides/a.png", "p", slide], ["p", "r", slide]):
        found = find_sources([Path(path) for path in paths])
        assert [(source.name, source.mpp[0]) for source in found] == [
            (name, 0.25) for name in (["a.png", "b.png"] if "r" in paths else ["a.png"])
        ]
    both = find_sources([Path("slides"), Path("p"), Path("slides")], mpp=[0.25])
    assert sorted(source.name for source in both) == ["a.png", "b.png"]

    for first, second, what in (
        ("p", "./p/../p", "project.qpproj"),
        ("slides", "slides/a.png", "a.png"),
        ("slides/a.png", slide, "a.png"),
        ("p", "slides", "a.png"),
        ("slides", "p", "a.png"),
        ("p", "r", "a.png"),
    ):
        sizes = ("--mpp", "0.25", "--mpp", "0.5")
        failed = qpnuclei("train", first, second, "-o", "t", *sizes)
        assert failed.exit_code == 2
        assert failed.error is not None
        assert failed.error.what == (
            f"{Path(first)} and {Path(second)} both name {what}, with different --mpp: 0.25 and 0.5"
        )
        assert not Path("t").exists()


def test_areas_of_one_slide_in_two_projects_are_both_learned(tmp_path: Path) -> None:
    slide = paint(tmp_path / "a.png", (80, 80))
    for name, outline in (("p", box(0, 0, 99, 99)), ("q", box(100, 100, 199, 199))):
        project = package.create_project(tmp_path / name, [slide], mpp=0.25)
        annotate(project.images[0], outline)
    paths = [tmp_path / "p", tmp_path / "q", tmp_path / "p" / "project.qpproj"]
    found = find_sources(paths, roi=["Tumor"])
    assert [source.roi.bounds for source in found if source.roi is not None] == [
        (0, 0, 99, 99), (100, 100, 199, 199),
    ]  # fmt: skip


def test_a_demonstration_of_a_slide_goes_on_with_another_spelling_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    slide = paint(tmp_path / "a.png", (80, 80))
    (tmp_path / "b.png").symlink_to("a.png")
    made = [
        demonstration.demonstrate(tmp_path / "demo", slide=path, mpp=0.25)
        for path in (Path("a.png"), slide, Path("b.png"))
    ]
    assert len({one.project for one in made}) == 1


def test_links_that_lead_nowhere_leave_the_other_slides_analysed(
    tmp_path: Path, qpnuclei: Call
) -> None:
    slides = tmp_path / "slides"
    paint(slides / "a.png", (80, 80))
    (slides / "broken.tif").symlink_to("nothing.tif")
    (slides / "looped.tif").symlink_to("looped.tif")
    command = ("run", slides, "-o", tmp_path / "r", "--mpp", "0.25", *RUN, "--no-report")
    for _ in range(2):
        done = qpnuclei(*command, "--json")
        assert (done.exit_code, done.error) == (1, None)
        content = json.loads(done.stdout)
        failed = [Path(slide["slide"]).name for slide in content["unreadable"]]
        assert failed == ["broken.tif", "looped.tif"]
        without = dict.fromkeys(failed, -1)
        assert counts(tmp_path / "r" / "counts.csv") == {"a.png": 1, **without}
    with pytest.raises(SlideError, match="looped"):
        package.add_slides(tmp_path / "r", [slides / "looped.tif"])
