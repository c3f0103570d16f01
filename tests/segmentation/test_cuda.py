"""The forward pass on an NVIDIA GPU; what needs none of it is tested everywhere."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from qpnuclei.datasets.synthetic.slide import make_slide
from qpnuclei.errors import DeviceError
from qpnuclei.evaluation.metrics import aggregated_jaccard_index
from qpnuclei.segmentation.cuda import codes_of_maps
from qpnuclei.segmentation.postprocess import segment_instances
from qpnuclei.segmentation.predictor import Predictor
from qpnuclei.segmentation.quantised import attention_codes, centre_codes
from qpnuclei.slides.slide import open_slide
from qpnuclei.system.threads import in_parallel

RGB = npt.NDArray[np.uint8]

needs_gpu = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU here"),
]


def every_boundary(steps: int) -> np.ndarray:
    """Numbers in 0..1 around the limits of every code, and between them."""
    limits = (np.arange(2 * steps + 1) / (2 * steps)).astype(np.float32)
    around = [np.nextafter(limits, np.float32(to)) for to in (0, 1)]
    return np.clip(np.stack([limits, *around]), 0, 1)[None]


def test_codes_made_on_the_device_are_those_made_of_maps() -> None:
    attention = every_boundary(240)
    (found,) = codes_of_maps(torch.from_numpy(attention[:, None]))
    np.testing.assert_array_equal(found.numpy(), attention_codes(attention))
    centre = every_boundary(65535)
    both = torch.from_numpy(np.stack([centre, centre], axis=1))
    _, seeds = codes_of_maps(both)
    np.testing.assert_array_equal(seeds.numpy().view(np.uint16), centre_codes(centre))


@pytest.fixture(scope="module")
def tissue(tmp_path_factory: pytest.TempPathFactory) -> RGB:
    """Painted, (1024, 1024, 3)."""
    folder: Path = tmp_path_factory.mktemp("slide")
    slide = make_slide(folder / "synthetic-field.tif", (2048, 2048))
    with open_slide(slide.path) as opened:
        return opened.read(512, 512, 1024, 1024)


@pytest.fixture(params=["default", "light"])
def predictor(request: pytest.FixtureRequest) -> Iterator[Predictor]:
    yield Predictor.load(request.param, "cuda")
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
            attention, centre = made.predict_codes(tissue[None])
            assert centre is not None
            masks.append(attention[inner] >= round(parameters.threshold * 240))
            labels.append(segment_instances(attention[inner], parameters, centre[inner]))
        assert (masks[0] != masks[1]).mean() < 1e-4
        assert aggregated_jaccard_index(*labels) > 0.999

    def test_codes_are_those_of_its_maps(self, predictor: Predictor, tissue: RGB) -> None:
        rgb = tissue[None, :512, :512]  # a size that is not padded
        attention, centre = predictor.predict(rgb)
        found, seeds = predictor.predict_codes(rgb)
        np.testing.assert_array_equal(found, attention_codes(attention))
        assert centre is not None
        np.testing.assert_array_equal(seeds, centre_codes(centre))

    def test_captured_batches_are_the_eager_ones_bit_for_bit(
        self, predictor: Predictor, tissue: RGB, caplog: pytest.LogCaptureFixture
    ) -> None:
        batches = tiles_of(tissue, 12)
        with caplog.at_level(logging.WARNING):
            often = [predictor.predict_codes(rgb) for rgb in batches]
        assert not caplog.records
        assert "CUDA graphs" in predictor.execution  # taken or not, it was captured and compared
        for rgb, of_graph in zip(batches, often, strict=True):
            once = Predictor.load(predictor.metadata.name, "cuda").predict_codes(rgb)
            for found, expected in zip(of_graph, once, strict=True):
                np.testing.assert_array_equal(found, expected)

    def test_replayed_graphs_give_what_their_function_gives(
        self, predictor: Predictor, tissue: RGB
    ) -> None:
        cuda = predictor._on_cuda
        assert cuda is not None
        batches = [torch.from_numpy(rgb).cuda() for rgb in tiles_of(tissue, 3)]
        with torch.inference_mode(), torch.cuda.stream(cuda._computing):
            expected = [cuda._codes(rgb) for rgb in batches]
            graphs = [cuda._captured(cuda._codes, batches[0]) for _ in range(2)]
            for _ in range(3):
                for graph in graphs:  # they share memory
                    for rgb, codes in zip(batches, expected, strict=True):
                        for a, b in zip(graph(rgb), codes, strict=True):
                            assert torch.equal(a, b)

    def test_threads_get_the_codes_of_their_batches(
        self, predictor: Predictor, tissue: RGB
    ) -> None:
        batches = tiles_of(tissue, 8) + tiles_of(tissue, 8, (300, 320))
        one_by_one = [predictor.predict_codes(rgb) for rgb in batches]
        for _ in range(3):
            side_by_side = list(in_parallel(predictor.predict_codes, batches, 3))
            for found, expected in zip(side_by_side, one_by_one, strict=True):
                np.testing.assert_array_equal(found[0], expected[0])
                np.testing.assert_array_equal(found[1], expected[1])  # type: ignore[arg-type]

    def test_odd_sizes_come_back_as_they_were(self, predictor: Predictor, tissue: RGB) -> None:
        (rgb,) = tiles_of(tissue, 1, (301, 333))
        attention, centre = predictor.predict_codes(rgb)
        assert attention.shape == (1, 301, 333)
        assert centre is not None
        assert centre.shape == (1, 301, 333)

    def test_memory_suffices_for_the_suggested_batch(
        self, predictor: Predictor, tissue: RGB, caplog: pytest.LogCaptureFixture
    ) -> None:
        count = predictor.suggested_batch_size(1024)
        assert 1 <= count <= 8
        batch = np.repeat(tissue[None], count, axis=0)
        with caplog.at_level(logging.WARNING):
            for _ in range(6):
                predictor.predict_codes(batch)
        assert not caplog.records

    def test_a_tile_that_does_not_fit_is_an_error_with_a_remedy(
        self, predictor: Predictor, tissue: RGB
    ) -> None:
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(predictor.device).total_memory
        enough_for_pixels = torch.cuda.memory_reserved() + 2**26
        torch.cuda.set_per_process_memory_fraction(enough_for_pixels / total)
        try:
            with pytest.raises(DeviceError, match="a tile of 2048x2048 px"):
                predictor.predict_codes(np.tile(tissue[None], (1, 2, 2, 1)))
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        assert predictor.predict_codes(tissue[None, :256, :256])[0].shape == (1, 256, 256)
