from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt
import pytest
import shapely
import torch

from qpnuclei.errors import SlideError
from qpnuclei.nuclei.table import NucleiTable, concatenate
from qpnuclei.pipeline.inference.infer import find_nuclei, join_tiles, measure_tiles, reader_of
from qpnuclei.pipeline.planning.tiles import plan_tiles
from qpnuclei.segmentation.engine import Engine, EngineOptions, load_engine
from qpnuclei.slides.resolution import Scale
from qpnuclei.slides.slide import ImageInMemory
from qpnuclei.slides.stains import DEFAULT_HE
from qpnuclei.tiling.box import Box
from qpnuclei.tiling.plan import TilePlan

SCALE = Scale((0.25, 0.25))


@pytest.fixture(scope="module")
def engine() -> Engine:
    return made()


def made(**options: int) -> Engine:
    return load_engine("default", EngineOptions(device="cpu", **options))


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


def found(
    engine: Engine,
    tissue: ImageInMemory,
    tile_px: int,
    workers: int = 1,
) -> NucleiTable:
    tables: list[NucleiTable] = []
    tiles = planned(engine, tissue, tile_px)
    find_nuclei(tissue, tiles, engine, SCALE, DEFAULT_HE, tables, workers=workers)
    return concatenate(tables)


def planned(engine: Engine, tissue: ImageInMemory, tile_px: int) -> TilePlan:
    size = tissue.width, tissue.height
    roi = shapely.Polygon([(20, 10), (400, 60), (350, 370), (60, 300)])
    return plan_tiles(roi, size, SCALE, engine.spec, tile_px, max_nucleus_um=10)


def assert_same(one: NucleiTable, other: NucleiTable) -> None:
    """Bit for bit."""
    np.testing.assert_array_equal(one.vertices, other.vertices)
    np.testing.assert_array_equal(one.ring_offsets, other.ring_offsets)
    assert list(one.measurements) == list(other.measurements)
    for name, column in one.measurements.items():
        np.testing.assert_array_equal(column, other.measurements[name], err_msg=name)


def test_a_batch_size_changes_nothing(engine: Engine, tissue: ImageInMemory) -> None:
    one = found(engine, tissue, 130)
    assert len(one) > 20
    assert_same(one, found(made(batch_size=4), tissue, 130))


@pytest.mark.parametrize("workers", [2, 5])
@pytest.mark.parametrize("threads", [1, 3])
def test_any_number_of_workers_gives_the_same_table_bit_for_bit(
    tissue: ImageInMemory, workers: int, threads: int
) -> None:
    one = found(made(workers=1), tissue, 90)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)  # whatever the process is set to
        assert_same(one, found(made(workers=workers), tissue, 90, workers=workers))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_small_nuclei_are_left_out_and_the_others_stay_as_they_are(
    engine: Engine, tissue: ImageInMemory
) -> None:
    # Nuclei larger than 10 µm are joined from several tiles, so both ways to the result count.
    everything = found(engine, tissue, 130)
    areas = everything.measurements["Area µm^2"]
    least = float(np.median(areas))
    tiles = planned(engine, tissue, 130)
    measured = measure_tiles(tissue, tiles, engine, SCALE, DEFAULT_HE)
    large: list[NucleiTable] = []
    join_tiles(
        measured, tissue, tiles, lambda: engine, SCALE, DEFAULT_HE, large, min_area_um2=least
    )
    assert_same(everything.take(areas >= least), concatenate(large))


def test_a_higher_threshold_shrinks_nuclei(engine: Engine, tissue: ImageInMemory) -> None:
    options = EngineOptions(device="cpu", threshold=0.9)
    stricter = load_engine("default", options)
    assert stricter.spec.sha256 == engine.spec.sha256
    assert stricter.spec.details["post_processing"]["threshold"] == 0.9
    few, many = (found(e, tissue, 400).measurements["Area µm^2"].sum() for e in (stricter, engine))
    assert 0 < few < many
    as_of_the_model = engine.spec.details["post_processing"]["threshold"]
    same = load_engine("default", EngineOptions(device="cpu", threshold=as_of_the_model))
    assert_same(found(same, tissue, 400), found(engine, tissue, 400))


def test_beyond_its_border_an_image_is_read_reflected() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (20, 31, 3), np.uint8)
    image = ImageInMemory(rgb, (0.25, 0.25))
    mirrored = np.pad(rgb, ((50, 50), (70, 70), (0, 0)), mode="symmetric")
    read = reader_of(image, SCALE)
    np.testing.assert_array_equal(read(Box(-70, -50, 101, 70)), mirrored)
    np.testing.assert_array_equal(read(Box(-7, 3, 12, 25)), mirrored[53:75, 63:82])
    np.testing.assert_array_equal(read(Box(40, -9, 45, -2)), mirrored[41:48, 110:115])
    np.testing.assert_array_equal(read(Box(3, 5, 9, 11)), rgb[5:11, 3:9])
    assert read(Box(3, 5, 3, 11)).shape == (6, 0, 3)


@pytest.mark.parametrize("downsample", [2.0, 1.6, 0.5, 0.7])
def test_a_last_pixel_that_the_border_cuts_is_not_mixed_with_white(downsample: float) -> None:
    image = ImageInMemory(np.full((21, 33, 3), 90, np.uint8), (0.25, 0.25))
    read = reader_of(image, Scale((0.25, 0.25), (downsample, downsample)))
    assert (read(Box(-10, -10, 100, 100)) == 90).all()


def test_an_image_smaller_than_a_pixel_of_the_network_can_be_read() -> None:
    image = ImageInMemory(np.full((1, 3, 3), 90, np.uint8), (0.25, 0.25))
    assert reader_of(image, Scale((0.25, 0.25), (4.0, 4.0)))(Box(-2, -2, 3, 3)).shape == (5, 5, 3)


class FailsAt(ImageInMemory):
    """Cannot be read beyond some column."""

    def read(
        self, x: int, y: int, width: int, height: int, downsample: tuple[float, float] = (1.0, 1.0)
    ) -> npt.NDArray[np.uint8]:
        if x + width > 400:
            raise SlideError("its pixels cannot be decoded", "copy it again")
        return super().read(x, y, width, height, downsample)


def test_an_unreadable_tile_is_named_and_ends_all_threads(
    engine: Engine, tissue: ImageInMemory
) -> None:
    before = {*threading.enumerate()}
    broken = FailsAt(np.array(tissue.read(0, 0, 420, 380)), (0.25, 0.25))
    with pytest.raises(SlideError, match=r"^tile \d+ of \d+ at \(\d+, \d+\): its pixels") as caught:
        found(engine, broken, 90, workers=3)
    assert caught.value.hint == "copy it again"
    assert {*threading.enumerate()} <= before


@pytest.mark.parametrize(
    "stage",
    ["segmentation.maps_engine.segment_instances", "pipeline.inference.infer.pixels_of_labels"],
)
def test_a_fault_in_a_later_stage_names_its_tile_too(
    engine: Engine, tissue: ImageInMemory, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*_: object) -> None:
        raise MemoryError

    before = {*threading.enumerate()}
    monkeypatch.setattr(f"qpnuclei.{stage}", fault)
    with pytest.raises(MemoryError) as caught:
        found(engine, tissue, 200, workers=2)
    assert caught.value.__notes__[0].startswith("in tile 1 of ")
    assert {*threading.enumerate()} <= before
