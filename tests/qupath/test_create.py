import json
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qpnuclei.errors import SaveError, UsageError
from qpnuclei.qupath import create
from qpnuclei.qupath.create import create_project
from qpnuclei.qupath.native import open_project
from qpnuclei.qupath.new_image import NewImage
from qpnuclei.slides.calibration import PixelCalibration
from qpnuclei.slides.slide import Level
from qpnuclei.slides.stains import DEFAULT_HE
from qpnuclei.system.files import temporary_prefix
from qpnuclei.system.processes import Process
from tests.qupath.samples import dump


def slide(folder, file_name="a slide.svs", **options):
    path = folder / file_name
    path.touch()
    thumbnail = np.full((700, 2000, 3), 240, np.uint8)
    calibration = PixelCalibration(0.25, 0.26)
    levels = [Level(1.0, 40_000, 14_001), Level(4.0, 10_000, 3500)]
    return NewImage(path, levels, thumbnail, calibration, 40.0, **options)


def test_new_project_is_what_qupath_would_make(tmp_path):
    slides = [slide(tmp_path), slide(tmp_path, "ü.png", name="named")]
    project = create_project(tmp_path / "new" / "project", slides)
    content = json.loads(project.path.read_text(encoding="utf-8"))
    assert content["lastID"] == 2
    assert content["uri"] == f"file:{tmp_path}/new/project/project.qpproj"
    first, second = project.images
    assert (first.id, first.name, second.name) == ("1", "a slide.svs", "named")
    assert [i.path for i in project.images] == [s.path for s in slides]
    assert (first.server.width, first.server.height) == (40_000, 14_001)
    assert first.calibration == PixelCalibration(0.25, 0.26)
    assert first.image_type == "BRIGHTFIELD_H_E"
    assert first.stains == DEFAULT_HE
    metadata = content["images"][0]["serverBuilder"]["metadata"]
    assert metadata["isRGB"] is True
    assert metadata["levels"][1] == {"downsample": 4.0, "width": 10_000, "height": 3500}
    assert project.classes[0].name == "Tumor"
    assert project.classes[0].color == -3670016  # QuPath's own, from the samples
    with Image.open(first.folder / "thumbnail.jpg") as thumbnail:
        assert thumbnail.size == (1000, 350)
    summary = json.loads((first.folder / "summary.json").read_text())
    assert summary["hierarchy"]["objectTypeCounts"] == {"Root objects": 1}
    assert json.loads((first.folder / "server.json").read_text())["builder"]["builderType"] == "uri"


def test_new_data_files_are_laid_out_as_qupaths(tmp_path):
    project = create_project(tmp_path / "p", [slide(tmp_path)])
    found = dump(project.images[0].data_path.read_bytes())
    assert found["type"] == "BRIGHTFIELD_H_E"
    assert found["stains"].startswith(
        '{"Name" : "H&E default", "Stain 1" : "Hematoxylin", "Values 1" : "0.65111 0.70119 0.29049"'
    )
    assert found["props"] == [["PROJECT_ENTRY_ID", f"{project.path}::1"]]
    assert found["workflow"] == []
    assert found["root"]["children"] == []
    assert "id" in found["root"]


def test_a_folder_with_content_is_refused(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious.txt").touch()
    with pytest.raises(UsageError, match="not an empty folder"):
        create_project(tmp_path / "full", [slide(tmp_path)])
    with pytest.raises(UsageError, match="not an empty folder"):
        create_project(tmp_path / "a slide.svs", [slide(tmp_path)])
    with pytest.raises(UsageError, match="at least one"):
        create_project(tmp_path / "none", [])
    (tmp_path / "empty").mkdir()
    assert len(create_project(tmp_path / "empty", [slide(tmp_path)]).images) == 1


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    image = slide(tmp_path)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(SaveError, match="No space left"):
        create_project(tmp_path / "p", [image])
    assert [p.name for p in tmp_path.iterdir()] == ["a slide.svs"]


@pytest.mark.parametrize("name", ["empty", "link"])
def test_an_empty_folder_is_filled_in_place(name, tmp_path, monkeypatch):
    image = slide(tmp_path)
    (tmp_path / "empty").mkdir(mode=0o770)
    (tmp_path / "link").symlink_to("empty", target_is_directory=True)
    before = (tmp_path / "empty").stat()
    monkeypatch.chdir(tmp_path / name)
    project = create_project(".", [image])
    assert (tmp_path / "link").is_symlink()
    after = (tmp_path / "empty").stat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert Path.cwd() == tmp_path / "empty"
    assert {path.name for path in Path().iterdir()} == {"classifiers", "data", "project.qpproj"}
    assert project.path.samefile("project.qpproj")
    assert len(open_project(Path()).images) == 1


@pytest.mark.parametrize("end", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("at", ["data.qpdata", "data", "project.qpproj"])
def test_a_failure_leaves_an_empty_folder_empty(end, at, tmp_path, monkeypatch):
    image = slide(tmp_path)
    folder = tmp_path / "empty"
    folder.mkdir()
    real = Path.replace

    def ending(path, target):
        if target.name == at and (target.parent == folder or at == "data.qpdata"):
            raise end
        return real(path, target)

    monkeypatch.setattr(Path, "replace", ending)
    with pytest.raises(SaveError if isinstance(end, OSError) else KeyboardInterrupt):
        create_project(folder, [image])
    assert list(folder.iterdir()) == []


@pytest.mark.usefixtures("interrupts_are_heard")
def test_ctrl_c_in_the_last_step_waits_until_the_project_is_whole(tmp_path, monkeypatch):
    image = slide(tmp_path)
    (tmp_path / "empty").mkdir()
    real = Path.replace

    def interrupted(path, target):
        if target == tmp_path / "empty" / "data":
            signal.raise_signal(signal.SIGINT)
        return real(path, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        create_project(tmp_path / "empty", [image])
    assert open_project(tmp_path / "empty").images[0].image_type == "BRIGHTFIELD_H_E"


def test_what_a_killed_attempt_left_does_not_make_a_folder_full(tmp_path):
    name = temporary_prefix().replace(Process.this().begun, "00000000")
    (tmp_path / "empty" / f"{name}x" / "data").mkdir(parents=True)
    create_project(tmp_path / "empty", [slide(tmp_path)])
    (tmp_path / "gone").symlink_to("nowhere")
    with pytest.raises(UsageError, match="not an empty folder"):
        create_project(tmp_path / "gone", [slide(tmp_path)])


@pytest.mark.parametrize("is_there", [True, False])
def test_of_two_that_fill_a_folder_at_once_the_second_leaves_the_project_of_the_first(
    is_there, tmp_path, monkeypatch
):
    first, second = (slide(tmp_path, name) for name in ("first.svs", "second.svs"))
    folder = tmp_path / "folder"
    if is_there:
        folder.mkdir()
    real = create._write_project

    def overtaken(*arguments):
        monkeypatch.setattr(create, "_write_project", real)
        create_project(folder, [first])
        real(*arguments)

    monkeypatch.setattr(create, "_write_project", overtaken)
    with pytest.raises(UsageError, match="not an empty folder"):
        create_project(folder, [second])
    assert [image.name for image in open_project(folder).images] == ["first.svs"]
    assert {path.name for path in folder.iterdir()} == {"classifiers", "data", "project.qpproj"}


def test_a_created_project_moves_with_its_slides(tmp_path):
    (tmp_path / "lab").mkdir()
    create_project(tmp_path / "lab" / "p", [slide(tmp_path / "lab")])
    (tmp_path / "lab").rename(tmp_path / "archive")
    moved = open_project(tmp_path / "archive" / "p")
    assert moved.images[0].path == tmp_path / "archive" / "a slide.svs"
