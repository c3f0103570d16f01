"""Choose small parts of an image to show: densest, typical, sparsest, least certain, and seams."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely

from qpnuclei.choices import DEFAULT_MAX_NUCLEUS_UM
from qpnuclei.pipeline.planning.tiles import plan_tiles
from qpnuclei.segmentation.engine import EngineSpec
from qpnuclei.slides.resolution import Scale

Floats = npt.NDArray[np.float64]

#: Side of a view in µm, and in level-0 px if the pixel size is unknown.
SIDE_UM, SIDE_PX = 120.0, 480.0
#: At least this share of a place lies in the area, if the area is large enough.
_LEAST_SHARE = 0.6
#: If an area has more parts, all of them share one grid.
_MOST_GRIDS = 20
#: Tolerance for rounding errors: a place that fits exactly is kept.
_ROUNDING = 1e-9
#: Largest number of compared places.
_MOST_PLACES = 4000
#: Places with fewer nuclei are ignored for the least certain view, if others have more.
_MIN_NUCLEI = 5


@dataclass(frozen=True)
class View:
    """A part of an image: its kind of example, and its box (x0, y0, x1, y1) in level-0 px."""

    title: str
    box: tuple[float, float, float, float]


def choose_views(
    centroids: Floats,
    certainty: npt.NDArray[np.floating] | None,
    area: shapely.Geometry,
    mpp: tuple[float, float] | None,
) -> list[View]:
    """Choose where nuclei are densest, typical and sparsest, and where the model is least certain.

    The candidates are squares of `SIDE_UM` on a grid that lie mostly in the area. If the area has
    few parts, each part has its own grid, so that small annotations far apart are not missed.

    Parameters
    ----------
    centroids : (N, 2) float64 ndarray
        Centroids of N nuclei in level-0 px.
    certainty : (N,) ndarray or None
        Certainty of each nucleus, NaN if unknown; None if all are unknown.
    area : shapely.Polygon or shapely.MultiPolygon
        Analysed area in level-0 px.
    mpp : (float, float) or None
        µm per level-0 px.
    """
    if area.is_empty:
        return []
    side = np.array([SIDE_PX, SIDE_PX]) if mpp is None else SIDE_UM / np.array(mpp)
    parts = shapely.get_parts(area)
    grids = list(parts) if len(parts) <= _MOST_GRIDS else [area]
    wanted = sum(float(np.ceil(_extent(part) / side).prod()) for part in grids)
    step = side * math.ceil(math.sqrt(wanted / _MOST_PLACES))
    corners, share = np.empty((0, 2)), np.empty(0)
    number = np.full(len(centroids), -1)  # index of the place that contains a nucleus
    for part in grids:
        places, held = _places(part, centroids, side, step)
        number[held >= 0] = len(corners) + held[held >= 0]
        corners = np.concatenate([corners, places])
        share = np.concatenate([share, _share(shapely.box(*places.T, *(places + side).T), part)])
    inside = number >= 0
    count = np.bincount(number[inside], minlength=len(corners))
    most = np.flatnonzero(share >= min(_LEAST_SHARE, 0.9 * share.max()))
    density = count[most] / share[most]
    chosen: dict[int, list[str]] = {}
    ranks = {
        "densest": np.argmax(density),
        "typical": np.argmin(np.abs(density - np.median(density))),
        "sparsest": np.argmin(density),
    }
    if len(corners) == 1:
        is_whole = shapely.box(*_box(corners[0], side)).covers(area)
        ranks = {"the whole area" if is_whole else "the middle": np.int64(0)}
    for title, rank in ranks.items():
        chosen.setdefault(int(most[rank]), []).append(title)
    if certainty is not None:
        known = inside & np.isfinite(certainty)
        n = np.bincount(number[known], minlength=len(corners))
        total = np.bincount(number[known], certainty[known], minlength=len(corners))
        enough = np.flatnonzero(n >= min(_MIN_NUCLEI, n.max(initial=1) or 1))
        if len(enough):
            least = int(enough[np.argmin(total[enough] / n[enough])])
            chosen.setdefault(least, []).append("least certain")
    return [View(", ".join(titles), _box(corners[index], side)) for index, titles in chosen.items()]


def _places(
    part: shapely.Geometry, centroids: Floats, side: Floats, step: Floats
) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Return the corners of the places on a grid over an area, and the place of each nucleus.

    Returns
    -------
    corners : (P, 2) float64 ndarray
        The grid is centred on the area. Its places lie within the area if that is large enough.
    held : (N,) int64 ndarray
        Index of the place; -1 for nuclei in no place or not in the area.
    """
    low, high = np.array(part.bounds).reshape(2, 2)
    shape = np.floor((high - low - side) / step + _ROUNDING).clip(0).astype(np.int64) + 1
    origin = (low + high - step * (shape - 1) - side) / 2
    columns, rows = np.meshgrid(np.arange(shape[0]), np.arange(shape[1]))
    corners = origin + np.stack([columns.ravel(), rows.ravel()], axis=1) * step
    held = np.full(len(centroids), -1)
    if len(centroids):
        place = np.floor((centroids - origin) / step).astype(np.int64)
        within = (centroids - origin - place * step < side) & (place >= 0) & (place < shape)
        inside = within.all(axis=1) & shapely.intersects_xy(part, centroids)
        held[inside] = (place[:, 1] * shape[0] + place[:, 0])[inside]
    return corners, held


def _extent(part: shapely.Geometry) -> Floats:
    x0, y0, x1, y1 = part.bounds
    return np.array([x1 - x0, y1 - y0])


def tile_borders(
    area: shapely.Geometry,
    size: tuple[int, int],
    mpp: tuple[float, float],
    working_mpp: tuple[float, float],
    tile_px: int,
    max_nucleus_um: float = DEFAULT_MAX_NUCLEUS_UM,
    cell_expansion_um: float = 0.0,
) -> tuple[Floats, Floats]:
    """Return the positions of the borders between the tiles of a run, in level-0 px.

    Parameters
    ----------
    area : shapely geometry
        The analysed area, in level-0 px.
    size : (int, int)
        Width and height of the image in level-0 px.
    mpp, working_mpp : (float, float)
        µm per level-0 px, and µm per px of the input of the network.
    tile_px : int
        Largest side of the core of a tile, in px of the input of the network.
    max_nucleus_um, cell_expansion_um : float
        Those of the run. Tiles begin farther outside the area if nuclei get cells.
    """
    scale = Scale(mpp, (working_mpp[0] / mpp[0], working_mpp[1] / mpp[1]))
    # The positions of cores do not depend on the network.
    any_engine = EngineSpec("", "", mpp[0], 0, 1, 0)
    cores = plan_tiles(
        area, size, scale, any_engine, tile_px, max_nucleus_um, cell_expansion_um=cell_expansion_um
    )
    corners = np.array([tile.core[:2] for tile in cores], float).reshape(-1, 2)
    xs, ys = (np.unique(corners[:, axis])[1:] * scale.downsample[axis] for axis in (0, 1))
    return xs, ys


def seam_views(
    xs: Floats,
    ys: Floats,
    centroids: Floats,
    area: shapely.Geometry,
    mpp: tuple[float, float],
) -> list[View]:
    """Choose a place for each existing kind of seam, with the most nuclei around it.

    Parameters
    ----------
    xs, ys : (K,), (L,) float64 ndarray
        From `tile_borders`: positions of vertical and of horizontal borders.
    centroids : (N, 2) float64 ndarray
    area : shapely geometry
        The analysed area. Places outside it are not seams.
    """
    side = SIDE_UM / np.array(mpp)
    x0, y0, x1, y1 = area.bounds
    along_x, along_y = (
        np.arange(low + step / 2, max(high, low + step), step)
        for low, high, step in ((x0, x1, side[0]), (y0, y1, side[1]))
    )
    kinds = {
        "seam: two tiles side by side": (xs, along_y),
        "seam: two tiles one above the other": (along_x, ys),
        "seam: a corner of four tiles": (xs, ys),
    }
    views = []
    for title, axes in kinds.items():
        points = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2)
        points = points[shapely.intersects_xy(area, points)] if len(points) else points
        if len(points):
            place = busiest(points, centroids, float(side.mean()) / 2)
            views.append(View(title, _box(np.array(place) - side / 2, side)))
    return views


def busiest(points: Floats, centroids: Floats, radius: float) -> tuple[float, float]:
    """Return the one of (M, 2) points with most nuclei within `radius`, all in level-0 px."""
    from scipy.spatial import cKDTree  # importing it takes longer than a report of one tile

    near = cKDTree(centroids.reshape(-1, 2)).query_ball_point(points, radius, return_length=True)
    x, y = points[np.argmax(near)].tolist()
    return x, y


def _share(boxes: npt.NDArray[np.object_], area: shapely.Geometry) -> Floats:
    """Return the share of each box that lies in an area."""
    shapely.prepare(area)
    share: Floats = shapely.covers(area, boxes).astype(float)
    cut = np.flatnonzero((share == 0) & shapely.intersects(area, boxes))
    share[cut] = shapely.area(shapely.intersection(boxes[cut], area)) / shapely.area(boxes[cut])
    return share


def _box(corner: Floats, side: Floats) -> tuple[float, float, float, float]:
    (x0, y0), (x1, y1) = corner.tolist(), (corner + side).tolist()
    return x0, y0, x1, y1
