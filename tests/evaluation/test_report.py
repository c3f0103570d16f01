"""Tables say what was measured, and the page shows every nucleus in its colour."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import shapely
import tifffile
from PIL import Image

from qpnuclei.errors import MppError
from qpnuclei.evaluation.agreement import Kind
from qpnuclei.evaluation.datasets import AnnotatedImage
from qpnuclei.evaluation.formats import read_dataset
from qpnuclei.evaluation.page import COLOURS, evaluation_page, outlines
from qpnuclei.evaluation.report import Report
from qpnuclei.evaluation.scoring import Comparison, Evaluation, image_mpp, score_images
from qpnuclei.nuclei.outlines import polygonise
from qpnuclei.nuclei.table import NucleiTable
from qpnuclei.report.pictures import path_data
from tests.colour_vision import least_difference
from tests.evaluation.images import painted, write_folder


def nothing(_rgb: np.ndarray, _mpp: float) -> NucleiTable:
    return NucleiTable.empty()


def perfect(rgb: np.ndarray, _mpp: float) -> NucleiTable:
    """Know the truth: these are the images of `write_folder`."""
    truth = next(labels for known, labels in map(painted, range(2)) if (known == rgb).all())
    return polygonise(truth.astype(np.int32))[0]


@pytest.fixture
def images(tmp_path: Path) -> list[AnnotatedImage]:
    return read_dataset(write_folder(tmp_path / "set"))[1]


def report(result: Evaluation, *others: Evaluation) -> Report:
    return Report(
        result, others, {"path": "x/set", "split": "val"}, ("Mind <this>.",), {"device": "cpu"}
    )


def test_perfect_nuclei_score_one_and_none_score_zero(images: list[AnnotatedImage]) -> None:
    best, worst = (score_images(f.__name__, f, images, 0.25) for f in (perfect, nothing))

    assert (best.mean["AJI"], best.mean["PQ"], best.mean["AHD"]) == (1, 1, 0)
    assert best.interval["AJI"] == (1, 1)
    assert best.errors == {k: 32 if k is Kind.FOUND else 0 for k in Kind}
    assert worst.errors == {k: 32 if k is Kind.MISSED else 0 for k in Kind}
    difference = Comparison(best, worst)
    assert difference.mean["AJI"] == 1
    assert difference.interval["count_error"] == (1, 1)
    # Nothing overlaps nothing: the distance is not known, and so is the difference.
    assert np.isnan(difference.mean["AHD"])
    assert np.isnan(difference.interval["AHD"]).all()


def test_json_and_tables(images: list[AnnotatedImage]) -> None:
    made = report(
        score_images("perfect", perfect, images, 0.25), score_images("floor", nothing, images, 0.25)
    )

    content = json.loads(json.dumps(made.to_json(), allow_nan=False))
    assert content["mean"]["AJI"] == 1
    assert content["interval"]["PQ"] == [1, 1]
    assert [i["name"] for i in content["images"]] == ["a", "b"]
    assert content["images"][0]["AJI"] == 1
    assert content["others"]["floor"]["mean"]["AHD"] is None
    assert content["difference"]["floor"]["mean"]["ADC"] == 1
    assert content["device"] == "cpu"
    assert content["pooled"]["count_error"] == 0
    assert content["others"]["floor"]["pooled"]["count_error"] == -1

    text = made.to_markdown()
    assert text.startswith("# perfect on set, split val\n")
    assert "2 images, 32 annotated nuclei" in text
    assert "| perfect | 1.000 [1.000, 1.000] | 1.000 [1.000, 1.000] | 0.00 [0.00, 0.00] |" in text
    assert "| floor | 0.000 [0.000, 0.000] | 0.000 [0.000, 0.000] | – |" in text
    assert "| difference to floor | +1.000 [+1.000, +1.000] |" in text
    assert "- Mind <this>." in text
    assert "- Count error of all images together: +0.0%." in text
    assert "<li>Count error of all images together: +0.0%.</li>" in evaluation_page(made, 0)
    widths = {line.count("|") for line in text.split("## Images")[1].splitlines() if line}
    assert len(widths) == 1


def test_a_name_of_two_lines_is_no_row_of_its_own(images: list[AnnotatedImage]) -> None:
    feigned = [replace(images[0], name="a\n| feigned | 1.000 |")]
    made = report(score_images("perfect", perfect, feigned, 0.25))
    assert r"| a\n\| feigned \| 1.000 \| | 1.000 |" in made.to_markdown()


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.paths: list[dict[str, str]] = []
        self.images: list[str] = []
        self.figures: list[str] = []
        self.external: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag == "path":
            self.paths.append(values)
        elif tag == "image":
            self.images.append(values["href"])
        elif tag == "figure":
            self.figures.append(values["id"])
        links = (values.get("href", ""), values.get("src", ""))
        self.external += [link for link in links if link and not link.startswith("data:")]


def test_the_page_draws_every_nucleus_once_on_its_side(images: list[AnnotatedImage]) -> None:
    def half_found(rgb: np.ndarray, mpp: float) -> NucleiTable:
        """Give every other nucleus, and a square in the corner, where there is none."""
        polygons = perfect(rgb, mpp).polygons()[::2].tolist()
        return NucleiTable.from_polygons([*polygons, shapely.box(0, 0, 4, 4)])

    made = report(score_images("half", half_found, images[:1], 0.25))
    page = _Page()
    page.feed(html := evaluation_page(made))

    assert page.external == []  # it needs no other file
    assert page.figures == ["a"]
    # The image has 0.25 µm/px.
    (bar,) = re.findall(r'class="scale" style="width: ([\d.]+)%">(\d+) µm<', html)
    width_um = images[0].read_image().shape[1] * 0.25
    assert float(bar[0]) / 100 * width_um == pytest.approx(int(bar[1]), rel=1e-3)
    drawn = {p["class"]: p["d"].count("M") for p in page.paths}
    assert drawn == {"found": 8, "found annotated outlines": 8, "missed annotated": 8, "false": 1}
    assert {p["stroke"] for p in page.paths} == {
        COLOURS[k] for k in (Kind.FOUND, Kind.MISSED, Kind.FALSE)
    }
    jpeg = base64.b64decode(page.images[0].removeprefix("data:image/jpeg;base64,"))
    with Image.open(io.BytesIO(jpeg)) as picture:
        difference = np.asarray(picture).astype(int) - images[0].read_image()
    assert np.abs(difference).mean() < 5
    assert "Mind &lt;this&gt;." in html
    for kind in Kind:
        assert f'id="show-{kind}"' in html
        assert f"#show-{kind}:not(:checked)) .{kind} " in html


def test_the_title_names_the_data_set_however_it_is_given(
    images: list[AnnotatedImage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = report(score_images("perfect", perfect, images[:1], 0.25))
    (tmp_path / "cohort" / "inside").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "cohort" / "inside")
    for path, name in ((".", "inside"), ("..", "cohort"), ("../inside", "inside")):
        dataset = {**made.dataset, "path": path, "split": None}
        assert replace(made, dataset=dataset).title == f"perfect on {name}"


def test_fewer_pictures_are_the_worst_and_the_best(images: list[AnnotatedImage]) -> None:
    found: dict[int, NucleiTable] = {}

    def first_only(rgb: np.ndarray, mpp: float) -> NucleiTable:
        """Get better from image to image."""
        number = len(found)
        found[number] = perfect(rgb, mpp).take(np.arange(4 * number + 1))
        return found[number]

    made = report(score_images("better", first_only, [images[0]] * 4, 0.25))
    for count, expected in (
        (2, [1 / 16, 13 / 16]),
        (0, []),
        (9, [1 / 16, 5 / 16, 9 / 16, 13 / 16]),
    ):
        html = evaluation_page(made, count)
        shown = [int(n) / 16 for n in re.findall(r"16 annotated,\s+(\d+) predicted", html)]
        assert shown == expected


def test_colours_of_the_page_differ_with_any_colour_vision() -> None:
    # Green and red of the same brightness, as they are often chosen, differ by 7.
    assert least_difference(["#00c81e", "#ff0000"]) < 8
    assert least_difference(COLOURS.values()) > 11


def test_outlines_run_around_their_pixels() -> None:
    labels = np.zeros((20, 30), np.int32)
    labels[3:11, 5:21] = 1
    labels[0:4, 24:30] = 2  # at the border

    first, second = outlines(labels)

    # Corners are cut by half a pixel, sides are where the pixels end.
    assert [first.min(axis=0).tolist(), first.max(axis=0).tolist()] == [[5, 3], [21, 11]]
    assert [second.min(axis=0).tolist(), second.max(axis=0).tolist()] == [[24, 0], [30, 4]]
    assert shapely.Polygon(first).area == pytest.approx(16 * 8, abs=1)


def test_path_data_is_relative_in_tenths() -> None:
    ring = np.array([(1.04, 2), (3, 2.5), (1.5, 4.26), (1.04, 2)])
    assert path_data(ring) == "M1 2l2 0.5 -1.5 1.8z"


def test_resolution_is_the_users_then_the_sets_then_the_files(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    rgb = np.zeros((32, 32, 3), np.uint8)
    tifffile.imwrite(path, rgb, resolution=(20000, 20000), resolutionunit="CENTIMETER")
    image = AnnotatedImage("a", path, path)

    assert image_mpp(image, None) == pytest.approx(0.5)
    assert image_mpp(AnnotatedImage("a", path, path, 0.25), None) == 0.25
    assert image_mpp(AnnotatedImage("a", path, path, 0.25), 0.3) == 0.3
    with pytest.raises(MppError, match=r"30 µm/px, from the given mpp"):
        image_mpp(image, 30)
    tifffile.imwrite(path, rgb, resolution=(20000, 10000), resolutionunit="CENTIMETER")
    with pytest.raises(MppError, match=r"pixels of 0\.5 x 1 µm, which are not square"):
        image_mpp(image, None)
    tifffile.imwrite(path, rgb)
    with pytest.raises(MppError, match=r"a\.tif has no pixel size") as caught:
        image_mpp(image, None)
    assert "--mpp" in caught.value.hint
