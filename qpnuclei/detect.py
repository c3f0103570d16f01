"""Nuclei from pixels: tiles are read, attended, segmented, measured and stitched.

Reading and attention work ahead in threads of their own; what is in memory at any moment is
bounded by tiles, not by the size of the region.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import shapely

from qpnuclei.measure import (
    Pixels,
    attention_measurement,
    intensity_measurements,
    pixels_of_labels,
    pixels_of_polygons,
    shape_measurements,
)
from qpnuclei.nuclei import NucleiTable
from qpnuclei.qupath.model import PixelCalibration, Stains
from qpnuclei.segmentation.polygons import polygonise, simplify
from qpnuclei.segmentation.postprocess import interaction_radius_px, segment_instances
from qpnuclei.segmentation.stitch import Stitcher, StitchReport
from qpnuclei.segmentation.tiles import Tile, TilePlan
from qpnuclei.slides.resolution import resolve_mpp, working_downsample
from qpnuclei.slides.slide import ImageInMemory
from qpnuclei.slides.stains import reinhard_statistics, separate
from qpnuclei.slides.tissue import tissue_fraction
from qpnuclei.stages import ahead
from qpnuclei.summary import Stopwatch

if TYPE_CHECKING:
    from qpnuclei.nn.segmenter import Segmenter
    from qpnuclei.slides.stains import ReinhardStatistics

#: Core of a tile in px of the working grid: large enough that its surroundings, which are read and
#: attended again for its neighbours, weigh little; small enough for 64 channels of float32.
DEFAULT_TILE_PX = 1024
#: Few nuclei are larger; one that is comes out whole all the same, joined from several tiles.
DEFAULT_MAX_NUCLEUS_UM = 25.0

#: Colours are measured as in training: on fields of the size of its tiles, spread over the
#: region, that show enough tissue.
_COLOUR_FIELDS, _COLOUR_FIELD_PX, _COLOUR_MIN_TISSUE = 64, 224, 0.7


class PixelSource(Protocol):
    """Where pixels come from: `qpnuclei.slides.slide.Slide`, or an array in memory."""

    width: int
    height: int

    def read(
        self, x: int, y: int, width: int, height: int, downsample: tuple[float, float]
    ) -> npt.NDArray[np.uint8]:
        """Return a region of the working grid; see `qpnuclei.slides.slide.Slide.read`."""


@dataclass(frozen=True)
class Scale:
    """How large pixels are, and how many of them the network sees as one.

    Parameters
    ----------
    mpp : (float, float)
        µm per level-0 px in x and y.
    downsample : (float, float)
        Level-0 px per px of the working grid, which the network sees.
    """

    mpp: tuple[float, float]
    downsample: tuple[float, float] = (1.0, 1.0)

    @property
    def working_mpp(self) -> tuple[float, float]:
        """µm per px of the working grid in x and y."""
        return self.mpp[0] * self.downsample[0], self.mpp[1] * self.downsample[1]


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
    *,
    simplify_um: float = 0.0,
    batch_size: int = 1,
    clock: Stopwatch | None = None,
    progress: Callable[[int, int], None] = lambda done, found: None,
) -> tuple[NucleiTable, StitchReport]:
    """Find the nuclei that the tiles of a plan own, each once, and measure them.

    Parameters
    ----------
    stains : Stains
        Stain vectors of the slide, for the measurements.
    simplify_um : float
        Largest distance in µm by which outlines may be simplified; 0 leaves them along the edges
        of working pixels. Intensities are those of the pixels before.
    batch_size : int
        Tiles that the network takes at once.
    progress : callable
        Called as ``progress(tiles done, nuclei so far)``.

    Returns
    -------
    nuclei : NucleiTable
        In level-0 px, with QuPath's shape measurements in µm, the intensities of each stain, and
        ``Attention: Mean``.
    report : StitchReport
        What happened at the seams.
    """
    clock = clock or Stopwatch()
    parameters = segmenter.metadata.post_processing
    statistics = _colour_statistics(pixels, tiles, segmenter, scale)
    stitcher = Stitcher(tiles)
    read = ahead(_read(pixels, tiles, segmenter, scale, clock), size=2 * batch_size)
    attended = ahead(_attend(read, segmenter, statistics, batch_size, clock), size=2)
    found = 0
    for done, (tile, view) in enumerate(attended, start=1):
        with clock("segment"):
            labels = segment_instances(view.attention, parameters, view.centre)
            nuclei, ids = polygonise(labels, (view.x0, view.y0))
            own, cut = tiles.divide(tile, nuclei)
        with clock("measure"):
            owned = nuclei.take(own).with_measurements(
                _intensities(view, pixels_of_labels(labels, ids[own]), stains)
            )
        with clock("stitch"):
            stitcher.add(tile, owned, nuclei.take(cut))
        found += len(own)
        progress(done, found)
    with clock("stitch"):
        nuclei, report = stitcher.finish()
    with clock("measure"):
        for row in report.joined.tolist():
            view = _view_of(nuclei.take([row]), pixels, segmenter, statistics, scale)
            joined = shapely.transform(
                nuclei.take([row]).polygons(), lambda xy, view=view: xy - (view.x0, view.y0)
            )
            values = _intensities(view, pixels_of_polygons(joined, view.rgb.shape[:2]), stains)
            for name, value in values.items():
                nuclei.measurements[name][row] = value[0]
        nuclei = _to_level_0(nuclei, scale, simplify_um)
        shapes = shape_measurements(nuclei.polygons(), PixelCalibration(*scale.mpp))
        # QuPath lists shapes first.
        nuclei = replace(nuclei, measurements={**shapes, **nuclei.measurements})
    return nuclei, report


def segment_image(
    segmenter: Segmenter, rgb: npt.NDArray[np.uint8], mpp: float, stains: Stains
) -> NucleiTable:
    """Find and measure the nuclei of one image in memory; see `Segmenter.segment`."""
    (resolved, _) = resolve_mpp(mpp, None, None, "the image")
    image = ImageInMemory(rgb, resolved)
    scale = Scale(resolved, working_downsample(resolved, segmenter.mpp))
    size = image.width, image.height
    tiles = plan_tiles(shapely.box(0, 0, *size), size, scale, segmenter)
    nuclei, _ = find_nuclei(image, tiles, segmenter, scale, stains)
    return nuclei


@dataclass(frozen=True, eq=False)
class _View:
    """Pixels and attention of one area of the working grid whose upper left corner is (x0, y0)."""

    x0: int
    y0: int
    rgb: npt.NDArray[np.uint8]
    attention: npt.NDArray[np.float32]
    centre: npt.NDArray[np.float32] | None


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
    width, height = np.ceil(nucleus.vertices.max(axis=0) - (x0, y0)).astype(int).tolist()
    rgb = pixels.read(
        x0 - margin, y0 - margin, width + 2 * margin, height + 2 * margin, scale.downsample
    )
    attention, _ = segmenter.attend(rgb[None], statistics)
    inner = np.s_[margin : margin + height, margin : margin + width]
    return _View(x0, y0, rgb[inner], attention[0][inner], None)


def _margin(segmenter: Segmenter) -> int:
    """Px that the network must see around a view; whole strides keep its phase."""
    return math.ceil(segmenter.receptive_radius_px / segmenter.stride) * segmenter.stride


def _read(
    pixels: PixelSource, tiles: TilePlan, segmenter: Segmenter, scale: Scale, clock: Stopwatch
) -> Iterator[tuple[Tile, npt.NDArray[np.uint8]]]:
    """Yield each tile with the pixels of its extent and of what the network sees around it."""
    margin = _margin(segmenter)
    for tile in tiles:
        x, y = tile.extent.x0 - margin, tile.extent.y0 - margin
        width, height = (length + 2 * margin for length in tiles.extent_size)
        with clock("read"):
            rgb = pixels.read(x, y, width, height, scale.downsample)
        yield tile, rgb


def _attend(
    read: Iterable[tuple[Tile, npt.NDArray[np.uint8]]],
    segmenter: Segmenter,
    statistics: ReinhardStatistics | None,
    batch_size: int,
    clock: Stopwatch,
) -> Iterator[tuple[Tile, _View]]:
    """Run the network on batches of tiles and cut the results to the tiles' views."""
    margin = _margin(segmenter)
    tiles = iter(read)
    while batch := list(islice(tiles, batch_size)):
        with clock("attend"):
            attention, centre = segmenter.attend(np.stack([rgb for _, rgb in batch]), statistics)
        for i, (tile, rgb) in enumerate(batch):
            x0, y0 = tile.view.x0, tile.view.y0
            left, top = x0 - tile.extent.x0 + margin, y0 - tile.extent.y0 + margin
            inner = np.s_[top : top + tile.view.height, left : left + tile.view.width]
            seeds = None if centre is None else centre[i][inner]
            yield tile, _View(x0, y0, rgb[inner], attention[i][inner], seeds)


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


def _intensities(
    view: _View, regions: Pixels, stains: Stains
) -> dict[str, npt.NDArray[np.float32]]:
    return {
        **intensity_measurements(separate(view.rgb, stains), stains.stain_names[:2], regions),
        **attention_measurement(view.attention, regions),
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
