from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import shapely
import tifffile
from shapely import affinity

from qpnuclei.api.runs import run
from qpnuclei.errors import MppError, UsageError
from qpnuclei.pipeline.image import segment
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.selection import Selection
from qpnuclei.qupath.create import create_from_slides
from qpnuclei.qupath.native import open_project
from qpnuclei.segmentation.engine import EngineOptions, load_engine
from qpnuclei.segmentation.maps_engine import MapsEngine
from qpnuclei.slides.stains import separate
from tests.projects import IMAGE, annotate
from tests.segmentation.test_predictor import dark_is_nucleus, white_with_dark_squares


def test_segment_finds_each_square_where_it_is() -> None:
    rgb = white_with_dark_squares(np.s_[10:20, 30:42], np.s_[40:52, 8:20])
    nuclei = segment(MapsEngine(dark_is_nucleus()), rgb, mpp=0.5)
    # x0, y0, x1, y1; openings with a disk round the corners off but leave the sides, and
    # smooth outlines bulge a little to have the same area without the corners.
    bounds = sorted(p.bounds for p in nuclei.polygons())
    np.testing.assert_allclose(bounds, [(8, 40, 20, 52), (30, 10, 42, 20)], atol=0.25)


@pytest.mark.parametrize("mpp", [0.25, 1.0])
def test_segment_resamples_and_answers_in_px_of_the_image(mpp: float) -> None:
    rgb = white_with_dark_squares(np.s_[16:40, 24:56])
    (polygon,) = segment(MapsEngine(dark_is_nucleus()), rgb, mpp=mpp).polygons()
    np.testing.assert_allclose(polygon.bounds, (24, 16, 56, 40), atol=2)


def test_segment_measures_in_um_and_with_the_stains() -> None:
    rgb = white_with_dark_squares(np.s_[16:40, 24:56])  # 24 x 32 px at 0.5 µm/px: 192 µm²
    nuclei = segment(MapsEngine(dark_is_nucleus()), rgb, mpp=0.5)
    found = {name: float(column[0]) for name, column in nuclei.measurements.items()}
    assert found["Area µm^2"] == pytest.approx(192, abs=3)  # the openings round the corners off
    grey = separate(np.full((1, 3), 40, np.uint8))[0]
    assert found["Hematoxylin: Mean"] == pytest.approx(grey[0], rel=1e-5)
    assert found["Eosin: Max"] == pytest.approx(grey[1], rel=1e-5)
    assert 0.5 < found["Attention: Mean"] <= 1


def test_a_crop_at_a_multiple_of_the_stride_has_the_nuclei_of_the_whole() -> None:
    engine = load_engine("default-40x", EngineOptions(device="cpu", workers=1))
    rgb = np.tile(tifffile.imread(IMAGE), (2, 2, 1))
    left, top = 5 * engine.spec.stride, 3 * engine.spec.stride
    inner = shapely.box(left + 140, top + 140, *rgb.shape[1::-1])
    whole = [p for p in segment(engine, rgb, 0.25).polygons() if inner.contains(p)]
    moved = (
        affinity.translate(polygon, left, top)
        for polygon in segment(engine, rgb[top:, left:], 0.25).polygons()
    )
    cropped = [polygon for polygon in moved if inner.contains(polygon)]
    assert len(whole) > 10
    assert are_same(whole, cropped)


def test_beyond_the_image_a_run_and_segment_see_its_reflection(tmp_path: Path) -> None:
    engine = load_engine("default-40x", EngineOptions(device="cpu", workers=1))
    rgb = np.tile(tifffile.imread(IMAGE), (2, 2, 1))
    height, width, _ = rgb.shape
    slide = tmp_path / "slide.tif"
    tifffile.imwrite(slide, rgb, photometric="rgb")
    project = create_from_slides(tmp_path / "project", [slide], mpp=0.25)
    (image,) = open_project(project.path).images
    annotate(image, shapely.box(0, 0, width, height))
    options = RunOptions(Selection(everything=True), model="default-40x", device="cpu", workers=1)
    run(project, options)
    written = list(image.read().detections.geometries)
    assert are_same(written, list(segment(engine, rgb, 0.25).polygons()))
    margin = 8 * engine.spec.stride
    mirrored = np.pad(rgb, ((margin, margin), (margin, margin), (0, 0)), mode="symmetric")
    framed = [
        affinity.translate(polygon, -margin, -margin)
        for polygon in segment(engine, mirrored, 0.25).polygons()
    ]

    def inside(found: Sequence[shapely.Polygon], border: int) -> list[shapely.Polygon]:
        inner = shapely.box(border, border, width - border, height - border)
        return [polygon for polygon in found if inner.contains(polygon)]

    # A run cuts nuclei at the border.
    assert len(inside(written, 1)) > 10
    assert are_same(inside(written, 1), inside(framed, 1))


def are_same(some: Sequence[shapely.Polygon], others: Sequence[shapely.Polygon]) -> bool:
    """Tell whether two lists have the same outlines, in any order, to 1e-3 px."""
    (of_some, of_others) = (shapely.get_coordinates(shapely.centroid(p)) for p in (some, others))
    nearest = np.linalg.norm(of_some[:, None] - of_others, axis=2).argmin(axis=1)
    return sorted(nearest) == list(range(len(others))) and all(
        polygon.normalize().equals_exact(others[other].normalize(), 1e-3)
        for polygon, other in zip(some, nearest, strict=True)
    )


def test_segment_of_nothing_is_empty() -> None:
    nuclei = segment(MapsEngine(dark_is_nucleus()), white_with_dark_squares(), mpp=0.5)
    assert len(nuclei) == 0
    assert "Area µm^2" in nuclei.measurements


@pytest.mark.parametrize("mpp", [0.0, -1.0, 25.0, float("nan")])
def test_segment_refuses_absurd_resolutions(mpp: float) -> None:
    with pytest.raises(MppError, match=f"{mpp:g} µm/px, from the given mpp, cannot be") as caught:
        segment(MapsEngine(dark_is_nucleus()), white_with_dark_squares(), mpp=mpp)
    assert "mpp (--mpp)" in caught.value.hint


@pytest.mark.parametrize(
    "other",
    [np.zeros((0, 4, 3), np.uint8), np.zeros((64, 64), np.uint8), np.zeros((64, 64, 3))],
    ids=["empty", "grey", "float"],
)
def test_segment_refuses_other_arrays(other: npt.NDArray[np.uint8]) -> None:
    with pytest.raises(UsageError, match=r"\(H, W, 3\) uint8 and not empty, but is"):
        segment(MapsEngine(dark_is_nucleus()), other, mpp=0.25)
