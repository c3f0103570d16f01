"""What is said where nuclei and stain contradict each other, and that nothing else is."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qpnuclei.errors import SlideError
from qpnuclei.models.registry import DEFAULT_MODEL
from qpnuclei.nuclei.table import NucleiTable
from qpnuclei.pipeline.image import segment
from qpnuclei.pipeline.inference.plausibility import (
    AREA,
    CERTAINTY,
    FIELD_MPP,
    FIELD_UM,
    Appearance,
    Doubts,
    Finding,
    check_plausibility,
    choose_fields,
    doubt,
    look_at,
)
from qpnuclei.qupath.regions import Region
from qpnuclei.segmentation.engine import Engine, EngineOptions, load_engine
from qpnuclei.slides.slide import ImageInMemory, open_slide
from qpnuclei.slides.stains import DEFAULT_HE, Stains, stain_matrix
from tests.paths import SHARED

#: Of the training images, as `plausibility` has them.
HE = Stains(
    "H&E estimated",
    DEFAULT_HE.stain_names[:2],
    ((0.57, 0.73, 0.38), (0.31, 0.81, 0.5)),
    (255.0, 255.0, 255.0),
)
ORDINARY = Appearance(contrast=0.4, object_um2=35, sharpness=0.6, stains=HE, brightness=230)
MPP = (0.25, 0.25)


def painted(
    seed: int = 0, haematoxylin: float = 0.8, radius_um: float = 3.5
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64]]:
    """Paint 400 discs of haematoxylin on eosin, 1200 x 1200 px at 0.25 µm/px; return centres, too.

    Their centres lie on a grid of 60 px, so that none touch.
    """
    rng = np.random.default_rng(seed)
    centres = np.stack(np.meshgrid(*[np.arange(30, 1200, 60)] * 2), axis=-1).reshape(-1, 2) + 0.5
    centres = centres + rng.integers(-9, 10, centres.shape)
    y, x = np.mgrid[:1200, :1200] + 0.5
    nearest = centres.reshape(20, 20, 2).repeat(60, axis=0).repeat(60, axis=1)
    disc = np.hypot(x - nearest[..., 0], y - nearest[..., 1]) < radius_um / 0.25
    amounts = np.stack([disc * haematoxylin, np.full(disc.shape, 0.35)], axis=-1)
    amounts = amounts * rng.uniform(0.9, 1.1, amounts.shape)
    density = amounts @ stain_matrix(DEFAULT_HE)[:2]
    return np.rint(255 * 10**-density).astype(np.uint8), centres.astype(np.float64)


def discs(centres: npt.NDArray[np.float64], radius_px: float, attention: float) -> NucleiTable:
    circles = shapely.buffer(shapely.points(centres), radius_px)
    table = NucleiTable.from_polygons(circles) if len(circles) else NucleiTable.empty()
    return table.with_measurements(
        {
            AREA: (shapely.area(circles) * 0.25**2).astype(np.float32),
            CERTAINTY: np.full(len(circles), attention, np.float32),
        }
    )


def everything(image: ImageInMemory) -> list[Region]:
    return [Region(None, shapely.box(0, 0, image.width, image.height))]


def some(objects: int = 100, nuclei: int = 110, n: int = 300, **values: float) -> Finding:
    area, attention = values.get("area", 30.0), values.get("attention", 0.95)
    return Finding(objects, nuclei, np.full(n, area, np.float32), np.full(n, attention, np.float32))


def test_what_agrees_is_not_doubted() -> None:
    assert doubt(some(), ORDINARY, MPP) == ""


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            some(nuclei=39),
            "in the fields compared, 39 nuclei where the stain shows 100 dark objects",
        ),
        (
            some(nuclei=0, n=0),
            "in the fields compared, 0 nuclei where the stain shows 100 dark objects",
        ),
        (some(nuclei=40), ""),
        (some(objects=19, nuclei=0), ""),  # too few to conclude anything from
        (some(area=7), "the median nucleus has 7 µm²"),
        (some(area=90), "the median nucleus has 90 µm²"),
        (some(area=9, n=19), ""),
        (some(area=math.nan), ""),
        (some(attention=0.7), "the model is unsure: mean attention 0.70"),
        (some(attention=math.nan), ""),  # a model may have none
    ],
)
def test_rules_about_nuclei(found: Finding, said: str) -> None:
    line = doubt(found, ORDINARY, MPP)
    assert line.startswith(said)
    assert bool(line) == bool(said)
    assert "\n" not in line


def test_a_threshold_that_was_given_may_be_why_nuclei_are_uncertain() -> None:
    line = doubt(some(attention=0.7), ORDINARY, MPP, threshold=0.35)
    assert line.endswith(
        "(likely cause: --threshold 0.35, or a model that does not suit this tissue)"
    )
    assert doubt(some(nuclei=3), ORDINARY, MPP, threshold=0.35) == doubt(
        some(nuclei=3), ORDINARY, MPP
    )


@pytest.mark.parametrize(
    ("changed", "cause"),
    [
        ({}, "a model that does not suit this tissue"),
        ({"object_um2": 12.0}, "pixel size, as the objects have 12 µm² at 0.25 µm/px"),
        ({"object_um2": 140.0}, "pixel size, as the objects have 140 µm² at 0.25 µm/px"),
        ({"sharpness": 0.25}, "focus, as their edges are unsharp"),
        ({"contrast": 0.15}, "stain, as haematoxylin is pale"),
        ({"brightness": 150.0}, "a dark scan"),
    ],
)
def test_the_likely_cause_is_what_is_unusual(changed: dict[str, float], cause: str) -> None:
    line = doubt(some(nuclei=3), replace(ORDINARY, **changed), MPP)  # type: ignore[arg-type]
    assert line == (
        "in the fields compared, 3 nuclei where the stain shows 100 dark objects "
        f"(likely cause: {cause})"
    )


def test_unusual_alone_is_no_contradiction_but_another_stain_is() -> None:
    pale = replace(ORDINARY, contrast=0.15, object_um2=12, sharpness=0.2, brightness=140)
    assert doubt(some(), pale, MPP) == ""
    brown = replace(HE, vectors=((0.65, 0.7, 0.29), (0.27, 0.57, 0.78)))  # QuPath's H-DAB
    assert "another stain" not in doubt(some(), replace(ORDINARY, stains=HE), MPP)
    green = replace(HE, vectors=((0.95, 0.25, 0.2), brown.vectors[1]))
    assert "(likely cause: another stain)" in doubt(some(), replace(ORDINARY, stains=green), MPP)
    assert "the scan is dark" in doubt(some(), replace(ORDINARY, brightness=90), MPP)


def test_objects_are_the_painted_discs() -> None:
    rgb, centres = painted()
    image = ImageInMemory(rgb, MPP)
    appearance, (objects,) = look_at([image.read(0, 0, 600, 600, (2, 2))])
    assert len(objects) == len(centres)
    distances = np.linalg.norm(objects[:, None] - centres[None] / 2, axis=-1)
    assert distances.min(axis=0).max() < 1  # px of 0.5 µm
    assert appearance.object_um2 == pytest.approx(np.pi * 3.5**2, rel=0.1)
    assert appearance.contrast > 0.4
    assert max(appearance.stain_degrees) < 10
    assert appearance.sharpness > 0.5


@pytest.mark.parametrize("amount", [0.0, 0.04])
def test_eosin_and_glass_show_no_objects(amount: float) -> None:
    rgb, _ = painted(haematoxylin=amount)
    for image in (rgb[::2, ::2], np.full((256, 256, 3), 243, np.uint8)):
        appearance, (objects,) = look_at([np.ascontiguousarray(image)])
        assert len(objects) == 0
        assert doubt(some(objects=0, nuclei=0, n=0), appearance, MPP) == ""


def test_an_image_whose_nuclei_were_found_is_not_doubted() -> None:
    rgb, centres = painted()
    image = ImageInMemory(rgb, MPP)
    table = discs(centres, 14, 0.95)
    assert check_plausibility(image, everything(image), MPP, [table]).image == ""


def test_a_model_that_finds_nothing_is_doubted() -> None:
    rgb, _ = painted()
    image = ImageInMemory(rgb, MPP)
    found = check_plausibility(image, everything(image), MPP, [])
    assert "likely cause: a model that does not suit this tissue" in found.image
    assert found.regions == (found.image,)


def test_a_wrong_pixel_size_is_named_as_the_cause() -> None:
    rgb, centres = painted()
    image = ImageInMemory(rgb, MPP)
    wrong = (0.75, 0.75)
    # What a model makes of nuclei thrice their size: specks.
    table = discs(centres[::9], 1.5, 0.9)
    found = check_plausibility(image, everything(image), wrong, [table])
    assert "likely cause: pixel size, as the objects have" in found.image
    assert "the median nucleus has" in found.image


def test_each_region_is_checked_by_itself() -> None:
    rgb, centres = painted()
    image = ImageInMemory(rgb, MPP)
    halves = [shapely.box(0, 0, 600, 1200), shapely.box(600, 0, 1200, 1200)]
    regions = [Region(None, half) for half in halves]
    left = centres[centres[:, 0] < 600]
    table = discs(left, 14, 0.95)
    found = check_plausibility(image, regions, MPP, [table])
    assert found.regions[0] == ""
    assert found.regions[1].startswith("in the fields compared, 0 nuclei where the stain shows")


def test_pixels_that_cannot_be_read_again_end_nothing() -> None:
    class Broken(ImageInMemory):
        def read(self, *_: object) -> npt.NDArray[np.uint8]:
            raise SlideError("level 1 cannot be decoded", "copy the file again")

    image = Broken(np.zeros((600, 600, 3), np.uint8), MPP)
    found = check_plausibility(image, everything(image), MPP, [])
    assert found.image == "not compared with the stain: level 1 cannot be decoded"
    assert found.regions == ("",)


shapes = st.builds(
    lambda x, y, w, h, cut: shapely.Polygon([(x, y), (x + w, y), (x + w * cut, y + h)]),
    st.floats(0, 5000),
    st.floats(0, 5000),
    st.floats(1, 9000),
    st.floats(1, 9000),
    st.floats(0, 1),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(shapes, min_size=1, max_size=30), st.sampled_from([0.1, 0.25, 0.5, 1.0]))
def test_fields_are_few_and_touch_their_regions(
    outlines: list[shapely.Polygon], mpp: float
) -> None:
    regions = [Region(None, outline) for outline in outlines]
    fields = choose_fields(regions, (mpp, mpp))
    assert {field.region for field in fields} == set(range(len(regions)))
    assert len(fields) <= 192
    for index, region in enumerate(regions):
        own = [shapely.box(*field.box) for field in fields if field.region == index]
        assert all(box.intersects(region.geometry) for box in own)
        side = FIELD_UM / mpp
        assert len(own) <= max(4, 1 + 0.1 * region.geometry.area / side**2)
        assert len({box.wkt for box in own}) == len(own)


@pytest.mark.parametrize("size", [(150, 150), (700, 300), (1201, 1203)])
def test_fields_hold_no_pixels_beyond_the_slide(size: tuple[int, int]) -> None:
    # Dark, so that white pixels would be the brightest.
    width, height = size
    dark = np.random.default_rng(0).integers(40, 60, (height, width, 3), np.uint8)
    image = ImageInMemory(dark, MPP)
    brightest: list[int] = []

    class Watched(ImageInMemory):
        def read(self, *place: Any) -> npt.NDArray[np.uint8]:
            pixels = super().read(*place)
            brightest.append(int(pixels.max()))
            return pixels

    doubts = check_plausibility(Watched(dark, MPP), everything(image), MPP, [])
    assert brightest
    assert max(brightest) < 70
    assert "brightest pixels" in doubts.image


def test_every_region_keeps_a_field_beside_large_ones() -> None:
    small = [shapely.box(x, 0, x + 1, 1) for x in range(0, 30, 3)]
    large = [shapely.box(0, y, 9000, y + 9000) for y in range(0, 90_000, 9000)]
    regions = [Region(None, outline) for pair in zip(small, large, strict=True) for outline in pair]
    fields = choose_fields(regions, (1.0, 1.0))
    assert {field.region for field in fields} == set(range(20))
    assert 100 <= len(fields) <= 192


def test_many_regions_do_not_take_long() -> None:
    regions = [Region(None, shapely.box(x, 0, x + 40, 40)) for x in range(0, 100_000, 100)]
    assert 100 <= len(choose_fields(regions, MPP)) <= 192
    assert FIELD_MPP / MPP[0] == 2  # fields are read at half the resolution of the network


def looked_at(engine: Engine, image: ImageInMemory, mpp: tuple[float, float]) -> Doubts:
    rgb = image.read(0, 0, image.width, image.height)
    return check_plausibility(image, everything(image), mpp, [segment(engine, rgb, mpp[0])])


def part_of(name: str, x: int, y: int, side: int) -> tuple[ImageInMemory, tuple[float, float]]:
    with open_slide(SHARED / "data" / "slides" / name) as slide:
        mpp = slide.mpp or (0.5, 0.5)  # a guess, where the file does not say
        side_x, side_y = min(side, slide.width - x), min(side, slide.height - y)
        return ImageInMemory(slide.read(x, y, side_x, side_y), mpp), mpp


@pytest.fixture(scope="module")
def default_model() -> Engine:
    return load_engine(DEFAULT_MODEL, EngineOptions("cpu"))


@pytest.mark.shared
@pytest.mark.slow
def test_no_monuseg_image_is_doubted(default_model: Engine) -> None:
    for path in sorted((SHARED / "data" / "monuseg-train" / "images").iterdir()):
        image = ImageInMemory(np.asarray(Image.open(path).convert("RGB")), MPP)
        assert looked_at(default_model, image, MPP).image == "", path.name


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "x", "y", "side"),
    [
        ("CMU-1-Small-Region.svs", 600, 600, 1000),
        ("84_LLM_YR4_002_aperio40x.tif", 0, 0, 2000),
        ("instanseg_HE_example_tma_0.5mpp.tif", 0, 0, 2000),
    ],
)
def test_no_ordinary_slide_is_doubted(
    default_model: Engine, name: str, x: int, y: int, side: int
) -> None:
    assert looked_at(default_model, *part_of(name, x, y, side)).image == ""


@pytest.mark.shared
@pytest.mark.slow
def test_a_slide_at_a_guessed_pixel_size_is_doubted(default_model: Engine) -> None:
    part = part_of("TCGA-CR-7395-01A-01-TS1_reduced.svs", 1600, 1300, 800)
    line = looked_at(default_model, *part).image
    assert "nuclei where the stain shows" in line
    assert "likely cause: pixel size" in line
