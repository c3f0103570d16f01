"""The preview as a page and as a picture: tissue, certainty and outlines side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from qpnuclei.errors import number_of
from qpnuclei.report.density import viridis, viridis_steps
from qpnuclei.report.drawing import (
    INK,
    LINE_PX,
    Colour,
    draw_lines,
    draw_rings,
    draw_scale_bar,
    draw_text,
    wrapped,
)
from qpnuclei.report.pictures import Outline, Picture, embedded, outlines, scale_bar
from qpnuclei.report.preview import Field, Setting
from qpnuclei.report.preview_fields import SHOWN_MPP
from qpnuclei.report.rendering import render, write_page
from qpnuclei.slides.pixels import RGB, write_png

#: Side of a field in the picture and gap between two fields, in px.
_PANEL_PX, _GAP_PX = 384, 8
#: Left and right of the text above a panel, and below it, in px.
_MARGIN_PX = 4
_NUCLEUS: Colour = (0, 229, 255)
_NOT_COMPUTED: Colour = (215, 215, 215)


def options_of(setting: Setting, settings: Sequence[Setting]) -> list[str]:
    """Return the options of ``qpnuclei run`` that select one of the settings."""
    options = []
    if setting.model != "default" or any(other.model != setting.model for other in settings):
        options += ["--model", setting.model]
    if setting.threshold is not None:
        options += ["--threshold", f"{setting.threshold:g}"]
    if setting.min_area_um2:
        options += ["--min-area-um2", f"{setting.min_area_um2:g}"]
    return options


def parts_of(setting: Setting, settings: Sequence[Setting]) -> list[str]:
    """Return each option, with its value, in which a setting differs from the others."""
    options = options_of(setting, settings)
    pairs = zip(options[::2], options[1::2], strict=True)
    return [" ".join(pair) for pair in pairs] or ["the model's own settings"]


def label_of(setting: Setting, settings: Sequence[Setting]) -> str:
    """Return the options in which a setting differs from the others."""
    return " ".join(parts_of(setting, settings))


def write_preview(
    fields: Sequence[Field],
    settings: Sequence[Setting],
    path: Path,
    title: str,
    commands: Sequence[str],
) -> None:
    """Write the page, and the picture beside it (``.png``).

    Parameters
    ----------
    fields : sequence of Field
        From `qpnuclei.report.preview.preview_project`.
    settings : (C,) sequence of Setting
    path : Path
        Path of the page.
    title : str
        Name of the project or slide.
    commands : (C,) sequence of str
        For each setting, the command that runs it.

    Raises
    ------
    qpnuclei.errors.SaveError
        If the page or the picture cannot be written.
    """
    parts = [parts_of(setting, settings) for setting in settings]
    models = list(dict.fromkeys(setting.model for setting in settings))
    area = sum(field.area_mm2 for field in fields)
    totals = [sum(field.counts[i] for field in fields) for i in range(len(settings))]
    page = render(
        "preview.html.j2",
        title=f"Preview of {title}",
        what=title,
        fields=[_shown(field, models) for field in fields],
        settings=[
            {"options": options, "command": command, "total": total, "per_mm2": total / area}
            for options, command, total in zip(parts, commands, totals, strict=True)
        ],
        several_models=len(models) > 1,
        colours=viridis_steps(),
    )
    write_page(path, page)
    write_png(path.with_suffix(".png"), picture_of(fields, settings))


def picture_of(fields: Sequence[Field], settings: Sequence[Setting]) -> RGB:
    """Draw all fields in one picture, one per row: tissue, attention, then each setting."""
    models = [
        m for m in dict.fromkeys(c.model for c in settings) if any(m in f.certainty for f in fields)
    ]
    heads = [["tissue"], *(["attention", *[m] * (len(models) > 1)] for m in models)]
    options = [parts_of(setting, settings) for setting in settings]
    rows = [
        _row(field, number, models, heads, options) for number, field in enumerate(fields, start=1)
    ]
    return np.concatenate(rows)


def _row(
    field: Field,
    number: int,
    models: Sequence[str],
    heads: Sequence[Sequence[str]],
    options: Sequence[Sequence[str]],
) -> RGB:
    """Draw a field: where it is, and below it the panels with their heads."""
    tissue = _resized(field.tissue)
    scale = _PANEL_PX / (field.box[2] - field.box[0])
    panels = [tissue, *(_map(field, model) for model in models)]
    for nuclei in field.found:
        panel = tissue.copy()
        draw_rings(panel, nuclei, field.box[:2], scale, _NUCLEUS, 1)
        draw_lines(panel, field.border, field.box[:2], scale, INK, 2)
        panels.append(panel)
    step = _PANEL_PX + _GAP_PX
    width = len(panels) * step - _GAP_PX
    title = _lines([f"Field {number}: {field.image},", field.region], width)
    # The number is on a line of its own, so that it is found at the same place of each panel.
    found = [
        [number_of(count, "nucleus"), *_lines(of_setting, _PANEL_PX)]
        for count, of_setting in zip(field.counts, options, strict=True)
    ]
    words = [*(_lines(head, _PANEL_PX) for head in heads), *found]
    below_title = _MARGIN_PX + len(title) * LINE_PX
    top = below_title + max(map(len, words)) * LINE_PX + _MARGIN_PX
    canvas = Image.new("RGB", (width, top + _PANEL_PX + _GAP_PX), "white")
    _write(canvas, title, (0, _MARGIN_PX))
    for column, (panel, lines) in enumerate(zip(panels, words, strict=True)):
        picture = Image.fromarray(panel)
        if column == 0:
            draw_scale_bar(picture, field.mpp[0] / scale)
        canvas.paste(picture, (column * step, top))
        _write(canvas, lines, (column * step, below_title))
    return np.asarray(canvas)


def _lines(parts: Iterable[str], width: int) -> list[str]:
    # Pillow's font has no µ.
    return wrapped((part.replace("µ", "u") for part in parts), width - 2 * _MARGIN_PX)


def _write(canvas: Image.Image, lines: Sequence[str], at: tuple[int, int]) -> None:
    for number, line in enumerate(lines):
        draw_text(canvas, line, (at[0] + _MARGIN_PX, at[1] + number * LINE_PX), INK)


def _shown(field: Field, models: Sequence[str]) -> dict[str, object]:
    height, width = field.tissue.shape[:2]
    scale = (width / (field.box[2] - field.box[0]), height / (field.box[3] - field.box[1]))
    bar = scale_bar(width * SHOWN_MPP)
    border = outlines([field.border], field.box[:2], scale)
    return {
        "image": field.image,
        "region": field.region,
        "tissue": Picture(embedded(field.tissue), width, height, bar),
        "maps": [
            (model, Picture(embedded(_coloured(field.certainty[model])), width, height, bar))
            for model in models
            if model in field.certainty
        ],
        "found": [
            (
                len(nuclei),
                Picture(
                    "",
                    width,
                    height,
                    bar,
                    (Outline("nucleus", outlines(nuclei.polygons(), field.box[:2], scale)),),
                    border=border,
                ),
            )
            for nuclei in field.found
        ],
    }


def _coloured(certainty: npt.NDArray[np.float32]) -> RGB:
    colours = viridis(np.linspace(0, 1, 256))
    known = np.nan_to_num(certainty, nan=0.0)
    made = np.asarray(colours[np.rint(known * 255).astype(np.uint8)], np.uint8)
    made[np.isnan(certainty)] = _NOT_COMPUTED  # beyond the tiles of the annotation
    return made


def _map(field: Field, model: str) -> RGB:
    if model not in field.certainty:
        return np.full((_PANEL_PX, _PANEL_PX, 3), 255, np.uint8)
    return _resized(_coloured(field.certainty[model]))


def _resized(rgb: RGB) -> RGB:
    how = cv2.INTER_AREA if max(rgb.shape) > _PANEL_PX else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(rgb, (_PANEL_PX, _PANEL_PX), interpolation=how), np.uint8)
