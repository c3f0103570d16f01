"""Find pen, folds and blur: areas of a slide where nuclei cannot be trusted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import shapely

from qpnuclei.slides.masks import Mask, outline_mask
from qpnuclei.slides.pixels import RGB
from qpnuclei.slides.scaling import reduced_grid
from qpnuclei.slides.slide import Slide
from qpnuclei.slides.tissue import ink_of

Float = npt.NDArray[np.float32]

#: Working resolution in µm/px: fine enough to show the edges of nuclei.
_MPP = 1.0
#: Width and height of a cell in px; a cell is classified as a whole.
_CELL_PX = 16
#: Width and height of a block that is read at once, in cells.
_BLOCK_CELLS = 128
#: Brightness of glass, the background of optical densities.
_GLASS = 240.0

#: A cell is tissue if this share of its pixels is denser than this (mean of the three channels).
_TISSUE_SHARE, _TISSUE_DENSITY = 0.5, 0.06
#: A cell is pen if this share of its pixels is ink.
_PEN_SHARE = 0.1
#: In a fold, even the lightest tenth of the pixels has at least this density, and is denser than
#: elsewhere on the slide by this factor. Between crowded nuclei there are light gaps.
_FOLD_RATIO, _FOLD_DENSITY = 2.2, 0.33
#: Tissue is out of focus if its sharpness is below this share of the usual sharpness: that of the
#: slide, but at least `_SHARP`.
_BLUR_RATIO, _SHARP = 0.72, 0.35
#: A cell shows edges only with this contrast (standard deviation of the density). At least this
#: share of its neighbours must have it.
_CONTRAST, _CONTRAST_SHARE = 0.04, 0.3

#: Smaller areas are dropped, in µm².
_MIN_AREA_UM2 = {"pen": 500.0, "fold": 2500.0, "blur": 2500.0}


@dataclass(frozen=True, eq=False)
class CellValues:
    """Measurements of each cell of a slide; (H, W) float32 ndarrays.

    Parameters
    ----------
    tissue, pen : ndarray
        Share of the pixels.
    lightest : ndarray
        Tenth percentile of the optical density (mean of the three channels).
    contrast : ndarray
        Standard deviation of the optical density.
    sharpness : ndarray
        Root mean square of the density's Laplacian, divided by `contrast`.
    """

    tissue: Float
    pen: Float
    lightest: Float
    contrast: Float
    sharpness: Float


def find_artefacts(slide: Slide, mpp: tuple[float, float]) -> dict[str, shapely.MultiPolygon]:
    """Outline pen, folds and blurred tissue.

    The slide is read at about 1 µm/px, in cells of 16 µm. Folds and blur are detected by comparison
    with the rest of the slide's tissue. So none are found on a slide that is one single fold, or on
    a small field.

    Parameters
    ----------
    slide : Slide
    mpp : (float, float)
        Level-0 µm/px in x and y.

    Returns
    -------
    dict of str to shapely.MultiPolygon
        ``"pen"``: blue, green and black ink. ``"fold"``: two layers of tissue, and keratin, which
        looks the same. ``"blur"``: tissue out of focus. In level-0 px; each may be empty.

    Raises
    ------
    qpnuclei.errors.SlideError
        If the slide cannot be read.
    """
    width, height, downsample = reduced_grid((slide.width, slide.height), mpp, _MPP)
    masks = artefact_masks(_slide_values(slide, width, height, downsample))
    cell_size = downsample[0] * _CELL_PX, downsample[1] * _CELL_PX
    cell_um2 = cell_size[0] * mpp[0] * cell_size[1] * mpp[1]
    found = {}
    for kind, mask in masks.items():
        min_cells = _MIN_AREA_UM2[kind] / cell_um2
        found[kind] = outline_mask(
            mask, cell_size, (slide.width, slide.height), min_cells, min_cells
        )
    return found


def artefact_masks(values: CellValues) -> dict[str, Mask]:
    """Tell which cells of a slide are pen, fold or blurred; see `find_artefacts`."""
    if values.pen.size == 0:
        nothing = np.zeros(values.pen.shape, bool)
        return {"pen": nothing, "fold": nothing, "blur": nothing}
    pen = cv2.dilate((values.pen > _PEN_SHARE).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    tissue = (values.tissue > _TISSUE_SHARE) & ~pen
    nothing = np.zeros_like(tissue)
    if not tissue.any():
        return {"pen": pen, "fold": nothing, "blur": nothing}
    usual = float(np.median(values.lightest[tissue]))
    lightest = cv2.blur(values.lightest, (3, 3), borderType=cv2.BORDER_REPLICATE)
    fold = tissue & (lightest > max(_FOLD_RATIO * usual, _FOLD_DENSITY))
    has_edges = tissue & (values.contrast > _CONTRAST)
    if not has_edges.any():
        return {"pen": pen, "fold": fold, "blur": nothing}
    usual = max(float(np.median(values.sharpness[has_edges])), _SHARP)
    share = cv2.blur(has_edges.astype(np.float32), (5, 5), borderType=cv2.BORDER_REPLICATE)
    around = cv2.blur(
        np.where(has_edges, values.sharpness, 0), (5, 5), borderType=cv2.BORDER_REPLICATE
    ) / np.maximum(share, 1e-6)
    blur = tissue & ~fold & (share > _CONTRAST_SHARE) & (around < _BLUR_RATIO * usual)
    return {"pen": pen, "fold": fold, "blur": blur}


def measure_cells(rgb: RGB) -> CellValues:
    """Measure the whole cells of a picture.

    Parameters
    ----------
    rgb : (H, W, 3) uint8 ndarray
        At about 1 µm/px.

    Returns
    -------
    CellValues
        (H // 16, W // 16) values each.
    """
    rows, columns = rgb.shape[0] // _CELL_PX, rgb.shape[1] // _CELL_PX
    rgb = rgb[: rows * _CELL_PX, : columns * _CELL_PX]
    density = np.maximum(-np.log10(np.maximum(rgb, 1) / np.float32(_GLASS)), 0).mean(axis=2)
    smooth = cv2.GaussianBlur(density, (0, 0), 1.5)
    edges = cv2.Laplacian(cv2.GaussianBlur(density, (0, 0), 0.7), cv2.CV_32F)

    def cells(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        parts = values.reshape(rows, _CELL_PX, columns, _CELL_PX).swapaxes(1, 2)
        return parts.reshape(rows, columns, _CELL_PX**2)

    contrast = cells(density).std(axis=2)
    return CellValues(
        tissue=cells(density > _TISSUE_DENSITY).mean(axis=2, dtype=np.float32),
        pen=cells(ink_of(rgb)).mean(axis=2, dtype=np.float32),
        lightest=np.percentile(cells(smooth), 10, axis=2).astype(np.float32),
        contrast=contrast,
        sharpness=np.sqrt((cells(edges) ** 2).mean(axis=2)) / np.maximum(contrast, 1e-6),
    )


def _slide_values(
    slide: Slide, width: int, height: int, downsample: tuple[float, float]
) -> CellValues:
    """Measure all cells of a slide, block by block, without cells that its border cuts."""
    size = height // _CELL_PX, width // _CELL_PX
    values = CellValues(*(np.zeros(size, np.float32) for _ in range(5)))
    for row, column in _blocks(size):
        rows, columns = (
            min(_BLOCK_CELLS, n - at) for n, at in zip(size, (row, column), strict=True)
        )
        at = column * _CELL_PX, row * _CELL_PX
        of_block = measure_cells(slide.read(*at, columns * _CELL_PX, rows * _CELL_PX, downsample))
        for name in vars(values):
            getattr(values, name)[row : row + rows, column : column + columns] = getattr(
                of_block, name
            )
    return values


def _blocks(size: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Yield row and column of the first cell of each block."""
    for row in range(0, size[0], _BLOCK_CELLS):
        for column in range(0, size[1], _BLOCK_CELLS):
            yield row, column
