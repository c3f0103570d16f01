"""The report: one page for up to `MOST_ON_A_PAGE` images, for more an index and a page each."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache, partial
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from qpnuclei._version import __version__
from qpnuclei.choices import CERTAINTY
from qpnuclei.errors import QpnucleiError, UsageError, standing_alone
from qpnuclei.qupath.count_table import CLASS_SHARES, TEXT_COLUMNS
from qpnuclei.qupath.counts import Row
from qpnuclei.qupath.model import ImageEntry, Project
from qpnuclei.qupath.pixel_size import AskedMpp
from qpnuclei.report.content import ImageContent, image_content
from qpnuclei.report.methods import methods
from qpnuclei.report.pictures import round_length
from qpnuclei.report.runs import Run, images_of, read_run
from qpnuclei.system.files import write_atomically

#: Name of the page in the folder of a run.
PAGE = "report.html"
#: Most images on one page; with more, each image has a page of its own.
MOST_ON_A_PAGE = 20
#: Rows of the tables of a page; and rows with all columns.
_MOST_ROWS, _MOST_FULL_ROWS = 200, 40

#: What is said of an image that an earlier run has finished, and the newest has not.
_OF_EARLIER = " (its numbers are those of an earlier run)"

#: Columns of the tables that people read, of those of an export, and how they are called there.
_COLUMNS = (
    ("annotation", "annotation"),
    ("type", "type"),
    ("class", "class"),
    ("status", "status"),
    ("area_mm2", "mm²"),
    ("analysed_mm2", "analysed mm²"),
    ("nuclei", "nuclei"),
    ("nuclei_per_mm2", "per mm²"),
    ("Area µm^2 (median)", "median µm²"),
    ("Hematoxylin: Mean (mean)", "haematoxylin"),
    (f"{CERTAINTY} (mean)", "certainty"),
    ("check", "check"),
)
#: How they are called where the nuclei are those of cells.
_OF_CELLS = {
    name: f"Nucleus: {name}" for name in ("Area µm^2 (median)", "Hematoxylin: Mean (mean)")
}
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
class ReportOptions:
    """Options of a report.

    Parameters
    ----------
    nucleus_classes : tuple of str or None
        As `qpnuclei.qupath.counts.count_objects` takes them. By default, in images where no run has
        been, all detections and cells count.
    pixel_sizes : AskedMpp
        What the user says of pixel sizes.
    """

    nucleus_classes: tuple[str, ...] | None = None
    pixel_sizes: AskedMpp = field(default_factory=AskedMpp)


@dataclass(frozen=True)
class _Shown:
    """The data of an image that the first page needs."""

    name: str
    link: str
    row: Row
    rows: list[Row]
    class_rows: list[Row]
    doubts: list[str]
    counts_all: bool
    stained: bool
    is_unrecorded: bool
    image_type: str | None


def write_report(
    project: Project,
    entries: Sequence[ImageEntry],
    path: Path,
    runs: Sequence[Run] = (),
    options: ReportOptions | None = None,
    progress: Callable[[int, str], object] = lambda done, image: None,
) -> list[tuple[ImageEntry, QpnucleiError]]:
    """Write the report of some images of a project.

    Parameters
    ----------
    path : Path
        The page; with many images, theirs lie in a folder beside it, ``<name>-images``.
    runs : sequence of Run
        That were in these images, the newest first.
    progress : callable
        Called as ``progress(images done, image that is next)``.

    Returns
    -------
    list of (ImageEntry, QpnucleiError)
        The images that are not in it because they cannot be read.

    Raises
    ------
    UsageError
        If `path` is not that of a page.
    qpnuclei.errors.SaveError
        If it cannot be written.
    """
    check_page_name(path)
    options = options or ReportOptions()
    alone = len(entries) > MOST_ON_A_PAGE
    folder = path.with_name(f"{path.stem}-images")
    name = f"{project.path.parent.name}/{project.path.name}"
    shown: list[_Shown] = []
    sections: list[Markup] = []
    failures: list[tuple[ImageEntry, QpnucleiError]] = []
    unfinished: list[tuple[str, str]] = []
    used: dict[Path, Run] = {}
    for number, entry in enumerate(entries, start=1):
        progress(number - 1, entry.name)

        def fail(error: QpnucleiError, entry: ImageEntry = entry) -> None:
            failures.append((entry, error))

        read: list[ImageContent] = []
        with standing_alone(f"image {entry.name}", fail):
            read.append(
                image_content(
                    project, entry, number, runs, options.nucleus_classes, options.pixel_sizes
                )
            )
        if not read:
            continue
        content = read[0]
        run = content.written_by
        if run is not None:
            used.setdefault(run.path, run)
        since = _unfinished_since(runs, entry.id)
        if since:
            is_earlier = run is not None or content.is_unrecorded
            unfinished.append((entry.name, since + _OF_EARLIER * is_earlier))
        section = Markup(
            render(
                "image.html.j2",
                image=content,
                unfinished=since,
                only=len(entries) == 1,
                **_tables(),
            )
        )
        if alone:
            before, after = (
                _page_name(n) if 1 <= n <= len(entries) else "" for n in (number - 1, number + 1)
            )
            page = render(
                "image_page.html.j2",
                title=entry.name,
                section=section,
                index=f"../{_quoted(path.name)}",
                previous=before,
                next=after,
            )
            write_page(folder / _page_name(number), page)
        else:
            sections.append(section)
        link = f"{_quoted(folder.name)}/{_page_name(number)}" if alone else f"#image-{number}"
        shown.append(_kept(content, link, options.nucleus_classes is not None))
    progress(len(entries), "")
    there = {entry.id for entry in entries}
    others = [part for run in used.values() for part in run.unfinished]
    problems = [(entry.name, error.what) for entry, error in failures] + unfinished
    problems += [(image, reason) for entry, image, reason in others if entry not in there]
    page = render(
        "report.html.j2",
        title=f"Nuclei in {name}",
        project=name,
        made=f"{datetime.now().astimezone():%Y-%m-%d %H:%M}",
        images=shown,
        sections=sections,
        runs=list(used.values()),
        unrecorded=[image.name for image in shown if image.is_unrecorded],
        problems=problems,
        **_comparison(shown),
        **_methods(shown, list(used.values())),
        **_tables(),
    )
    write_page(path, page)
    return failures


def _unfinished_since(runs: Sequence[Run], entry_id: str) -> str:
    """Return why the newest run of an image did not finish it; empty if it did."""
    for run in runs:
        if run.of_image(entry_id) is not None:
            break
        reason = run.why_unfinished(entry_id)
        if reason is not None:
            return reason
    return ""


def write_report_of_run(
    project: Project,
    folder: Path,
    progress: Callable[[int, str], object] = lambda done, image: None,
) -> tuple[Path, list[tuple[ImageEntry, QpnucleiError]]]:
    """Write the report of a run into its folder; see `write_report`.

    Returns
    -------
    (Path, list of (ImageEntry, QpnucleiError))
        The page, and the images that are not in it.
    """
    run = read_run(folder)
    path = folder / PAGE
    return path, write_report(
        project, images_of(run, project.images), path, [run], progress=progress
    )


def check_page_name(path: Path) -> None:
    """Refuse the name of a page that no browser would open.

    Raises
    ------
    UsageError
        If it does not end in ``.html`` or ``.htm``.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{str(path)!r} is not the name of a page", "let it end in .html")


def _page_name(number: int) -> str:
    return f"{number:04d}.html"


def _kept(content: ImageContent, link: str, counts_all: bool) -> _Shown:
    return _Shown(
        name=content.name,
        link=link,
        row=content.row,
        rows=content.rows,
        class_rows=content.class_rows,
        doubts=content.doubts,
        counts_all=counts_all or content.others is not None,
        stained=any("aematoxylin" in histogram.title for histogram in content.histograms),
        is_unrecorded=content.is_unrecorded,
        image_type=content.entry.image_type,
    )


def _comparison(shown: Sequence[_Shown]) -> dict[str, Any]:
    """Return the comparison on the first page: classes and annotations over all images."""
    # What was not analysed, such as areas that a run left out, says nothing.
    rows = sorted((row for i in shown for row in i.rows), key=lambda row: row["nuclei"] is None)
    annotations = _annotations(rows)
    classes = _pooled(shown, annotations)
    top = max(_numbers(row["nuclei_per_mm2"] for row in rows), default=0.0)
    analysed = [image.row["analysed_mm2"] for image in shown]
    return {
        "classes": classes,
        "class_columns": _CLASS_COLUMNS,
        "annotations": rows[:_MOST_ROWS],
        "densest": top,
        "densest_image": max(_numbers(image.row["nuclei_per_mm2"] for image in shown), default=0),
        **_strips(classes, annotations),
        "total": {
            "nuclei": sum(image.row["nuclei"] or 0 for image in shown),
            "rows": len(rows),
            "annotations": len(annotations),
            "cores": len(rows) - len(annotations),
            "mm2": sum(_numbers(analysed)),
            "doubtful": sum(bool(image.doubts) for image in shown),
        },
    }


def _pooled(shown: Sequence[_Shown], rows: Sequence[Row]) -> list[Row]:
    """Return a row for each class over all images: sums of the exported counts."""
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
    return list(pooled.values())


def _annotations(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of annotations, without those of TMA cores."""
    return [row for row in rows if row["type"] == "annotation"]


def _strips(classes: Sequence[Row], rows: Sequence[Row]) -> dict[str, Any]:
    """Return the positions of the annotations of each class on an axis of density, in percent."""
    top = max(_numbers(row["nuclei_per_mm2"] for row in rows), default=0.0)
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
                f"{_shown(row['nuclei_per_mm2'])}",
            )
            for row in rows
            if (row["class"] or "unclassified") == of_class["class"]
            and _is_number(row["nuclei_per_mm2"])
        ]
        mean = of_class["nuclei_per_mm2"]
        if dots:
            strips.append(
                {
                    "name": of_class["class"],
                    "dots": dots[:_MOST_ROWS],
                    "mean": min(100 * mean / end, 100) if _is_number(mean) else None,
                }
            )
    ticks = [(100 * i * step / end, _shown(i * step)) for i in range(round(end / step) + 1)]
    return {"strips": strips, "strip_ticks": ticks}


def _methods(shown: Sequence[_Shown], runs: Sequence[Run]) -> dict[str, Any]:
    rows = [row for image in shown for row in image.rows if row["nuclei"] is not None]
    annotations = _annotations(rows)
    classes = dict.fromkeys(row["class"] for row in annotations if row["class"])
    images = Counter(image.image_type for image in shown if image.row["nuclei"] is not None)
    stained = any(image.stained for image in shown)
    unrecorded = sum(image.is_unrecorded for image in shown)
    cores = len(rows) - len(annotations)
    text, references = methods(
        runs, unrecorded, images, len(annotations), cores, list(classes), stained
    )
    models = dict.fromkeys(str(m.get("name") or "unknown") for run in runs for m in run.models)
    return {"methods": text, "references": references, "models": list(models)}


def _columns(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Return the columns of a table that people read, and how they are called there."""
    # Most projects have annotations and nothing else.
    one_type = all(row["type"] == "annotation" for row in rows)
    shares = dict.fromkeys(name for row in rows for name in row if name.endswith(CLASS_SHARES))
    columns = [part for part in _COLUMNS if not (part[0] == "type" and one_type)]
    return [*columns[:-1], *((name, name) for name in shares), columns[-1]]


def _readable(rows: Iterable[Row]) -> list[Row]:
    """Return rows where the nuclei of cells and other nuclei have the same columns.

    Where a row has both, each summary is of a part of its nuclei: it gets none.
    """
    readable = []
    for row in rows:
        of_cells = {name: row.get(of_cell) for name, of_cell in _OF_CELLS.items()}
        if any(map(_is_number, of_cells.values())):
            is_mixed = any(_is_number(row.get(name)) for name in of_cells)
            row = {**row, **(dict.fromkeys(of_cells) if is_mixed else of_cells)}
        readable.append(row)
    return readable


def _tables() -> dict[str, Any]:
    return {
        "columns": _columns,
        "readable": _readable,
        "all_columns": lambda rows: [
            (column, column)
            for column in dict.fromkeys(name for row in rows for name in row)
            if column not in ("project", "image", "image_id")
        ],
        "most_rows": _MOST_ROWS,
        "most_full_rows": _MOST_FULL_ROWS,
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _numbers(values: Iterable[Any]) -> list[float]:
    return [value for value in values if _is_number(value)]


def _shown(value: float | None) -> str:
    """Format a number for readers: whole, or with three significant digits."""
    if value is None or not math.isfinite(value):
        return "–"
    if isinstance(value, int) or abs(value) >= 100 or value == 0:
        return f"{value:,.0f}"
    return f"{value:#.3g}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("qpnuclei.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.globals.update(version=__version__, text_columns=TEXT_COLUMNS)
    environment.filters.update(
        shown=_shown, duration=_duration, is_number=_is_number, is_nan=_is_nan
    )
    return environment


def render(template: str, **values: Any) -> str:
    """Return a page, or a part of one, from its template."""
    return _environment().get_template(template).render(**values)


def write_page(path: Path, page: str) -> None:
    """Write a page in one step."""
    # File names may hold bytes that are not text.
    write_atomically(path, page.encode(errors="backslashreplace"))


_quoted = partial(jinja2.filters.do_urlencode)
