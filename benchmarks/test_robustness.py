"""The changes that `benchmarks.robustness` makes to images."""

import numpy as np

from benchmarks.robustness import CHANGES, blurred, coarsened, compressed, restained, versions
from qpnuclei.evaluation.tuning import LabelledImage
from qpnuclei.slides.stains import DEFAULT_HE, stain_matrix


def test_stains_are_scaled_one_by_one():
    stains = stain_matrix(DEFAULT_HE)

    def pixel(haematoxylin, eosin):
        return np.rint(255 * 10 ** -(np.array([haematoxylin, eosin, 0]) @ stains))[None, None]

    changed = restained(pixel(0.5, 0.2).astype(np.uint8), 0.7, 1.3)

    # Rounding to 8 bits on the way costs a level or two.
    assert np.abs(changed - pixel(0.35, 0.26)).max() <= 2


def test_channels_stay_where_they_are():
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 200

    for name, change in CHANGES.items():
        assert change(red).dtype == np.uint8, name
        assert change(red)[16, 16].argmax() == 0, name
    assert np.abs(compressed(red).astype(int) - red).max() < 10


def test_detail_is_lost():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (64, 64, 3), np.uint8)

    assert blurred(noise).std() < 0.5 * noise.std()
    assert coarsened(noise).std() < 0.6 * noise.std()
    assert coarsened(noise).shape == noise.shape


def test_strong_changes_of_colour_are_among_the_versions():
    rng = np.random.default_rng(0)
    image = LabelledImage(
        "a", rng.integers(60, 220, (32, 32, 3), np.uint8), np.zeros((32, 32), np.int32)
    )

    made = dict(versions([image]))

    assert set(CHANGES) < set(made)
    (first, second) = made["recoloured strongly (2 times)"]
    assert np.abs(first.rgb.astype(int) - second.rgb).mean() > 3
    np.testing.assert_array_equal(made["as they are"][0].rgb, image.rgb)
