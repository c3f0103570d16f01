"""Tissue, glass and pen on made-up and on real slides."""

import numpy as np
import pytest
import shapely
from PIL import Image

from qpnuclei.slides.slide import open_slide
from qpnuclei.slides.tissue import find_tissue, tissue_fraction, tissue_mask
from tests.paths import SHARED

DATA = SHARED / "data"

GLASS, PINK, PURPLE = (243, 241, 243), (220, 150, 185), (120, 80, 150)
BLUE_PEN, GREEN_PEN, BLACK_PEN = (50, 90, 170), (40, 140, 80), (30, 30, 34)


def painted(*patches, size=(160, 120)):
    """Glass with rectangles ((x0, y0, x1, y1), colour), and a little noise."""
    rgb = np.empty((size[1], size[0], 3))
    rgb[:] = GLASS
    for (x0, y0, x1, y1), colour in patches:
        rgb[y0:y1, x0:x1] = colour
    rgb += np.random.default_rng(0).normal(0, 2, rgb.shape)
    return np.clip(rgb, 0, 255).astype(np.uint8)


def outline(rgb, tmp_path, mpp=8.0):
    Image.fromarray(rgb).save(tmp_path / "x.png")
    with open_slide(tmp_path / "x.png") as slide:
        return find_tissue(slide, (mpp, mpp))


def test_blank_glass_has_no_tissue(tmp_path):
    assert not tissue_mask(painted()).any()
    found = outline(painted(), tmp_path)
    assert isinstance(found, shapely.MultiPolygon)
    assert found.is_empty


def test_a_slide_that_is_all_tissue_is_all_tissue(tmp_path):
    rgb = painted(((0, 0, 160, 120), PINK), ((40, 40, 90, 80), PURPLE))
    assert tissue_mask(rgb).all()
    assert outline(rgb, tmp_path).equals(shapely.box(0, 0, 160, 120))


@pytest.mark.parametrize("tint", [(1, 0.96, 0.89), (1, 0.95, 0.85), (0.88, 0.93, 1)])
def test_glass_with_a_colour_is_glass(tint):
    truth = np.zeros((120, 160), bool)
    truth[20:90, 30:100] = True
    rgb = np.rint(painted(((30, 20, 100, 90), PINK)) * np.array(tint)).astype(np.uint8)
    found = tissue_mask(rgb)
    assert (found & truth).sum() / (found | truth).sum() > 0.93


def test_pale_and_even_tissue_is_no_glass():
    assert tissue_mask(np.full((120, 160, 3), (235, 200, 225), np.uint8)).all()


def test_the_outline_lies_where_the_tissue_is(tmp_path):
    rgb = painted(((30, 20, 100, 90), PINK))
    found = outline(rgb, tmp_path)
    truth = shapely.box(30, 20, 100, 90)
    assert found.intersection(truth).area / found.union(truth).area > 0.93


def test_the_outline_is_in_level_0_pixels(tmp_path):
    small = painted(((30, 20, 100, 90), PINK))
    large = small.repeat(8, axis=0).repeat(8, axis=1)
    found = outline(large, tmp_path, mpp=1.0)
    truth = shapely.box(240, 160, 800, 720)
    assert found.intersection(truth).area / found.union(truth).area > 0.93


@pytest.mark.parametrize("ink", [BLUE_PEN, GREEN_PEN, BLACK_PEN], ids=["blue", "green", "black"])
def test_pen_is_not_tissue(ink):
    mask = tissue_mask(painted(((20, 20, 70, 100), PINK), ((90, 10, 110, 110), ink)))
    assert mask[30:90, 30:60].all()
    assert not mask[:, 80:].any()


def test_dark_haematoxylin_is_not_taken_for_ink():
    mask = tissue_mask(painted(((20, 20, 120, 100), (75, 45, 110))))
    assert mask[25:95, 25:115].all()


def test_specks_are_dropped_and_small_holes_filled(tmp_path):
    rgb = painted(
        ((20, 20, 120, 100), PINK),
        ((140, 40, 146, 46), PINK),  # 48 µm wide
        ((40, 40, 52, 52), GLASS),  # 96 µm: 9216 µm²
        ((70, 40, 100, 70), GLASS),  # 240 µm
    )
    found = outline(rgb, tmp_path)
    (piece,) = found.geoms
    (hole,) = piece.interiors
    assert shapely.Polygon(hole).centroid.distance(shapely.Point(85, 55)) < 2


def test_tissue_fraction_of_tiles():
    tiles = np.empty((3, 10, 10, 3), np.uint8)
    tiles[0], tiles[1], tiles[2] = GLASS, PINK, GLASS
    tiles[2, :7] = PURPLE
    np.testing.assert_allclose(tissue_fraction(tiles), [0, 1, 0.7])
    assert tissue_fraction(np.zeros((5, 5, 3), np.uint8)) == 0  # black padding is no tissue
    assert tissue_fraction(tiles[2]).shape == ()


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("CMU-1-Small-Region.svs", 0.30, 0.42),
        ("TCGA-CR-7395-01A-01-TS1_reduced.svs", 0.58, 0.70),
        ("84_LLM_YR4_002_aperio40x.tif", 0.95, 1.0),
        ("instanseg_HE_example_tma_0.5mpp.tif", 0.68, 0.78),
    ],
)
def test_share_of_tissue_on_real_slides(name, low, high):
    """Shares as seen on the slides, with the outlines drawn on them."""
    with open_slide(DATA / "slides" / name) as slide:
        found = find_tissue(slide, slide.mpp or (0.5, 0.5))
        assert found.is_valid
        assert len(found.geoms) == 1
        assert low <= found.area / (slide.width * slide.height) <= high


@pytest.mark.shared
def test_real_tiles_chosen_for_tissue_pass_as_tissue():
    paths = sorted((DATA / "tissue-unlabelled-20x").glob("*.jpg"))[::10]
    tiles = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    assert (tissue_fraction(tiles) > 0.69).all()
