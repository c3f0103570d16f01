"""Which files of a folder are slides."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import tifffile
from PIL import Image

from qpnuclei.errors import NotFoundError, UsageError
from qpnuclei.slides import dicom, pixels
from qpnuclei.slides.files import SLIDE_SUFFIXES, find_slides, one_per_slide, slide_of_each
from qpnuclei.slides.fingerprint import slide_fingerprint
from qpnuclei.slides.pixels import write_png
from qpnuclei.slides.readers import openslide
from qpnuclei.slides.slide import open_slide
from qpnuclei.system.files import open_regular
from tests.slides.dicom import write_series
from tests.slides.pictures import picture, reduced


def test_plain_images_of_a_folder_are_found_and_can_be_opened(tmp_path: Path) -> None:
    for name in ("a.bmp", "b.PNG", "c.jpg", "d.jpeg", "e.tif"):
        Image.new("RGB", (8, 6), (200, 150, 180)).save(tmp_path / name)
    (tmp_path / "notes.txt").touch()
    (tmp_path / "._a.bmp").write_bytes(b"left by a Mac")
    found = find_slides([tmp_path])
    assert [path.name for path in found] == ["a.bmp", "b.PNG", "c.jpg", "d.jpeg", "e.tif"]
    for path in found:
        with open_slide(path) as slide:
            assert (slide.width, slide.height) == (8, 6)


def test_slides_in_formats_that_cannot_be_read_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.new("RGB", (8, 6), (200, 150, 180)).save(tmp_path / "a.png")
    for name in ("b.VSI", "c.isyntax", "._d.kfb", "notes.txt"):
        (tmp_path / name).touch()
    for name in ("e.ome.zarr", "of no format.zarr"):
        (tmp_path / name).mkdir()
    (tmp_path / "e.ome.zarr" / ".zattrs").touch()
    assert [path.name for path in find_slides([tmp_path])] == ["a.png"]
    (warning,) = caplog.messages
    assert warning == (
        f"{tmp_path}: left out 3 files in formats that cannot be read: b.VSI, c.isyntax, e.ome.zarr"
    )
    # A pattern names it as its path does; other folders are no slides.
    assert find_slides([tmp_path / "*.zarr"]) == [tmp_path / "e.ome.zarr"]
    with pytest.raises(NotFoundError, match=r"of\* matches only folders"):
        find_slides([tmp_path / "of*"])


def test_a_folder_has_the_files_that_can_be_opened_alone(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.full((16, 16, 3), 200, np.uint8), photometric="rgb")
    Image.new("RGB", (8, 6), "white").save(tmp_path / "b.jpg")
    for name in ("c.btf", "d.ome.btf", "e.qptiff", "f.gtif", "g.tf2", "h.tf8"):
        shutil.copy(tmp_path / "a.tif", tmp_path / name)
    for name in ("i.jpe", "j.jfif"):
        shutil.copy(tmp_path / "b.jpg", tmp_path / name)
    assert find_slides([tmp_path]) == sorted(tmp_path.iterdir())
    for path in tmp_path.iterdir():
        open_slide(path).close()


def test_pictures_that_qpnuclei_made_are_no_slides(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rgb = np.full((6, 8, 3), 200, np.uint8)
    slide, own = tmp_path / "b.png", tmp_path / "a.png"
    Image.fromarray(rgb).save(slide)
    write_png(own, rgb)
    assert find_slides([tmp_path]) == [slide]
    assert not caplog.records
    for named in ([tmp_path / "*.png"], [own, slide]):
        caplog.clear()
        assert find_slides(named) == [slide]
        assert f"{own}: left out, as it is a picture that qpnuclei made" in caplog.text
    with pytest.raises(UsageError, match="a picture that qpnuclei made"):
        find_slides([own])
    slide.unlink()
    with pytest.raises(UsageError, match="contains no slide"):
        find_slides([tmp_path])
    # It is a picture like any other.
    with Image.open(own) as picture:
        np.testing.assert_array_equal(np.asarray(picture), rgb)


def test_a_folder_with_slides_only_below_it_is_refused_with_the_pattern(tmp_path: Path) -> None:
    (tmp_path / "case").mkdir()
    slide = tmp_path / "case" / "a.svs"
    slide.touch()
    with pytest.raises(UsageError, match="contains no slide") as caught:
        find_slides([tmp_path])
    pattern = caught.value.hint.split('"')[1]
    assert find_slides([Path(pattern)]) == [slide]


def test_what_a_reader_knows_by_its_suffix_is_found_in_a_folder() -> None:
    assert set(openslide.FORMATS) <= SLIDE_SUFFIXES


def test_brackets_in_names_and_patterns_of_files_stand_for_themselves(tmp_path: Path) -> None:
    folder = tmp_path / "study [copy]"
    folder.mkdir()
    for name in ("slide[1].png", "slide[1]b.png", "slide1.png"):
        (folder / name).touch()
    found = find_slides([folder / "slide[1]*.png"])
    assert [path.name for path in found] == ["slide[1].png", "slide[1]b.png"]
    assert find_slides([folder / "slide[1].png"]) == [folder / "slide[1].png"]


def test_a_fingerprint_sees_all_files_of_a_slide_whose_name_has_brackets(tmp_path: Path) -> None:
    (tmp_path / "a[1].vms").write_text("[Virtual Microscope Specimen]\nImageFile=a[1](0,1).jpg\n")
    (tmp_path / "a[1](0,1).jpg").write_bytes(b"part")
    before = slide_fingerprint(tmp_path / "a[1].vms")
    (tmp_path / "a[1](0,1).jpg").write_bytes(b"another part")
    assert slide_fingerprint(tmp_path / "a[1].vms") != before


def test_a_damaged_index_leaves_the_other_slides(tmp_path: Path) -> None:
    index = tmp_path / "a.vms"
    index.write_bytes(b"[Virtual Microscope Specimen]\nImageFile=a\0.jpg\nMapFile=b.jpg\n")
    paths = [tmp_path / "c.bmp", index, tmp_path / "b.jpg"]
    assert slide_of_each(paths) == [paths[0], index, index]
    assert slide_fingerprint(index)


def test_each_of_several_known_files_of_a_series_stands_for_itself(tmp_path: Path) -> None:
    full = picture(128, 96)
    first, second, third = write_series(tmp_path, [full, full, reduced(full, 2)], 0.25)
    known = [second, first]
    assert slide_of_each([first, second, third], known) == [first, second, second]
    assert slide_of_each([third, first], [first]) == [first, first]
    linked = tmp_path / "linked.dcm"
    linked.symlink_to(first)
    assert slide_of_each([linked], known) == [first]


def test_slides_are_opened_only_to_tell_them_from_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def counting(path: Path) -> BinaryIO:
        stream = open_regular(path)
        opened.append(path.name)
        return stream

    for module in (dicom, pixels):
        monkeypatch.setattr(module, "open_regular", counting)
    for name in ("a.png", "b.png", "c.bmp"):
        Image.new("RGB", (8, 6)).save(tmp_path / name)
    # Once, because a picture is no slide.
    known = find_slides([tmp_path])
    assert opened == ["a.png", "b.png"]
    opened.clear()
    assert one_per_slide(known, known) == known
    assert opened == []
    # A new slide does not open the others, unless it has a series.
    new = tmp_path / "d.bmp"
    Image.new("RGB", (8, 6)).save(new)
    assert one_per_slide([new], known) == [new]
    assert opened == ["d.bmp"]
    opened.clear()
    (series,) = write_series(tmp_path, [picture(64, 64)], 0.5)
    assert one_per_slide([series], known) == [series]
    assert sorted(opened) == ["1.dcm", "a.png", "b.png", "c.bmp"]
