"""Pictures of a page: embedded images, outlines as SVG paths, scale bars.

Outlines are SVG paths above the pixels, so that they stay thin and sharp at every zoom. An image
that is shown twice is embedded once.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely
from PIL import Image, WebPImagePlugin  # noqa: F401 - or else Pillow loads all of its formats

from qpnuclei.slides.pixels import RGB

#: Quality of WebP: the loss is not visible, and a crop of 480 px has about 40 KB.
_QUALITY = 80
#: Effort of WebP, 0 to 6: the default 4 takes twice as long and saves 1 %.
_EFFORT = 2
#: Largest share of a picture's width that its scale bar takes.
_LONGEST_BAR = 0.3

#: Size of tags in the style of the page, in px: height, edges, and mean width of a letter. The
#: narrowest picture has 320 px; a tag has at most 45 % of its width.
_TAG_PX, _TAG_EDGES_PX, _LETTER_PX = 18, 13, 7.5
_NARROWEST_PX, _WIDEST_TAG = 320, 45.0

#: Colours that people with any kind of colour vision can tell apart (Okabe and Ito), except those
#: that are hardly visible on white or on H&E.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#f0e442", "#56b4e9", "#e69f00", "#000000")


@dataclass(frozen=True)
class ScaleBar:
    """A bar of a round length: its share of the width of the picture, and its label."""

    percent: float
    label: str


@dataclass(frozen=True)
class Outline:
    """Outlines drawn in one way: a class of the style sheet, SVG path data, and a colour."""

    style: str
    data: str
    colour: str = ""


@dataclass(frozen=True)
class Tag:
    """A word on a picture, in percent of its width and height."""

    left: float
    top: float
    text: str
    colour: str


@dataclass(frozen=True)
class Mark:
    """A part of a picture that is shown larger elsewhere, under this number.

    `left` and `top` are the place of the number in percent of width and height; `data` is SVG path
    data.
    """

    left: float
    top: float
    number: str
    data: str


@dataclass(frozen=True)
class Picture:
    """An image and the outlines drawn on it.

    Parameters
    ----------
    url : str
        The embedded image.
    width, height : int
        Size in px; paths have the same unit.
    border : str
        SVG path data of the border of the analysed area.
    legend : tuple of (str, str)
        Name of each class and its colour.
    """

    url: str
    width: int
    height: int
    scale: ScaleBar | None = None
    paths: tuple[Outline, ...] = ()
    tags: tuple[Tag, ...] = ()
    marks: tuple[Mark, ...] = ()
    border: str = ""
    legend: tuple[tuple[str, str], ...] = ()


def legible_tags(
    wanted: Sequence[tuple[shapely.Geometry, str, str]], aspect: float
) -> tuple[Tag, ...]:
    """Return tags that lie within their picture and do not cover each other; the first ones stay.

    A tag is on its area, or above it if it would cover most of it.

    Parameters
    ----------
    wanted : sequence of (shapely geometry, str, str)
        Area in percent of the width and height of the picture, text and colour.
    aspect : float
        Width of the picture divided by its height.
    """
    tags: list[Tag] = []
    taken: list[shapely.Polygon] = []
    for area, text, colour in wanted:
        # On the narrowest picture; the style cuts longer texts.
        width = min(100 * (_TAG_EDGES_PX + _LETTER_PX * len(text)) / _NARROWEST_PX, _WIDEST_TAG)
        height = min(100 * _TAG_PX * aspect / _NARROWEST_PX, 100.0)
        x0, y0, x1, y1 = area.bounds
        if x1 - x0 < 2 * width and y1 - y0 < 2 * height:
            x, y = (x0 + x1) / 2, y0 - height / 2
        else:
            point = shapely.point_on_surface(area)
            x, y = point.x, point.y
        left = float(np.clip(x, width / 2, 100 - width / 2))
        top = float(np.clip(y, height / 2, 100 - height / 2))
        box = shapely.box(left - width / 2, top - height / 2, left + width / 2, top + height / 2)
        if not any(shapely.intersects(box, other) for other in taken):
            taken.append(box)
            tags.append(Tag(left, top, text, colour))
    return tuple(tags)


def embedded(image: Image.Image | RGB, kind: str = "WEBP") -> str:
    """Return an image as a ``data:`` URL.

    Parameters
    ----------
    image : PIL.Image.Image or (H, W, 3) uint8 ndarray
    kind : {"WEBP", "JPEG", "PNG"}
    """
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    stream = io.BytesIO()
    compressed = {"quality": _QUALITY, "method": _EFFORT}  # JPEG has no effort and ignores it
    options = {"optimize": True} if kind == "PNG" else compressed
    picture.save(stream, kind, **options)
    content = base64.b64encode(stream.getvalue()).decode()
    return f"data:image/{kind.lower()};base64,{content}"


def scale_bar(um: float | None) -> ScaleBar | None:
    """Return a scale bar for a picture of known width in µm; None if the width is unknown."""
    if um is None or not um > 0:
        return None
    length = round_length(um * _LONGEST_BAR)
    label = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    return ScaleBar(100 * length / um, label)


def round_length(most: float) -> float:
    """Return the largest of 1, 2, 5, 10, 20, ... (and their tenths and so on) up to `most`."""
    power = 10.0 ** math.floor(math.log10(most))
    return max((step * power for step in (1, 2, 5) if step * power <= most), default=power)


def path_data(ring: npt.NDArray[np.float64]) -> str:
    """Return a closed ring as SVG path data in tenths of a px, with relative steps."""
    tenths = np.rint(ring[:-1] * 10).astype(int)
    first, steps = tenths[0] / 10, np.diff(tenths, axis=0) / 10
    return f"M{first[0]:g} {first[1]:g}l{_joined(steps)}z"


def outlines(
    geometries: Iterable[shapely.Geometry],
    origin: tuple[float, float],
    scale: tuple[float, float],
    tolerance_px: float = 0.0,
) -> str:
    """Return SVG path data of areas and lines on a picture.

    Parameters
    ----------
    geometries : iterable of shapely geometry
        Areas and lines in level-0 px; points are left out.
    origin : (float, float)
        Upper left corner of the picture in level-0 px.
    scale : (float, float)
        Px of the picture per level-0 px.
    tolerance_px : float
        Largest distance of dropped vertices from the outline, in px of the picture.
    """
    drawn = []
    for geometry in geometries:
        on_picture = shapely.transform(geometry, lambda xy: (xy - origin) * scale)
        if tolerance_px:
            on_picture = shapely.simplify(on_picture, tolerance_px)
        for part in shapely.get_parts(on_picture):
            if part.geom_type == "Polygon":
                rings = [part.exterior, *part.interiors]
            elif part.geom_type in ("LineString", "LinearRing"):
                rings = [part]
            else:
                continue
            drawn += [_line(shapely.get_coordinates(ring)) for ring in rings if not ring.is_empty]
    return "".join(drawn)


def _line(points: npt.NDArray[np.float64]) -> str:
    if len(points) > 2 and np.array_equal(points[0], points[-1]):
        return path_data(points)
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _joined(steps: Sequence[Sequence[float]] | npt.NDArray[np.float64]) -> str:
    return " ".join(f"{x:g} {y:g}" for x, y in steps)
