"""Resampling against a naive reference, and its independence of the tile."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qpnuclei.slides.resample import axis_weights, resample


def naive_area(values, start, count, scale, pixel_size, origin, extent):
    """Integrate the piecewise constant row over every output pixel; white beyond."""
    result = []
    for i in range(start, start + count):
        total = 0.0
        low, high = i * scale, (i + 1) * scale
        inside_low, inside_high = max(low, 0.0), min(high, extent)
        total += 255.0 * (scale - max(0.0, inside_high - inside_low))
        for s, value in enumerate(values):
            left, right = s * pixel_size - origin, (s + 1) * pixel_size - origin
            if s == len(values) - 1:
                right = extent  # the last pixel stands for what was cut off
            total += value * max(0.0, min(right, inside_high) - max(left, inside_low))
        result.append(total / scale)
    return np.array(result)


def row(values, start, count, scale, *, pixel_size=1.0, origin=0.0, extent=None):
    """Resample one row of grey values."""
    values = np.asarray(values, np.uint8)
    extent = len(values) * pixel_size if extent is None else extent
    columns = axis_weights(
        start,
        count,
        scale,
        pixel_size=pixel_size,
        n_pixels=len(values),
        origin=origin,
        extent=extent,
    )
    rows = axis_weights(0, 1, 1.0, pixel_size=1.0, n_pixels=1, origin=0.0, extent=1.0)
    source = np.repeat(values[None, columns.first : columns.stop, None], 3, axis=2)
    if columns.first == columns.stop:
        return np.full(count, 255)
    return resample(source, rows, columns)[0, :, 0]


def test_halving_takes_the_mean_of_pairs():
    assert row([10, 20, 100, 200], 0, 2, 2.0).tolist() == [15, 150]


def test_fractional_reduction_weighs_by_area():
    # Output pixel 0 covers [0, 1.5): all of the first, half of the second source pixel.
    assert row([30, 90, 120], 0, 2, 1.5).tolist() == [50, 110]


def test_beyond_the_slide_is_white():
    # Pixel 1 is half slide (100), half beyond (255); pixels -1 and 2 are wholly beyond.
    assert row([100, 100, 100], -1, 4, 2.0).tolist() == [255, 100, 178, 255]


def test_a_cut_off_rest_is_filled_by_the_last_pixel():
    # A 9 px wide slide reduced by 4 to two whole pixels: the ninth pixel is not in the level.
    grey = row([40, 80], 0, 3, 4.0, pixel_size=4.0, extent=9.0)
    # [8, 9) continues the last pixel (80), the rest of output pixel 2 is beyond the slide.
    assert grey.tolist() == [40, 80, round((80 + 3 * 255) / 4)]


def test_cropping_shifts_by_the_origin():
    values = list(range(0, 200, 10))
    assert row(values, 0, 4, 1.0, origin=3, extent=10).tolist() == values[3:7]
    assert row(values, 8, 4, 1.0, origin=3, extent=10).tolist() == [110, 120, 255, 255]


def test_enlarging_interpolates_between_centres():
    # Centres of the halves lie a quarter of a pixel from the centres of the source pixels.
    assert row([100, 200], 0, 4, 0.5).tolist() == [100, 125, 175, 200]


def test_same_grid_returns_the_source_itself():
    weights = axis_weights(3, 5, 1.0, pixel_size=1.0, n_pixels=20, origin=0.0, extent=20.0)
    assert weights.copied == slice(0, 5)
    assert (weights.first, weights.stop) == (3, 8)
    # Beyond the image is white, which needs no weights either.
    around = axis_weights(-2, 9, 1.0, pixel_size=1.0, n_pixels=4, origin=0.0, extent=4.0)
    assert around.copied == slice(2, 6)
    assert row([10, 20, 30, 40], -2, 9, 1.0).tolist() == [255] * 2 + [10, 20, 30, 40] + [255] * 3
    beyond = axis_weights(7, 3, 1.0, pixel_size=1.0, n_pixels=4, origin=0.0, extent=4.0)
    assert beyond.copied == slice(0, 0)
    for scale, start in ((2.0, 0), (0.5, 0), (1.0 + 1e-3, 3)):
        mixed = axis_weights(start, 2, scale, pixel_size=1.0, n_pixels=20, origin=0.0, extent=20.0)
        assert mixed.copied is None


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_area_weights_equal_the_naive_integral(data):
    n = data.draw(st.integers(1, 30), "n")
    values = data.draw(st.lists(st.integers(0, 255), min_size=n, max_size=n), "values")
    pixel_size = data.draw(st.sampled_from([1.0, 2.0, 4.0, 2.5]), "pixel_size")
    scale = pixel_size * data.draw(st.floats(1, 7), "factor")
    origin = data.draw(st.integers(0, 3), "origin")
    extent = n * pixel_size - origin + data.draw(st.floats(-1, 1), "cut")
    if extent <= 0:
        return
    start = data.draw(st.integers(-3, 10), "start")
    expected = naive_area(values, start, 8, scale, pixel_size, origin, extent)
    got = row(values, start, 8, scale, pixel_size=pixel_size, origin=origin, extent=extent)
    # Half a grey value of rounding, a sixteenth between the axes, and weights of 12 bits.
    np.testing.assert_allclose(got, expected, atol=0.5 + 1 / 16 + 255 * 9 / 8192)


@settings(max_examples=100, deadline=None)
@given(
    scale=st.one_of(st.floats(0.2, 6), st.sampled_from([0.5, 1.0, 2.0, 4.0])),
    start=st.integers(-5, 30),
    count=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_pixel_does_not_depend_on_the_run_it_is_read_in(scale, start, count, seed):
    values = np.random.default_rng(seed).integers(0, 256, 60)
    whole = row(values, -5, 80, scale)
    np.testing.assert_array_equal(
        row(values, start, count, scale), whole[start + 5 : start + 5 + count]
    )


@pytest.mark.parametrize("scale", [0.43, 1.001, 2.6])
def test_a_tall_region_has_the_rows_that_are_read_one_by_one(scale, monkeypatch):
    monkeypatch.setattr("qpnuclei.slides.resample._BAND_PX", 600)  # bands of 66 rows
    source = np.random.default_rng(5).integers(0, 256, (300, 9, 3)).astype(np.uint8)
    columns = axis_weights(-1, 8, 1.3, pixel_size=1.0, n_pixels=9, origin=0.0, extent=9.0)

    def read(start, count):
        rows = axis_weights(start, count, scale, pixel_size=1.0, n_pixels=300, origin=0, extent=300)
        part = source[rows.first : rows.stop, columns.first : columns.stop]
        return resample(part, rows, columns)

    tall = read(-150, 950)  # white above and below the image, in all three
    assert (tall[[0, -1]] == 255).all()
    assert (tall[150:250, 1:7] < 255).any(axis=(1, 2)).all()
    np.testing.assert_array_equal(tall, np.concatenate([read(y, 1) for y in range(-150, 800)]))


def test_weights_of_a_row_add_up_to_one():
    for scale in (1.9789, 3.0, 0.4, 17.3):
        weights = axis_weights(1, 12, scale, pixel_size=1.0, n_pixels=400, origin=0.0, extent=400.0)
        np.testing.assert_array_equal(weights.matrix.sum(axis=1), np.ones(12))


@pytest.mark.parametrize("scale", [1.37, 0.61])
def test_both_axes_are_treated_alike(scale):
    source = np.random.default_rng(3).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    weights = axis_weights(0, 20, scale, pixel_size=1.0, n_pixels=40, origin=0.0, extent=40.0)
    part = source[: weights.stop, : weights.stop]
    turned = np.ascontiguousarray(part.transpose(1, 0, 2))
    straight = resample(part, weights, weights).astype(int)
    across = resample(turned, weights, weights).transpose(1, 0, 2).astype(int)
    # The passes round to a sixteenth in between, in opposite order.
    assert np.abs(straight - across).max() <= 1
