"""Make a synthetic H&E slide whose nuclei are known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
import tifffile

from qpnuclei.datasets.synthetic.cells import CELL_TYPES, place_nuclei
from qpnuclei.datasets.synthetic.layout import Layout, make_layout
from qpnuclei.datasets.synthetic.painting import Painter, Round
from qpnuclei.errors import SaveError, UsageError
from qpnuclei.nuclei.table import NucleiTable

#: µm per level-0 pixel, as of a 40x scan.
SYNTHETIC_MPP = 0.25

_STRIP = 512
_TILE = 256
_LEVELS = (4, 16)
_JPEG_QUALITY = 88


@dataclass(frozen=True, eq=False)
class SyntheticSlide:
    """A synthetic slide and the truth about it.

    Parameters
    ----------
    path : Path
    width, height : int
        Level-0 px.
    nuclei : NucleiTable
        Outlines of all N nuclei; where nuclei overlap, so do the polygons.
    kinds : (N,) str ndarray
        ``"tumour"``, ``"spindle"`` or ``"lymphocyte"``.
    """

    path: Path
    width: int
    height: int
    nuclei: NucleiTable
    kinds: npt.NDArray[np.str_]


def make_slide(
    path: str | Path, size: tuple[int, int] = (6400, 5200), seed: int = 7
) -> SyntheticSlide:
    """Paint a synthetic H&E slide and write it as a tiled, pyramidal JPEG TIFF at 0.25 µm/px.

    It shows tumour nests, stroma, lymphoid follicles, fat, vessels with erythrocytes, glass and
    a pen mark, under an uneven stain; equal seeds give equal slides.

    Parameters
    ----------
    path : path-like
        The ``.tif`` to write; its name must say that the slide is synthetic.
    size : (int, int)
        Width and height in px.
    seed : int

    Returns
    -------
    SyntheticSlide

    Raises
    ------
    qpnuclei.errors.UsageError
        If "synthetic" is missing from the file name, or the size is below 512 px.
    qpnuclei.errors.SaveError
        If the file cannot be written.
    """
    path = Path(path)
    if "synthetic" not in path.name.lower():
        raise UsageError(
            f"{path.name!r} does not say that the slide is synthetic",
            'put "synthetic" into the file name',
        )
    if min(size) < 512:
        raise UsageError(
            f"a synthetic slide of {size[0]} x {size[1]} px is too small", "use at least 512 x 512"
        )
    if not path.parent.is_dir():
        raise SaveError(f"cannot write {path}: no such folder", "create the folder first")
    rng = np.random.default_rng([seed, 0])
    layout = make_layout(size, rng)
    vacuoles = _vacuoles(layout, rng)
    lumina = [*layout.vessels, *vacuoles]
    erythrocytes = _erythrocytes(layout, rng)
    obstacles = shapely.union_all([shapely.Polygon(o) for o in [*lumina, *erythrocytes]])
    nuclei = place_nuclei(layout, obstacles, rng)
    painter = Painter(layout, nuclei, erythrocytes, lumina, seed)
    pixels = np.empty((size[1], size[0], 3), np.uint8)
    for top, strip in painter.strips(_STRIP):
        pixels[top : top + len(strip)] = strip
    write_slide(path, pixels)
    return SyntheticSlide(
        path,
        size[0],
        size[1],
        NucleiTable.from_polygons(nuclei.polygons()),
        np.array([cell.name for cell in CELL_TYPES])[nuclei.types],
    )


def _vacuoles(layout: Layout, rng: np.random.Generator) -> list[npt.NDArray[np.float64]]:
    """Outlines of fat vacuoles: large and crowded in fat, some small ones in the stroma."""
    fat = _scatter(layout, 40_000, (28, 135), gap=4, rng=rng, where=lambda p: _in_fat(layout, p))
    small = _scatter(
        layout, 90, (18, 45), gap=30, rng=rng, where=lambda p: layout.at(layout.nest, p) < -90
    )
    tissue = layout.at(layout.tissue, small.centres) > 60
    small = Round(small.centres[tissue], small.radii[tissue])
    return [*fat.outlines(rng), *small.outlines(rng)]


def _in_fat(layout: Layout, points: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    return np.asarray(layout.at(layout.fat, points) > 20)


def _scatter(
    layout: Layout,
    tries: int,
    radius: tuple[float, float],
    gap: float,
    rng: np.random.Generator,
    where: Any,
) -> Round:
    """Throw discs that do not overlap, large ones first."""
    centres = rng.uniform(0, 1, (tries, 2)) * (layout.width, layout.height)
    allowed = np.asarray(where(centres))
    centres = centres[allowed]
    radii = np.sort(rng.uniform(*radius, len(centres)))[::-1]
    kept: list[int] = []
    for i in range(len(centres)):
        near = np.hypot(*(centres[kept] - centres[i]).T) if kept else np.empty(0)
        if np.all(near >= radii[kept] + radii[i] + gap):
            kept.append(i)
    return Round(centres[kept], radii[kept])


def _erythrocytes(layout: Layout, rng: np.random.Generator) -> list[npt.NDArray[np.float64]]:
    """Outlines of red blood cells: within the vessels, and a few that left them."""
    outlines = []
    for vessel in layout.vessels:
        centre, spread = vessel.mean(axis=0), vessel.std(axis=0) * 1.6
        n = int(np.prod(spread) / 200)
        lumen = shapely.Polygon(vessel).buffer(-8)
        points = centre + rng.uniform(-1, 1, (n, 2)) * spread
        points = points[shapely.contains_xy(lumen, points[:, 0], points[:, 1])]
        outlines += Round(points, rng.normal(12.5, 1.0, len(points))).outlines(rng)
        strays = centre + rng.normal(0, 1.6, (12, 2)) * spread
        strays = strays[
            (layout.at(layout.tissue, strays) > 30) & (layout.at(layout.nest, strays) < 0)
        ]
        outlines += Round(strays, rng.normal(12.5, 1.0, len(strays))).outlines(rng)
    return outlines


def write_slide(path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    """Write level 0 and its reductions as pages that OpenSlide and Bio-Formats take for levels."""
    options: dict[str, Any] = {
        "tile": (_TILE, _TILE),
        "photometric": "rgb",
        "compression": "jpeg",
        "compressionargs": {"level": _JPEG_QUALITY},
        "metadata": None,
        "software": "qpnuclei",
    }
    try:
        with tifffile.TiffWriter(path) as tiff:
            for factor in (1, *_LEVELS):
                tiff.write(
                    pixels if factor == 1 else _reduced(pixels, factor),
                    description="Synthetic H&E slide, not of a patient" if factor == 1 else None,
                    subfiletype=0 if factor == 1 else 1,
                    resolution=(1e4 / (SYNTHETIC_MPP * factor),) * 2,
                    resolutionunit="CENTIMETER",
                    **options,
                )
    except OSError as error:
        raise SaveError(f"cannot write {path}: {error.strerror or error}") from error


def _reduced(pixels: npt.NDArray[np.uint8], factor: int) -> npt.NDArray[np.uint8]:
    """Mean of every whole block of factor x factor pixels."""
    height, width = pixels.shape[0] // factor, pixels.shape[1] // factor
    blocks = pixels[: height * factor, : width * factor].reshape(height, factor, width, factor, 3)
    return np.asarray(np.rint(blocks.mean(axis=(1, 3), dtype=np.float32)), np.uint8)
