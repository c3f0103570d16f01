from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt
import pytest
import shapely
import torch

from qpnuclei.errors import SlideError
from qpnuclei.nuclei.table import NucleiTable, concatenate
from qpnuclei.pipeline.infer import _assemble, _View, find_nuclei, plan_tiles
from qpnuclei.segmentation.maps_engine import Segmenter
from qpnuclei.slides.resolution import Scale
from qpnuclei.slides.slide import ImageInMemory
from qpnuclei.slides.stains import DEFAULT_HE
from qpnuclei.system.timing import Stopwatch
from qpnuclei.tiling.plan import Box, TilePlan

SCALE = Scale((0.25, 0.25))


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter.load("default", device="cpu")


@pytest.fixture(scope="module")
def tissue() -> ImageInMemory:
    """Dark discs on pink, 420 x 380 px."""
    rng = np.random.default_rng(3)
    rgb = np.full((380, 420, 3), (235, 190, 215), np.uint8)
    y, x = np.mgrid[:380, :420]
    for _ in range(60):
        cx, cy, r = rng.uniform(0, 420), rng.uniform(0, 380), rng.uniform(9, 16)
        rgb[np.hypot(x - cx, (y - cy) * rng.uniform(0.7, 1.4)) < r] = (95, 60, 140)
    return ImageInMemory(rgb + rng.integers(-9, 10, rgb.shape).astype(np.uint8), (0.25, 0.25))


def found(segmenter: Segmenter, tissue: ImageInMemory, tile_px: int, **options: int) -> NucleiTable:
    size = tissue.width, tissue.height
    roi = shapely.Polygon([(20, 10), (400, 60), (350, 370), (60, 300)])
    tiles = plan_tiles(roi, size, SCALE, segmenter, tile_px, max_nucleus_um=10)
    tables: list[NucleiTable] = []
    find_nuclei(tissue, tiles, segmenter, SCALE, DEFAULT_HE, tables, **options)
    return concatenate(tables)


def assert_same(one: NucleiTable, other: NucleiTable) -> None:
    """Bit for bit."""
    np.testing.assert_array_equal(one.vertices, other.vertices)
    np.testing.assert_array_equal(one.ring_offsets, other.ring_offsets)
    assert list(one.measurements) == list(other.measurements)
    for name, column in one.measurements.items():
        np.testing.assert_array_equal(column, other.measurements[name], err_msg=name)


def test_batches_of_tiles_of_different_sizes_change_nothing(
    segmenter: Segmenter, tissue: ImageInMemory
) -> None:
    one = found(segmenter, tissue, 130)
    assert len(one) > 20
    assert_same(one, found(segmenter, tissue, 130, batch_size=4))


@pytest.mark.parametrize("workers", [2, 5])
def test_any_number_of_workers_gives_the_same_table_bit_for_bit(
    segmenter: Segmenter, tissue: ImageInMemory, workers: int
) -> None:
    one = found(segmenter, tissue, 90)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(workers)
        assert_same(one, found(segmenter, tissue, 90, workers=workers))
    finally:
        torch.set_num_threads(threads)


class FailsAt(ImageInMemory):
    """Cannot be read beyond some column."""

    def read(
        self, x: int, y: int, width: int, height: int, downsample: tuple[float, float] = (1.0, 1.0)
    ) -> npt.NDArray[np.uint8]:
        if x + width > 500:
            raise SlideError("its pixels cannot be decoded", "copy it again")
        return super().read(x, y, width, height, downsample)


def test_an_unreadable_tile_is_named_and_ends_all_threads(
    segmenter: Segmenter, tissue: ImageInMemory
) -> None:
    before = threading.active_count()
    broken = FailsAt(np.array(tissue.read(0, 0, 420, 380)), (0.25, 0.25))
    with pytest.raises(SlideError, match=r"^tile \d+ of \d+ at \(\d+, \d+\): its pixels") as caught:
        found(segmenter, broken, 90, workers=3)
    assert caught.value.hint == "copy it again"
    assert threading.active_count() == before


@pytest.mark.parametrize("stage", ["segment_instances", "pixels_of_labels"])
def test_a_fault_in_a_later_stage_names_its_tile_too(
    segmenter: Segmenter, tissue: ImageInMemory, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*_: object) -> None:
        raise MemoryError

    before = threading.active_count()
    monkeypatch.setattr(f"qpnuclei.pipeline.infer.{stage}", fault)
    with pytest.raises(MemoryError) as caught:
        found(segmenter, tissue, 200, workers=2)
    assert caught.value.__notes__[0].startswith("in tile 1 of ")
    assert threading.active_count() == before


def test_views_are_put_together_from_what_each_tile_adds() -> None:
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (330, 500, 3)).astype(np.uint8)
    attention = rng.integers(0, 240, (330, 500), np.uint8)
    centre = rng.integers(0, 2**16, (330, 500), np.uint16)
    image = Box(0, 0, 500, 330)
    roi = shapely.union(shapely.box(0, 0, 220, 300), shapely.box(210, 140, 480, 330))
    plan = TilePlan(roi, (500, 330), 100, 20)
    whole = _View(image, rgb, attention, centre)
    parts = (whole.cut(part).copy() for part in plan.new_parts() if part is not None)
    tiles = []
    for tile, view in _assemble(plan, parts, Stopwatch()):
        inner = tile.view.within(image)
        assert view.box == tile.view
        np.testing.assert_array_equal(view.rgb, rgb[inner])
        np.testing.assert_array_equal(view.attention, attention[inner])
        assert view.centre is not None
        np.testing.assert_array_equal(view.centre, centre[inner])
        tiles.append(tile)
    assert tiles == list(plan)
    assert next(parts, None) is None
