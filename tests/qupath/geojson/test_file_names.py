from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from qpnuclei.errors import UsageError
from qpnuclei.qupath.geojson.file_names import image_of_file
from qpnuclei.qupath.image_names import match_images, one_image
from qpnuclei.qupath.model import Project
from qpnuclei.qupath.native import open_project
from tests.paths import SAMPLES


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("he small.png.geojson", 0),
        ("he small.geojson", 0),
        ("1-he small.png.geojson.gz", 0),
        ("1-he small.png.rescued.geojson.gz", 0),
        ("renamed pyramid.JSON.GZ", 1),
        ("plain.tif.json", 2),
        ("plain.tif", 2),
        ("plain.geojson.zip", 2),
        ("plain.tif.zip", 2),
    ],
)
def test_files_find_their_images_by_name(project: Project, name: str, entry: int) -> None:
    assert image_of_file(project, Path("/elsewhere") / name) is project.images[entry]


def test_files_of_no_or_several_images(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(SAMPLES / "0.5.1" / "project", tmp_path / "p"))
    file = folder / "project.qpproj"
    content = json.loads(file.read_text("utf-8"))
    content["images"][0]["imageName"] = content["images"][2]["imageName"] = "twin.svs"
    file.write_text(json.dumps(content), "utf-8")
    project = open_project(folder)
    with pytest.raises(UsageError, match="may belong to several images") as error:
        image_of_file(project, Path("twin.geojson"))
    assert "--image" in error.value.hint
    assert image_of_file(project, Path("3-twin.svs.geojson")) is project.images[2]
    with pytest.raises(UsageError, match="is called 'other'") as error:
        image_of_file(project, Path("other.geojson"))
    assert "renamed pyramid" in error.value.hint


@pytest.mark.parametrize(
    ("names", "file", "expected"),
    [
        (("12.png", "1-12.png", "other"), "1-12.png.geojson", None),
        (("12.png", "1-12.png", "other"), "1-12.geojson", 1),
        (("12.png", "1-12.png", "other"), "2-1-12.png.geojson.gz", 1),
        (("12.png", "1-12.png", "other"), "12.png.geojson", 0),
        (("x", "x.svs", "x.ome.tif"), "x.geojson", None),
        (("x", "x.svs", "x.ome.tif"), "x.svs.geojson", 1),
        (("x", "x.svs", "x.ome.tif"), "1-x.geojson", 0),
    ],
)
def test_a_file_that_may_belong_to_several_images_goes_into_none(
    tmp_path: Path, names: tuple[str, ...], file: str, expected: int | None
) -> None:
    folder = Path(shutil.copytree(SAMPLES / "0.5.1" / "project", tmp_path / "p"))
    content = json.loads((folder / "project.qpproj").read_text("utf-8"))
    for image, name in zip(content["images"], names, strict=True):
        image["imageName"] = name
    (folder / "project.qpproj").write_text(json.dumps(content), "utf-8")
    project = open_project(folder)
    if expected is not None:
        assert image_of_file(project, Path(file)) is project.images[expected]
        return
    with pytest.raises(UsageError, match="may belong to several images") as error:
        image_of_file(project, Path(file))
    assert "--image" in error.value.hint


def test_qupaths_default_name_finds_an_ome_tiff_and_decomposed_letters_are_equal(
    tmp_path: Path,
) -> None:
    folder = Path(shutil.copytree(SAMPLES / "0.5.1" / "project", tmp_path / "p"))
    file = folder / "project.qpproj"
    content = json.loads(file.read_text("utf-8"))
    names = ("Pr\u00e4parat 1.ome.tif", "Pra\u0308parat 2.svs", "Pra\u0308parat 3.OME.TIFF")
    for image, name in zip(content["images"], names, strict=True):
        image["imageName"] = name
    file.write_text(json.dumps(content), "utf-8")
    project = open_project(folder)
    for letters in ("\u00e4", "a\u0308"):
        for number, image in enumerate(project.images, 1):
            name = f"Pr{letters}parat {number}"
            assert image_of_file(project, Path(f"{name}.geojson")) is image
            assert match_images(project, [f"{name}*"]) == [image]
        assert one_image(project.images, f"Pr{letters}parat 2.svs") is project.images[1]
