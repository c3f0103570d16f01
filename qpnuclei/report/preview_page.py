"""The preview as a page and as a picture: tissue, certainty and outlines side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from qpnuclei.report.density import viridis, viridis_steps
from qpnuclei.report.drawing import INK, Colour, draw_lines, draw_rings, draw_scale_bar, draw_text
from qpnuclei.report.pictures import Outline, Picture, embedded, outlines, scale_bar
from qpnuclei.report.preview import Field, Setting
from qpnuclei.report.preview_fields import SHOWN_MPP
from qpnuclei.report.rendering import render, write_page
from qpnuclei.slides.pixels import RGB, write_png

#: Side of a field in the picture and gap between two fields, in px.
_PANEL_PX, _GAP_PX = 384, 8
_HEAD_PX = 34
_NUCLEUS: Colour = (0, 229, 255)


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


def label_of(setting: Setting, settings: Sequence[Setting]) -> str:
    """Return the options in which a setting differs from the others."""
    return " ".join(options_of(setting, settings)) or "the model's own settings"


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
    labels = [label_of(setting, settings) for setting in settings]
    models = list(dict.fromkeys(setting.model for setting in settings))
    area = sum(field.area_mm2 for field in fields)
    totals = [sum(field.counts[i] for field in fields) for i in range(len(settings))]
    page = render(
        "preview.html.j2",
        title=f"Preview of {title}",
        what=title,
        fields=[_shown(field, models) for field in fields],
        settings=[
            {"label": label, "command": command, "total": total, "per_mm2": total / area}
            for label, command, total in zip(labels, commands, totals, strict=True)
        ],
        several_models=len(models) > 1,
        colours=viridis_steps(),
    )
    write_page(path, page)
    write_png(path.with_suffix(".png"), picture_of(fields, settings))


def picture_of(fields: Sequence[Field], settings: Sequence[Setting]) -> RGB:
    """Draw all fields in one picture, one per row: tissue, certainty, then each setting."""
    labels = [label_of(setting, settings) for setting in settings]
    models = [
        m for m in dict.fromkeys(c.model for c in settings) if any(m in f.certainty for f in fields)
    ]
    heads = [
        "tissue",
        *(f"certainty {m}" if len(models) > 1 else "certainty" for m in models),
        *labels,
    ]
    step = _PANEL_PX + _GAP_PX
    height = len(fields) * (step + _HEAD_PX)
    canvas = Image.new("RGB", (len(heads) * step - _GAP_PX, height), "white")
    for row, field in enumerate(fields):
        tissue = _resized(field.tissue)
        panels = [tissue, *(_map(field, model) for model in models)]
        words = list(heads)
        scale = _PANEL_PX / (field.box[2] - field.box[0])
        for number, nuclei in enumerate(field.found):
            panel = tissue.copy()
            draw_rings(panel, nuclei, field.box[:2], scale, _NUCLEUS, 1)
            draw_lines(panel, field.border, field.box[:2], scale, INK, 2)
            panels.append(panel)
            words[len(heads) - len(labels) + number] += f": {len(nuclei)}"
        for column, (panel, word) in enumerate(zip(panels, words, strict=True)):
            picture = Image.fromarray(panel)
            if column == 0:
                draw_scale_bar(picture, field.mpp[0] / scale)
            at = column * step, row * (step + _HEAD_PX)
            canvas.paste(picture, (at[0], at[1] + _HEAD_PX))
            draw_text(canvas, word.replace("µ", "u"), (at[0] + 4, at[1] + 8), INK)
    return np.asarray(canvas)


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
    return np.asarray(colours[np.rint(known * 255).astype(np.uint8)], np.uint8)


def _map(field: Field, model: str) -> RGB:
    if model not in field.certainty:
        return np.full((_PANEL_PX, _PANEL_PX, 3), 255, np.uint8)
    return _resized(_coloured(field.certainty[model]))


def _resized(rgb: RGB) -> RGB:
    how = cv2.INTER_AREA if max(rgb.shape) > _PANEL_PX else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(rgb, (_PANEL_PX, _PANEL_PX), interpolation=how), np.uint8)
