"""The report: one page for up to `MOST_ON_A_PAGE` images, or an index and one page per image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from qpnuclei.errors import QpnucleiError, UsageError, standing_alone
from qpnuclei.qupath.model import ImageEntry, Project
from qpnuclei.qupath.pixel_size import AskedMpp
from qpnuclei.qupath.project_counts import warn_of_missing_classes
from qpnuclei.report.comparison import ImageSummary, annotations_of, comparison
from qpnuclei.report.content import ImageContent, image_content
from qpnuclei.report.methods import methods
from qpnuclei.report.rendering import render, write_page
from qpnuclei.report.runs import Run, images_of, read_run
from qpnuclei.report.tables import table_values

#: Name of the page in the folder of a run.
PAGE = "report.html"
#: Most images on one page; with more, each image has a page of its own.
MOST_ON_A_PAGE = 20
#: Note for an image that an earlier run finished but the newest did not.
_OF_EARLIER = " (its numbers are those of an earlier run)"


@dataclass(frozen=True)
class ReportOptions:
    """Options of a report.

    Parameters
    ----------
    nucleus_classes : tuple of str or None
        Passed to `qpnuclei.qupath.counts.count_objects`. By default, all detections and cells count
        in images without a run.
    pixel_sizes : AskedMpp
        Pixel sizes that the user gave.
    """

    nucleus_classes: tuple[str, ...] | None = None
    pixel_sizes: AskedMpp = field(default_factory=AskedMpp)


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
        The page. With many images, their pages are in the folder ``<name>-images`` beside it.
    runs : sequence of Run
        Runs on these images, newest first.
    progress : callable
        Called as ``progress(images done, image that is next)``.

    Returns
    -------
    list of (ImageEntry, QpnucleiError)
        The images that could not be read and are not in the report.

    Raises
    ------
    UsageError
        If `path` is not a name for a page.
    qpnuclei.errors.SaveError
        If the page cannot be written.
    """
    check_page_name(path)
    options = options or ReportOptions()
    alone = len(entries) > MOST_ON_A_PAGE
    folder = path.with_name(f"{path.stem}-images")
    name = f"{project.path.parent.name}/{project.path.name}"
    shown: list[ImageSummary] = []
    sections: list[Markup] = []
    failures: list[tuple[ImageEntry, QpnucleiError]] = []
    unfinished: list[tuple[str, str]] = []
    used: dict[Path, Run] = {}
    classes: set[str | None] = set()
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
        classes |= content.classes
        run = content.written_by
        if run is not None:
            used.setdefault(run.path, run)
        reason = _unfinished_since(runs, entry.id)
        if reason:
            is_earlier = run is not None or content.is_unrecorded
            unfinished.append((entry.name, reason + _OF_EARLIER * is_earlier))
        section = Markup(
            render(
                "image.html.j2",
                image=content,
                unfinished=reason,
                only=len(entries) == 1,
                **table_values(),
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
    warn_of_missing_classes(options.nucleus_classes, classes)
    shown_ids = {entry.id for entry in entries}
    others = [part for run in used.values() for part in run.unfinished]
    problems = [(entry.name, error.what) for entry, error in failures] + unfinished
    problems += [(image, reason) for entry, image, reason in others if entry not in shown_ids]
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
        **comparison(shown),
        **_methods(shown, list(used.values())),
        **table_values(),
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
    """Check that the name of a page is one that browsers open.

    Raises
    ------
    UsageError
        If the name does not end in ``.html`` or ``.htm``.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{str(path)!r} is not the name of a page", "use a name ending in .html")


def _page_name(number: int) -> str:
    return f"{number:04d}.html"


def _kept(content: ImageContent, link: str, counts_all: bool) -> ImageSummary:
    return ImageSummary(
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


def _methods(shown: Sequence[ImageSummary], runs: Sequence[Run]) -> dict[str, Any]:
    rows = [row for image in shown for row in image.rows if row["nuclei"] is not None]
    annotations = annotations_of(rows)
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


_quoted = partial(jinja2.filters.do_urlencode)
