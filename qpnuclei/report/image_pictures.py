"""The pictures of an image in a report: the whole with its annotations, density, close-ups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import shapely
from PIL import Image

from qpnuclei.errors import number_of
from qpnuclei.qupath.areas import union, valid_area
from qpnuclei.qupath.counted_image import CountedImage
from qpnuclei.qupath.model import Annotation
from qpnuclei.report.density import density_map, viridis_steps
from qpnuclei.report.measured_nuclei import MeasuredNuclei
from qpnuclei.report.pictures import (
    PALETTE,
    Mark,
    Outline,
    Picture,
    embedded,
    legible_tags,
    outlines,
    scale_bar,
)
from qpnuclei.report.runs import Run, RunOfImage
from qpnuclei.report.views import View, choose_views, seam_views, tile_borders
from qpnuclei.slides.pixels import RGB
from qpnuclei.tiling.box import moved_inside

if TYPE_CHECKING:
    from qpnuclei.slides.slide import Slide

#: Largest width and height of the picture of an image, in px.
_WHOLE_PX = (1000, 1000)
#: Largest width and height of a view in px, and its resolution in µm/px.
_VIEW_PX, _VIEW_MPP = 480, 0.25
#: Least side of the mark of a view on the picture of an image, in px.
_LEAST_MARK_PX = 8
#: Width and height that the number of a mark needs, in percent of the picture.
_NUMBER = 3.0
#: Nuclei are drawn if their centroids lie in a view or up to this distance in µm outside it.
_RIM_UM = 25.0
#: Largest numbers of annotations with a name on the picture, and of drawn annotations.
_MOST_TAGS, _MOST_DRAWN = 25, 500


@dataclass(frozen=True)
class Crop:
    """A small part of an image, with the outlines of its nuclei."""

    title: str
    caption: str
    picture: Picture


@dataclass(frozen=True)
class ColourBar:
    """The colours of a density map, its ticks (percent, density), and whether it is cut off."""

    colours: tuple[str, ...]
    ticks: tuple[tuple[float, float], ...]
    sigma_um: float
    cut: bool


@dataclass(frozen=True)
class ImagePictures:
    """The pictures of an image; without nuclei, only the whole image.

    Parameters
    ----------
    whole : Picture or None
        The image with its annotations; None if its pixels cannot be read.
    density : Picture or None
        The density of nuclei, in the colours of `colour_bar`.
    crops : tuple of Crop
    """

    whole: Picture | None = None
    density: Picture | None = None
    colour_bar: ColourBar | None = None
    crops: tuple[Crop, ...] = ()


NO_PICTURES = ImagePictures()


def image_pictures(
    slide: Slide,
    image: CountedImage,
    shown: Sequence[Annotation],
    nuclei: MeasuredNuclei,
    run: Run | None,
    of_run: RunOfImage | None,
    colours: dict[str, str],
) -> ImagePictures:
    """Draw one image.

    Parameters
    ----------
    shown : sequence of Annotation
        Annotations and TMA cores to draw.
    run, of_run
        The run that wrote the nuclei, and the entry of the image in its record.
    colours : dict
        Colour of each entry of the legends so far; new ones are added.

    Raises
    ------
    qpnuclei.errors.QpnucleiError
        If the pixels cannot be read.
    """
    whole = _whole(slide, shown, nuclei.mpp, colours)
    if not len(nuclei.centroids):
        return ImagePictures(whole)
    views = [
        *choose_views(nuclei.centroids, nuclei.certainty, nuclei.area, nuclei.mpp),
        *_seams(slide, image, nuclei, run, of_run),
    ]
    size = slide.width, slide.height
    views = [View(view.title, moved_inside(view.box, size)) for view in views]
    crops = tuple(_crop(slide, nuclei, view) for view in views)
    whole = replace(whole, marks=_marks(whole, views, size))
    return ImagePictures(whole, *_density(nuclei), crops)


def _marks(whole: Picture, views: Sequence[View], size: tuple[int, int]) -> tuple[Mark, ...]:
    """Mark views with their numbers, from 1, on the picture of an image of `size` level-0 px."""
    scale = whole.width / size[0], whole.height / size[1]
    marks: list[Mark] = []
    for number, view in enumerate(views, start=1):
        x0, y0, x1, y1 = np.array(view.box) * (*scale, *scale)
        middle, half = ((x0 + x1) / 2, (y0 + y1) / 2), _LEAST_MARK_PX / 2
        box = shapely.box(
            min(x0, middle[0] - half),
            min(y0, middle[1] - half),
            max(x1, middle[0] + half),
            max(y1, middle[1] + half),
        )
        _, top, right, _ = box.bounds
        # The number is beside its mark, or on it at the edge of the picture; below another number.
        left, top = min(100 * right / whole.width, 97.0), max(100 * top / whole.height, 0.0)
        while any(abs(left - m.left) < _NUMBER and abs(top - m.top) < _NUMBER for m in marks):
            top += _NUMBER
        marks.append(Mark(left, top, str(number), outlines([box], (0, 0), (1, 1))))
    return tuple(marks)


def _density(nuclei: MeasuredNuclei) -> tuple[Picture | None, ColourBar | None]:
    """Return the map of density and its colours; None without a pixel size."""
    if nuclei.mpp is None:
        return None, None
    density = density_map(nuclei.centroids, nuclei.area, nuclei.mpp)
    if density is None:
        return None, None
    picture = density.image()
    bar = scale_bar((density.box[2] - density.box[0]) * nuclei.mpp[0])
    return Picture(embedded(picture, "PNG"), *picture.size, bar), ColourBar(
        viridis_steps(),
        tuple((100 * share, share * density.top) for share in (0.0, 0.25, 0.5, 0.75, 1.0)),
        density.sigma_um,
        bool(np.nanmax(density.values) > density.top),
    )


def _seams(
    slide: Slide,
    image: CountedImage,
    nuclei: MeasuredNuclei,
    run: Run | None,
    of_run: RunOfImage | None,
) -> list[View]:
    """Return views of seams, if the tiles of the last run are known for certain."""
    tile_px = None if run is None else run.arguments.get("tile_px")
    if run is None or of_run is None or not isinstance(tile_px, int) or of_run.mpp is None:
        return []
    if of_run.working_mpp is None or (of_run.tiles or 0) < 2:
        return []
    by_id = {str(area.id): area.geometry for area in image.record.areas}
    areas = [by_id.get(str(identifier)) for identifier in of_run.region_ids]
    known = [area for area in areas if area is not None]
    if not known or len(known) < len(areas):
        return []
    area = union(valid_area(part) for part in known)
    size = slide.width, slide.height
    lengths = {name: run.number(name) for name in ("max_nucleus_um", "cell_expansion_um")}
    known_lengths = {name: value for name, value in lengths.items() if value is not None}
    xs, ys = tile_borders(area, size, of_run.mpp, of_run.working_mpp, tile_px, **known_lengths)
    return seam_views(xs, ys, nuclei.centroids, area, of_run.mpp)


def _whole(
    slide: Slide,
    annotations: Sequence[Annotation],
    mpp: tuple[float, float] | None,
    colours: dict[str, str],
) -> Picture:
    """Draw annotations and TMA cores on the whole image."""
    rgb = slide.thumbnail(*_WHOLE_PX)
    if mpp is not None and mpp[0] != mpp[1]:
        rgb = _with_square_pixels(rgb, mpp)
    height, width = rgb.shape[:2]
    scale = width / slide.width, height / slide.height
    largest = sorted(annotations, key=lambda a: -a.area.area)[:_MOST_DRAWN]
    classes = list(dict.fromkeys(map(_group, annotations)))
    for name in classes:
        colours.setdefault(name, PALETTE[len(colours) % len(PALETTE)])
    paths, tags = [], []
    for annotation in largest:
        data = outlines([annotation.geometry], (0, 0), scale, tolerance_px=0.5)
        if data:
            paths.append(Outline("annotation", data, colours[_group(annotation)]))
    for annotation in largest[:_MOST_TAGS]:
        if annotation.is_area:
            area = shapely.transform(
                annotation.area, lambda xy: 100 * xy / (slide.width, slide.height)
            )
            text = annotation.name or _group(annotation)
            tags.append((area, text, colours[_group(annotation)]))
    bar = scale_bar(None if mpp is None else slide.width * mpp[0])
    legend = tuple((name, colours[name]) for name in classes)
    return Picture(
        embedded(rgb),
        width,
        height,
        bar,
        tuple(paths),
        legible_tags(tags, width / height),
        legend=legend,
    )


def _with_square_pixels(rgb: RGB, mpp: tuple[float, float]) -> RGB:
    """Shorten the axis with the smaller pixels."""
    height, width = rgb.shape[:2]
    least = max(mpp)
    size = max(round(width * mpp[0] / least), 1), max(round(height * mpp[1] / least), 1)
    return np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BOX))


def _group(annotation: Annotation) -> str:
    """Return what the legend calls an annotation or TMA core."""
    if annotation.class_name:
        return annotation.class_name
    return "TMA core" if annotation.kind != "annotation" else "unclassified"


def _crop(slide: Slide, nuclei: MeasuredNuclei, view: View) -> Crop:
    x0, y0, x1, y1 = view.box
    mpp = nuclei.mpp
    if mpp is None:
        width, height = round(x1 - x0), round(y1 - y0)
    else:
        width, height = (
            min(_VIEW_PX, round(length * um / _VIEW_MPP))
            for length, um in ((x1 - x0, mpp[0]), (y1 - y0, mpp[1]))
        )
    downsample = (x1 - x0) / width, (y1 - y0) / height
    left, top = round(x0 / downsample[0]), round(y0 / downsample[1])
    rgb = slide.read(left, top, width, height, downsample)
    origin = left * downsample[0], top * downsample[1]
    rim = 0 if mpp is None else np.array([_RIM_UM / mpp[0], _RIM_UM / mpp[1]])
    low, high = np.array(view.box[:2]), np.array(view.box[2:])
    near = ((nuclei.centroids > low - rim) & (nuclei.centroids < high + rim)).all(axis=1)
    inside = ((nuclei.centroids >= low) & (nuclei.centroids < high)).all(axis=1)
    caption = [number_of(int(np.count_nonzero(inside)), "nucleus")]
    certainty = nuclei.certainty
    if certainty is not None:
        known = certainty[inside & np.isfinite(certainty)]
        if known.size:
            caption.append(f"certainty {known.mean():.2f}")
    if nuclei.positive.any():
        caption.insert(1, f"{np.count_nonzero(inside & nuclei.positive)} positive")
    paths = []
    for style, drawn in (("nucleus", ~nuclei.positive), ("nucleus positive", nuclei.positive)):
        found = nuclei.geometries[near & drawn]
        data = outlines(found, origin, (1 / downsample[0], 1 / downsample[1]))
        if data:
            paths.append(Outline(style, data))
    box = shapely.box(*view.box)
    edge = shapely.difference(shapely.intersection(box, nuclei.area).boundary, box.boundary)
    picture = Picture(
        embedded(rgb),
        width,
        height,
        scale_bar(None if mpp is None else (x1 - x0) * mpp[0]),
        tuple(paths),
        border=outlines([edge], origin, (1 / downsample[0], 1 / downsample[1])),
    )
    return Crop(view.title, ", ".join(caption), picture)
