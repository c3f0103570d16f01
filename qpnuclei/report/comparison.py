"""The comparison on the first page of a report: classes and annotations over all images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qpnuclei.choices import IGNORE_CLASS
from qpnuclei.qupath.counts import Row
from qpnuclei.report.pictures import round_length
from qpnuclei.report.rendering import format_number, is_number, numbers
from qpnuclei.report.runs import Run
from qpnuclei.report.tables import MOST_ROWS

_CLASS_COLUMNS = (
    ("class", "class"),
    ("images", "images"),
    ("annotations", "annotations"),
    ("area_mm2", "mm²"),
    ("analysed_mm2", "analysed mm²"),
    ("nuclei", "nuclei"),
    ("nuclei_per_mm2", "per mm²"),
)


@dataclass(frozen=True)
class ImageSummary:
    """The data of an image that the first page needs."""

    name: str
    link: str
    row: Row
    rows: list[Row]
    class_rows: list[Row]
    drawn_nuclei: int
    doubts: list[str]
    counts_all: bool
    stained: bool
    is_unrecorded: bool
    otherwise: int
    locked: int
    foreign: int
    image_type: str | None
    runs: tuple[Run, ...]
    filters: tuple[tuple[float, tuple[str, ...], bool], ...]


def comparison(shown: Sequence[ImageSummary]) -> dict[str, Any]:
    """Return the comparison on the first page: classes and annotations over all images."""
    # Rows without nuclei come last; of a few marks of artefacts in each slide they would be most.
    rows = sorted((row for i in shown for row in i.rows), key=lambda row: row["nuclei"] is None)
    annotations = annotations_of(rows)
    compared = [row for row in rows if row["nuclei"] is not None or row["class"] != IGNORE_CLASS]
    classes = _pooled(shown, annotations)
    top = max(numbers(row["nuclei_per_mm2"] for row in rows), default=0.0)
    analysed = [image.row["analysed_mm2"] for image in shown]
    return {
        "classes": classes,
        "class_columns": _CLASS_COLUMNS,
        "annotations": compared[:MOST_ROWS],
        "densest": top,
        "densest_image": max(numbers(image.row["nuclei_per_mm2"] for image in shown), default=0),
        **_strips(classes, annotations),
        "total": {
            "nuclei": sum(image.row["nuclei"] or 0 for image in shown),
            "rows": len(compared),
            "ignored": len(rows) - len(compared),
            "drawn_nuclei": sum(image.drawn_nuclei for image in shown),
            "annotations": len(annotations),
            "cores": len(rows) - len(annotations),
            "mm2": sum(numbers(analysed)),
            "doubtful": sum(bool(image.doubts) for image in shown),
        },
    }


def _pooled(shown: Sequence[ImageSummary], rows: Sequence[Row]) -> list[Row]:
    """Return a row for each class over all images: sums of the rows of `export --by class`.

    So overlaps of annotations of one class, and the nuclei in them, count once.
    """
    pooled: dict[str | None, Row] = {}
    for row, counts_all in ((row, i.counts_all) for i in shown for row in i.class_rows):
        of_class = pooled.setdefault(
            row["class"],
            {
                "class": row["class"] or "unclassified",
                "images": 0,
                "annotations": sum(r["class"] == row["class"] for r in rows),
                "area_mm2": 0.0,
                "analysed_mm2": 0.0,
                "nuclei": None,
                "_of_density": 0.0,
            },
        )
        of_class["images"] += 1
        of_class["area_mm2"] += row["area_mm2"]
        of_class["analysed_mm2"] += row["analysed_mm2"]
        if row["nuclei"] is not None:
            of_class["nuclei"] = (of_class["nuclei"] or 0) + row["nuclei"]
            # The area that the density of the row refers to.
            of_class["_of_density"] += row["area_mm2" if counts_all else "analysed_mm2"]
    for row in pooled.values():
        area = row.pop("_of_density")
        known = row["nuclei"] is not None and area > 0
        row["nuclei_per_mm2"] = row["nuclei"] / area if known else math.nan
    return [
        row for row in pooled.values() if row["nuclei"] is not None or row["class"] != IGNORE_CLASS
    ]


def annotations_of(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of annotations, without those of TMA cores."""
    return [row for row in rows if row["type"] == "annotation"]


def _strips(classes: Sequence[Row], rows: Sequence[Row]) -> dict[str, Any]:
    """Return the positions of the annotations of each class on an axis of density, in percent."""
    top = max(numbers(row["nuclei_per_mm2"] for row in rows), default=0.0)
    if not top > 0:
        return {"strips": [], "strip_ticks": []}
    step = round_length(top / 3)
    end = math.ceil(top / step) * step
    strips = []
    for of_class in classes:
        dots = [
            (
                100 * row["nuclei_per_mm2"] / end,
                f"{row['image']}, {row['annotation'] or row['class']}: "
                f"{format_number(row['nuclei_per_mm2'])}",
            )
            for row in rows
            if (row["class"] or "unclassified") == of_class["class"]
            and is_number(row["nuclei_per_mm2"])
        ]
        mean = of_class["nuclei_per_mm2"]
        if dots:
            strips.append(
                {
                    "name": of_class["class"],
                    "dots": dots[:MOST_ROWS],
                    "mean": min(100 * mean / end, 100) if is_number(mean) else None,
                }
            )
    ticks = [(100 * i * step / end, format_number(i * step)) for i in range(round(end / step) + 1)]
    return {"strips": strips, "strip_ticks": ticks}
