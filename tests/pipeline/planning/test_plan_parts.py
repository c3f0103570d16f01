"""A planned slide is found again on another machine."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from qpnuclei.errors import NotFoundError, SlideError
from qpnuclei.pipeline.planning.plan_parts import PlannedSlide
from qpnuclei.slides.slide import open_slide


def paint(path: Path, brightness: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), brightness, np.uint8)).save(path)
    return path


def planned(path: Path) -> PlannedSlide:
    with open_slide(path) as slide:
        return PlannedSlide.of(slide)


def test_of_several_slides_with_a_name_the_planned_one_is_opened(tmp_path: Path) -> None:
    slide = planned(paint(tmp_path / "plan" / "1.png", 200))
    archive = tmp_path / "archive"
    first, second = paint(archive / "A" / "1.png", 100), paint(archive / "B" / "1.png", 200)
    (archive / "0").mkdir()
    (archive / "0" / "1.png").write_bytes(b"damaged")
    with slide.open(archive) as found:
        assert found.path == second
    paint(second, 150)
    with pytest.raises(SlideError, match="png and 2 more of this name are not the slide that was"):
        slide.open(archive)
    with pytest.raises(SlideError, match=r"1\.png is not the slide that was planned"):
        slide.open(first.parent)


def test_brackets_in_the_name_of_a_planned_slide_stand_for_themselves(tmp_path: Path) -> None:
    slide = planned(paint(tmp_path / "plan" / "slide[1].png", 200))
    paint(tmp_path / "archive" / "a" / "slide1.png", 200)
    with pytest.raises(NotFoundError, match="no slide"):
        slide.open(tmp_path / "archive")
    wanted = paint(tmp_path / "archive" / "b" / "slide[1].png", 200)
    with slide.open(tmp_path / "archive") as found:
        assert found.path == wanted


def test_an_unreadable_slide_is_named_only_if_no_other_is_the_planned_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qpnuclei.pipeline.planning import plan_parts

    slide = planned(paint(tmp_path / "plan" / "1.png", 200))
    bad, good = paint(tmp_path / "archive/A/1.png", 1), paint(tmp_path / "archive/B/1.png", 200)
    read = plan_parts.slide_fingerprint

    def fingerprint(path: Path) -> str:
        if path == bad:
            raise SlideError(f"{path} cannot be read: Input/output error")
        return read(path)

    monkeypatch.setattr(plan_parts, "slide_fingerprint", fingerprint)
    with slide.open(tmp_path / "archive") as found:
        assert found.path == good
    paint(good, 150)
    with pytest.raises(SlideError, match="cannot be read"):
        slide.open(tmp_path / "archive")


@pytest.mark.parametrize(("stored", "there"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_a_planned_slide_is_found_with_composed_and_decomposed_letters(
    tmp_path: Path, stored: Literal["NFC", "NFD"], there: Literal["NFC", "NFD"]
) -> None:
    slide = planned(paint(tmp_path / "plan" / unicodedata.normalize(stored, "Größe.png"), 200))
    wanted = paint(tmp_path / "archive" / "a" / unicodedata.normalize(there, "Größe.png"), 200)
    with slide.open(tmp_path / "archive") as found:
        assert found.path == wanted
