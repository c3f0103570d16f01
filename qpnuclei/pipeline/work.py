"""The work of a run as data: ``plan.json``, and the units that it is divided into.

Whoever computes it needs the plan, the slides and the model: neither the project nor Java. Every
unit has a key, a hash of all that its result depends on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import shapely
from pydantic import AfterValidator, BaseModel, ConfigDict, TypeAdapter, ValidationError

from qpnuclei._version import __version__
from qpnuclei.errors import FormatError, ModelError, NotFoundError, SlideError
from qpnuclei.pipeline.plan import ImagePlan, RunOptions
from qpnuclei.pipeline.tiles import plan_tiles
from qpnuclei.qupath.model import Annotation
from qpnuclei.qupath.names import file_stem
from qpnuclei.qupath.regions import Region
from qpnuclei.segmentation.engine import EngineSpec
from qpnuclei.slides.fingerprint import slide_fingerprint
from qpnuclei.slides.resolution import Scale
from qpnuclei.slides.slide import Slide, open_slide
from qpnuclei.slides.stains import Stains
from qpnuclei.system.files import read_regular
from qpnuclei.tiling.plan import Tile, TilePlan

#: Tiles along the side of a unit. With 5, and one network after the other on each unit, it sees
#: 4.7 % more pixels than in one sweep over a large slide; with 4 it would be 6 %.
UNIT_SIDE = 5

#: Options that change neither the outlines nor the measurements of a nucleus. What is not named
#: here is part of the key of every unit.
_NOT_OF_UNITS = frozenset(
    {
        *("selection", "images", "model", "device", "batch_size", "workers"),
        *("mpp", "mpp_only_missing", "mpp_by_image"),
        *("tissue_annotation", "class_name", "on_existing", "force", "positive_thresholds"),
        *("tile_px", "max_nucleus_um"),  # the tiles themselves are part of it
        # What is too small is left out, and cells are made, when units are put together.
        *("min_area_um2", "cell_expansion_um"),
        *("geojson_dir", "parquet_dir", "run_dir"),
    }
)
#: Options that may be others when a run is gone on with.
_NOT_OF_REQUEST = frozenset({"device", "batch_size", "workers", "force", "run_dir"})

_FORMAT = 1
_NAME = re.compile(r"[^\w\-. ]")


def _plain_name(name: str) -> str:
    if not name.strip(". ") or _NAME.search(name):
        raise ValueError(f"{name!r} is no name of a file")
    return name


Name = Annotated[str, AfterValidator(_plain_name)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PlannedSlide(_Part):
    """A slide, and how it is opened; its fingerprint tells whether it is still the same."""

    path: str
    bytes: int
    fingerprint: str
    width: int
    height: int
    crop_to_bounds: bool = False
    series: int | None = None
    apply_icc: bool = False

    @classmethod
    def of(cls, slide: Slide) -> PlannedSlide:
        """Describe an open slide."""
        return cls(
            path=str(slide.path.absolute()),
            bytes=slide.path.stat().st_size,
            fingerprint=slide_fingerprint(slide.path),
            width=slide.width,
            height=slide.height,
            crop_to_bounds=slide.crop_to_bounds,
            series=slide.series,
            apply_icc=slide.apply_icc,
        )

    def open(self, elsewhere: Path | None = None) -> Slide:
        """Open it where the plan says, or by its name below another folder.

        Raises
        ------
        NotFoundError
            If it is not there.
        SlideError
            If it is another slide than the one that was planned, or cannot be read.
        """
        path = Path(self.path)
        if elsewhere is not None:
            name = re.split(r"[\\/]", self.path)[-1]
            places = [elsewhere / name, *sorted(elsewhere.rglob(name))]
            found = next((place for place in places if place.is_file()), None)
            if found is None:
                raise NotFoundError(f"no slide {name} in {elsewhere}", "copy it there")
            path = found
        elif not path.exists():
            raise NotFoundError(
                f"the slide {path} is not here", "name the folder it is in with --slides-from"
            )
        if slide_fingerprint(path) != self.fingerprint:
            raise SlideError(
                f"{path} is another slide than the one that was planned", "plan the run again"
            )
        return open_slide(
            path,
            crop_to_bounds=self.crop_to_bounds,
            series=self.series,
            apply_icc=self.apply_icc,
        )


class PlannedAnnotation(_Part):
    """What is known of a region's annotation; its outline only if the region is another."""

    handle: int
    id: UUID | None
    name: str | None
    class_name: str | None
    roi_type: str
    locked: bool
    outline: str | None


class PlannedRegion(_Part):
    """A region: its geometry in level-0 px, as WKB in hexadecimal digits."""

    geometry: str
    annotation: PlannedAnnotation | None

    @classmethod
    def of(cls, region: Region) -> PlannedRegion:
        """Describe a region of an image's plan."""
        geometry = shapely.to_wkb(region.geometry, hex=True)
        annotation = region.annotation
        if annotation is None:
            return cls(geometry=geometry, annotation=None)
        outline = shapely.to_wkb(annotation.geometry, hex=True)
        return cls(
            geometry=geometry,
            annotation=PlannedAnnotation(
                handle=annotation.handle,
                id=annotation.id,
                name=annotation.name,
                class_name=annotation.class_name,
                roi_type=annotation.roi_type,
                locked=annotation.locked,
                outline=None if outline == geometry else outline,
            ),
        )

    def region(self) -> Region:
        """Return the region with what is known of its annotation."""
        geometry = shapely.from_wkb(self.geometry)
        known = self.annotation
        if known is None:
            return Region(None, geometry)
        annotation = Annotation(
            handle=known.handle,
            id=known.id,
            name=known.name,
            class_name=known.class_name,
            roi_type=known.roi_type,
            geometry=geometry if known.outline is None else shapely.from_wkb(known.outline),
            locked=known.locked,
        )
        return Region(annotation, geometry)


class PlannedStains(_Part):
    """Stain vectors; see `qpnuclei.slides.stains.Stains`."""

    name: str
    stain_names: tuple[str, ...]
    vectors: tuple[tuple[float, float, float], ...]
    background: tuple[float, float, float]


@dataclass(frozen=True)
class WorkUnit:
    """Some neighbouring tiles of an image: what is done, kept and repeated as one.

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
        return f"image-{self.key[:20]}"


class PlannedImage(_Part):
    """What is to be done in one image.

    Parameters
    ----------
    folder : str
        Below ``shards``.
    data : str
        State of the image's data in the project when it was planned.
    inputs : str
        Hash of everything that was chosen and given: options, annotations, slide, model.
    tissue : bool
        Whether the region's annotation is to be made by the run.
    outdated : tuple of UUID
        Annotations that the run removes.
    units : tuple of str
        Names of the units.
    """

    entry: str
    name: str
    folder: Name
    slide: PlannedSlide
    mpp: tuple[float, float]
    mpp_source: str
    downsample: tuple[float, float]
    stains: PlannedStains
    regions: tuple[PlannedRegion, ...]
    tissue: bool
    outdated: tuple[UUID, ...]
    notes: tuple[str, ...]
    data: str
    inputs: str
    tiles: int
    units: tuple[Name, ...]

    @property
    def scale(self) -> Scale:
        """Pixel size, and the grid that the network sees."""
        return Scale(self.mpp, self.downsample)

    @property
    def stain_vectors(self) -> Stains:
        """For the measurements."""
        return Stains(**self.stains.model_dump())

    @property
    def marker(self) -> str:
        """What the project says of an image that this plan's nuclei were written into."""
        # The size and time of the file are no part: they may be others in a copy of it.
        return _hash([self.inputs, self.units, self.data.rpartition("-")[2]])

    def areas(self) -> list[Region]:
        """Return the regions.

        Raises
        ------
        FormatError
            If one is no area.
        """
        try:
            regions = [planned.region() for planned in self.regions]
        except shapely.errors.ShapelyError as error:
            raise FormatError("a region of the plan is damaged", "plan the run again") from error
        if not all(_is_area(region.geometry) for region in regions):
            raise FormatError("a region of the plan is no area", "plan the run again")
        return regions

    def tile_plan(self, spec: EngineSpec, options: RunOptions) -> TilePlan:
        """Cover the regions with tiles.

        Raises
        ------
        FormatError
            If one is no area.
        """
        return plan_tiles(
            shapely.union_all([region.geometry for region in self.areas()]),
            (self.slide.width, self.slide.height),
            self.scale,
            spec,
            tile_px=options.tile_px,
            max_nucleus_um=options.max_nucleus_um,
        )

    def layout(self, spec: EngineSpec, options: RunOptions) -> Layout:
        """Divide the image into tiles and units.

        Raises
        ------
        FormatError
            If the plan says something else: it was damaged, or made by another version.
        """
        layout = divide(self.tile_plan(spec, options), self, spec, options)
        if tuple(unit.name for unit in layout.units) != self.units:
            raise FormatError(
                "the plan contradicts itself, or is of another version",
                "plan the run again",
            )
        return layout


def divide(tiles: TilePlan, image: PlannedImage, spec: EngineSpec, options: RunOptions) -> Layout:
    """Divide the tiles of an image into units."""
    chosen = {name: value for name, value in options.to_json().items() if name not in _NOT_OF_UNITS}
    common: list[Any] = [
        [_FORMAT, __version__],
        image.slide.model_dump(exclude={"path"}),
        [image.mpp, image.downsample, image.stains.model_dump()],
        asdict(spec),
        chosen,
        [tiles.image_size, tiles.core_size, tiles.halo, tiles.alignment],
        [tile.core for tile in tiles] if spec.needs_colour else [],
    ]
    given = _hash(common)
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
        key = _hash([given, inside, outside])
        units.append(WorkUnit(f"{number:05d}-{key[:20]}", key, tuple(indices)))
    whole = _hash(
        [
            [given, options.min_area_um2, options.cell_expansion_um],
            [unit.key for unit in units],
            [region.geometry for region in image.regions],
        ]
    )
    return Layout(tiles, tuple(units), whole)


class RunPlan(_Part):
    """The content of ``plan.json``.

    Parameters
    ----------
    qpnuclei : str
        Version that made it.
    request : str
        Hash of what the run was asked for.
    engine : dict
        The `EngineSpec` of the model.
    failures : list of dict
        Images that could not be planned: ``image``, ``entry``, ``error``, ``hint``.
    nothing_to_do : dict of str to str
        By entry, why there is nothing to do in an image.
    """

    format: int = _FORMAT
    qpnuclei: str = __version__
    project: str
    backend: str
    request: str
    arguments: dict[str, Any]
    engine: dict[str, Any]
    images: tuple[PlannedImage, ...]
    failures: tuple[dict[str, str], ...] = ()
    nothing_to_do: dict[str, str] = {}

    @classmethod
    def read(cls, path: Path) -> RunPlan:
        """Read ``plan.json``.

        Raises
        ------
        NotFoundError
            If it is not there.
        FormatError
            If it is no plan, or one of another version.
        """
        try:
            text = read_regular(path)
        except FileNotFoundError as error:
            raise NotFoundError(
                f"{path} does not exist", "give the folder that qpnuclei plan made"
            ) from error
        except OSError as error:
            raise FormatError(f"{path} cannot be read: {error.strerror}") from error
        try:
            content = json.loads(text)
            made_by = content["qpnuclei"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise FormatError(f"{path} is no plan of a run", "plan the run again") from error
        if made_by != __version__ or content.get("format") != _FORMAT:
            raise FormatError(
                f"{path} was made by another version of qpnuclei than {__version__}",
                "plan the run again, or use the version that it names",
            )
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise FormatError(
                f"{path} is no plan of a run: {where}: {first['msg']}", "plan the run again"
            ) from error

    def options(self) -> RunOptions:
        """Return what the run was asked for.

        Raises
        ------
        FormatError
            If the arguments are none.
        """
        try:
            return TypeAdapter(RunOptions).validate_python(self.arguments)
        except ValidationError as error:
            raise FormatError(f"the plan of {self.project} has no arguments of a run") from error

    def spec(self) -> EngineSpec:
        """Return what was known of the model.

        Raises
        ------
        FormatError
            If it says nothing of it.
        """
        try:
            return TypeAdapter(EngineSpec).validate_python(self.engine)
        except ValidationError as error:
            raise FormatError(f"the plan of {self.project} does not describe its model") from error

    def check_model(self, spec: EngineSpec) -> None:
        """Refuse a model that is another than the one that was planned for.

        Raises
        ------
        ModelError
            If it is.
        """
        check_same_model(spec, self.spec())


def check_same_model(spec: EngineSpec, planned: EngineSpec) -> None:
    """Refuse a model that is another than the one that was planned for.

    Raises
    ------
    ModelError
        If it is.
    """
    if (spec.sha256, spec.mpp, spec.stride) != (planned.sha256, planned.mpp, planned.stride):
        raise ModelError(
            f"the model {spec.name} here ({spec.sha256[:12] or 'no hash'}) is another than the one "
            f"that was planned for ({planned.sha256[:12]})",
            "give that model with --model, or plan the run again",
        )


def planned_image(
    plan: ImagePlan, slide: PlannedSlide, inputs: str, spec: EngineSpec, options: RunOptions
) -> PlannedImage:
    """Return the plan of an image as data."""
    image = PlannedImage(
        entry=plan.entry.id,
        name=plan.entry.name,
        folder=_NAME.sub("_", file_stem(plan.entry)),
        slide=slide,
        mpp=plan.scale.mpp,
        mpp_source=plan.mpp_source,
        downsample=plan.scale.downsample,
        stains=PlannedStains(**asdict(plan.stains)),
        regions=tuple(PlannedRegion.of(region) for region in plan.regions),
        tissue=plan.tissue is not None,
        outdated=tuple(sorted(plan.outdated)),
        notes=plan.notes,
        data=plan.fingerprint,
        inputs=inputs,
        tiles=len(plan.tiles),
        units=(),
    )
    units = divide(plan.tiles, image, spec, options).units
    return image.model_copy(update={"units": tuple(unit.name for unit in units)})


def request_of(options: RunOptions) -> str:
    """Return a hash of what a run is asked for: the same for all that go on with it."""
    content = options.to_json()
    return _hash({name: content[name] for name in content if name not in _NOT_OF_REQUEST})


def inputs_of(
    options: RunOptions,
    spec: EngineSpec,
    slide: PlannedSlide,
    annotations: Sequence[Annotation],
    excluded: Sequence[Annotation],
    entry: Sequence[object],
) -> str:
    """Return a hash of all that was chosen and given for an image.

    Parameters
    ----------
    annotations : sequence of Annotation
        Those that are chosen.
    excluded : sequence of Annotation
        Those that are left out of the chosen.
    entry : sequence
        What the project says of the image: pixel size and stains.
    """
    chosen = [[str(a.id), a.name, shapely.to_wkb(a.geometry, hex=True)] for a in annotations]
    return _hash(
        [
            __version__,
            request_of(options),
            asdict(spec),
            slide.model_dump(exclude={"path"}),
            chosen,
            [shapely.to_wkb(a.geometry, hex=True) for a in excluded],
            list(entry),
        ]
    )


def _is_area(geometry: shapely.Geometry) -> bool:
    return isinstance(geometry, shapely.Polygon | shapely.MultiPolygon) and not geometry.is_empty


def _place(tile: Tile) -> list[Any]:
    return [tile.row, tile.column, tile.core, tile.view]


def _hash(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, default=str)
    return blake2b(text.encode(errors="surrogatepass"), digest_size=20).hexdigest()
