"""Which small parts of an image are shown: densest, typical, sparsest, least certain, and seams."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely

from qpnuclei.pipeline.planning.tiles import plan_tiles
from qpnuclei.segmentation.engine import EngineSpec
from qpnuclei.slides.resolution import Scale

Floats = npt.NDArray[np.float64]

#: Side of a view in µm; and in level-0 px where the pixel size is not known.
SIDE_UM, SIDE_PX = 120.0, 480.0
#: So much of a place lies in the area, where it is so large.
_LEAST_SHARE = 0.6
#: An area of more parts has one grid for them all.
_MOST_GRIDS = 20
#: So that a place that just fits is not lost.
_ROUNDING = 1e-9
#: Most places that are compared.
_MOST_PLACES = 4000
#: Least number of nuclei for the certainty of a place, if there is such a place.
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
    """Choose where nuclei lie densest, typically and sparsest, and where the model is least sure.

    The candidates are squares of `SIDE_UM` on a grid that lie mostly in the area. Each part of an
    area with few parts has its own grid, so that small annotations far apart are not missed.

    Parameters
    ----------
    centroids : (N, 2) float64 ndarray
        In level-0 px.
    certainty : (N,) ndarray or None
        Of each nucleus, NaN where it is not known; None where of none.
    area : shapely.Polygon or shapely.MultiPolygon
        In level-0 px.
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
    number = np.full(len(centroids), -1)  # of the place that holds a nucleus
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
        ranks = {"the whole area": np.int64(0)}
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
    """Return the corners of the places on a grid over an area, and which holds each nucleus of it.

    Returns
    -------
    corners : (P, 2) float64 ndarray
        The grid is centred on the area; its places do not reach beyond it if it is large enough.
    held : (N,) int64 ndarray
        -1 for nuclei in no place, or not in the area.
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
) -> tuple[Floats, Floats]:
    """Return where vertical and horizontal borders between a run's tiles lie, in level-0 px.

    Parameters
    ----------
    area : shapely geometry
        What the run analysed, in level-0 px.
    size : (int, int)
        Width and height of the image in level-0 px.
    mpp, working_mpp : (float, float)
        µm per level-0 px, and per px that the network saw.
    tile_px : int
        Largest side of a tile's core, in px that the network saw.
    """
    scale = Scale(mpp, (working_mpp[0] / mpp[0], working_mpp[1] / mpp[1]))
    # Where cores lie depends neither on the halo nor on the network.
    cores = plan_tiles(area, size, scale, EngineSpec("", "", mpp[0], 0, 1, 0), tile_px, 1.0)
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
    """Choose a place for each kind of seam that there is, the one with the most nuclei around it.

    Parameters
    ----------
    xs, ys : (K,), (L,) float64 ndarray
        As `tile_borders` returns them.
    centroids : (N, 2) float64 ndarray
    area : shapely geometry
        Places outside of it are no seams.
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


def moved_inside(view: View, size: tuple[int, int]) -> View:
    """Return a view that lies in the image: moved, and smaller where the image is."""
    limits = np.array(size, float)
    low, high = np.array(view.box).reshape(2, 2)
    side = np.minimum(high - low, limits)
    return View(view.title, _box(np.clip(low, 0, limits - side), side))


def busiest(points: Floats, centroids: Floats, radius: float) -> tuple[float, float]:
    """Return which of the (M, 2) points has the most nuclei within `radius`, all in level-0 px."""
    from scipy.spatial import cKDTree  # takes longer than the whole report of one tile

    near = cKDTree(centroids.reshape(-1, 2)).query_ball_point(points, radius, return_length=True)
    x, y = points[np.argmax(near)].tolist()
    return x, y


def _share(boxes: npt.NDArray[np.object_], area: shapely.Geometry) -> Floats:
    """Return which share of each box lies in an area."""
    shapely.prepare(area)
    share: Floats = shapely.covers(area, boxes).astype(float)
    cut = np.flatnonzero((share == 0) & shapely.intersects(area, boxes))
    share[cut] = shapely.area(shapely.intersection(boxes[cut], area)) / shapely.area(boxes[cut])
    return share


def _box(corner: Floats, side: Floats) -> tuple[float, float, float, float]:
    (x0, y0), (x1, y1) = corner.tolist(), (corner + side).tolist()
    return x0, y0, x1, y1
