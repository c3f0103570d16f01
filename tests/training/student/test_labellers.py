import numpy as np
import pytest

from qpnuclei.training.student.labellers import AtSeveralScales, MeanOfModels


class _Constant:
    def __init__(self, attention: float, centre: float) -> None:
        self._maps = attention, centre

    def predict_image(self, rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        attention, centre = (np.full(rgb.shape[:2], value, np.float32) for value in self._maps)
        return attention, centre


class _Reader:
    """Predicts the red and the green of an image, and remembers the sizes that it saw."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, ...]] = []

    def predict_image(self, rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.sizes.append(rgb.shape[:2])
        red, green = (rgb[..., channel] / np.float32(255) for channel in (0, 1))
        return red, green


def test_the_maps_are_means() -> None:
    models = [_Constant(0.25, 0.5), _Constant(1.0, 0.0), _Constant(0.25, 1.0)]

    attention, centre = MeanOfModels(models).predict_image(np.zeros((3, 4, 3), np.uint8))

    assert centre is not None
    assert attention.dtype == centre.dtype == np.float32
    assert np.array_equal(attention, np.full((3, 4), 0.5))
    assert np.array_equal(centre, np.full((3, 4), 0.5))


def test_one_scale_of_1_changes_nothing() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (9, 14, 3)).astype(np.uint8)

    found = AtSeveralScales(_Reader(), [1.0]).predict_image(rgb)

    for values, expected in zip(found, _Reader().predict_image(rgb), strict=True):
        assert values is not None
        assert values.dtype == np.float32
        assert np.array_equal(values, expected)


def test_the_model_sees_the_image_in_every_size() -> None:
    model = _Reader()

    AtSeveralScales(model, [0.5, 1.0, 1.6]).predict_image(np.zeros((20, 31, 3), np.uint8))

    assert model.sizes == [(10, 16), (20, 31), (32, 50)]


def test_every_size_counts_the_same() -> None:
    class Width:
        def predict_image(self, rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            width = np.full(rgb.shape[:2], rgb.shape[1] / 100, np.float32)
            return width, 1 - width

    at_scales = AtSeveralScales(Width(), [0.5, 1.0, 3.0])
    attention, centre = at_scales.predict_image(np.zeros((8, 20, 3), np.uint8))

    assert attention == pytest.approx(np.full((8, 20), 0.3), abs=1e-6)
    assert centre == pytest.approx(np.full((8, 20), 0.7), abs=1e-6)


@pytest.mark.parametrize("scales", [[0.5, 1.0, 2.0], [2.0], [0.5], [0.75, 1.33]])
def test_what_is_seen_in_every_size_lies_where_it_is_in_the_image(scales: list[float]) -> None:
    """A slope is the same after it was enlarged or reduced, except at the border."""
    y, x = np.mgrid[:40, :60].astype(np.float32)
    rgb = np.stack([4 * x, 6 * y, 0 * x], axis=-1).astype(np.uint8)

    attention, centre = AtSeveralScales(_Reader(), scales).predict_image(rgb)

    inner = np.s_[3:-3, 3:-3]
    assert centre is not None
    assert np.abs(255 * attention - rgb[..., 0])[inner].max() < 1
    assert np.abs(255 * centre - rgb[..., 1])[inner].max() < 1
