"""The nuclei of the synthetic slide: sizes, shapes, stain and positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from scipy.spatial import cKDTree

from qpnuclei.datasets.synthetic.layout import Layout

FloatArray = npt.NDArray[np.float64]

_N_VERTICES = 48


@dataclass(frozen=True)
class CellType:
    """The properties of one type of nuclei; lengths in level-0 px, stain as density.

    Parameters
    ----------
    name : str
    radius, radius_spread : float
        Median of the mean radius, and sigma of its logarithm.
    aspect : (float, float)
        Range of length over width.
    waviness : float
        Size of the outline's deviations from an ellipse.
    bend : float
        How far a long nucleus is bent, as a share of its length.
    haematoxylin : (float, float)
        Range of the mean concentration.
    vesicular : float
        Share of nuclei with a pale centre, a dark rim and nucleoli.
    clumps : float
        Contrast of the chromatin.
    spacing : float
        Spacing of the grid of candidate positions.
    gap : float
        Median distance to the next nucleus that it does not touch.
    """

    name: str
    radius: float
    radius_spread: float
    aspect: tuple[float, float]
    waviness: float
    bend: float
    haematoxylin: tuple[float, float]
    vesicular: float
    clumps: float
    spacing: float
    gap: float


TUMOUR = CellType(
    "tumour", 21, 0.16, (1.05, 1.65), 0.055, 0.0, (0.34, 0.75), 0.50, 0.13, 11, 4.5
)  # fmt: skip
SPINDLE = CellType(
    "spindle", 13, 0.18, (2.6, 5.0), 0.05, 0.10, (0.40, 0.70), 0.20, 0.12, 46, 10
)  # fmt: skip
LYMPHOCYTE = CellType(
    "lymphocyte", 12.5, 0.09, (1.0, 1.25), 0.03, 0.0, (0.55, 0.88), 0.0, 0.13, 12, 2.5
)  # fmt: skip
CELL_TYPES = (TUMOUR, SPINDLE, LYMPHOCYTE)

#: Shares of nuclei that may overlap a neighbour by the given part of the smaller one.
_OVERLAP_LIMITS, _OVERLAP_SHARES = (0.0, 0.06, 0.25), (0.91, 0.06, 0.03)


@dataclass(frozen=True, eq=False)
class Nuclei:
    """N nuclei, columnwise.

    Parameters
    ----------
    outlines : (N, 48, 2) float64 ndarray
        Vertices in level-0 px, not closed.
    centres : (N, 2) float64 ndarray
    types : (N,) int64 ndarray
        Index into `CELL_TYPES`.
    haematoxylin : (N,) float64 ndarray
        Mean concentration.
    vesicular : (N,) bool ndarray
    """

    outlines: FloatArray
    centres: FloatArray
    types: npt.NDArray[np.int64]
    haematoxylin: FloatArray
    vesicular: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.centres)

    def take(self, chosen: npt.NDArray[Any]) -> Nuclei:
        """Return the chosen nuclei (integers or a boolean mask)."""
        return Nuclei(
            self.outlines[chosen],
            self.centres[chosen],
            self.types[chosen],
            self.haematoxylin[chosen],
            self.vesicular[chosen],
        )

    def polygons(self) -> npt.NDArray[Any]:
        """Return the (N,) Shapely polygons, in level-0 px."""
        closed = np.concatenate([self.outlines, self.outlines[:, :1]], axis=1)
        polygons: npt.NDArray[Any] = shapely.polygons(closed)
        return polygons


def place_nuclei(layout: Layout, lumina: shapely.Geometry, rng: np.random.Generator) -> Nuclei:
    """Fill the tissue with nuclei that keep their distance, touch, or overlap a little.

    Parameters
    ----------
    layout : Layout
    lumina : shapely geometry
        Vessels and vacuoles, level-0 px: free of nuclei.
    rng : numpy.random.Generator
    """
    candidates = _concatenate(
        [
            _candidates(i, cell, places, layout, rng)
            for i, cell in enumerate(CELL_TYPES)
            for places in [_places(cell, layout, rng)]
        ]
    )
    candidates = candidates.take(rng.permutation(len(candidates)))
    polygons = candidates.polygons()
    inside = shapely.contains(shapely.box(0, 0, layout.width, layout.height), polygons)
    shapely.prepare(lumina)
    free = inside & ~shapely.intersects(lumina, polygons)
    candidates = candidates.take(free)
    kept = _without_conflicts(candidates, rng)
    # From the top down, as one reads: neighbours in the table are neighbours on the slide.
    return candidates.take(kept[np.argsort(candidates.centres[kept, 1], kind="stable")])


def _places(cell: CellType, layout: Layout, rng: np.random.Generator) -> FloatArray:
    """Jittered grid points where nuclei of this type may lie."""
    x, y = np.meshgrid(
        np.arange(cell.spacing / 2, layout.width, cell.spacing),
        np.arange(cell.spacing / 2, layout.height, cell.spacing),
    )
    points = np.stack([x.ravel(), y.ravel()], axis=1)
    points = points + rng.uniform(-0.5, 0.5, points.shape) * cell.spacing
    chance = rng.random(len(points))
    tissue = layout.at(layout.tissue, points)
    nest = layout.at(layout.nest, points)
    lymphoid = layout.at(layout.lymphoid, points)
    fat = layout.at(layout.fat, points)
    stroma = (tissue > 30) & (nest < -14) & (fat < 0)
    if cell is TUMOUR:
        allowed = nest > 6
    elif cell is LYMPHOCYTE:
        # Dense follicles that fray into the stroma, and scattered cells.
        density = np.clip(lymphoid / 120 + 0.6, 0, 1) ** 2 * 0.9
        density = np.where(stroma, np.maximum(density, 0.012), density)
        density = np.where((nest > 0), 0.006, density)
        allowed = (tissue > 25) & (fat < 0) & (chance < density)
    else:
        allowed = stroma & (lymphoid < -20) & (chance < 0.30)
    return np.asarray(points[allowed])


def _candidates(
    index: int, cell: CellType, centres: FloatArray, layout: Layout, rng: np.random.Generator
) -> Nuclei:
    n = len(centres)
    t = np.linspace(0, 2 * np.pi, _N_VERTICES, endpoint=False)
    radius = cell.radius * np.exp(rng.normal(0, cell.radius_spread, n))
    aspect = np.sqrt(rng.uniform(*cell.aspect, n))
    shape = np.ones((n, _N_VERTICES))
    for k in (2, 3, 4, 5):
        amplitude = rng.normal(0, cell.waviness, n) * 2 / k
        shape += amplitude[:, None] * np.cos(k * t + rng.uniform(0, 2 * np.pi, n)[:, None])
    x = (radius * aspect)[:, None] * shape * np.cos(t)
    y = (radius / aspect)[:, None] * shape * np.sin(t)
    # A long nucleus follows its fibre: a parabola along its length.
    half_length = (radius * aspect)[:, None]
    y = y + rng.normal(0, cell.bend, n)[:, None] * (x * x / half_length - half_length / 2)
    angle = rng.uniform(0, np.pi, n)
    if cell is SPINDLE:
        angle = _fibre_angle(layout, centres) + rng.normal(0, 0.18, n)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    outlines = np.stack([cos * x - sin * y, sin * x + cos * y], axis=2) + centres[:, None]
    vesicular = rng.random(n) < cell.vesicular
    low, high = cell.haematoxylin
    # Vesicular nuclei are the paler ones, and large nuclei are paler than small ones.
    dark = np.clip(rng.beta(2, 2, n) - 0.45 * vesicular - 0.15 * (radius / cell.radius - 1), 0, 1)
    return Nuclei(outlines, centres, np.full(n, index), low + (high - low) * dark, vesicular)


def _fibre_angle(layout: Layout, points: FloatArray) -> FloatArray:
    """Direction of the collagen: along the contour lines of the flow."""
    dy, dx = (np.asarray(d, np.float32) for d in np.gradient(layout.flow))
    along = np.arctan2(layout.at(dx, points), -layout.at(dy, points))
    return np.asarray(along, np.float64)


def _without_conflicts(nuclei: Nuclei, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Keep nuclei in their order, dropping each that comes too close to one kept before."""
    limit = rng.choice(_OVERLAP_LIMITS, len(nuclei), p=_OVERLAP_SHARES)
    gaps = np.array([cell.gap for cell in CELL_TYPES])[nuclei.types]
    gap = gaps * np.exp(rng.normal(0, 0.5, len(nuclei)))
    # Most conflicts show already in the inscribed circles: far cheaper than polygons.
    offsets = nuclei.outlines - nuclei.centres[:, None]
    inscribed = np.hypot(offsets[..., 0], offsets[..., 1]).min(axis=1)
    before, later = (
        cKDTree(nuclei.centres).query_pairs(2 * float(inscribed.max()), output_type="ndarray").T
    )
    distance = np.hypot(*(nuclei.centres[before] - nuclei.centres[later]).T)
    reach = np.where(np.maximum(limit[before], limit[later]) > 0, 0.6, 1.0)
    conflict = distance < reach * (inscribed[before] + inscribed[later])
    thinned = _first_come(len(nuclei), before[conflict], later[conflict])

    limit, gap = limit[thinned], gap[thinned]
    polygons = shapely.simplify(nuclei.take(thinned).polygons(), 1.0)
    tree = shapely.STRtree(polygons)
    later, before = tree.query(polygons, "dwithin", distance=float(np.quantile(gap, 0.98)))
    later, before = later[before < later], before[before < later]
    apart = shapely.distance(polygons[later], polygons[before])
    meet = apart == 0
    overlap = np.zeros(len(later))
    overlap[meet] = shapely.area(
        shapely.intersection(polygons[later[meet]], polygons[before[meet]])
    )
    area = shapely.area(polygons)
    share = overlap / np.minimum(area[later], area[before])
    allowed = np.maximum(limit[later], limit[before])
    too_close = meet | (apart < np.minimum(gap[later], gap[before]))
    conflict = np.where(allowed > 0, share > allowed, too_close)
    return thinned[_first_come(len(thinned), before[conflict], later[conflict])]


def _first_come(
    n: int, before: npt.NDArray[np.integer[Any]], later: npt.NDArray[np.integer[Any]]
) -> npt.NDArray[np.int64]:
    """Return what remains if each conflict removes the later one, unless the other has gone."""
    rivals: list[list[int]] = [[] for _ in range(n)]
    for first, second in zip(before.tolist(), later.tolist(), strict=True):
        rivals[second].append(first)
    kept = np.zeros(n, bool)
    for i in range(n):
        kept[i] = not any(kept[j] for j in rivals[i])
    return np.flatnonzero(kept)


def _concatenate(parts: list[Nuclei]) -> Nuclei:
    return Nuclei(
        np.concatenate([p.outlines for p in parts]),
        np.concatenate([p.centres for p in parts]),
        np.concatenate([p.types for p in parts]),
        np.concatenate([p.haematoxylin for p in parts]),
        np.concatenate([p.vesicular for p in parts]),
    )
