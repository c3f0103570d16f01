"""Compare the nuclei that several settings find in a few fields, before a long run.

The preview finds nuclei as a run does, and a run with the same options finds the same ones.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import shapely

from qpnuclei.errors import QpnucleiError, SlideError, UsageError, number_of, standing_alone
from qpnuclei.models.registry import network_for
from qpnuclei.nuclei.table import NucleiTable, concatenate
from qpnuclei.pipeline.inference.infer import find_nuclei, large_enough, reader_of
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.planning.image_plan import NothingToDo, plan_image
from qpnuclei.pipeline.planning.tiles import plan_tiles
from qpnuclei.pipeline.selection import tissue_region
from qpnuclei.qupath.areas import union
from qpnuclei.qupath.images import open_image
from qpnuclei.qupath.model import ImageEntry
from qpnuclei.qupath.regions import Region, rows_inside
from qpnuclei.report.preview_fields import (
    MOST_IMAGES,
    SHOWN_MPP,
    Candidate,
    FieldSource,
    choose_places,
    places_of,
)
from qpnuclei.segmentation.colour import colour_statistics
from qpnuclei.segmentation.engine import (
    Engine,
    EngineSpec,
    ReadPixels,
    TileInstances,
    engine_specs,
    load_engine,
)
from qpnuclei.slides.calibration import area_mm2
from qpnuclei.slides.hdab_as_he import seen_by_network
from qpnuclei.slides.pixels import RGB
from qpnuclei.slides.reinhard import ReinhardStatistics
from qpnuclei.slides.resolution import Scale, resolve_mpp, working_downsample
from qpnuclei.slides.slide import open_slide
from qpnuclei.slides.stains import DEFAULT_HE
from qpnuclei.system.timing import Stopwatch
from qpnuclei.tiling.box import Box
from qpnuclei.tiling.plan import TilePlan

_log = logging.getLogger(__name__)

#: Largest number of compared settings.
MOST_SETTINGS = 12


@dataclass(frozen=True)
class Setting:
    """One of the settings that are compared. With the `threshold` None, the model's own is used."""

    model: str
    threshold: float | None = None
    min_area_um2: float = 0.0


@dataclass(frozen=True, eq=False)
class Field:
    """A field, and the nuclei that each of C settings finds in it.

    Parameters
    ----------
    image, region : str
        Where the field is.
    box : (x0, y0, x1, y1)
        Extent of the field in level-0 px.
    mpp : (float, float)
        µm per level-0 px.
    analysed : shapely geometry
        The part of the field that is analysed, in level-0 px.
    tissue : (H, W, 3) uint8 ndarray
        Pixels at `SHOWN_MPP`.
    certainty : mapping of str to (h, w) float32 ndarray
        The map of each model in 0..1, if the model makes one.
    found : (C,) list of NucleiTable
        The nuclei whose centroid lies in the analysed part of the field, in level-0 px.
    """

    image: str
    region: str
    box: tuple[float, float, float, float]
    mpp: tuple[float, float]
    analysed: shapely.Geometry
    tissue: RGB
    certainty: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    found: list[NucleiTable] = field(default_factory=list)

    @property
    def area_mm2(self) -> float:
        """Analysed area of the field."""
        return area_mm2(self.analysed.area, self.mpp)

    @property
    def border(self) -> shapely.Geometry:
        """The border of the region inside the field; empty if there is none."""
        return shapely.difference(self.analysed.boundary, shapely.box(*self.box).boundary)

    @property
    def counts(self) -> list[int]:
        """Numbers of nuclei, one for each setting."""
        return [len(nuclei) for nuclei in self.found]


def settings_of(
    models: Sequence[str], thresholds: Sequence[float | None], min_areas_um2: Sequence[float]
) -> list[Setting]:
    """Return every combination of models, thresholds and smallest areas.

    Raises
    ------
    UsageError
        If there are too many to compare.
    """
    settings = [
        Setting(model, threshold, area)
        for model in dict.fromkeys(models)
        for threshold in dict.fromkeys(thresholds)
        for area in dict.fromkeys(min_areas_um2)
    ]
    if len(settings) > MOST_SETTINGS:
        raise UsageError(
            f"{len(settings)} combinations of --model, --threshold and --min-area-um2 are too many "
            f"to compare (at most {MOST_SETTINGS})",
            "vary one option at a time",
        )
    return settings


def preview_project(
    entries: Sequence[ImageEntry],
    options: RunOptions,
    settings: Sequence[Setting],
    n_fields: int,
    progress: Callable[[int, str], object] = lambda done, image: None,
) -> tuple[list[Field], list[tuple[ImageEntry, QpnucleiError]]]:
    """Try settings on a few fields of the regions that a run would analyse.

    Parameters
    ----------
    entries : sequence of ImageEntry
        From `qpnuclei.pipeline.selection.choose_images`.
    options : RunOptions
        Options of the later run. `settings` replaces the model, threshold and smallest area.
    n_fields : int
        Number of fields. They are spread over the regions from little haematoxylin to much.
    progress : callable
        Called as ``progress(fields done in all settings, image)``.

    Returns
    -------
    fields : list of Field
    failures : list of (ImageEntry, QpnucleiError)
        Images that cannot be analysed, and why: the fields are in others.

    Raises
    ------
    UsageError
        If no image has anything to analyse.
    qpnuclei.errors.QpnucleiError
        If no image, or a model or the device, can be used.
    """
    spread = np.unique(np.linspace(0, len(entries) - 1, MOST_IMAGES).round().astype(int))
    specs = engine_specs(options.models)
    failures: list[tuple[ImageEntry, QpnucleiError]] = []
    with ExitStack() as stack:
        places: list[Candidate] = []
        for entry in [entries[i] for i in spread]:
            errors: list[QpnucleiError] = []
            with standing_alone(f"image {entry.name}", errors.append):
                slide = stack.enter_context(open_image(entry))
                try:
                    plan = plan_image(entry, slide, specs, options)
                except NothingToDo:
                    continue
                if plan.regions:
                    places += places_of(
                        FieldSource(entry.name, slide, plan.scale.mpp, plan.stains, plan.regions)
                    )
            failures += [(entry, error) for error in errors]
        if not places and failures:
            raise failures[0][1]
        if not places:
            raise UsageError("there is nothing to analyse in these images")
        return _preview(places, options, settings, n_fields, progress), failures


def preview_slide(
    path: Path,
    mpp: float | None,
    options: RunOptions,
    settings: Sequence[Setting],
    n_fields: int,
    progress: Callable[[int, str], object] = lambda done, image: None,
) -> list[Field]:
    """Try settings on a few fields of the tissue of a slide; see `preview_project`.

    Raises
    ------
    SlideError
        If there is no tissue.
    """
    with open_slide(path, crop_to_bounds=True) as slide:
        resolved, _ = resolve_mpp(mpp, None, slide.mpp, str(path))
        regions = tissue_region(slide, resolved)
        if not regions:
            raise SlideError(f"no tissue found in {path}", "make a project and annotate the tissue")
        source = FieldSource(path.name, slide, resolved, DEFAULT_HE, regions)
        return _preview(places_of(source), options, settings, n_fields, progress)


def _preview(
    candidates: Sequence[Candidate],
    options: RunOptions,
    settings: Sequence[Setting],
    n_fields: int,
    progress: Callable[[int, str], object],
) -> list[Field]:
    places = choose_places(candidates, n_fields)
    if len(places) < n_fields:
        _log.warning(
            "only %s of %d: there is no room for more", number_of(len(places), "field"), n_fields
        )
    made = [_field(place) for place in places]
    predictions = list(dict.fromkeys((setting.model, setting.threshold) for setting in settings))
    colours: dict[tuple[str, int], ReinhardStatistics | None] = {}
    done = 0
    found: dict[tuple[str, float | None], list[NucleiTable]] = {}
    for model, threshold in predictions:
        asked = dataclasses.replace(options.engine, threshold=threshold)
        engines = cache(partial(load_engine, options=asked))
        found[model, threshold] = []
        for place, shown in zip(places, made, strict=True):
            progress(done, place.source.name)
            done += 1
            source = place.source
            engine = engines(network_for(model, sum(source.mpp) / 2))
            scale = Scale(source.mpp, working_downsample(source.mpp, engine.spec.mpp))
            key = model, id(source)
            if key not in colours:
                colours[key] = _colours(source, scale, engine.spec, options)
            keeping = _MapKeepingEngine(engine, colours[key])
            nuclei = _nuclei_in(place, keeping, scale, options)
            found[model, threshold].append(nuclei)
            if model not in shown.certainty:
                certainty = keeping.certainty(place.box, scale)
                if certainty is not None:
                    shown.certainty[model] = certainty
    progress(done, "")
    for number, shown in enumerate(made):
        shown.found.extend(
            large_enough(found[c.model, c.threshold][number], c.min_area_um2) for c in settings
        )
    return made


def _field(place: Candidate) -> Field:
    mpp, (x0, y0, x1, y1) = place.source.mpp, place.box
    x, y = SHOWN_MPP / mpp[0], SHOWN_MPP / mpp[1]
    left, top, right, bottom = (round(v / s) for v, s in zip(place.box, (x, y, x, y), strict=True))
    return Field(
        image=place.source.name,
        region=place.region.label,
        box=(x0, y0, x1, y1),
        mpp=mpp,
        analysed=place.analysed,
        tissue=place.source.slide.read(left, top, right - left, bottom - top, (x, y)),
    )


def _nuclei_in(
    place: Candidate, engine: _MapKeepingEngine, scale: Scale, options: RunOptions
) -> NucleiTable:
    """Find the nuclei whose centroid lies in the analysed part of a field."""
    source, area = place.source, place.analysed
    tables: list[NucleiTable] = []
    find_nuclei(
        source.slide,
        _tiles(source, area, scale, engine.spec, options),
        engine,
        scale,
        source.stains,
        tables,
        simplify_um=options.simplify_um,
        workers=options.workers,
    )
    nuclei = concatenate(tables)
    (inside,) = rows_inside([Region(None, area)], nuclei.centroids())
    return nuclei.take(inside)


def _colours(
    source: FieldSource, scale: Scale, spec: EngineSpec, options: RunOptions
) -> ReinhardStatistics | None:
    """Measure the colours of all regions, as a run does."""
    if not spec.needs_colour:
        return None
    area = union(region.geometry for region in source.regions)
    read = reader_of(seen_by_network(source.slide, source.stains), scale)
    return colour_statistics(read, _tiles(source, area, scale, spec, options))


def _tiles(
    source: FieldSource,
    area: shapely.Geometry,
    scale: Scale,
    spec: EngineSpec,
    options: RunOptions,
) -> TilePlan:
    """Cover a part of an image with tiles, as a run does."""
    return plan_tiles(
        area,
        (source.slide.width, source.slide.height),
        scale,
        spec,
        tile_px=options.tile_px,
        max_nucleus_um=options.max_nucleus_um,
    )


class _MapKeepingEngine:
    """An engine that uses the colours of the whole region, and keeps the maps of its tiles."""

    def __init__(self, engine: Engine, colour: ReinhardStatistics | None) -> None:
        self._engine = engine
        self._colour = colour
        self._seen: list[TileInstances] = []
        self.spec = dataclasses.replace(engine.spec, needs_colour=False)
        self.execution = engine.execution

    def segment(
        self,
        read: ReadPixels,
        tiles: TilePlan,
        colour: ReinhardStatistics | None,  # noqa: ARG002 - those of the field
        clock: Stopwatch,
    ) -> Generator[TileInstances, None, None]:
        """Yield the engine's instances."""
        for seen in self._engine.segment(read, tiles, self._colour, clock):
            self._seen.append(seen)
            yield seen

    def certainty(
        self, box: tuple[float, float, float, float], scale: Scale
    ) -> npt.NDArray[np.float32] | None:
        """Return the map of a field, NaN outside the tiles; None if the engine has no map."""
        sx, sy = scale.downsample
        wanted = Box(*(round(v / s) for v, s in zip(box, (sx, sy, sx, sy), strict=True)))
        shown = np.full((wanted.height, wanted.width), np.nan, np.float32)
        for seen in self._seen:
            for score in seen.scores.values():
                common = wanted.intersection(seen.tile.view)
                if common is not None:
                    part = score.levels[common.within(seen.tile.view)]
                    shown[common.within(wanted)] = score.values[part]
        return None if np.isnan(shown).all() else shown
