"""Haematoxylin and DAB as a network of H&E sees them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import shapely

from qpnuclei.nuclei.table import NucleiTable, concatenate
from qpnuclei.pipeline.inference.infer import find_nuclei
from qpnuclei.pipeline.inference.plausibility import check_plausibility
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.planning.tiles import plan_tiles
from qpnuclei.pipeline.run import analyse_project
from qpnuclei.pipeline.selection import Selection
from qpnuclei.qupath.native import open_project
from qpnuclei.qupath.regions import Region
from qpnuclei.segmentation.engine import EngineOptions, load_engine
from qpnuclei.slides.hdab_as_he import as_h_and_e, has_dab, seen_by_network
from qpnuclei.slides.resolution import Scale
from qpnuclei.slides.slide import ImageInMemory
from qpnuclei.slides.stains import DEFAULT_H_DAB, DEFAULT_HE, separate, stain_matrix
from tests.pipeline.killing import make_project

SIZE = 320


def stained(densities: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Return the colours of (..., 2) densities of haematoxylin and DAB."""
    return np.rint(255 * 10 ** -(densities @ stain_matrix(DEFAULT_H_DAB)[:2])).astype(np.uint8)


@pytest.mark.parametrize("densities", [(0.4, 0.0), (0.0, 0.4), (0.1, 0.3), (0.0, 0.0)])
def test_what_is_stained_by_either_becomes_haematoxylin(densities: tuple[float, float]) -> None:
    converted = as_h_and_e(stained(np.full((2, 3, 2), densities)), DEFAULT_H_DAB)
    assert converted.shape == (2, 3, 3)
    haematoxylin, eosin = separate(converted, DEFAULT_HE)[0, 0]
    assert haematoxylin == pytest.approx(sum(densities), abs=0.02)
    assert eosin == pytest.approx(sum(densities) / 2, abs=0.02)


def test_only_dab_is_converted() -> None:
    image = ImageInMemory(np.full((4, 4, 3), 200, np.uint8), (0.25, 0.25))
    assert seen_by_network(image, DEFAULT_HE) is image
    assert (has_dab(DEFAULT_HE), has_dab(DEFAULT_H_DAB)) == (False, True)
    seen = seen_by_network(image, DEFAULT_H_DAB)
    assert (seen.width, seen.height) == (4, 4)
    expected = as_h_and_e(image.read(1, 0, 2, 3), DEFAULT_H_DAB)
    np.testing.assert_array_equal(seen.read(1, 0, 2, 3, (1.0, 1.0)), expected)


def tissue() -> tuple[ImageInMemory, npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """Return a field of nuclei, which of them are brown, and where they are."""
    rng = np.random.default_rng(5)
    y, x = np.mgrid[:SIZE, :SIZE]
    densities = np.full((SIZE, SIZE, 2), (0.06, 0.01))
    centres = np.array([(cx, cy) for cy in range(32, SIZE, 64) for cx in range(32, SIZE, 64)])
    centres = centres + rng.uniform(-6, 6, centres.shape)
    brown = rng.random(len(centres)) < 0.5
    for (cx, cy), is_brown in zip(centres, brown, strict=True):
        inside = np.hypot(x - cx, (y - cy) * rng.uniform(0.8, 1.3)) < rng.uniform(11, 14)
        densities[inside] = (0.15, 0.6) if is_brown else (0.6, 0.01)
    grain = rng.normal(1, 0.08, (SIZE, SIZE, 1))
    return ImageInMemory(stained(densities * grain), (0.25, 0.25)), brown, centres


@pytest.mark.parametrize("mpp", [0.25, 0.2])
def test_brown_and_blue_nuclei_are_found_and_measured_apart(mpp: float) -> None:
    image, brown, centres = tissue()
    engine = load_engine("default", EngineOptions(device="cpu"))
    scale = Scale((mpp, mpp), (0.25 / mpp, 0.25 / mpp) if mpp != 0.25 else (1.0, 1.0))
    area = shapely.box(0, 0, SIZE, SIZE)
    tiles = plan_tiles(area, (SIZE, SIZE), scale, engine.spec)
    tables: list[NucleiTable] = []
    find_nuclei(image, tiles, engine, scale, DEFAULT_H_DAB, tables)
    found = concatenate(tables)
    # Every disc is one nucleus, and there are no others.
    away = np.hypot(*(found.centroids()[:, None] - centres[None]).transpose(2, 0, 1))
    assert len(found) == len(centres)
    assert (np.sort(away.argmin(axis=1)) == np.arange(len(centres))).all()
    is_brown = brown[away.argmin(axis=1)]
    dab = found.measurements["DAB: Mean"]
    assert dab[is_brown].min() > 0.4
    assert dab[~is_brown].max() < 0.15
    # Measured in the slide's own colours.
    haematoxylin = found.measurements["Hematoxylin: Mean"]
    assert haematoxylin[is_brown].max() < 0.3 < haematoxylin[~is_brown].min()
    seen = seen_by_network(image, DEFAULT_H_DAB)
    assert "stain" not in check_plausibility(seen, [Region(None, area)], (mpp, mpp), tables).image


def test_a_run_says_that_it_is_experimental(tmp_path: Path) -> None:
    project = open_project(make_project(tmp_path / "place", 1, DEFAULT_H_DAB) / "project")
    options = RunOptions(Selection(classes=("Tumor",)), device="cpu", workers=1)
    (image,) = analyse_project(project, project.images, options).images
    assert any("shown to the network as H&E: experimental" in note for note in image.notes)
    measured = project.images[0].read().detections.measurements
    assert np.isfinite(measured["DAB: Mean"]).all()
    assert "Eosin: Mean" not in measured
