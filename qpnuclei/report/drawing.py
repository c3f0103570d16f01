"""Draw outlines, scale bars and text into the pixels of a picture."""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np
import numpy.typing as npt
import shapely
from PIL import Image, ImageDraw, ImageFont

from qpnuclei.nuclei.table import NucleiTable
from qpnuclei.report.pictures import round_length
from qpnuclei.slides.pixels import RGB

Colour = tuple[int, int, int]

INK: Colour = (20, 20, 20)
#: Height of a line of text, in px.
LINE_PX = 22
_FONT_PX = 17
#: Width of the white border of text, in px.
_BORDER_PX = 3
#: OpenCV draws with coordinates in sixteenths (2**4) of a px.
_SHIFT = 4


def draw_rings(
    picture: RGB,
    nuclei: NucleiTable,
    origin: tuple[float, float],
    scale: float,
    colour: Colour,
    thickness: int,
) -> None:
    """Draw the outlines of nuclei.

    Parameters
    ----------
    origin : (float, float)
        Upper left corner of the picture in level-0 px.
    scale : float
        Px of the picture per level-0 px.
    """
    vertices = _fixed_point(nuclei.vertices, origin, scale)
    rings = np.split(vertices, nuclei.ring_offsets[1:-1]) if len(nuclei) else []
    cv2.polylines(picture, rings, True, colour, thickness, cv2.LINE_AA, _SHIFT)


def draw_lines(
    picture: RGB,
    lines: shapely.Geometry,
    origin: tuple[float, float],
    scale: float,
    colour: Colour,
    thickness: int,
) -> None:
    """Draw lines, for example the boundary of an area; see `draw_rings`."""
    for line in shapely.get_parts(lines):
        points = _fixed_point(shapely.get_coordinates(line), origin, scale)
        cv2.polylines(picture, [points], False, colour, thickness, cv2.LINE_AA, _SHIFT)


def _fixed_point(
    points: npt.NDArray[np.floating], origin: tuple[float, float], scale: float
) -> npt.NDArray[np.int32]:
    """Convert level-0 coordinates to those of OpenCV, in which integers are pixel centres."""
    on_picture = (points - np.asarray(origin, np.float64)) * scale - 0.5
    return np.asarray(np.round(on_picture * 2**_SHIFT), np.int32)


def draw_scale_bar(canvas: Image.Image, um_per_px: float) -> None:
    """Draw a bar of a round length, about a sixth of the width, at the lower left."""
    length = round_length(canvas.width * um_per_px / 6)
    y = canvas.height - 16
    ImageDraw.Draw(canvas).rectangle((14, y, 14 + length / um_per_px, y + 5), fill=INK)
    if length >= 1000:
        draw_text(canvas, f"{length / 1000:g} mm", (14, y - 26), INK)
        return
    # Pillow's font has no µ: draw a u, and add its leg.
    number = f"{length:g} "
    draw_text(canvas, f"{number}um", (14, y - 26), INK)
    font = ImageFont.load_default(_FONT_PX)
    left, _, _, bottom = font.getbbox("u")
    x, foot = 15 + font.getlength(number) + left, y - 26 + bottom
    ImageDraw.Draw(canvas).line((x, foot - 2, x, foot + 4), fill=INK, width=2)


def draw_text(
    canvas: Image.Image,
    text: str,
    at: tuple[float, float],
    colour: Colour,
    *,
    centred: bool = False,
) -> None:
    """Draw text with a white border, centred on a point or starting at it."""
    ImageDraw.Draw(canvas).text(
        at,
        text,
        fill=colour,
        font=ImageFont.load_default(_FONT_PX),
        anchor="mm" if centred else "la",
        stroke_width=_BORDER_PX,
        stroke_fill=(255, 255, 255),
    )


def wrapped(parts: Iterable[str], width: float) -> list[str]:
    """Return lines of text that are at most `width` px wide as `draw_text` draws them.

    A line ends between two parts; only a part that is wider than a line is broken, between any two
    characters.

    Parameters
    ----------
    parts : iterable of str
        Pieces of the text, which a space separates. White space within a part becomes one space.

    Examples
    --------
    >>> wrapped(["--threshold 0.4", "--min-area-um2 10"], 200)
    ['--threshold 0.4', '--min-area-um2 10']
    """
    font = ImageFont.load_default(_FONT_PX)

    def fits(line: str) -> bool:
        left, _, right, _ = font.getbbox(line, stroke_width=_BORDER_PX)
        return max(right - min(left, 0), font.getlength(line)) <= width

    lines: list[str] = []
    for part in parts:
        text = " ".join(part.split())
        if lines and fits(f"{lines[-1]} {text}"):
            lines[-1] += f" {text}"
            continue
        lines.append("")
        for character in text:
            if lines[-1] and not fits(lines[-1] + character):
                lines.append("")
            lines[-1] += character
    return lines
