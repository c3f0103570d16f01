import numpy as np
import pytest

from qpnuclei.slides.recolour import recolour
from qpnuclei.slides.stains import DEFAULT_HE, stain_matrix

STAINS = stain_matrix(DEFAULT_HE)


def _painted(amounts: np.ndarray) -> np.ndarray:
    return np.rint(255 * 10 ** -(amounts @ STAINS)).astype(np.uint8)


def _amounts(image: np.ndarray) -> np.ndarray:
    return -np.log10(np.maximum(image, 1e-3)) @ np.linalg.inv(STAINS)


def test_strengths_vary_as_widely_as_promised() -> None:
    """Haematoxylin's share of the colour, over white: 0.5 to 1.5 times e^-0.5 to e^0.5."""
    pixel = np.broadcast_to(_painted(np.array([[[0.4, 0.2, 0.0]]])), (2, 2, 3))

    drawn = [
        _amounts(recolour(pixel, np.random.default_rng(seed)))[0, 0, 0] / 0.4 for seed in range(400)
    ]

    assert min(drawn) < 0.5
    assert max(drawn) > 1.8
    # Turned vectors, added density and white balance move it by less than the factors do.
    assert np.median(drawn) == pytest.approx(1.0, abs=0.15)


def test_all_pixels_change_alike_and_order_is_kept() -> None:
    rgb = np.stack([_painted(np.array([[h, 0.1, 0.0]] * 5)) for h in np.linspace(0.1, 0.8, 8)])

    for seed in range(20):
        image = recolour(rgb, np.random.default_rng(seed))

        assert image.dtype == np.float32
        assert image.min() >= 0
        assert image.max() <= 1
        assert (image == image[:, :1]).all()
        # More haematoxylin is darker in red, unless both are white.
        assert (np.diff(image[:, 0, 0]) <= 0).all()


def test_the_same_seed_makes_the_same_colours() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)

    first, again, other = (recolour(rgb, np.random.default_rng(s)) for s in (1, 1, 2))

    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).mean() > 0.02
