"""Nuclei from pixels: tiles are read, attended, segmented, measured and stitched.

Reading works ahead in a thread of its own, and several tiles are attended and segmented at the same
time: threads do, because decoders, networks and compiled loops release the interpreter lock.
What is in memory at any moment is bounded by tiles, not by the size of the region.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import shapely

from qpnuclei.errors import QpnucleiError
from qpnuclei.measure.measurements import (
    Measurements,
    Pixels,
    attention_measurement,
    intensity_measurements,
    pixels_of_labels,
    pixels_of_polygons,
    shape_measurements,
)
from qpnuclei.nuclei.outlines import polygonise, simplify
from qpnuclei.nuclei.table import NucleiTable, NucleiTables, concatenate
from qpnuclei.segmentation.postprocess import interaction_radius_px, segment_instances
from qpnuclei.segmentation.quantised import ATTENTION_OF_CODE, AttentionCodes, CentreCodes
from qpnuclei.segmentation.threads import networks_at_once
from qpnuclei.slides.calibration import PixelCalibration
from qpnuclei.slides.resolution import Scale, resolve_mpp, working_downsample
from qpnuclei.slides.slide import ImageInMemory, PixelSource
from qpnuclei.slides.stains import Stains, reinhard_statistics, separate
from qpnuclei.slides.tissue import tissue_fraction
from qpnuclei.system.memory import return_freed_memory
from qpnuclei.system.threads import ahead, in_parallel
from qpnuclei.system.timing import Stopwatch
from qpnuclei.tiling.plan import Box, Tile, TilePlan
from qpnuclei.tiling.stitch import Stitcher, StitchReport, drop_doubles

if TYPE_CHECKING:
    from qpnuclei.segmentation.maps_engine import Segmenter
    from qpnuclei.slides.stains import ReinhardStatistics

#: Core of a tile in px of the working grid: large enough that its surroundings, which are read and
#: attended again for its neighbours, weigh little (a third); small enough that a run stays below
#: 2 GB with the light model, below 4 GB with the default one.
DEFAULT_TILE_PX = 1792
#: Few nuclei are larger; one that is comes out whole all the same, joined from several tiles.
DEFAULT_MAX_NUCLEUS_UM = 25.0

#: After so many tiles, freed memory goes back to the system: less than a hundredth of their time.
_TILES_BETWEEN_TRIMS = 16

#: Colours are measured as in training: on fields of the size of its tiles, spread over the
#: region, that show enough tissue.
_COLOUR_FIELDS, _COLOUR_FIELD_PX, _COLOUR_MIN_TISSUE = 64, 224, 0.7


def plan_tiles(
    roi: shapely.Geometry,
    image_size: tuple[int, int],
    scale: Scale,
    segmenter: Segmenter,
    tile_px: int = DEFAULT_TILE_PX,
    max_nucleus_um: float = DEFAULT_MAX_NUCLEUS_UM,
) -> TilePlan:
    """Cover a region with tiles on the working grid.

    Tiles overlap by the largest nucleus and what can change its outline. What the network looks
    at beyond that is read in addition, by `find_nuclei`.

    Parameters
    ----------
    roi : shapely geometry
        In level-0 px.
    image_size : (int, int)
        Width and height in level-0 px.
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
        halo=largest_px + interaction_radius_px(segmenter.metadata.post_processing),
        alignment=segmenter.stride,
        origin=(math.floor(x0), math.floor(y0)),
    )


def find_nuclei(
    pixels: PixelSource,
    tiles: TilePlan,
    segmenter: Segmenter,
    scale: Scale,
    stains: Stains,
    found: NucleiTables,
    *,
    simplify_um: float = 0.0,
    batch_size: int | None = None,
    workers: int = 1,
    clock: Stopwatch | None = None,
    progress: Callable[[int, int], None] = lambda done, found: None,
) -> StitchReport:
    """Find the nuclei that the tiles of a plan own, each once, and measure them.

    Parameters
    ----------
    stains : Stains
        Stain vectors of the slide, for the measurements.
    found : NucleiTables
        Empty. The nuclei are appended as they come, tile by tile in the order of the plan, and
        those joined from several tiles at the end: in level-0 px, with QuPath's shape
        measurements in µm, the intensities of each stain, and ``Attention: Mean``.
    simplify_um : float
        Largest distance in µm by which outlines may be simplified; 0 leaves them along the edges
        of working pixels. Intensities are those of the pixels before.
    batch_size : int, optional
        Tiles that the network takes at once; `Segmenter.suggested_batch_size` if not given.
    workers : int
        Tiles that are segmented at the same time. The result does not depend on it.
    progress : callable
        Called as ``progress(tiles done, nuclei so far)``.

    Returns
    -------
    StitchReport
        What happened at the seams.
    """
    clock = clock or Stopwatch()
    if batch_size is None:
        surroundings = tiles.halo + _margin(segmenter)
        batch_size = segmenter.suggested_batch_size(tiles.core_size + 2 * surroundings)
    parameters = segmenter.metadata.post_processing
    statistics = _colour_statistics(pixels, tiles, segmenter, scale)

    def at_level_0(nuclei: NucleiTable) -> NucleiTable:
        return _to_level_0(nuclei, scale, simplify_um)

    def shapes(nuclei: NucleiTable) -> Measurements:
        return shape_measurements(at_level_0(nuclei).polygons(), PixelCalibration(*scale.mpp))

    def segment(seen: tuple[Tile, _View]) -> tuple[Tile, NucleiTable, NucleiTable]:
        tile, view = seen
        with _naming(tile, tiles):
            with clock("segment"):
                labels = segment_instances(view.attention, parameters, view.centre)
                nuclei, ids = polygonise(labels, view.box[:2])
                own, cut = tiles.divide(tile, nuclei)
                owned = nuclei.take(own)
            with clock("measure"):
                regions = pixels_of_labels(labels, ids[own])
                # QuPath lists shapes first.
                measured = owned.with_measurements(
                    {**shapes(owned), **_intensities(view, regions, stains)}
                )
        return tile, measured, nuclei.take(cut)

    stitcher = Stitcher(tiles)
    count = 0
    with (
        closing(ahead(_read(pixels, tiles, segmenter, scale, clock), 2 * batch_size)) as read,
        closing(
            _attend(read, tiles, segmenter, statistics, batch_size, workers, clock)
        ) as attended,
        closing(in_parallel(segment, _assemble(tiles, attended, clock), workers)) as segmented,
    ):
        for done, (tile, owned, cut) in enumerate(segmented, start=1):
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
            view = _view_of(nucleus, pixels, segmenter, statistics, scale)
            outline = shapely.transform(nucleus.polygons(), lambda xy, view=view: xy - view.box[:2])
            regions = pixels_of_polygons(outline, view.rgb.shape[:2])
            found.append(
                at_level_0(nucleus).with_measurements(
                    {**shapes(nucleus), **_intensities(view, regions, stains)}
                )
            )
    return StitchReport(
        stitcher.fragments, stitcher.covered, len(joined), stitcher.overlapping + doubles
    )


def segment_image(
    segmenter: Segmenter, rgb: npt.NDArray[np.uint8], mpp: float, stains: Stains
) -> NucleiTable:
    """Find and measure the nuclei of one image in memory; see `Segmenter.segment`."""
    (resolved, _) = resolve_mpp(mpp, None, None, "the image")
    image = ImageInMemory(rgb, resolved)
    scale = Scale(resolved, working_downsample(resolved, segmenter.mpp))
    size = image.width, image.height
    tiles = plan_tiles(shapely.box(0, 0, *size), size, scale, segmenter)
    found: list[NucleiTable] = []
    find_nuclei(image, tiles, segmenter, scale, stains, found)
    return concatenate(found)


@dataclass(frozen=True, eq=False)
class _View:
    """Pixels and attention of one box of the working grid."""

    box: Box
    rgb: npt.NDArray[np.uint8]
    attention: AttentionCodes
    centre: CentreCodes | None

    def cut(self, box: Box) -> _View:
        """Return what is seen of a box inside this one."""
        inner = box.within(self.box)
        centre = None if self.centre is None else self.centre[inner]
        return _View(box, self.rgb[inner], self.attention[inner], centre)

    def copy(self) -> _View:
        """Return the same without holding on to what it was cut from."""
        centre = None if self.centre is None else self.centre.copy()
        return _View(self.box, self.rgb.copy(), self.attention.copy(), centre)


def _view_of(
    nucleus: NucleiTable,
    pixels: PixelSource,
    segmenter: Segmenter,
    statistics: ReinhardStatistics | None,
    scale: Scale,
) -> _View:
    """Look at the bounding box of one nucleus again: no tile saw it whole."""
    stride, margin = segmenter.stride, _margin(segmenter)
    x0, y0 = (np.floor(nucleus.vertices.min(axis=0) / stride).astype(int) * stride).tolist()
    x1, y1 = np.ceil(nucleus.vertices.max(axis=0)).astype(int).tolist()
    box = Box(x0, y0, x1, y1)
    seen = box.grown(margin)
    rgb = pixels.read(seen.x0, seen.y0, seen.width, seen.height, scale.downsample)
    attention, _ = segmenter.attend_codes(rgb[None], statistics)
    return _View(seen, rgb, attention[0], None).cut(box)


def _margin(segmenter: Segmenter) -> int:
    """Px that the network must see around a view; whole strides keep its phase."""
    return math.ceil(segmenter.receptive_radius_px / segmenter.stride) * segmenter.stride


@contextmanager
def _naming(tile: Tile, tiles: TilePlan) -> Iterator[None]:
    """Say in every error in which tile it happened."""
    where = f"tile {tile.index + 1} of {len(tiles)} at {tile.core[:2]}"
    try:
        yield
    except QpnucleiError as error:
        raise type(error)(f"{where}: {error.what}", error.hint) from error
    except Exception as error:
        error.add_note(f"in {where}")
        raise


@dataclass(frozen=True, eq=False)
class _Part:
    """What a tile adds (`TilePlan.new_parts`), with the pixels that the network sees around it."""

    tile: Tile
    box: Box
    rgb: npt.NDArray[np.uint8]


def _read(
    pixels: PixelSource, tiles: TilePlan, segmenter: Segmenter, scale: Scale, clock: Stopwatch
) -> Iterator[_Part]:
    """Yield what each tile adds."""
    margin = _margin(segmenter)
    for tile, box in zip(tiles, tiles.new_parts(), strict=True):
        if box is not None:
            seen = box.grown(margin)
            with clock("read"), _naming(tile, tiles):
                rgb = pixels.read(seen.x0, seen.y0, seen.width, seen.height, scale.downsample)
            yield _Part(tile, box, rgb)


def _attend(
    read: Iterable[_Part],
    tiles: TilePlan,
    segmenter: Segmenter,
    statistics: ReinhardStatistics | None,
    batch_size: int,
    workers: int,
    clock: Stopwatch,
) -> Generator[_View, None, None]:
    """Run the network on batches of parts."""
    margin = _margin(segmenter)

    def batches() -> Iterator[list[_Part]]:
        parts = iter(read)
        while True:
            with clock.waiting("attend"):
                batch = list(islice(parts, batch_size))
            if not batch:
                return
            yield batch

    def attend(batch: list[_Part]) -> list[_View]:
        with clock("attend"), _naming(batch[0].tile, tiles):
            attention, centre = segmenter.attend_codes(_stacked([p.rgb for p in batch]), statistics)
        return [
            _View(
                part.box.grown(margin),
                part.rgb,
                attention[i],
                None if centre is None else centre[i],
            ).cut(part.box)
            for i, part in enumerate(batch)
        ]

    with closing(in_parallel(attend, batches(), networks_at_once(workers))) as attended:
        for views in attended:
            yield from views


def _assemble(
    tiles: TilePlan, attended: Iterator[_View], clock: Stopwatch
) -> Iterator[tuple[Tile, _View]]:
    """Put the view of each tile together from what it and the tiles before it added.

    Of what a tile added, only what tiles yet to come will see is kept: strips along its border.
    """
    kept: dict[int, _View] = {}
    for tile, part in zip(tiles, tiles.new_parts(), strict=True):
        if part is not None:
            with clock.waiting("segment"):
                kept[tile.index] = next(attended)
        pieces = [kept[n.index] for n in (*tiles.neighbours(tile), tile) if n.index in kept]
        yield tile, _composed(tile.view, pieces)
        for index in [tile.index, *(n.index for n in tiles.neighbours(tile))]:
            if index not in kept:
                continue
            box = kept[index].box
            ahead_of = [n.view for n in tiles.neighbours(tiles[index]) if n.index > tile.index]
            wanted = [common for view in ahead_of if (common := view.intersection(box))]
            if not wanted:
                del kept[index]
            elif 2 * (hull := Box.around(wanted)).area < box.area:
                kept[index] = kept[index].cut(hull).copy()


def _composed(box: Box, pieces: list[_View]) -> _View:
    """Return what is seen of a box that some views cover together."""
    rgb = np.empty((box.height, box.width, 3), np.uint8)
    attention = np.empty((box.height, box.width), np.uint8)
    centre = None if pieces[0].centre is None else np.empty(attention.shape, np.uint16)
    for piece in pieces:
        common = box.intersection(piece.box)
        if common is None:
            continue
        at, seen = common.within(box), piece.cut(common)
        rgb[at], attention[at] = seen.rgb, seen.attention
        if centre is not None and seen.centre is not None:
            centre[at] = seen.centre
    return _View(box, rgb, attention, centre)


def _stacked(tiles: list[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    """Stack tiles of different sizes, white beyond their right and lower borders.

    What the network sees there is farther than its receptive field from any view.
    """
    if len(tiles) == 1:
        return tiles[0][None]
    height, width = (max(tile.shape[axis] for tile in tiles) for axis in (0, 1))
    stack = np.full((len(tiles), height, width, 3), 255, np.uint8)
    for row, tile in zip(stack, tiles, strict=True):
        row[: tile.shape[0], : tile.shape[1]] = tile
    return stack


def _colour_statistics(
    pixels: PixelSource, tiles: TilePlan, segmenter: Segmenter, scale: Scale
) -> ReinhardStatistics | None:
    """Measure the colours of the whole region once.

    None if the model takes colours as they are. Never per tile: that makes seams.
    """
    if segmenter.metadata.colour.method == "none" or len(tiles) == 0:
        return None
    size = _COLOUR_FIELD_PX
    corners = [
        (x, y)
        for core in (tile.core for tile in tiles)
        for y in range(core.y0, core.y1, size)
        for x in range(core.x0, core.x1, size)
    ]
    spread = np.unique(np.linspace(0, len(corners) - 1, _COLOUR_FIELDS).astype(int))
    chosen = [corners[i] for i in spread]
    rgb = np.stack([pixels.read(x, y, size, size, scale.downsample) for x, y in chosen])
    stained = tissue_fraction(rgb) >= _COLOUR_MIN_TISSUE
    return reinhard_statistics(rgb[stained] if stained.any() else rgb)


def _intensities(view: _View, regions: Pixels, stains: Stains) -> Measurements:
    return {
        **intensity_measurements(
            separate(regions.of(view.rgb), stains), stains.stain_names[:2], regions
        ),
        **attention_measurement(ATTENTION_OF_CODE[regions.of(view.attention)], regions),
    }


def _to_level_0(nuclei: NucleiTable, scale: Scale, simplify_um: float) -> NucleiTable:
    if simplify_um > 0:
        nuclei = simplify(nuclei, simplify_um / max(scale.working_mpp))
    return NucleiTable(
        nuclei.vertices * np.asarray(scale.downsample, np.float32),
        nuclei.ring_offsets,
        nuclei.polygon_offsets,
        nuclei.measurements,
    )
