"""How an image is divided into units: each is computed, stored and repeated as a whole."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from qpnuclei._version import __version__
from qpnuclei.errors import FormatError
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.planning.keys import hash_of
from qpnuclei.pipeline.planning.plan_file import FORMAT, PlannedImage
from qpnuclei.segmentation.engine import EngineSpec
from qpnuclei.tiling.plan import Tile, TilePlan

#: Tiles along the side of a unit. With 5, and one network after the other on each unit, it sees
#: 4.7 % more pixels than in one sweep over a large slide; with 4 it would be 6 %.
UNIT_SIDE = 5

#: Prefix of the files with all nuclei of an image; the names of units are numbers.
JOINED = "image-"

#: Options that change neither the outlines nor the measurements of a nucleus. What is not named
#: here is part of the key of every unit.
_NOT_OF_UNITS = frozenset(
    {
        *("selection", "images", "model", "speed", "device", "batch_size", "workers"),
        *("mpp", "mpp_only_missing", "mpp_by_image"),
        *("tissue_annotation", "class_name", "on_existing", "force", "positive_thresholds"),
        *("tile_px", "max_nucleus_um"),  # the tiles themselves are part of it
        # Small nuclei are left out and cells are added when units are joined. Which nuclei around a
        # region are found for the cells depends on the tiles alone.
        *("min_area_um2", "cell_expansion_um"),
        *("geojson_dir", "parquet_dir", "run_dir"),
    }
)


@dataclass(frozen=True)
class WorkUnit:
    """Neighbouring tiles of an image that are computed, stored and repeated together.

    Parameters
    ----------
    name : str
        Of its file: a number and the start of the key.
    key : str
        Hash of all that its result depends on.
    tiles : tuple of int
        Indices in the image's plan of tiles.
    """

    name: str
    key: str
    tiles: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Layout:
    """How an image is divided: its tiles, the units they form, and the key of the whole."""

    tiles: TilePlan
    units: tuple[WorkUnit, ...]
    key: str

    @property
    def name(self) -> str:
        """Name of the file with all nuclei of the image."""
        return f"{JOINED}{self.key[:20]}"


def layout_of(image: PlannedImage, spec: EngineSpec, options: RunOptions) -> Layout:
    """Divide an image as its plan says.

    Raises
    ------
    FormatError
        If the plan says something else: it was damaged, or made by another version.
    """
    layout = divide(image.tile_plan(spec, options), image, spec, options)
    if tuple(unit.name for unit in layout.units) != image.units:
        raise FormatError(
            "the plan is damaged, or was made by another version", "plan the run again"
        )
    return layout


def divide(tiles: TilePlan, image: PlannedImage, spec: EngineSpec, options: RunOptions) -> Layout:
    """Divide the tiles of an image into units."""
    chosen = {name: value for name, value in options.to_json().items() if name not in _NOT_OF_UNITS}
    common: list[Any] = [
        [FORMAT, __version__],
        image.slide.content,
        [image.mpp, image.downsample, asdict(image.stains)],
        asdict(spec),
        chosen,
        [tiles.image_size, tiles.core_size, tiles.halo, tiles.alignment],
        # Colours are measured in the whole region.
        [region.geometry for region in image.regions] if spec.needs_colour else [],
    ]
    given = hash_of(common)
    units = []
    for number, indices in enumerate(tiles.blocks(UNIT_SIDE)):
        mine = set(indices)
        # Who owns a nucleus depends on the tiles around, too.
        around = {
            near.index: near
            for index in indices
            for near in tiles.neighbours(tiles[index])
            if near.index not in mine
        }
        inside = [_place(tiles[index]) for index in indices]
        outside = [_place(around[index]) for index in sorted(around)]
        key = hash_of([given, inside, outside])
        units.append(WorkUnit(f"{number:05d}-{key[:20]}", key, tuple(indices)))
    whole = hash_of(
        [
            [given, options.min_area_um2, options.cell_expansion_um],
            [unit.key for unit in units],
            [region.geometry for region in image.regions],
        ]
    )
    return Layout(tiles, tuple(units), whole)


def _place(tile: Tile) -> list[Any]:
    return [tile.row, tile.column, tile.core, tile.view]
