"""Stain values are those that QuPath measures in the slide's own pixels for the same outlines."""

from __future__ import annotations

import math

import numpy as np
import pytest
import shapely

from qpnuclei.nuclei.table import NucleiTable, concatenate
from qpnuclei.pipeline.inference import infer
from qpnuclei.pipeline.inference.infer import find_nuclei
from qpnuclei.pipeline.planning.tiles import plan_tiles
from qpnuclei.segmentation.engine import Engine, EngineOptions, load_engine
from qpnuclei.slides.resolution import Scale, working_downsample
from qpnuclei.slides.slide import ImageInMemory
from qpnuclei.slides.stains import DEFAULT_HE

#: As for a scan at 20x: the network sees it enlarged twice.
MPP = 0.499
STATISTICS = ("Mean", "Median", "Min", "Max", "Std.Dev.")


@pytest.fixture(scope="module")
def engine() -> Engine:
    return load_engine("default", EngineOptions(device="cpu"))


@pytest.fixture(scope="module")
def rgb() -> np.ndarray:
    """Dark discs with coarse chromatin on pink, some cut by the border; 150 x 130 px."""
    rng = np.random.default_rng(8)
    rgb = np.full((130, 150, 3), (235, 190, 215), np.uint8)
    y, x = np.mgrid[:130, :150]
    for _ in range(35):
        cx, cy, r = rng.uniform(0, 150), rng.uniform(0, 130), rng.uniform(5, 8)
        rgb[np.hypot(x - cx, (y - cy) * rng.uniform(0.7, 1.4)) < r] = (95, 60, 140)
    return np.clip(rgb + rng.integers(-40, 41, (130, 150, 1)), 0, 255).astype(np.uint8)


def found(
    engine: Engine, rgb: np.ndarray, tile_px: int, mpp: float = MPP, simplify_um: float = 0.06
) -> NucleiTable:
    image = ImageInMemory(rgb, (mpp, mpp))
    scale = Scale((mpp, mpp), working_downsample((mpp, mpp), engine.spec.mpp))
    size = image.width, image.height
    tiles = plan_tiles(shapely.box(0, 0, *size), size, scale, engine.spec, tile_px, 10)
    tables: list[NucleiTable] = []
    find_nuclei(image, tiles, engine, scale, DEFAULT_HE, tables, simplify_um=simplify_um)
    return concatenate(tables)


def inside(ring: np.ndarray, shape: tuple[int, int]) -> list[tuple[int, int]]:
    """Return row and column of the pixels inside a ring, by QuPath's rule, one by one.

    Scan lines run through the centres. An edge counts for those above its upper end, excluded, to
    its lower one, included; a centre is inside when it lies to the right of an odd number of
    edges, or on the last.
    """
    pixels = []
    edges = list(zip(ring[:-1].tolist(), ring[1:].tolist(), strict=True))
    for row in range(shape[0]):
        centre = row + 0.5
        crossings = sorted(
            x0 + (centre - y0) * (x1 - x0) / (y1 - y0)
            for (x0, y0), (x1, y1) in edges
            if min(y0, y1) < centre <= max(y0, y1)
        )
        for left, right in zip(crossings[::2], crossings[1::2], strict=True):
            pixels += [(row, column) for column in range(shape[1]) if left < column + 0.5 <= right]
    return pixels


def stains_by_hand(rgb: np.ndarray) -> np.ndarray:
    """Return haematoxylin and eosin of (N, 3) pixels by the formulas of QuPath's manual."""
    h, e = np.array([0.65111, 0.70119, 0.29049]), np.array([0.2159, 0.8012, 0.5581])
    h, e = h / math.hypot(*h), e / math.hypot(*e)
    rest = np.cross(h, e)
    density = np.maximum(0, -np.log10(np.maximum(rgb.astype(float), 1) / 255))
    return np.linalg.solve(np.array([h, e, rest / math.hypot(*rest)]).T, density.T).T[:, :2]


@pytest.mark.parametrize("mpp", [MPP, 0.25, 0.12])
@pytest.mark.parametrize("simplify_um", [0.0, 0.06])
def test_stains_are_those_of_the_slides_own_pixels(
    engine: Engine, rgb: np.ndarray, mpp: float, simplify_um: float
) -> None:
    if mpp < MPP:
        # The same tissue, scanned at 40x or 80x, with noise in its pixels.
        factor = round(MPP / mpp)
        rgb = np.kron(rgb, np.ones((factor, factor, 1), np.uint8))
        noise = np.random.default_rng(1).integers(-15, 16, (*rgb.shape[:2], 1))
        rgb = np.clip(rgb + noise, 0, 255).astype(np.uint8)
    nuclei = found(engine, rgb, 2000, mpp, simplify_um)
    assert len(nuclei) > 5
    for row, polygon in enumerate(nuclei.polygons()):
        at = inside(np.asarray(polygon.exterior.coords), rgb.shape[:2])
        values = stains_by_hand(np.array([rgb[pixel] for pixel in at]))
        for channel, name in enumerate(("Hematoxylin", "Eosin")):
            of = values[:, channel]
            expected = of.mean(), np.median(of), of.min(), of.max(), of.std(ddof=1)
            measured = [nuclei.measurements[f"{name}: {s}"][row] for s in STATISTICS]
            np.testing.assert_allclose(measured, expected, rtol=1e-5, atol=1e-6)


def test_tiles_change_nothing_on_a_resampled_slide(engine: Engine, rgb: np.ndarray) -> None:
    whole, tiled = found(engine, rgb, 2000), found(engine, rgb, 90)
    assert len(whole) == len(tiled) > 5

    def rows(nuclei: NucleiTable) -> list[tuple[bytes, ...]]:
        columns = np.stack(list(nuclei.measurements.values()), axis=1)
        starts, stops = nuclei.ring_offsets[:-1], nuclei.ring_offsets[1:]
        return sorted(
            (nuclei.vertices[start:stop].tobytes(), column.tobytes())
            for start, stop, column in zip(starts, stops, columns, strict=True)
        )

    assert rows(whole) == rows(tiled)


def test_boxes_too_large_to_read_at_once_are_halved(
    engine: Engine, rgb: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = found(engine, rgb, 2000)
    monkeypatch.setattr(infer, "_MAX_MEASURED_PX", 2000)
    in_parts = found(engine, rgb, 2000)
    assert list(at_once.measurements) == list(in_parts.measurements)
    for name, column in at_once.measurements.items():
        np.testing.assert_array_equal(column, in_parts.measurements[name], err_msg=name)
