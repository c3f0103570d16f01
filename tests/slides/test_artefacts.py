"""Pen, folds and blur on painted tissue, and on real slides."""

import cv2
import numpy as np
import pytest
import shapely
from PIL import Image

from qpnuclei.slides.artefacts import find_artefacts, measure_cells
from qpnuclei.slides.slide import open_slide
from tests.paths import SHARED

PINK, PURPLE = (222, 160, 200), (110, 70, 150)
BLUE_PEN, GREEN_PEN, BLACK_PEN = (50, 90, 170), (40, 140, 80), (30, 30, 34)


def tissue(size=640, seed=0):
    """Pink tissue with nuclei of 8 px, at 1 µm/px, as float64."""
    rng = np.random.default_rng(seed)
    rgb = np.empty((size, size, 3))
    rgb[:] = PINK
    for x, y in rng.integers(0, size, (size * size // 400, 2)):
        cv2.circle(rgb, (int(x), int(y)), 4, PURPLE, -1, cv2.LINE_AA)
    # Chromatin and fibres: structure as fine as the pixels.
    return rgb * rng.normal(1, 0.1, (size, size, 1))


def found_in(rgb, tmp_path, mpp=1.0):
    Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8)).save(tmp_path / "x.png")
    with open_slide(tmp_path / "x.png") as slide:
        return find_artefacts(slide, (mpp, mpp))


def overlap(a, b):
    return a.intersection(b).area / a.union(b).area


def test_plain_tissue_and_plain_glass_have_none(tmp_path):
    assert all(area.is_empty for area in found_in(tissue(), tmp_path).values())
    glass = np.full((640, 640, 3), 243) + np.random.default_rng(0).normal(0, 2, (640, 640, 3))
    assert all(area.is_empty for area in found_in(glass, tmp_path).values())


@pytest.mark.parametrize("ink", [BLUE_PEN, GREEN_PEN, BLACK_PEN])
def test_pen_is_found_on_tissue_and_on_glass(ink, tmp_path):
    rgb = tissue()
    rgb[:, 320:] = 243
    rgb[160:224, 64:576] = ink
    found = found_in(rgb, tmp_path)
    # One cell of 16 µm around it is not to be trusted either.
    assert overlap(found["pen"], shapely.box(48, 144, 592, 240)) > 0.9
    assert found["fold"].is_empty
    assert found["blur"].is_empty


def test_tissue_that_lies_twice_is_a_fold(tmp_path):
    rgb = tissue()
    rgb[192:320, 128:512] = rgb[192:320, 128:512] * tissue(seed=1)[192:320, 128:512] ** 2 / 255**2
    found = found_in(rgb, tmp_path)
    assert overlap(found["fold"], shapely.box(128, 192, 512, 320)) > 0.6
    assert found["pen"].is_empty


def test_tissue_out_of_focus_is_blur(tmp_path):
    rgb = tissue()
    rgb[192:400, 128:512] = cv2.GaussianBlur(rgb, (0, 0), 2.5)[192:400, 128:512]
    found = found_in(rgb, tmp_path)
    assert overlap(found["blur"], shapely.box(128, 192, 512, 400)) > 0.7
    assert found["fold"].is_empty


def test_outlines_are_in_level_0_pixels_whatever_the_blocks(tmp_path):
    # 2176 px are more than a block of 128 cells.
    rgb = np.full((96, 2176, 3), 243.0)
    rgb[16:80, 1984:2112] = BLUE_PEN
    assert overlap(found_in(rgb, tmp_path)["pen"], shapely.box(1968, 0, 2128, 96)) > 0.9
    large = rgb[:, 1664:].repeat(2, axis=0).repeat(2, axis=1)
    found = found_in(large, tmp_path, mpp=0.5)
    assert overlap(found["pen"], shapely.box(608, 0, 928, 192)) > 0.9


def test_a_cell_is_measured_from_its_own_pixels():
    rgb = np.clip(tissue(64), 0, 255).astype(np.uint8)
    values = measure_cells(rgb)
    assert values.tissue.shape == (4, 4)
    cell = rgb[16:32, 48:64].astype(np.float64)
    density = np.maximum(-np.log10(np.maximum(cell, 1) / 240), 0).mean(axis=2)
    assert values.contrast[1, 3] == pytest.approx(density.std(), rel=1e-4)
    assert values.tissue[1, 3] == pytest.approx((density > 0.06).mean())


def test_a_picture_smaller_than_a_cell_has_none(tmp_path):
    assert all(area.is_empty for area in found_in(tissue(16)[:9, :9], tmp_path).values())


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "kind", "at"),
    [
        ("CMU-1-Small-Region.svs", "pen", (1680, 1240)),
        ("CMU-1-Small-Region.svs", "fold", (1430, 1010)),
        ("instanseg_HE_example_tma_0.5mpp.tif", "blur", (1020, 215)),
    ],
)
def test_ink_keratin_and_blur_of_real_slides(name, kind, at):
    with open_slide(SHARED / "data" / "slides" / name) as slide:
        found = find_artefacts(slide, slide.mpp)
        assert found[kind].contains(shapely.Point(at))
        # Most of it is sound.
        area = shapely.union_all(list(found.values())).area
        assert area < 0.1 * slide.width * slide.height


@pytest.mark.shared
def test_hardly_any_of_the_validation_images_is_an_artefact():
    folder = SHARED / "data" / "monuseg-train" / "images"
    marked = 0
    for path in sorted(folder.iterdir())[::3]:
        with open_slide(path) as slide:
            found = find_artefacts(slide, (0.25, 0.25))
            marked += any(not area.is_empty for area in found.values())
    assert marked <= 1
