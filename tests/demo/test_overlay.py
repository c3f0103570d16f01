"""Pictures show outlines where the nuclei are."""

import numpy as np
import pytest
import shapely
from PIL import Image

from qpnuclei.demo.overlay import close_up, draw_overlay, overview
from qpnuclei.errors import SaveError
from qpnuclei.nuclei.table import NucleiTable
from qpnuclei.slides.slide import open_slide

GREEN, RED, YELLOW = (0, 230, 60), (200, 0, 0), (255, 230, 0)


@pytest.fixture
def slide(tmp_path):
    Image.fromarray(np.full((900, 1200, 3), 240, np.uint8)).save(tmp_path / "x.png")
    with open_slide(tmp_path / "x.png") as slide:
        yield slide


def near(picture, colour, x, y, reach=1):
    """Whether the colour is found around a pixel."""
    part = picture[y - reach : y + reach + 1, x - reach : x + reach + 1].astype(int)
    return bool((np.abs(part - colour).max(axis=-1) < 60).any())


NUCLEI = NucleiTable.from_polygons([shapely.box(600, 400, 640, 430), shapely.box(10, 10, 50, 40)])
ANNOTATIONS = [("Tumor", shapely.box(500, 300, 800, 600))]


def test_close_up_draws_outlines_at_their_place(slide):
    picture = close_up(
        slide, ANNOTATIONS, NUCLEI, mpp=0.25, centre=(650, 450), size=(400, 300), seams_x=[700]
    )
    assert picture.shape == (300, 400, 3)
    # The view begins at (450, 300).
    assert near(picture, GREEN, 600 - 450, 415 - 300)
    assert near(picture, GREEN, 620 - 450, 430 - 300)
    assert not near(picture, GREEN, 620 - 450, 415 - 300, reach=5)
    assert near(picture, RED, 500 - 450, 400 - 300)
    column = picture[:, 700 - 450]
    dashes = (np.abs(column.astype(int) - YELLOW).max(axis=-1) < 60).mean()
    assert 0.3 < dashes < 0.7


def test_close_up_of_a_coarse_slide_is_enlarged(slide):
    picture = close_up(
        slide, [], NUCLEI, mpp=0.5, centre=(620, 415), size=(200, 160), seams_y=[420]
    )
    # Twice as large: the nucleus of 40 x 30 px spans 80 x 60 around the middle.
    assert near(picture, GREEN, 100 - 40, 80)
    assert near(picture, GREEN, 100, 80 + 30)
    assert not near(picture, GREEN, 100, 80, reach=20)
    assert near(picture, YELLOW, 5, 90, reach=4)


def test_overview_draws_outlines_where_they_are_large_enough(slide):
    picture = overview(slide, ANNOTATIONS, NUCLEI, mpp=0.25, max_size=(600, 600))
    assert picture.shape == (450, 600, 3)
    # Half a pixel wide here, so green only mixes with the background.
    greener = picture[..., 1].astype(int) - picture[..., 0]
    assert greener[200:215, 298:302].max() > 60
    assert greener[205:210, 304:316].max() < 20
    assert near(picture, RED, 250, 180)


def test_overview_shows_the_density_of_small_nuclei(slide):
    grid = [shapely.box(x, y, x + 3, y + 3) for x in range(100, 400, 8) for y in range(100, 400, 8)]
    picture = overview(slide, [], NucleiTable.from_polygons(grid), mpp=2.0, max_size=(600, 600))
    crowded, empty = picture[125, 125].astype(int), picture[300, 500].astype(int)
    assert np.ptp(crowded) > 50  # a colour of the map
    assert np.ptp(empty) == 0  # bare tissue


def test_no_nuclei_no_annotations(slide):
    empty = NucleiTable.empty()
    assert overview(slide, [], empty, mpp=0.25).shape == (900, 1200, 3)
    assert close_up(slide, [], empty, mpp=0.25, centre=(0, 0), size=(50, 40)).shape == (40, 50, 3)


def test_the_file_holds_both_pictures(slide, tmp_path):
    path = tmp_path / "overlay.png"
    draw_overlay(
        slide, ANNOTATIONS, NUCLEI, path, mpp=0.25, zoom_at=(650, 450), seams_y=[450], height=450
    )
    with Image.open(path) as picture:
        assert picture.size == (600 + 12 + 450, 450)
    with pytest.raises(SaveError, match="cannot be written"):
        draw_overlay(slide, [], NUCLEI, path / "x.png", mpp=0.25, zoom_at=(0, 0), height=100)
