"""Nuclei from pixels: an engine finds instances tile by tile, which are measured and stitched.

Tiles are processed in parallel by threads. Memory is bounded by the size of tiles, not of the
region.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qpnuclei.choices import DEFAULT_SIMPLIFY_UM
from qpnuclei.errors import ModelError
from qpnuclei.measure.intensity import intensity_measurements, mean_measurement
from qpnuclei.measure.shape import AREA, Measurements, shape_measurements
from qpnuclei.nuclei.outlines import bounds, cut_to_image, polygonise
from qpnuclei.nuclei.pixels import Pixels, pixels_of_labels, pixels_of_polygons
from qpnuclei.nuclei.smoothing import junctions, smooth
from qpnuclei.nuclei.table import NucleiTable, NucleiTables
from qpnuclei.segmentation.colour import colour_statistics
from qpnuclei.segmentation.engine import Engine, EngineSpec, ReadPixels, TileInstances
from qpnuclei.slides.calibration import PixelCalibration
from qpnuclei.slides.hdab_as_he import has_dab, seen_by_network
from qpnuclei.slides.pixels import RGB
from qpnuclei.slides.reinhard import ReinhardStatistics
from qpnuclei.slides.resolution import Scale
from qpnuclei.slides.slide import PixelSource
from qpnuclei.slides.stains import Stains, separate
from qpnuclei.system.memory import return_freed_memory
from qpnuclei.system.threads import map_in_threads
from qpnuclei.system.timing import Stopwatch
from qpnuclei.tiling.box import Box
from qpnuclei.tiling.fragments import drop_duplicates
from qpnuclei.tiling.plan import Tile, TilePlan
from qpnuclei.tiling.stitch import Stitcher, StitchReport

#: Level-0 pixels that are read at once to measure nuclei; larger areas are measured in parts.
_MAX_MEASURED_PX = 2**25

#: Freed memory is returned to the system after this many tiles: less than 1 % of their time.
_TILES_BETWEEN_TRIMS = 16


@dataclass(frozen=True, eq=False)
class TileNuclei:
    """What was found in one tile.

    Parameters
    ----------
    tile : Tile
    owned : NucleiTable
        The N nuclei that the tile owns; outlines along the edges of working pixels.
    cut : NucleiTable
        Nuclei cut by the border of the tile's view, likewise.
    result : NucleiTable
        The nuclei of `owned`, row by row: smooth, measured, in level-0 px.
    junctions : (J, 2) int64 ndarray
        Where the outlines of `cut` meet others.
    """

    tile: Tile
    owned: NucleiTable
    cut: NucleiTable
    result: NucleiTable
    junctions: npt.NDArray[np.int64]


def find_nuclei(
    pixels: PixelSource,
    tiles: TilePlan,
    engine: Engine,
    scale: Scale,
    stains: Stains,
    found: NucleiTables,
    *,
    simplify_um: float = DEFAULT_SIMPLIFY_UM,
    workers: int = 1,
) -> StitchReport:
    """Find the nuclei that the tiles of a plan own, each once, and measure them.

    Parameters
    ----------
    engine : Engine
        Finds the instances of each tile.
    stains : Stains
        Stain vectors of the slide, for the measurements.
    found : NucleiTables
        Empty. The nuclei are appended as they come, tile by tile in the order of the plan, and
        those joined from several tiles at the end: in level-0 px, with QuPath's shape
        measurements in µm, the intensities of each stain in the level-0 pixels that QuPath counts
        to the outlines, and the columns of the engine, which are of its own pixels.
    simplify_um : float
        Outlines are smoothed, and vertices within about this distance of the outline are left out;
        with 0, outlines run along the edges of working pixels.
    workers : int
        Tiles that are measured at the same time. The result does not depend on it.

    Returns
    -------
    StitchReport
        What happened at the seams.
    """
    measured = measure_tiles(
        pixels, tiles, engine, scale, stains, simplify_um=simplify_um, workers=workers
    )
    with closing(measured):
        return join_tiles(
            measured, pixels, tiles, lambda: engine, scale, stains, found, simplify_um=simplify_um
        )


def measure_tiles(
    pixels: PixelSource,
    tiles: TilePlan,
    engine: Engine,
    scale: Scale,
    stains: Stains,
    *,
    chosen: Sequence[int] | None = None,
    simplify_um: float = DEFAULT_SIMPLIFY_UM,
    workers: int = 1,
    clock: Stopwatch | None = None,
) -> Generator[TileNuclei, None, None]:
    """Yield the measured nuclei of tiles; for the arguments see `find_nuclei`.

    Parameters
    ----------
    chosen : sequence of int, optional
        Tiles of the plan to measure, in their order; all by default. The result of a tile does not
        depend on this choice; only the number of pixels that the network sees does, because
        neighbouring tiles share pixels.
    """
    clock = clock or Stopwatch()
    order = range(len(tiles)) if chosen is None else chosen
    read = reader_of(seen_by_network(pixels, stains), scale)

    def measure(seen: TileInstances) -> TileNuclei:
        tile = tiles[order[seen.tile.index]]
        with tiles.errors_naming(tile):
            with clock("segment"):
                origin = tile.view[:2]
                outlines, ids = polygonise(seen.labels, origin)
                own, cut = tiles.divide(tile, outlines)
                owned, fragments = outlines.take(own), outlines.take(cut)
                size = pixels.width, pixels.height
                corners = junctions(owned, seen.labels, origin)
                result, inside = _finished(owned, corners, scale, size, simplify_um)
                own, owned = own[inside], owned.take(inside)
                corners = junctions(fragments, seen.labels, origin)
            with clock("measure"):
                marked = pixels_of_labels(seen.labels, ids[own])
                if scale.downsample == (1.0, 1.0) and not has_dab(stains):
                    # An outline contains the pixels that it was made of, smooth or not.
                    stained = intensities(seen.rgb, marked, stains)
                else:
                    stained = _intensities_at_level_0(result, pixels, stains)
                # QuPath lists shapes first.
                result = result.with_measurements(
                    {**_shapes(result, scale), **stained, **_scores(seen, marked, engine.spec)}
                )
        return TileNuclei(tile, owned, fragments, result, corners)

    colour = colour_statistics(read, tiles) if engine.spec.needs_colour else None
    part = tiles if chosen is None else tiles.part(chosen)
    with (
        closing(engine.segment(read, part, colour, clock)) as segmented,
        closing(map_in_threads(measure, segmented, workers)) as measured,
    ):
        for done, of_tile in enumerate(measured, start=1):
            yield of_tile
            if done % _TILES_BETWEEN_TRIMS == 0:
                return_freed_memory()


def join_tiles(
    measured: Iterable[TileNuclei],
    pixels: PixelSource,
    tiles: TilePlan,
    engine: Callable[[], Engine],
    scale: Scale,
    stains: Stains,
    found: NucleiTables,
    *,
    simplify_um: float = DEFAULT_SIMPLIFY_UM,
    min_area_um2: float = 0.0,
    clock: Stopwatch | None = None,
) -> StitchReport:
    """Join the nuclei of all tiles of a plan; for the arguments see `find_nuclei`.

    Parameters
    ----------
    measured : iterable of TileNuclei
        Every tile once, in any order; the result is in the order of the plan.
    engine : callable
        Returns the engine; called only if a nucleus was joined, which no tile saw whole.
    min_area_um2 : float
        Nuclei with a smaller ``Area µm^2`` are left out.
    """
    clock = clock or Stopwatch()
    if not len(tiles):  # everything is excluded: no nuclei, but all columns
        none = NucleiTable.empty()
        columns = {**_shapes(none, scale), **_intensities_at_level_0(none, pixels, stains)}
        found.append(none.with_measurements(columns))
    stitcher = Stitcher(tiles)
    for of_tile in measured:
        with clock("stitch"):
            for whole in stitcher.add(
                of_tile.tile, of_tile.owned, of_tile.cut, of_tile.result, of_tile.junctions
            ):
                found.append(large_enough(whole, min_area_um2))
    with clock("stitch"):
        rest, joined, corners = stitcher.finish()
        for whole in rest:
            found.append(large_enough(whole, min_area_um2))
        size = pixels.width, pixels.height
        result, inside = _finished(joined, corners, scale, size, simplify_um)
        joined = joined.take(inside)
        kept, duplicates = drop_duplicates(found, result)
        kept &= tiles.answers_for(joined.centroids())
        joined, result = joined.take(kept), result.take(kept)
    if len(joined):
        read = reader_of(seen_by_network(pixels, stains), scale)
        seeing = engine()
        with clock("measure"):
            colour = colour_statistics(read, tiles) if seeing.spec.needs_colour else None
            for row in range(len(joined)):
                seen = _seen_whole(joined.take([row]), seeing, read, colour)
                pixel_outlines, nucleus = joined.take([row]).polygons(), result.take([row])
                marked = pixels_of_polygons(pixel_outlines, seen.labels.shape, seen.tile.view[:2])
                whole = nucleus.with_measurements(
                    {
                        **_shapes(nucleus, scale),
                        **_intensities_at_level_0(nucleus, pixels, stains),
                        **_scores(seen, marked, seeing.spec),
                    }
                )
                found.append(large_enough(whole, min_area_um2))
    return StitchReport(
        stitcher.fragments, stitcher.covered, len(joined), stitcher.overlapping + duplicates
    )


def reader_of(pixels: PixelSource, scale: Scale) -> ReadPixels:
    """Return the function that reads boxes of the working grid from an image.

    Beyond its border, the image is reflected (c b a | a b c): there the network sees tissue if
    tissue reaches the border, and glass if glass does. White would cost nuclei at a border that
    cuts tissue.
    """
    x, y = scale.downsample

    def read(box: Box) -> RGB:
        if box.area == 0:
            return np.empty((box.height, box.width, 3), np.uint8)
        columns = _reflected(box.x0, box.x1, pixels.width / x)
        rows = _reflected(box.y0, box.y1, pixels.height / y)
        left, top = int(columns.min()), int(rows.min())
        width, height = int(columns.max()) - left + 1, int(rows.max()) - top + 1
        inside = pixels.read(left, top, width, height, (x, y))
        if Box(left, top, left + width, top + height) == box:
            return inside
        return np.ascontiguousarray(inside[rows - top][:, columns - left])

    return read


def _reflected(start: int, stop: int, extent: float) -> npt.NDArray[np.int64]:
    """Map pixels beyond an image of `extent` px to pixels inside.

    A last pixel that the border cuts counts as beyond: part of it would be white.
    """
    size = max(1, math.floor(extent + 1e-6))
    phase = np.arange(start, stop) % (2 * size)
    return np.minimum(phase, 2 * size - 1 - phase)


def _seen_whole(
    nucleus: NucleiTable, engine: Engine, read: ReadPixels, colour: ReinhardStatistics | None
) -> TileInstances:
    """Look at the bounding box of one nucleus again: no tile saw it whole."""
    x0, y0 = np.floor(nucleus.vertices.min(axis=0)).astype(int).tolist()
    x1, y1 = np.ceil(nucleus.vertices.max(axis=0)).astype(int).tolist()
    plan = TilePlan.of_box(Box(x0, y0, x1, y1), engine.spec.stride)
    with closing(engine.segment(read, plan, colour, Stopwatch())) as seen:
        return next(seen)


def _finished(
    outlines: NucleiTable,
    corners: npt.NDArray[np.int64],
    scale: Scale,
    image_size: tuple[int, int],
    simplify_um: float,
) -> tuple[NucleiTable, npt.NDArray[np.int64]]:
    """Return outlines along the edges of working pixels in their final form: smooth, at level 0.

    Also return their rows: those without an area inside the image are left out.
    """
    downsample = np.asarray(scale.downsample)
    if simplify_um > 0:
        image = (0.0, 0.0, *(image_size / downsample))
        outlines = smooth(outlines, corners, simplify_um / max(scale.working_mpp), image)
    at_level_0 = NucleiTable(
        outlines.vertices * downsample.astype(np.float32),
        outlines.ring_offsets,
        outlines.polygon_offsets,
        outlines.measurements,
    )
    return cut_to_image(at_level_0, image_size)


def large_enough(nuclei: NucleiTable, min_area_um2: float) -> NucleiTable:
    """Return the nuclei whose ``Area µm^2`` is not below a limit."""
    if min_area_um2 <= 0:
        return nuclei
    return nuclei.take(nuclei.measurements[AREA] >= min_area_um2)


def _shapes(nuclei: NucleiTable, scale: Scale) -> Measurements:
    return shape_measurements(nuclei.polygons(), PixelCalibration(*scale.mpp))


def intensities(rgb: RGB, regions: Pixels, stains: Stains) -> Measurements:
    """Measure the stains in regions of an RGB image."""
    densities = separate(regions.of(rgb), stains)
    return intensity_measurements(densities, stains.stain_names[:2], regions)


def _intensities_at_level_0(
    nuclei: NucleiTable, pixels: PixelSource, stains: Stains
) -> Measurements:
    """Measure the stains within outlines in level-0 px, in the slide's own pixels."""

    def measure(rows: npt.NDArray[np.int64], rgb: RGB, origin: tuple[int, int]) -> Measurements:
        some = nuclei.take(rows).polygons()
        return intensities(rgb, pixels_of_polygons(some, rgb.shape[:2], origin), stains)

    return measured_at_level_0(nuclei, pixels, measure)


def measured_at_level_0(
    outlines: NucleiTable,
    pixels: PixelSource,
    measure: Callable[[npt.NDArray[np.int64], RGB, tuple[int, int]], Measurements],
) -> Measurements:
    """Measure N outlines in the slide's own pixels.

    One box around all of them is read. Where that is too large, it is halved.

    Parameters
    ----------
    outlines : NucleiTable
        In level-0 px.
    measure : callable
        Gets the rows of some outlines, the pixels of a box around them, and its upper left corner;
        returns the columns of these rows.
    """
    boxes = bounds(outlines)
    size = np.array([pixels.width, pixels.height])

    def of(rows: npt.NDArray[np.int64]) -> Measurements:
        low = np.clip(np.floor(boxes[rows, :2]).min(axis=0, initial=np.inf), 0, size)
        high = np.clip(np.ceil(boxes[rows, 2:]).max(axis=0, initial=0), low, size)
        x0, y0, width, height = (int(v) for v in (*low, *(high - low)))
        if width * height > _MAX_MEASURED_PX and len(rows) > 1:
            along = 0 if width > height else 1
            order = np.argsort(boxes[rows, along], kind="stable")
            parts = [of(rows[half]) for half in np.array_split(order, 2)]
            back = np.argsort(order)
            return {name: np.concatenate([part[name] for part in parts])[back] for name in parts[0]}
        return measure(rows, pixels.read(x0, y0, width, height, (1.0, 1.0)), (x0, y0))

    return of(np.arange(len(outlines)))


def _scores(seen: TileInstances, regions: Pixels, spec: EngineSpec) -> Measurements:
    """Measure the maps of the engine."""
    if tuple(seen.scores) != spec.columns:
        made, stated = (", ".join(names) or "none" for names in (seen.scores, spec.columns))
        raise ModelError(
            f"the engine of the model {spec.name} made the scores {made}, but its spec states "
            f"{stated}",
            "mend the engine: the keys of `TileInstances.scores` are `EngineSpec.columns`",
        )
    measured: Measurements = {}
    for name, score in seen.scores.items():
        measured |= mean_measurement(name, score.values[regions.of(score.levels)], regions)
    return measured
