"""Pictures of what was found: outlines on the tissue, whole and close up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import shapely
from PIL import Image, ImageDraw, ImageFont

from qpnuclei.errors import SaveError
from qpnuclei.nuclei.table import NucleiTable
from qpnuclei.slides.pixels import RGB
from qpnuclei.slides.slide import Slide

Colour = tuple[int, int, int]

#: What an overlay shows of an annotation: its label (name or class) and its ROI in level-0 px.
Labelled = tuple[str, shapely.Geometry]

_NUCLEUS: Colour = (0, 230, 60)
_SEAM: Colour = (255, 230, 0)
_INK: Colour = (20, 20, 20)
#: One per label, in order of appearance.
_PALETTE: tuple[Colour, ...] = (
    (200, 0, 0), (0, 90, 220), (240, 120, 0), (130, 0, 170), (0, 120, 120), (110, 80, 30),
)  # fmt: skip

_CLOSE_UP_MPP = 0.25
#: Smaller nuclei (in px of the picture) are shown as density.
_MIN_OUTLINED_PX = 3.0
_DENSITY_SIGMA_UM = 25.0

_FONT_PX = 17
_SHIFT = 4  # OpenCV draws with 1/16 px


def draw_overlay(
    slide: Slide,
    annotations: Sequence[Labelled],
    nuclei: NucleiTable,
    path: str | Path,
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
    try:
        Image.fromarray(np.concatenate([whole, gap, close], axis=1)).save(path, "PNG")
    except OSError as error:
        raise SaveError(f"cannot write {path}: {error.strerror or error}") from error


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
        _draw_rings(picture, nuclei, (0, 0), scale, _NUCLEUS, 1)
    else:
        _draw_density(picture, nuclei, scale, mpp)
    colours = _colours(annotations)
    for label, geometry in annotations:
        _draw_geometry(picture, geometry, (0, 0), scale, colours[label])
    canvas = Image.fromarray(picture)
    for label, geometry in annotations:
        point = shapely.point_on_surface(geometry)
        _text(canvas, label, (point.x * scale, point.y * scale), colours[label], centred=True)
    _scale_bar(canvas, mpp / scale)
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
    _draw_rings(picture, nuclei.take(visible), origin, zoom, _NUCLEUS, 2)
    colours = _colours(annotations)
    for label, geometry in annotations:
        _draw_geometry(picture, geometry, origin, zoom, colours[label])
    for x in seams_x:
        if 0 <= round(x * zoom - left) < width:
            _dashed(picture, round(x * zoom - left), vertical=True)
    for y in seams_y:
        if 0 <= round(y * zoom - top) < height:
            _dashed(picture, round(y * zoom - top), vertical=False)
    canvas = Image.fromarray(picture)
    if len(seams_x) or len(seams_y):
        _text(canvas, "- - -  tile border", (14, 10), _INK)
    _scale_bar(canvas, mpp / zoom)
    return np.asarray(canvas)


def _draw_rings(
    picture: RGB,
    nuclei: NucleiTable,
    origin: tuple[float, float],
    scale: float,
    colour: Colour,
    thickness: int,
) -> None:
    vertices = _fixed_point(nuclei.vertices, origin, scale)
    rings = np.split(vertices, nuclei.ring_offsets[1:-1]) if len(nuclei) else []
    cv2.polylines(picture, rings, True, colour, thickness, cv2.LINE_AA, _SHIFT)


def _draw_geometry(
    picture: RGB,
    geometry: shapely.Geometry,
    origin: tuple[float, float],
    scale: float,
    colour: Colour,
) -> None:
    for line in shapely.get_parts(shapely.boundary(geometry)):
        points = _fixed_point(shapely.get_coordinates(line), origin, scale)
        cv2.polylines(picture, [points], False, colour, 3, cv2.LINE_AA, _SHIFT)


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


def _fixed_point(
    points: npt.NDArray[np.floating], origin: tuple[float, float], scale: float
) -> npt.NDArray[np.int32]:
    """Bring level-0 coordinates to OpenCV's, whose integers are pixel centres."""
    on_picture = (points - np.asarray(origin, np.float64)) * scale - 0.5
    return np.asarray(np.round(on_picture * 2**_SHIFT), np.int32)


def _colours(annotations: Sequence[Labelled]) -> dict[str, Colour]:
    labels = dict.fromkeys(label for label, _ in annotations)
    return {label: _PALETTE[i % len(_PALETTE)] for i, label in enumerate(labels)}


def _dashed(picture: RGB, position: int, *, vertical: bool) -> None:
    length = picture.shape[0 if vertical else 1]
    for start in range(0, length, 24):
        ends = [(position, start), (position, start + 12)]
        if not vertical:
            ends = [(y, x) for x, y in ends]
        cv2.line(picture, ends[0], ends[1], _INK, 4)
        cv2.line(picture, ends[0], ends[1], _SEAM, 2)


def _scale_bar(canvas: Image.Image, um_per_px: float) -> None:
    """Draw a bar of a round length, about a sixth of the width, at the lower left."""
    target = canvas.width * um_per_px / 6
    power = 10 ** np.floor(np.log10(target))
    length = float(max(step * power for step in (1, 2, 5) if step * power <= target))
    y = canvas.height - 16
    ImageDraw.Draw(canvas).rectangle((14, y, 14 + length / um_per_px, y + 5), fill=_INK)
    if length >= 1000:
        _text(canvas, f"{length / 1000:g} mm", (14, y - 26), _INK)
        return
    # Pillow's font has no µ: it is a u with a leg.
    number = f"{length:g} "
    _text(canvas, f"{number}um", (14, y - 26), _INK)
    font = ImageFont.load_default(_FONT_PX)
    left, _, _, bottom = font.getbbox("u")
    x, foot = 15 + font.getlength(number) + left, y - 26 + bottom
    ImageDraw.Draw(canvas).line((x, foot - 2, x, foot + 4), fill=_INK, width=2)


def _text(
    canvas: Image.Image,
    text: str,
    at: tuple[float, float],
    colour: Colour,
    *,
    centred: bool = False,
) -> None:
    ImageDraw.Draw(canvas).text(
        at,
        text,
        fill=colour,
        font=ImageFont.load_default(_FONT_PX),
        anchor="mm" if centred else "la",
        stroke_width=3,
        stroke_fill=(255, 255, 255),
    )
