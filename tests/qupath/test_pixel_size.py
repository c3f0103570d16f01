"""The rule for the pixel size of a project's image."""

from __future__ import annotations

import json
import logging
import re
import shlex
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from qpnuclei.errors import FormatError, MppError, NotFoundError, UsageError
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.planning.keys import request_of
from qpnuclei.pipeline.selection import Selection
from qpnuclei.qupath.analysed import Record, UsedMpp
from qpnuclei.qupath.create import create_from_slides
from qpnuclei.qupath.image_names import match_images
from qpnuclei.qupath.native import open_project
from qpnuclei.qupath.pixel_size import (
    AskedMpp,
    asked_mpp,
    changed_pixel_sizes,
    mpp_by_id,
    mpp_rows,
    pixel_size,
)
from qpnuclei.slides.calibration import PixelCalibration
from qpnuclei.training.sources import find_sources

NOTHING = Record()


def entry(project: float | None = None, name: str = "a.svs", own_id: str = "1") -> Any:
    calibration = PixelCalibration(project, project)
    return SimpleNamespace(id=own_id, name=name, unique_name=name, calibration=calibration)


def found(
    image: Any,
    record: Record = NOTHING,
    asked: AskedMpp = AskedMpp(),  # noqa: B008
    slide: float | None = None,
) -> tuple[float, str]:
    mpp, source = pixel_size(
        image, record, asked, lambda: None if slide is None else (slide, slide)
    )
    assert mpp[0] == mpp[1]
    return mpp[0], source


def used(mpp: float, project: float | None) -> Record:
    return Record((), UsedMpp((mpp, mpp), "--mpp", project and (project, project)))


def test_a_given_pixel_size_is_a_change_unless_it_differs_by_rounding(tmp_path: Path) -> None:
    for number in (1, 2):
        Image.new("RGB", (64, 48), "white").save(tmp_path / f"{number}.png")
    files = sorted(tmp_path.glob("*.png"))
    images = create_from_slides(tmp_path / "p", files, 0.25).images
    given = dict(zip((entry.id for entry in images), (0.25 * (1 + 1e-7), 0.251), strict=True))
    changed = changed_pixel_sizes(images, AskedMpp(by_id=given))
    assert changed == {images[1].id: 0.251}


def test_order_of_precedence() -> None:
    assert found(entry(0.5), slide=0.25) == (0.5, "project")
    assert found(entry(), slide=0.25) == (0.25, "slide")
    assert found(entry(0.5), asked=AskedMpp(0.3), slide=0.25) == (0.3, "--mpp")
    table = AskedMpp(0.3, by_id={"1": 0.4, "2": 0.6})
    assert found(entry(0.5), asked=table) == (0.4, "--mpp or --mpp-table")
    assert found(entry(0.5, "b.svs", "2"), asked=table) == (0.6, "--mpp or --mpp-table")
    assert found(entry(0.5, "c.svs", "3"), asked=table) == (0.3, "--mpp")


def test_the_pixel_size_of_the_last_run_holds_until_the_project_changes() -> None:
    assert found(entry(), used(0.3, None)) == (0.3, "an earlier run")
    assert found(entry(0.5), used(0.3, 0.5)) == (0.3, "an earlier run")
    assert found(entry(0.500000001), used(0.3, 0.5)) == (0.3, "an earlier run")
    assert found(entry(0.25), used(0.3, 0.5)) == (0.25, "project")
    assert found(entry(0.25), used(0.3, None)) == (0.25, "project")
    assert found(entry(0.25), used(0.25, 0.25)) == (0.25, "project")
    assert found(entry(), used(0.3, None), AskedMpp(0.4)) == (0.4, "--mpp")
    assert found(entry(), used(0.3, None), AskedMpp(0.4, only_missing=True)) == (0.4, "--mpp")


@pytest.mark.parametrize(
    ("chosen", "names", "only_missing"),
    [
        (1, None, False),
        (1, ["*.svs"], False),
        (2, ["*.svs"], False),
        (2, None, True),
        (2, [], True),
    ],
)
def test_mpp_of_several_images_is_for_those_without_unless_they_are_named(
    tmp_path: Path, chosen: int, names: list[str] | None, only_missing: bool
) -> None:
    images = [entry(), entry(name="b.svs", own_id="2"), entry(name="c.svs", own_id="3")]
    project: Any = SimpleNamespace(images=images)
    asked = asked_mpp(0.3, None, project, images[:chosen], names)
    assert asked == AskedMpp(0.3, only_missing)
    table = tmp_path / "mpp.csv"
    table.write_text("image,mpp\nc.svs,0.4\n")  # not among the chosen
    asked = asked_mpp(0.3, table, project, images[:chosen], names)
    assert asked == AskedMpp(0.3, only_missing, {"3": 0.4})


def test_without_mpp_a_run_is_the_same_request_for_any_number_of_images(tmp_path: Path) -> None:
    images = [entry(), entry(name="b.svs", own_id="2"), entry(name="c.svs", own_id="3")]
    project: Any = SimpleNamespace(images=images)
    table = tmp_path / "mpp.csv"
    table.write_text("image,mpp\nc.svs,0.4\n")
    requests = set()
    for chosen, given in product((1, 2, 3), (None, table)):
        asked = asked_mpp(None, given, project, images[:chosen], None)
        sizes = {"mpp_only_missing": asked.only_missing, "mpp_by_image": asked.by_id}
        requests.add(request_of(RunOptions(Selection(tissue=True), mpp=asked.mpp, **sizes)))
    assert len(requests) == 1


def test_mpp_for_all_images_keeps_valid_pixel_sizes(caplog: pytest.LogCaptureFixture) -> None:
    for_all = AskedMpp(0.25, only_missing=True)
    assert found(entry(), asked=for_all) == (0.25, "--mpp")
    assert found(entry(353.0), asked=for_all) == (0.25, "--mpp")  # 72 dpi is no pixel size
    assert not caplog.text
    with caplog.at_level(logging.WARNING):
        assert found(entry(0.5), asked=for_all) == (0.5, "project")
        assert found(entry(), asked=for_all, slide=0.5) == (0.5, "slide")
    assert "image a.svs keeps its 0.5 µm/px, from the project" in caplog.text
    assert "--image a.svs --mpp 0.25" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert found(entry(0.2501), asked=for_all) == (0.2501, "project")
    assert not caplog.text


@pytest.mark.parametrize("image", [entry(), entry(353.0)])
def test_the_hint_names_the_image(image: Any) -> None:
    with pytest.raises(MppError) as caught:
        found(image)
    assert "add --image a.svs --mpp 0.5, in µm" in caught.value.hint
    assert "--mpp-table" in caught.value.hint


def test_hints_tell_images_of_one_name_apart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    slides = [tmp_path / name for name in ("a.png", "b.png")]
    for slide in slides:
        Image.new("RGB", (64, 64), "white").save(slide)
    project = create_from_slides(tmp_path / "project", slides)
    file = project.path
    content = json.loads(file.read_text())
    for item in content["images"]:
        item["imageName"] = "the same"
    file.write_text(json.dumps(content))
    project = open_project(file)
    assert [image.name for image in project.images] == ["the same", "the same"]
    for image in project.images:
        with pytest.raises(MppError) as caught:
            pixel_size(image, NOTHING)
        with pytest.raises(MppError) as in_training:
            find_sources([file], images=[image.id])
        caplog.clear()
        all_images = AskedMpp(0.25, only_missing=True)
        assert pixel_size(image, NOTHING, all_images, lambda: (0.5, 0.5))[1] == "slide"
        for said in (caught.value.hint, in_training.value.hint, caplog.text):
            words = shlex.split(re.findall("--image .* --mpp", said)[0])
            assert match_images(project, [words[1]]) == [image]


@pytest.mark.parametrize(
    "text",
    ["image,mpp\na.svs,0.25\n2,0.5\n", "\ufeffmpp;note;image\r\n0.25;x;a.svs\r\n0.5;;2\r\n",
     'image\tmpp\n"a.svs"\t0.25\n2\t0.5\n'],
)  # fmt: skip
def test_a_table_of_many(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    images = [entry(), entry(name="b.svs", own_id="2")]
    assert mpp_by_id(mpp_rows(tmp_path / "t.csv"), images) == {"1": 0.25, "2": 0.5}


def test_a_table_means_a_name_before_an_id(tmp_path: Path) -> None:
    images = [entry(name="2", own_id="1"), entry(name="1", own_id="2")]
    for rows, expected in (("1,0.25\n2,0.5\n", {"2": 0.25, "1": 0.5}), ("2,0.5\n", {"1": 0.5})):
        (tmp_path / "t.csv").write_text(f"image,mpp\n{rows}")
        assert mpp_by_id(mpp_rows(tmp_path / "t.csv"), images) == expected


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("", FormatError, "no columns image and mpp"),
        ("slide,mpp\n", FormatError, "no columns image and mpp"),
        ("image,mpp\nz.svs,0.25\n", UsageError, "line 2: no image is called 'z.svs'"),
        ("image,mpp\na.svs,0.25\na.svs,0.5\n", UsageError, "line 3: the image 'a.svs' has a pixel"),
        ("image,mpp\na.svs,0.25\n1,0.5\n", UsageError, "line 3: the image '1' has a pixel size"),
        ("image,mpp\na.svs,wide\n", FormatError, "'wide' is not a number"),
        ("image,mpp\na.svs\n", FormatError, "'' is not a number"),
        ("image,mpp\na.svs,250\n", MppError, "line 2: a.svs: a pixel size of 250 µm/px cannot"),
        ("image,mpp\na.svs,nan\n", MppError, "line 2: a.svs: a pixel size of nan"),
    ],
)
def test_a_table_that_is_wrong(
    tmp_path: Path, text: str, error: type[Exception], said: str
) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(error, match=said):
        mpp_by_id(mpp_rows(tmp_path / "t.csv"), [entry()])
    with pytest.raises(NotFoundError):
        mpp_by_id(mpp_rows(tmp_path / "missing.csv"), [entry()])
