"""The forward pass on an NVIDIA GPU; parts that need no GPU are tested everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from qpnuclei.datasets.synthetic.slide import make_slide
from qpnuclei.errors import DeviceError
from qpnuclei.evaluation.metrics import score
from qpnuclei.segmentation.cuda import BatchSplitter, quantise_maps
from qpnuclei.segmentation.postprocess import segment_instances
from qpnuclei.segmentation.predictor import Predictor
from qpnuclei.segmentation.quantised import NAN_LEVEL, quantise_attention, quantise_centre
from qpnuclei.slides.pixels import RGB
from qpnuclei.slides.slide import open_slide
from qpnuclei.system.threads import map_in_threads

needs_gpu = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU here"),
]


def every_boundary(steps: int) -> np.ndarray:
    """Numbers in 0..1 around the limits of every level, and between them."""
    limits = (np.arange(2 * steps + 1) / (2 * steps)).astype(np.float32)
    around = [np.nextafter(limits, np.float32(to)) for to in (0, 1)]
    return np.clip(np.stack([limits, *around]), 0, 1)[None]


def test_maps_quantised_on_the_device_equal_those_quantised_by_numpy() -> None:
    attention = every_boundary(240)
    (found,) = quantise_maps(torch.from_numpy(attention[:, None]))
    np.testing.assert_array_equal(found.numpy(), quantise_attention(attention))
    centre = every_boundary(65535)
    both = torch.from_numpy(np.stack([centre, centre], axis=1))
    _, seeds = quantise_maps(both)
    np.testing.assert_array_equal(seeds.numpy().view(np.uint16), quantise_centre(centre))


def inverted(batch: Tensor) -> tuple[Tensor, ...]:
    return 255 - batch[..., 0], batch[..., 1].to(torch.int16)


def tiles(count: int, side: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (count, side, side, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


class Memory:
    """A device on which so many tiles of 4x4 px fit."""

    def __init__(self, fitting: int) -> None:
        self.fitting = fitting
        self.asked: list[int] = []
        self.released = 0

    def run(self, batch: Tensor) -> tuple[Tensor, ...]:
        self.asked.append(len(batch))
        if batch[..., 0].numel() > self.fitting * 16:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return inverted(batch)

    def release(self) -> None:
        self.released += 1


def test_a_batch_that_does_not_fit_is_halved_until_it_does() -> None:
    memory = Memory(fitting=3)
    run = BatchSplitter(memory.run, memory.release)
    assert same(run(tiles(9)), inverted(tiles(9)))
    assert memory.asked == [9, 4, 2, 2, 2, 2, 1]
    assert memory.released == 2
    assert same(run(tiles(4)), inverted(tiles(4)))
    assert memory.asked[7:] == [2, 2]  # it does not try again what failed
    assert same(run(tiles(5, side=2)), inverted(tiles(5, side=2)))
    assert memory.asked[9:] == [5]  # smaller tiles: as many as have as many px
    assert memory.released == 2


def test_a_tile_that_does_not_fit_is_an_error_with_a_remedy() -> None:
    memory = Memory(fitting=0)
    with pytest.raises(DeviceError, match="a tile of 4x4 px") as caught:
        BatchSplitter(memory.run, memory.release)(tiles(2))
    assert "--tile" in caught.value.hint
    assert "--device cpu" in caught.value.hint
    assert memory.asked == [2, 1]


def test_other_errors_pass() -> None:
    def fail(_batch: Tensor) -> tuple[Tensor, ...]:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        BatchSplitter(fail, lambda: None)(tiles(2))


def test_nan_is_marked_on_the_device() -> None:
    maps = torch.full((1, 2, 1, 3), 0.5)
    maps[0, 0, 0, 1] = maps[0, 1, 0, 2] = torch.nan
    assert quantise_maps(maps)[0].tolist() == [[[119, NAN_LEVEL, NAN_LEVEL]]]


@pytest.fixture(scope="module")
def tissue(tmp_path_factory: pytest.TempPathFactory) -> RGB:
    """Painted, (1024, 1024, 3)."""
    folder: Path = tmp_path_factory.mktemp("slide")
    slide = make_slide(folder / "synthetic-field.tif", (2048, 2048))
    with open_slide(slide.path) as opened:
        return opened.read(512, 512, 1024, 1024)


@pytest.fixture
def predictor() -> Iterator[Predictor]:
    yield Predictor.load("default", "cuda")
    torch.cuda.empty_cache()


def tiles_of(tissue: RGB, count: int, size: tuple[int, int] = (512, 448)) -> list[RGB]:
    """Different batches of one tile each."""
    height, width = size
    corners = np.random.default_rng(0).integers(0, 512, (count, 2)).tolist()
    return [np.ascontiguousarray(tissue[None, y : y + height, x : x + width]) for y, x in corners]


class TestOnAGPU:
    pytestmark = needs_gpu

    def test_nuclei_are_those_of_the_cpu(self, predictor: Predictor, tissue: RGB) -> None:
        on_cpu = Predictor.load(predictor.metadata.name, "cpu")
        margin = 128  # more than the receptive radius: borders are continued in different ways
        inner = np.s_[0, margin:-margin, margin:-margin]
        parameters = predictor.metadata.post_processing
        labels, masks = [], []
        for made in (on_cpu, predictor):
            attention, centre = made.predict_quantised(tissue[None])
            assert centre is not None
            masks.append(attention[inner] >= round(parameters.threshold * 240))
            labels.append(segment_instances(attention[inner], parameters, centre[inner]))
        assert (masks[0] != masks[1]).mean() < 1e-4
        assert score(*labels).AJI > 0.999

    def test_quantised_maps_are_the_maps_quantised(self, predictor: Predictor, tissue: RGB) -> None:
        rgb = tissue[None, :512, :512]  # a size that is not padded
        attention, centre = predictor.predict(rgb)
        found, seeds = predictor.predict_quantised(rgb)
        np.testing.assert_array_equal(found, quantise_attention(attention))
        assert centre is not None
        np.testing.assert_array_equal(seeds, quantise_centre(centre))

    def test_threads_get_the_maps_of_their_batches(self, predictor: Predictor, tissue: RGB) -> None:
        batches = tiles_of(tissue, 8) + tiles_of(tissue, 8, (300, 320))
        one_by_one = [predictor.predict_quantised(rgb) for rgb in batches]
        for _ in range(3):
            side_by_side = list(map_in_threads(predictor.predict_quantised, batches, 3))
            for found, expected in zip(side_by_side, one_by_one, strict=True):
                np.testing.assert_array_equal(found[0], expected[0])
                np.testing.assert_array_equal(found[1], expected[1])  # type: ignore[arg-type]

    def test_odd_sizes_come_back_as_they_were(self, predictor: Predictor, tissue: RGB) -> None:
        (rgb,) = tiles_of(tissue, 1, (301, 333))
        attention, centre = predictor.predict_quantised(rgb)
        assert attention.shape == (1, 301, 333)
        assert centre is not None
        assert centre.shape == (1, 301, 333)

    def test_a_batch_is_what_its_tiles_are_one_by_one(
        self, predictor: Predictor, tissue: RGB
    ) -> None:
        tiles = tiles_of(tissue, predictor.tiles_at_once)
        together = predictor.predict_quantised(np.concatenate(tiles))
        for number, rgb in enumerate(tiles):
            for found, alone in zip(together, predictor.predict_quantised(rgb), strict=True):
                assert found is not None
                assert alone is not None
                # cuDNN may choose another algorithm for another batch size: the last bit differs.
                difference = np.abs(found[number].astype(int) - alone[0].astype(int))
                assert (difference > 1 + 0.01 * np.iinfo(found.dtype).max).mean() < 1e-3

    def test_a_tile_too_large_for_the_device(self, predictor: Predictor, tissue: RGB) -> None:
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(predictor.device).total_memory
        enough_for_pixels = torch.cuda.memory_reserved() + 2**26
        torch.cuda.set_per_process_memory_fraction(enough_for_pixels / total)
        try:
            with pytest.raises(DeviceError, match="a tile of 2048x2048 px"):
                predictor.predict_quantised(np.tile(tissue[None], (1, 2, 2, 1)))
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        assert predictor.predict_quantised(tissue[None, :256, :256])[0].shape == (1, 256, 256)
