"""The tiles of a region."""

from __future__ import annotations

import math

import shapely

from qpnuclei.choices import DEFAULT_MAX_NUCLEUS_UM, DEFAULT_TILE_PX
from qpnuclei.nuclei.cells import reach_um
from qpnuclei.segmentation.engine import EngineSpec
from qpnuclei.slides.resolution import Scale
from qpnuclei.tiling.plan import TilePlan

#: Tiles know a nucleus by its pixels, annotations by its final outline. Smoothing moves a centroid
#: by up to 0.5 working px, and the cut at the border of an image by up to 1.7 (measured). So tiles
#: also find the nuclei in a margin of this width, and the annotation decides which belong to it.
_MARGIN_PX = 2

#: No point of a convex outline is farther from its centroid than this share of its diameter.
_FROM_CENTROID = 2 / 3


def plan_tiles(
    roi: shapely.Geometry,
    image_size: tuple[int, int],
    scale: Scale,
    spec: EngineSpec,
    tile_px: int = DEFAULT_TILE_PX,
    max_nucleus_um: float = DEFAULT_MAX_NUCLEUS_UM,
    cell_expansion_um: float = 0.0,
) -> TilePlan:
    """Cover a region with tiles on the working grid.

    Tiles overlap by the diameter of the largest nucleus plus the distance that can change its
    outline. The engine additionally reads the context that its network needs.

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
    cell_expansion_um : float
        Of the cells that nuclei get; 0 without cells. Tiles then also find the nuclei around the
        region that limit the cells inside.
    """
    sx, sy = scale.downsample
    finest = min(scale.working_mpp)
    largest_px = math.ceil(max_nucleus_um / finest)
    margin = _MARGIN_PX
    if cell_expansion_um > 0:
        # From the centroid inside the region to the outline of that nucleus, across the gap to the
        # outline of the one that limits its cell, and on to the centroid of that one.
        farthest = reach_um(cell_expansion_um) + 2 * _FROM_CENTROID * max_nucleus_um
        margin += math.ceil(farthest / finest)
    width, height = math.ceil(image_size[0] / sx), math.ceil(image_size[1] / sy)
    roi = shapely.transform(roi, lambda xy: xy / (sx, sy))
    x0, y0, x1, y1 = (0.0, 0.0, 1.0, 1.0) if roi.is_empty else roi.bounds
    left, top = (max(math.floor(low) - margin, 0) for low in (x0, y0))
    right = min(math.ceil(x1) + margin, width)
    bottom = min(math.ceil(y1) + margin, height)
    # The fewest tiles along the longer side, all of them used in full: a small region gets a small
    # tile, not a corner of a large one.
    side = max(right - left, bottom - top, 1)
    core = math.ceil(side / math.ceil(side / tile_px))
    return TilePlan(
        roi,
        (width, height),
        core_size=core,
        halo=largest_px + spec.interaction_px,
        alignment=spec.stride,
        origin=(left, top),
        margin=margin,
    )
