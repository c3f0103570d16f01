"""Tables for the terminal stay readable, however many annotations there are."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from qpnuclei.cli import tables
from qpnuclei.pipeline.summary import ImageResult, RegionResult, RunSummary


def summary(regions: list[RegionResult]) -> RunSummary:
    nothing = dict.fromkeys(
        ("tiles", "nuclei", "replaced", "outside", "joined", "covered", "overlapping"), 0
    )
    image = ImageResult(
        "a.svs", "1", "default", (0.25, 0.25), "slide", (0.25, 0.25), "H&E",
        megapixels=1.0, regions=tuple(regions), check="", seconds={}, waited={}, **nothing,
    )  # fmt: skip
    made = RunSummary(Path("p"), "native", {}, [], "cpu", Path("r"))
    return replace(made, images=[image])


def text(found: RunSummary) -> list[str]:
    out = StringIO()
    Console(file=out, width=120).print(tables.summary_table(found))
    return [line for line in out.getvalue().splitlines() if line.startswith("│")]


def test_many_annotations_are_a_line_for_each_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_MOST_LINES", 3)
    regions = [
        RegionResult(f"a{i}", "Tumor" if i % 2 else None, None, 0.5, 100 * i, 200.0 * i, "")
        for i in range(5)
    ]
    few = text(summary(regions[:3]))
    assert [line.split("│")[2].strip() for line in few] == ["a0", "a1", "a2"]
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text(summary(regions))]
    # Nuclei and areas are added up, densities are not.
    assert lines == [
        ["a.svs", "3 annotations", "–", "1.500", "600", "400"],
        ["", "2 annotations", "Tumor", "1.000", "400", "400"],
    ]
    regions[1] = replace(regions[1], class_name="Stroma")
    assert [line.split("│")[2].strip() for line in text(summary(regions))] == [
        "3 annotations",
        "1 annotation",
        "1 annotation",
    ]


def test_what_was_written_and_what_is_counted_are_told_apart() -> None:
    regions = [RegionResult(f"a{i}", None, None, 0.5, 3, 6.0, "") for i in range(2)]
    found = summary(regions)
    for written, title, is_explained in (
        (6, "6 nuclei", False),  # each in one annotation
        (3, "3 nuclei written, 6 counted", True),  # each in both
        (9, "9 nuclei written, 6 counted", True),  # some were removed since
    ):
        found.images = [replace(found.images[0], nuclei=written)]
        table = tables.summary_table(found)
        assert table.title == title
        assert ("in two annotations counts in both" in str(table.caption)) is is_explained
        removed = "nuclei removed since, by filter or in QuPath, are not"
        assert (removed in str(table.caption)) is is_explained
        assert "locked" not in str(table.caption)
        assert [cell.strip() for cell in text(found)[0].split("│")][-3:-1] == ["3", "6"]


def test_what_is_doubtful_of_image_and_region_is_said_once() -> None:
    checks = ("few nuclei", "few nuclei; counted twice (1)", "counted twice (2)", "")
    regions = [RegionResult(f"a{i}", None, None, 0.5, 1, 2.0, c) for i, c in enumerate(checks)]
    (image,) = summary(regions).images
    said = replace(image, check="few nuclei").doubts
    assert said == ("few nuclei", "a1: counted twice (1)", "a2: counted twice (2)")
    assert image.doubts == tuple(f"a{i}: {checks[i]}" for i in range(3))
    # The image names them itself.
    named = replace(image, check="a0, a1: few nuclei; a1: counted twice (1)").doubts
    assert named == ("a0, a1: few nuclei; a1: counted twice (1)", "a2: counted twice (2)")


@pytest.mark.parametrize(
    ("area", "shown"),
    [
        (1.2345, "1.234"),
        (0.01, "0.010"),
        (0.00537004, "0.0054"),
        (0.000471239, "0.00047"),
        (2e-7, "0.00000020"),
        (0.0, "0.000"),
        (float("nan"), "nan"),
    ],
)
def test_no_area_is_shown_as_none_at_all(area: float, shown: str) -> None:
    assert tables._mm2(area) == shown
