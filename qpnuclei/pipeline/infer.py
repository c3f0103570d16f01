"""Nuclei from pixels: an engine finds instances tile by tile, which are measured and stitched.

Tiles are worked on side by side, in threads. What is in memory at any moment is bounded by tiles,
not by the size of the region.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing

import numpy as np
import shapely

from qpnuclei.choices import DEFAULT_MAX_NUCLEUS_UM, DEFAULT_TILE_PX
from qpnuclei.measure.measurements import (
    Measurements,
    Pixels,
    intensity_measurements,
    mean_measurement,
    pixels_of_labels,
    pixels_of_polygons,
    shape_measurements,
)
from qpnuclei.nuclei.outlines import polygonise, simplify
from qpnuclei.nuclei.table import NucleiTable, NucleiTables
from qpnuclei.segmentation.colour import colour_statistics
from qpnuclei.segmentation.engine import Engine, EngineSpec, ReadPixels, TileInstances
from qpnuclei.slides.calibration import PixelCalibration
from qpnuclei.slides.pixels import RGB
from qpnuclei.slides.resolution import Scale
from qpnuclei.slides.slide import PixelSource
from qpnuclei.slides.stains import ReinhardStatistics, Stains, separate
from qpnuclei.system.memory import return_freed_memory
from qpnuclei.system.threads import in_parallel
from qpnuclei.system.timing import Stopwatch
from qpnuclei.tiling.plan import Box, Tile, TilePlan
from qpnuclei.tiling.stitch import Stitcher, StitchReport, drop_doubles

#: After so many tiles, freed memory goes back to the system: less than a hundredth of their time.
_TILES_BETWEEN_TRIMS = 16


def plan_tiles(
    roi: shapely.Geometry,
    image_size: tuple[int, int],
    scale: Scale,
    spec: EngineSpec,
    tile_px: int = DEFAULT_TILE_PX,
    max_nucleus_um: float = DEFAULT_MAX_NUCLEUS_UM,
) -> TilePlan:
    """Cover a region with tiles on the working grid.

    Tiles overlap by the largest nucleus and what can change its outline. What the engine looks at
    beyond that it reads in addition.

    Parameters
    ----------
    roi : shapely geometry
        In level-0 px.
    image_size : (int, int)
        Width and height in level-0 px.
    spec : EngineSpec
        Of the engine that will segment them.
    tile_px : int
        Largest edge of a tile's core in px of the working grid.
    """
    sx, sy = scale.downsample
    largest_px = math.ceil(max_nucleus_um / min(scale.working_mpp))
    roi = shapely.transform(roi, lambda xy: xy / (sx, sy))
    x0, y0, x1, y1 = (0.0, 0.0, 1.0, 1.0) if roi.is_empty else roi.bounds
    # The fewest tiles along the longer side, all of them used in full: a small region gets a small
    # tile, not a corner of a large one.
    side = max(x1 - x0, y1 - y0, 1)
    core = math.ceil(side / math.ceil(side / tile_px))
    return TilePlan(
        roi,
        (math.ceil(image_size[0] / sx), math.ceil(image_size[1] / sy)),
        core_size=core,
        halo=largest_px + spec.interaction_px,
        alignment=spec.stride,
        origin=(math.floor(x0), math.floor(y0)),
    )


def find_nuclei(
    pixels: PixelSource,
    tiles: TilePlan,
    engine: Engine,
    scale: Scale,
    stains: Stains,
    found: NucleiTables,
    *,
    simplify_um: float = 0.0,
    workers: int = 1,
    clock: Stopwatch | None = None,
    progress: Callable[[int, int], None] = lambda done, found: None,
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
        measurements in µm, the intensities of each stain, and the columns of the engine.
    simplify_um : float
        Largest distance in µm by which outlines may be simplified; 0 leaves them along the edges
        of working pixels. Intensities are those of the pixels before.
    workers : int
        Tiles that are measured at the same time. The result does not depend on it.
    progress : callable
        Called as ``progress(tiles done, nuclei so far)``.

    Returns
    -------
    StitchReport
        What happened at the seams.
    """
    clock = clock or Stopwatch()

    def read(box: Box) -> RGB:
        return pixels.read(box.x0, box.y0, box.width, box.height, scale.downsample)

    def at_level_0(nuclei: NucleiTable) -> NucleiTable:
        return _to_level_0(nuclei, scale, simplify_um)

    def shapes(nuclei: NucleiTable) -> Measurements:
        return shape_measurements(at_level_0(nuclei).polygons(), PixelCalibration(*scale.mpp))

    def measure(seen: TileInstances) -> tuple[Tile, NucleiTable, NucleiTable]:
        with tiles.naming(seen.tile):
            with clock("segment"):
                nuclei, ids = polygonise(seen.labels, seen.tile.view[:2])
                own, cut = tiles.divide(seen.tile, nuclei)
                owned = nuclei.take(own)
            with clock("measure"):
                regions = pixels_of_labels(seen.labels, ids[own])
                # QuPath lists shapes first.
                measured = owned.with_measurements(
                    {**shapes(owned), **_intensities(seen, regions, stains)}
                )
        return seen.tile, measured, nuclei.take(cut)

    colour = colour_statistics(read, tiles) if engine.spec.needs_colour else None
    stitcher = Stitcher(tiles)
    count = 0
    with (
        closing(engine.segment(read, tiles, colour, clock)) as segmented,
        closing(in_parallel(measure, segmented, workers)) as measured_tiles,
    ):
        for done, (tile, owned, cut) in enumerate(measured_tiles, start=1):
            with clock("stitch"):
                for whole in stitcher.add(tile, owned, cut):
                    found.append(at_level_0(whole))
            count += len(owned)
            progress(done, count)
            if done % _TILES_BETWEEN_TRIMS == 0:
                return_freed_memory()
    with clock("stitch"):
        rest, joined = stitcher.finish()
        for whole in rest:
            found.append(at_level_0(whole))
        kept, doubles = drop_doubles(found, at_level_0(joined))
        joined = joined.take(kept & tiles.answers_for(joined.centroids()))
    with clock("measure"):
        for row in range(len(joined)):
            nucleus = joined.take([row])
            seen = _seen_whole(nucleus, engine, read, colour)
            corner = seen.tile.view[:2]
            outline = shapely.transform(nucleus.polygons(), lambda xy, at=corner: xy - at)
            regions = pixels_of_polygons(outline, seen.rgb.shape[:2])
            found.append(
                at_level_0(nucleus).with_measurements(
                    {**shapes(nucleus), **_intensities(seen, regions, stains)}
                )
            )
    return StitchReport(
        stitcher.fragments, stitcher.covered, len(joined), stitcher.overlapping + doubles
    )


def _seen_whole(
    nucleus: NucleiTable, engine: Engine, read: ReadPixels, colour: ReinhardStatistics | None
) -> TileInstances:
    """Look at the bounding box of one nucleus again: no tile saw it whole."""
    x0, y0 = np.floor(nucleus.vertices.min(axis=0)).astype(int).tolist()
    x1, y1 = np.ceil(nucleus.vertices.max(axis=0)).astype(int).tolist()
    plan = TilePlan.of_box(Box(x0, y0, x1, y1), engine.spec.stride)
    with closing(engine.segment(read, plan, colour, Stopwatch())) as seen:
        return next(seen)


def _intensities(seen: TileInstances, regions: Pixels, stains: Stains) -> Measurements:
    densities = separate(regions.of(seen.rgb), stains)
    measured = intensity_measurements(densities, stains.stain_names[:2], regions)
    for name, score in seen.scores.items():
        measured |= mean_measurement(name, score.values[regions.of(score.codes)], regions)
    return measured


def _to_level_0(nuclei: NucleiTable, scale: Scale, simplify_um: float) -> NucleiTable:
    if simplify_um > 0:
        nuclei = simplify(nuclei, simplify_um / max(scale.working_mpp))
    return NucleiTable(
        nuclei.vertices * np.asarray(scale.downsample, np.float32),
        nuclei.ring_offsets,
        nuclei.polygon_offsets,
        nuclei.measurements,
    )
