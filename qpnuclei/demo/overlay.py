"""Pictures of the result: outlines on the tissue, of the whole slide and close up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import shapely
from PIL import Image

from qpnuclei.nuclei.table import NucleiTable
from qpnuclei.report.drawing import (
    INK,
    Colour,
    draw_lines,
    draw_rings,
    draw_scale_bar,
    draw_text,
)
from qpnuclei.slides.pixels import RGB, write_png
from qpnuclei.slides.slide import Slide

#: An annotation on an overlay: its label (name or class) and its ROI in level-0 px.
Labelled = tuple[str, shapely.Geometry]

_NUCLEUS: Colour = (0, 230, 60)
_SEAM: Colour = (255, 230, 0)
#: One per label, in order of appearance.
_PALETTE: tuple[Colour, ...] = (
    (200, 0, 0), (0, 90, 220), (240, 120, 0), (130, 0, 170), (0, 120, 120), (110, 80, 30),
)  # fmt: skip

_CLOSE_UP_MPP = 0.25
#: Smaller nuclei (in px of the picture) are shown as density.
_MIN_OUTLINED_PX = 3.0
_DENSITY_SIGMA_UM = 25.0


def draw_overlay(
    slide: Slide,
    annotations: Sequence[Labelled],
    nuclei: NucleiTable,
    path: Path,
    *,
    mpp: float,
    zoom_at: tuple[float, float],
    seams_x: Sequence[float] = (),
    seams_y: Sequence[float] = (),
    height: int = 1000,
) -> None:
    """Write a PNG: the whole slide at the left, a part at full resolution at the right.

    Parameters
    ----------
    slide : Slide
    annotations : sequence of (label, geometry)
        ROIs in level-0 px; equal labels share a colour.
    nuclei : NucleiTable
        In level-0 px.
    path : path-like
        The PNG to write.
    mpp : float
        µm per level-0 px, for the scale bars.
    zoom_at : (float, float)
        Centre of the close-up in level-0 px, for example where tiles meet.
    seams_x, seams_y : sequence of float
        Positions of vertical and horizontal tile borders in level-0 px, dashed in the close-up.
    height : int
        Of the picture in px.

    Raises
    ------
    qpnuclei.errors.SaveError
        If the picture cannot be written.
    """
    whole = overview(slide, annotations, nuclei, mpp=mpp, max_size=(2 * height, height))
    close = close_up(
        slide,
        annotations,
        nuclei,
        mpp=mpp,
        centre=zoom_at,
        size=(height, whole.shape[0]),
        seams_x=seams_x,
        seams_y=seams_y,
    )
    gap = np.full((len(whole), 12, 3), 255, np.uint8)
    write_png(path, np.concatenate([whole, gap, close], axis=1))


def overview(
    slide: Slide,
    annotations: Sequence[Labelled],
    nuclei: NucleiTable,
    *,
    mpp: float,
    max_size: tuple[int, int] = (1600, 1200),
) -> RGB:
    """Draw ROIs and nuclei on the whole slide, reduced to fit `max_size`.

    Nuclei too small for outlines at that size are shown as their density instead.

    Returns
    -------
    (height, width, 3) uint8 ndarray
    """
    picture = slide.thumbnail(*max_size)
    scale = picture.shape[1] / slide.width
    if _median_size(nuclei) * scale >= _MIN_OUTLINED_PX:
        draw_rings(picture, nuclei, (0, 0), scale, _NUCLEUS, 1)
    else:
        _draw_density(picture, nuclei, scale, mpp)
    colours = _colours(annotations)
    for label, geometry in annotations:
        draw_lines(picture, shapely.boundary(geometry), (0, 0), scale, colours[label], 3)
    canvas = Image.fromarray(picture)
    for label, geometry in annotations:
        point = shapely.point_on_surface(geometry)
        draw_text(canvas, label, (point.x * scale, point.y * scale), colours[label], centred=True)
    draw_scale_bar(canvas, mpp / scale)
    return np.asarray(canvas)


def close_up(
    slide: Slide,
    annotations: Sequence[Labelled],
    nuclei: NucleiTable,
    *,
    mpp: float,
    centre: tuple[float, float],
    size: tuple[int, int] = (1000, 800),
    seams_x: Sequence[float] = (),
    seams_y: Sequence[float] = (),
) -> RGB:
    """Draw the nuclei around a point at full resolution, with the tile borders dashed.

    Slides coarser than 0.25 µm/px are enlarged to that, so that outlines do not hide the nuclei.

    Parameters
    ----------
    centre : (float, float)
        In level-0 px.
    size : (int, int)
        Width and height of the picture in px.

    Returns
    -------
    (height, width, 3) uint8 ndarray
    """
    width, height = size
    zoom = max(1.0, mpp / _CLOSE_UP_MPP)
    left, top = round(centre[0] * zoom - width / 2), round(centre[1] * zoom - height / 2)
    picture = slide.read(left, top, width, height, (1 / zoom, 1 / zoom))
    origin = left / zoom, top / zoom
    view = shapely.box(*origin, (left + width) / zoom, (top + height) / zoom)
    visible = shapely.intersects(view, nuclei.polygons())
    draw_rings(picture, nuclei.take(visible), origin, zoom, _NUCLEUS, 2)
    colours = _colours(annotations)
    for label, geometry in annotations:
        draw_lines(picture, shapely.boundary(geometry), origin, zoom, colours[label], 3)
    for x in seams_x:
        if 0 <= round(x * zoom - left) < width:
            _dashed(picture, round(x * zoom - left), vertical=True)
    for y in seams_y:
        if 0 <= round(y * zoom - top) < height:
            _dashed(picture, round(y * zoom - top), vertical=False)
    canvas = Image.fromarray(picture)
    if len(seams_x) or len(seams_y):
        draw_text(canvas, "- - -  tile border", (14, 10), INK)
    draw_scale_bar(canvas, mpp / zoom)
    return np.asarray(canvas)


def _draw_density(picture: RGB, nuclei: NucleiTable, scale: float, mpp: float) -> None:
    """Lay the number of nuclei per mm² over the picture, blue (few) to red (many)."""
    height, width = picture.shape[:2]
    cells = (np.clip(nuclei.centroids() * scale, 0, (width - 1, height - 1))).astype(np.int64)
    count = np.zeros((height, width), np.float32)
    np.add.at(count, (cells[:, 1], cells[:, 0]), 1)
    radius_px = max(1.0, _DENSITY_SIGMA_UM * scale / mpp)
    density = np.asarray(cv2.GaussianBlur(count, (0, 0), radius_px))
    peak = float(density.max())
    if peak == 0:
        return
    level = np.asarray(255 * density / peak, np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(level, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
    alpha = (0.6 * np.minimum(1, density / (0.15 * peak)))[:, :, None]
    picture[:] = np.rint(picture * (1 - alpha) + np.asarray(colours) * alpha)


def _median_size(nuclei: NucleiTable) -> float:
    """Diameter of a typical nucleus in level-0 px; infinite if there are none."""
    if len(nuclei) == 0:
        return float("inf")
    sample = nuclei.take(np.arange(0, len(nuclei), max(1, len(nuclei) // 1000)))
    return 2 * float(np.sqrt(np.median(shapely.area(sample.polygons())) / np.pi))


def _colours(annotations: Sequence[Labelled]) -> dict[str, Colour]:
    labels = dict.fromkeys(label for label, _ in annotations)
    return {label: _PALETTE[i % len(_PALETTE)] for i, label in enumerate(labels)}


def _dashed(picture: RGB, position: int, *, vertical: bool) -> None:
    length = picture.shape[0 if vertical else 1]
    for start in range(0, length, 24):
        ends = [(position, start), (position, start + 12)]
        if not vertical:
            ends = [(y, x) for x, y in ends]
        cv2.line(picture, ends[0], ends[1], INK, 4)
        cv2.line(picture, ends[0], ends[1], _SEAM, 2)
