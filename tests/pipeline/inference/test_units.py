"""Units of work: together they find what one sweep finds, and their files prove to be whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from qpnuclei.errors import FormatError, ModelError
from qpnuclei.nuclei.table import NucleiTable, concatenate
from qpnuclei.pipeline.inference.infer import find_nuclei, join_tiles, measure_tiles
from qpnuclei.pipeline.inference.shards import About, ImageNuclei, pack_unit, read_unit, write_image
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.planning import layout
from qpnuclei.pipeline.planning.layout import divide
from qpnuclei.pipeline.planning.plan_file import PlannedImage
from qpnuclei.pipeline.planning.plan_parts import PlannedRegion, PlannedSlide
from qpnuclei.pipeline.planning.tiles import plan_tiles
from qpnuclei.pipeline.selection import Selection
from qpnuclei.qupath.regions import Region
from qpnuclei.segmentation.engine import EngineOptions, EngineSpec, engine_spec
from qpnuclei.segmentation.foreign_engine import ForeignEngine
from qpnuclei.segmentation.sidecar import Normalisation, Sidecar
from qpnuclei.slides.resolution import Scale
from qpnuclei.slides.slide import ImageInMemory
from qpnuclei.slides.stains import DEFAULT_HE
from qpnuclei.tiling.plan import TilePlan
from tests.pipeline.inference.test_infer import assert_same

SCALE = Scale((0.5, 0.5))
SIZE = (420, 380)
SPEC = EngineSpec("dark", "", 0.5, 5, 8, 20, ("Probability: Mean",))
OPTIONS = RunOptions(Selection(everything=True))


def dark(batch: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
    """Return a probability of nucleus: how dark the red channel is."""
    return [1 / (1 + np.exp(20 * (batch[:, :1] - 0.5)))]


def engine_of(spec: EngineSpec) -> ForeignEngine:
    """Return the engine of `dark`."""
    sidecar = Sidecar(
        mpp=0.5,
        output="maps",
        context_px=5,
        stride=8,
        normalisation=Normalisation(mean=(0, 0, 0), std=(1, 1, 1)),
    )
    return ForeignEngine(dark, sidecar, spec, EngineOptions(device="cpu", workers=1), "here")


ENGINE = engine_of(SPEC)


def tissue(seed: int) -> ImageInMemory:
    """Return dark discs and streaks on pink: many touch, some are longer than a tile sees."""
    rng = np.random.default_rng(seed)
    rgb = np.full((SIZE[1], SIZE[0], 3), (235, 190, 215), np.uint8)
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    for _ in range(90):
        cx, cy, r = rng.uniform(0, SIZE[0]), rng.uniform(0, SIZE[1]), rng.uniform(4, 9)
        rgb[np.hypot(x - cx, (y - cy) * rng.choice([0.1, 0.8, 1.3])) < r] = (95, 60, 140)
    return ImageInMemory(rgb, (0.5, 0.5))


areas = st.lists(
    st.tuples(st.integers(0, 380), st.integers(0, 340), st.integers(5, 300), st.integers(5, 300)),
    min_size=1,
    max_size=4,
)


def planned(tiles_px: int, boxes: list[tuple[int, int, int, int]]) -> TilePlan:
    roi = shapely.union_all([shapely.box(x, y, x + w, y + h) for x, y, w, h in boxes])
    return plan_tiles(roi, SIZE, SCALE, SPEC, tiles_px, max_nucleus_um=10)


@pytest.mark.parametrize("columns", [(), ("Probability: Mean", "Class: Mean")])
def test_scores_other_than_those_of_the_spec_are_refused(columns: tuple[str, ...]) -> None:
    engine = engine_of(replace(SPEC, columns=columns))
    said = f"made the scores Probability: Mean, but its spec states {', '.join(columns) or 'none'}"
    with pytest.raises(ModelError, match=rf"tile 1 of \d+ .*dark {said}"):
        find_nuclei(tissue(0), planned(100, [(0, 0, 99, 99)]), engine, SCALE, DEFAULT_HE, [])


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 99), areas, st.integers(40, 200), st.integers(1, 3), st.randoms())
def test_units_from_files_in_any_order_are_one_sweep_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, seed, boxes, tile_px, side, chance
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    pixels, tiles = tissue(seed), planned(tile_px, boxes)
    whole: list[NucleiTable] = []
    report = find_nuclei(pixels, tiles, ENGINE, SCALE, DEFAULT_HE, whole)
    units = tiles.blocks(side)
    assert sorted(index for unit in units for index in unit) == list(range(len(tiles)))
    chance.shuffle(units)
    found = []
    for number, unit in enumerate(units):
        measured = measure_tiles(pixels, tiles, ENGINE, SCALE, DEFAULT_HE, chosen=unit)
        path = folder / f"{number}.parquet"
        path.write_bytes(pack_unit(list(measured), About("key")))
        found += read_unit(path, "key", tiles, unit)[0]
    joined: list[NucleiTable] = []
    engine = lambda: ENGINE  # noqa: E731
    again = join_tiles(found, pixels, tiles, engine, SCALE, DEFAULT_HE, joined)
    assert again == report
    assert_same(concatenate(whole), concatenate(joined))


def pixels_of_the_network(plan: TilePlan, margin: int) -> int:
    return sum(box.grown(margin).area for box in plan.new_parts() if box is not None)


def test_units_on_their_own_see_few_pixels_more_than_one_sweep() -> None:
    spec = engine_spec("default")
    size = (30_000, 30_000)
    tiles = plan_tiles(shapely.box(99, 99, 29_900, 29_900), size, Scale((0.25, 0.25)), spec)
    assert len(tiles) == 17**2
    apart = sum(
        pixels_of_the_network(tiles.part(unit), spec.margin_px)
        for unit in tiles.blocks(layout.UNIT_SIDE)
    )
    together = pixels_of_the_network(tiles, spec.margin_px)
    assert 1 < apart / together < 1.06


def image_of(**changes: object) -> PlannedImage:
    image = PlannedImage(
        entry="1",
        name="a.tif",
        folder="1-a.tif",
        model="default-20x",
        slide=PlannedSlide(path="a.tif", bytes=9, fingerprint="f", width=SIZE[0], height=SIZE[1]),
        uris=("file:/a.tif",),
        mpp=(0.5, 0.5),
        mpp_source="--mpp",
        project_mpp=None,
        stated_mpp=None,
        downsample=(1.0, 1.0),
        stains=DEFAULT_HE,
        regions=(PlannedRegion.of(Region(None, shapely.box(0, 0, 9, 9))),),
        tissue=False,
        outdated=(),
        notes=(),
        data="1-2-digest",
        inputs="",
        units=(),
    )
    return structs.replace(image, **changes)


def keys(tiles: TilePlan, options: RunOptions = OPTIONS, spec=SPEC, **changes) -> list[str]:
    return [unit.key for unit in divide(tiles, image_of(**changes), spec, options).units]


def test_a_change_asks_for_the_units_that_depend_on_it_and_no_others(monkeypatch) -> None:
    monkeypatch.setattr(layout, "UNIT_SIDE", 1)
    everything = [(0, 0, 420, 380)]
    tiles = planned(60, everything)
    same = keys(tiles)
    assert len(set(same)) == len(tiles) == 49
    # What does not change a nucleus: who computes it, and what becomes of it.
    for other in (
        {"workers": 7, "device": "cuda", "class_name": "Cell", "on_existing": "skip"},
        {"model": "elsewhere.safetensors", "min_area_um2": 5.0},
        {"selection": Selection(tissue=True), "geojson_dir": Path("g")},
    ):
        assert keys(tiles, replace(OPTIONS, **other)) == same
    slide = image_of().slide
    assert keys(tiles, slide=structs.replace(slide, path="/elsewhere/a.tif")) == same
    # What changes all of them.
    for every in (
        keys(tiles, replace(OPTIONS, simplify_um=0.0)),
        keys(tiles, replace(OPTIONS, tta=True)),
        keys(tiles, replace(OPTIONS, threshold=0.4)),
        keys(tiles, spec=replace(SPEC, sha256="another model")),
        keys(tiles, slide=structs.replace(slide, fingerprint="another slide")),
        keys(tiles, mpp=(0.5, 0.51)),
        keys(TilePlan(shapely.box(0, 0, *SIZE), SIZE, 60, 41, 8)),
    ):
        assert not set(every) & set(same)
    # A corner of the region goes: it and its neighbours depend on that.
    notched = plan_tiles(
        shapely.box(0, 0, 420, 380) - shapely.box(298, 0, 420, 62),
        SIZE, SCALE, SPEC, 60, max_nucleus_um=10,
    )  # fmt: skip
    gone = {5, 6}
    assert len(notched) == len(tiles) - len(gone)
    left = [index for index in range(len(tiles)) if index not in gone]
    pairs = zip(left, keys(notched), strict=True)
    changed = {index for index, key in pairs if key != same[index]}
    # Tiles see up to 40 px, and a network's stride, beyond their 60: the next one and its next.
    assert changed == {
        tile.index for tile in tiles if tile.row <= 2 and tile.column >= 3
    } - gone  # fmt: skip
    # Colours are measured in all of the region, whatever its tiles.
    other = (PlannedRegion.of(Region(None, shapely.box(0, 0, 9, 8))),)
    assert keys(tiles, regions=other) == same
    of_colours = replace(SPEC, needs_colour=True)
    one, two = keys(tiles, spec=of_colours), keys(tiles, spec=of_colours, regions=other)
    assert not set(one) & set(two)
    # What is too small is left out when units are put together.
    image = image_of()
    wholes = {
        divide(tiles, image, SPEC, replace(OPTIONS, min_area_um2=area)).key for area in (0.0, 5.0)
    }
    assert len(wholes) == 2


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, TilePlan]:
    """Return the file of a unit, and that of an image."""
    folder = tmp_path_factory.mktemp("shards")
    pixels, tiles = tissue(1), planned(150, [(10, 10, 300, 200)])
    measured = list(measure_tiles(pixels, tiles, ENGINE, SCALE, DEFAULT_HE))
    unit, image = folder / "unit.parquet", folder / "image.parquet"
    unit.write_bytes(pack_unit(measured, About("key", "cpu", {"read": 1.0})))
    tables = [measured[0].result.take([]), *(of_tile.result for of_tile in measured)]
    write_image(image, tables, About("key", checks=["doubtful", ""]))
    return unit, image, tiles


def test_what_is_read_is_what_was_written(shards) -> None:
    unit, image, tiles = shards
    found, about = read_unit(unit, "key", tiles, range(len(tiles)))
    assert (about.device, about.seconds) == ("cpu", {"read": 1.0})
    tables = ImageNuclei(image, "key")
    assert tables.about.checks == ["doubtful", ""]
    filled = [of_tile.result for of_tile in found if len(of_tile.result)]
    assert len(tables) == len(filled) > 1
    for one, other in zip(tables, filled, strict=True):
        assert_same(one, other)


def test_an_image_without_nuclei_keeps_its_columns(shards, tmp_path: Path) -> None:
    columns = ImageNuclei(shards[1], "key")[0].measurements
    write_image(tmp_path / "none.parquet", [NucleiTable.empty(columns)], About("key"))
    tables = ImageNuclei(tmp_path / "none.parquet", "key")
    assert [len(table) for table in tables] == [0]
    assert list(tables[0].measurements) == list(columns)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damage_anywhere_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, shards, data: st.DataObject
) -> None:
    unit, image, tiles = shards
    source = data.draw(st.sampled_from([unit, image]))
    content = bytearray(source.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    damaged = tmp_path_factory.mktemp("damaged") / source.name
    damaged.write_bytes(content)

    def read(path: Path) -> NucleiTable:
        if source == image:
            return concatenate(list(ImageNuclei(path, "key")))
        found, _ = read_unit(path, "key", tiles, range(len(tiles)))
        return concatenate([t for f in found for t in (f.owned, f.cut, f.result)])

    try:
        found = read(damaged)
    except FormatError as error:
        assert str(damaged) in error.what  # noqa: PT017 - not all damage is an error
    else:  # what was hit says nothing about the nuclei
        assert_same(found, read(source))


def test_a_file_of_something_else_is_named(shards, tmp_path: Path) -> None:
    unit, image, tiles = shards
    with pytest.raises(FormatError, match=r"unit\.parquet does not belong to this plan"):
        read_unit(unit, "another key", tiles, range(len(tiles)))
    with pytest.raises(FormatError, match=r"unit\.parquet is damaged: it has nuclei of other"):
        read_unit(unit, "key", tiles, [0])
    with pytest.raises(FormatError, match=r"image\.parquet does not belong"):
        ImageNuclei(image, "another key")
    with pytest.raises(FormatError, match=r"gone\.parquet is missing"):
        ImageNuclei(tmp_path / "gone.parquet", "key")
