"""Colour transfer against scikit-image."""

import numpy as np
import pytest
import skimage.color

from qpnuclei.slides.reinhard import reinhard_statistics, reinhard_transfer


def colours(n=4000, seed=0):
    return np.random.default_rng(seed).integers(30, 250, (n, 3)).astype(np.uint8)


def test_reinhard_statistics_equal_scikit_image():
    rgb = colours()
    found = reinhard_statistics(rgb)
    brightness = np.percentile(rgb, 90)
    assert found.brightness == pytest.approx(brightness)
    standard = np.rint(np.minimum(rgb * (255 / brightness), 255)) / 255
    lab = skimage.color.rgb2lab(standard)
    np.testing.assert_allclose(found.mean, lab.mean(axis=0), atol=0.02)
    np.testing.assert_allclose(found.std, lab.std(axis=0), atol=0.02)


def test_transfer_to_itself_changes_nothing():
    rgb = colours()
    rgb[:1000] = 255  # so that the brightness is 255 already
    own = reinhard_statistics(rgb)
    assert own.brightness == 255
    same = reinhard_transfer(rgb, own, own.mean, own.std)
    assert np.abs(same.astype(int) - rgb).max() <= 1


def test_transfer_brings_the_statistics_of_the_target():
    rng = np.random.default_rng(2)
    source = np.clip(rng.normal((150, 90, 170), 12, (5000, 3)), 0, 255).astype(np.uint8)
    target_mean, target_std = (62.0, 30.0, -18.0), (7.0, 4.0, 3.0)
    moved = reinhard_transfer(source, reinhard_statistics(source), target_mean, target_std)
    lab = skimage.color.rgb2lab(moved)
    np.testing.assert_allclose(lab.mean(axis=0), target_mean, atol=0.3)
    np.testing.assert_allclose(lab.std(axis=0), target_std, atol=0.3)


def test_pixels_do_not_depend_on_their_tile():
    rgb = np.random.default_rng(5).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    source = reinhard_statistics(rgb)
    whole = reinhard_transfer(rgb, source, (60, 20, -10), (15, 8, 6))
    for part in (np.s_[3:10, 5:40], np.s_[:, 7:8], np.s_[20:21, 1:64]):
        np.testing.assert_array_equal(
            reinhard_transfer(rgb[part], source, (60, 20, -10), (15, 8, 6)), whole[part]
        )


def test_no_pixels_have_no_colour():
    with pytest.raises(ValueError, match="no pixels"):
        reinhard_statistics(np.empty((0, 3), np.uint8))
