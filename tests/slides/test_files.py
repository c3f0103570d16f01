"""Which files of a folder are slides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qpnuclei.errors import UsageError
from qpnuclei.slides.files import SLIDE_SUFFIXES, find_slides
from qpnuclei.slides.fingerprint import slide_fingerprint
from qpnuclei.slides.pixels import write_png
from qpnuclei.slides.readers import openslide
from qpnuclei.slides.slide import open_slide


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
