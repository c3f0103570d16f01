"""Stains against QuPath's own values, made-up mixtures and scikit-image."""

import dataclasses
import json

import numpy as np
import pytest
import skimage.color
from PIL import Image

from qpnuclei.slides.stains import (
    DEFAULT_HE,
    Stains,
    check_stains,
    estimate_macenko,
    optical_density,
    separate,
    stain_matrix,
    stain_rows,
    stains_agree,
)
from tests.paths import MEASUREMENTS

WHITE = (255.0, 255.0, 255.0)


def test_optical_density_by_hand():
    rgb = np.array([[255, 0, 51], [254, 128, 1]], np.uint8)
    expected = [[0, np.log10(255), np.log10(5)], [np.log10(255 / 254), 0.29933, np.log10(255)]]
    density = optical_density(rgb)
    assert density.dtype == np.float32
    np.testing.assert_allclose(density, expected, rtol=1e-4)


def test_brighter_than_the_background_is_no_negative_density():
    assert (optical_density(np.full((1, 3), 250, np.uint8), (243, 240, 246)) == 0).all()


def test_stain_matrix_is_of_unit_vectors_with_their_cross_product():
    matrix = stain_matrix(Stains("x", ("A", "B"), ((2, 0, 0), (0, 0, 3)), WHITE))
    np.testing.assert_allclose(matrix, [[1, 0, 0], [0, 0, 1], [0, -1, 0]], atol=1e-12)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (((0, 0, 0), (1, 0, 0)), "'A' in 'x' has no length"),
        (((1, 0, 0), (np.nan, 0, 0)), "'B' in 'x' has no length"),
        (((np.inf, 0, 0), (1, 0, 0)), "'A' in 'x' has no length"),
        (((1, 2, 3), (2, 4, 6)), "parallel"),
        (((1, 0, 0), (0, 1, 0), (1, 1, 0)), "in one plane"),
    ],
)
def test_impossible_stains_are_named(vectors, message):
    stains = Stains("x", ("A", "B", "C")[: len(vectors)], vectors, WHITE)
    for use in (stain_matrix, check_stains):
        with pytest.raises(ValueError, match=message):
            use(stains)


@pytest.mark.parametrize("white", [0, -1, np.nan, np.inf])
def test_an_impossible_background_is_named(white):
    stains = dataclasses.replace(DEFAULT_HE, background=(255, white, 255))
    with pytest.raises(ValueError, match="background of 'H&E default' is not above 0"):
        check_stains(stains)


@pytest.mark.parametrize("name", ["default_HE", "custom_HE_243", "custom_HE_243_240_246"])
def test_stains_equal_qupath(name):
    oracle = json.loads((MEASUREMENTS / "expected.json").read_text())
    rgb = np.asarray(Image.open(MEASUREMENTS / "image.png").convert("RGB"))
    stated = oracle["stains"][name]
    stains = Stains(
        name,
        tuple(v["name"] for v in stated["vectors"][:2]),
        tuple(tuple(v["rgb"]) for v in stated["vectors"][:2]),
        tuple(stated["background"]),
    )
    np.testing.assert_allclose(
        np.linalg.inv(stain_matrix(stains)), stated["inverse"], rtol=1e-5, atol=1e-6
    )
    image = separate(rgb, stains)
    checked = 0
    for item in oracle["measured"].values():
        values = np.concatenate(
            [image[y, x0:x1] for y, x0, x1 in item["pixels"]["runs_y_x0_x1"]] or [[]]
        )
        expected = item[f"intensity {name} ds1"]
        if len(values) == 0 or "Hematoxylin: Mean" not in expected:  # cells: by compartment
            continue
        for channel, stain in enumerate(("Hematoxylin", "Eosin")):
            found = values[:, channel].astype(np.float64)
            for key, value in (
                ("Mean", found.mean()),
                ("Min", found.min()),
                ("Max", found.max()),
                ("Median", np.median(found)),
            ):
                assert value == pytest.approx(expected[f"{stain}: {key}"], rel=1e-5, abs=1e-6)
                checked += 1
    assert checked > 400


def test_default_stains_agree_with_scikit_image():
    """Another library: it gives density in units of a millionth's, without negatives."""
    rgb = np.random.default_rng(1).integers(1, 256, (50, 3)).astype(np.uint8)
    theirs = 6 * skimage.color.separate_stains(rgb, np.linalg.inv(stain_matrix(DEFAULT_HE)))
    np.testing.assert_allclose(np.maximum(separate(rgb, n_stains=3), 0), theirs, atol=2e-5)


@pytest.mark.parametrize("n_stains", [2, 3])
def test_stains_are_the_density_times_the_inverse_matrix(n_stains):
    rgb = np.random.default_rng(2).integers(0, 256, (7, 9, 3)).astype(np.uint8)
    stains = Stains("x", ("A", "B"), ((0.6, 0.7, 0.3), (0.1, 0.9, 0.2)), (243, 240, 250))
    density = np.maximum(0, -np.log10(np.maximum(rgb, 1) / np.array(stains.background)))
    expected = (density @ np.linalg.inv(stain_matrix(stains)))[..., :n_stains]
    # Of an image, of pixels, of every other pixel, of one, and of none.
    for part in (..., 0, (slice(None), slice(0, 9, 2)), (3, 4), slice(0)):
        found = separate(rgb[part], stains, n_stains)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected[part], atol=2e-6)


def mixture(stains, n=20_000, seed=0, noise=0.0):
    """Pixels with known amounts of two stains, some of them with one stain alone."""
    rng = np.random.default_rng(seed)
    amounts = rng.gamma(2.0, 0.25, (n, 2))
    amounts[: n // 4, 0] *= 0.02
    amounts[n // 4 : n // 2, 1] *= 0.02
    density = amounts @ stain_matrix(stains)[:2]
    rgb = 255 * 10**-density + rng.normal(0, noise, (n, 3))
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)


def angle(a, b):
    a, b = np.asarray(a), np.asarray(b)
    return np.degrees(np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))


@pytest.mark.parametrize("noise", [0.0, 2.0])
@pytest.mark.parametrize(
    "vectors",
    [
        DEFAULT_HE.vectors,
        ((0.5126, 0.7601, 0.3994), (0.1821, 0.8311, 0.5254)),
        ((0.74, 0.60, 0.30), (0.10, 0.90, 0.42)),
    ],
)
def test_macenko_finds_the_stains_of_a_mixture(vectors, noise):
    truth = Stains("truth", ("Hematoxylin", "Eosin"), vectors, WHITE)
    found = estimate_macenko(mixture(truth, noise=noise))
    # Pure pixels are few among many mixtures, and 1 % at each end is taken for outliers.
    assert angle(found.vectors[0], vectors[0]) < 4
    assert angle(found.vectors[1], vectors[1]) < 4
    assert found.vectors[0][0] > found.vectors[1][0]  # haematoxylin first
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1)


def test_macenko_falls_back_to_the_default_where_nothing_can_be_told():
    blank = np.full((50, 50, 3), 243, np.uint8)
    one_stain = mixture(DEFAULT_HE) * 0 + np.array([150, 90, 160], np.uint8)
    for sample in (blank, one_stain):
        assert estimate_macenko(sample) == DEFAULT_HE


def test_stains_of_pixels_do_not_depend_on_their_tile():
    rgb = np.random.default_rng(5).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    stains = separate(rgb)
    for part in (np.s_[3:10, 5:40], np.s_[:, 7:8], np.s_[20:21, 1:64]):
        np.testing.assert_array_equal(separate(rgb[part]), stains[part])


def test_stains_agree_if_they_measure_the_same():
    rows = stain_rows(DEFAULT_HE)
    longer = tuple(tuple(3 * value for value in vector) for vector in DEFAULT_HE.vectors)
    same = dataclasses.replace(DEFAULT_HE, name="mine", stain_names=("a", "b"), vectors=longer)
    assert stain_rows(same) == rows
    haematoxylin, eosin = DEFAULT_HE.vectors
    rounded = tuple(tuple(round(value, 3) for value in vector) for vector in DEFAULT_HE.vectors)
    rgb = np.random.default_rng(0).integers(60, 200, (500, 3)).astype(np.uint8)
    for others, agree in [
        ({"vectors": rounded}, True),
        ({"background": (255, 254.6, 255)}, True),
        ({"background": (243, 243, 243)}, False),
        ({"vectors": (haematoxylin, (0.25, 0.79, 0.56))}, False),
        ({"vectors": (eosin, haematoxylin)}, False),
    ]:
        other = dataclasses.replace(DEFAULT_HE, **others)
        assert stains_agree(stain_rows(other), rows) == agree
        difference = np.abs(separate(rgb, other) - separate(rgb, DEFAULT_HE)).max()
        assert (difference < 0.01) == agree
    third = (*DEFAULT_HE.vectors, (0.27, 0.57, 0.78))
    assert not stains_agree(stain_rows(dataclasses.replace(DEFAULT_HE, vectors=third)), rows)
