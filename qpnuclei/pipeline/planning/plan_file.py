"""The content of ``plan.json``.

This file, the slides and the model are enough to compute a run, without project and Java.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import shapely
from msgspec import Struct

from qpnuclei._version import __version__
from qpnuclei.errors import FormatError, ModelError, NotFoundError, quoted
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.planning.keys import hash_of
from qpnuclei.pipeline.planning.plan_parts import (
    PlannedRegion,
    PlannedSlide,
    check_file_name,
)
from qpnuclei.pipeline.planning.tiles import plan_tiles
from qpnuclei.qupath.analysed_area import NO_AREA
from qpnuclei.qupath.areas import union
from qpnuclei.qupath.regions import Region
from qpnuclei.segmentation.engine import EngineSpec, engine_specs
from qpnuclei.slides.resolution import Scale
from qpnuclei.slides.stains import Stains
from qpnuclei.system.checked import FieldError, checked
from qpnuclei.system.files import check_folder, read_regular, unreadable
from qpnuclei.tiling.plan import TilePlan

#: Version of ``plan.json`` and the shards: no other is read.
FORMAT = 4


class PlannedImage(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is to be done in one image.

    Parameters
    ----------
    folder : str
        Below ``shards``.
    model : str
        That finds its nuclei: one of `RunPlan.engines`.
    uris : tuple of str
        Of the image's files, as the project states them.
    project_mpp : (float, float) or None
        Pixel size in the project. If the project does not state it, QuPath knows that of the file,
        but the native backend does not.
    stated_mpp : (float, float) or None
        Pixel size that the project states: the same for both backends.
    data : str
        Fingerprint of the image's data in the project when it was planned.
    inputs : str
        Hash of everything that was chosen and given: options, annotations, slide, model.
    tissue : bool
        Whether the region's annotation is to be made by the run.
    outdated : tuple of UUID
        Annotations that the run removes.
    left_out : str
        What is excluded from the chosen area, as WKB in hexadecimal digits; empty if nothing is.
    units : tuple of str
        Names of the units.
    """

    entry: str
    name: str
    folder: str
    slide: PlannedSlide
    uris: tuple[str, ...]
    model: str
    mpp: tuple[float, float]
    mpp_source: str
    project_mpp: tuple[float, float] | None
    stated_mpp: tuple[float, float] | None
    downsample: tuple[float, float]
    stains: Stains
    regions: tuple[PlannedRegion, ...]
    tissue: bool
    outdated: tuple[UUID, ...]
    left_out: str = ""
    notes: tuple[str, ...]
    data: str
    inputs: str
    units: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in (self.folder, *self.units):
            check_file_name(name)

    @property
    def scale(self) -> Scale:
        """Pixel size, and the grid that the network sees."""
        return Scale(self.mpp, self.downsample)

    @property
    def marker(self) -> str:
        """The mark in the project of an image into which this plan's nuclei were written."""
        return hash_of([self.inputs, self.units, self.data])

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
            raise _damaged("is damaged") from error
        if not all(_is_area(region.geometry) for region in regions):
            raise _damaged("is not an area")
        return regions

    def area_left_out(self) -> shapely.Geometry:
        """Return `left_out` as a geometry.

        Raises
        ------
        FormatError
            If it is no area.
        """
        if not self.left_out:
            return NO_AREA
        try:
            area = shapely.from_wkb(self.left_out)
        except shapely.errors.ShapelyError as error:
            raise _damaged("is damaged") from error
        if not _is_area(area):
            raise _damaged("is not an area")
        return area

    def tile_plan(self, spec: EngineSpec, options: RunOptions) -> TilePlan:
        """Cover the regions with tiles.

        Raises
        ------
        FormatError
            If one is no area.
        """
        return plan_tiles(
            union(region.geometry for region in self.areas()),
            (self.slide.width, self.slide.height),
            self.scale,
            spec,
            tile_px=options.tile_px,
            max_nucleus_um=options.max_nucleus_um,
            cell_expansion_um=options.cell_expansion_um,
        )


class UnplannedImage(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An image that could not be planned, and why."""

    entry: str
    error: str
    hint: str


class RunPlan(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The content of ``plan.json``.

    Parameters
    ----------
    qpnuclei : str
        Version that made it.
    request : str
        Hash of what the run was asked for.
    engines : dict of str to dict
        The `EngineSpec` of each model.
    names : dict of str to str
        Names of all images of the run by entry, in the order of the project. Each is in `images`,
        `failures` or `nothing_to_do`; one that an earlier start of the run has finished, and that
        could not be planned again, is in both `images` and `failures`.
    failures : tuple of UnplannedImage
        Images that could not be planned.
    nothing_to_do : dict of str to str
        By entry, why there is nothing to do in an image.
    """

    format: int = FORMAT
    qpnuclei: str = __version__
    project: str
    request: str
    arguments: dict[str, Any]
    engines: dict[str, dict[str, Any]]
    names: dict[str, str]
    images: tuple[PlannedImage, ...]
    failures: tuple[UnplannedImage, ...] = ()
    nothing_to_do: dict[str, str] = {}

    def __post_init__(self) -> None:
        entries = {image.entry for image in self.images}
        entries.update((image.entry for image in self.failures), self.nothing_to_do)
        if unnamed := entries.difference(self.names):
            raise ValueError(f"'names' lacks the image with the ID {min(unnamed)}")

    @classmethod
    def read(cls, path: Path) -> RunPlan:
        """Read ``plan.json``.

        Raises
        ------
        NotFoundError
            If it is not there.
        FormatError
            If it is not a plan, or was made by another version.
        """
        try:
            text = read_regular(path)
        except (FileNotFoundError, NotADirectoryError) as error:
            check_folder(path.parent, "that qpnuclei plan made")
            raise NotFoundError(
                f"{path} does not exist", "give the folder that qpnuclei plan made"
            ) from error
        except OSError as error:
            raise unreadable(path, error) from error
        try:
            content = json.loads(text)
            made_by = content["qpnuclei"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise FormatError(f"{path} is not the plan of a run", "plan the run again") from error
        if made_by != __version__:
            raise FormatError(
                f"{path} was made by version {quoted(made_by)} of qpnuclei, not by {__version__}",
                "plan the run again",
            )
        if (found := content.get("format")) != FORMAT:
            raise FormatError(
                f"{path} has the format {quoted(found)}, not {FORMAT}", "plan the run again"
            )
        try:
            return checked(content, cls)
        except FieldError as error:
            raise FormatError(
                f"{path} is not the plan of a run: {error}", "plan the run again"
            ) from error

    def options(self) -> RunOptions:
        """Return what the run was asked for.

        Raises
        ------
        FormatError
            If they are not valid run options.
        """
        try:
            return checked(self.arguments, RunOptions)
        except FieldError as error:
            raise FormatError(
                f"the plan of {self.project} has no valid run options", "plan the run again"
            ) from error

    def spec(self, image: PlannedImage) -> EngineSpec:
        """Return what was known of the model of an image.

        Raises
        ------
        FormatError
            If the plan says nothing of it.
        """
        return self._spec(image.model)

    @property
    def models_used(self) -> list[EngineSpec]:
        """What was known of the models of all images; of all models, if no image is planned."""
        used = {image.model: None for image in self.images} or self.engines
        return [self._spec(model) for model in used]

    def _spec(self, model: str) -> EngineSpec:
        try:
            return checked(self.engines[model], EngineSpec)
        except (KeyError, FieldError) as error:
            raise FormatError(
                f"the plan of {self.project} does not describe its model", "plan the run again"
            ) from error

    def check_models(self, options: RunOptions) -> None:
        """Refuse models other than those of the plan.

        Parameters
        ----------
        options : RunOptions
            With the model of this machine.

        Raises
        ------
        ModelError
            If one is.
        """
        here = engine_specs(options.models)
        for planned, mpp in {image.model: image.mpp for image in self.images}.items():
            check_same_model(here[options.model_for(mpp)], self._spec(planned))


def check_same_model(spec: EngineSpec, planned: EngineSpec) -> None:
    """Refuse a model other than the planned one.

    Raises
    ------
    ModelError
        If it is.
    """
    if (spec.sha256, spec.mpp, spec.stride) != (planned.sha256, planned.mpp, planned.stride):
        raise ModelError(
            f"the model {spec.name} (SHA-256 {spec.sha256[:12] or 'unknown'}) is not the one that "
            f"was planned ({planned.sha256[:12]})",
            "give the planned model with --model, or plan the run again",
        )


def _damaged(how: str) -> FormatError:
    return FormatError(f"a region of the plan {how}", "plan the run again")


def _is_area(geometry: shapely.Geometry) -> bool:
    return isinstance(geometry, shapely.Polygon | shapely.MultiPolygon) and not geometry.is_empty
