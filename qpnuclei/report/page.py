"""The report: one page for up to `MOST_ON_A_PAGE` images, or an index and one page per image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup

from qpnuclei.errors import QpnucleiError, UsageError, standing_alone
from qpnuclei.qupath.model import ImageEntry, Project
from qpnuclei.qupath.names import project_name
from qpnuclei.qupath.pixel_size import AskedMpp
from qpnuclei.qupath.project_counts import warn_of_missing_classes
from qpnuclei.qupath.targets import check_target
from qpnuclei.report.comparison import ImageSummary, annotations_of, comparison
from qpnuclei.report.content import ImageContent, image_content
from qpnuclei.report.image_pages import ImagePages
from qpnuclei.report.methods import methods
from qpnuclei.report.rendering import render, write_page
from qpnuclei.report.runs import Run, images_of, read_run, with_others
from qpnuclei.report.tables import table_values
from qpnuclei.system.files import Save, check_file_target, write_atomically

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
    save: Save = write_atomically,
    missing: Sequence[tuple[str, str]] = (),
) -> list[tuple[ImageEntry, QpnucleiError]]:
    """Write the report of some images of a project.

    Parameters
    ----------
    path : Path
        The page. With many images, their pages are in the folder ``<name>-images`` beside it; pages
        of a former report there are replaced, and removed if this report does not have them.
    runs : sequence of Run
        Runs on these images, newest first.
    progress : callable
        Called as ``progress(images done, image that is next)``.
    save : callable
        Writes the page to the path.
    missing : sequence of (str, str)
        Names of slides that should be in the project and are not, and why.

    Returns
    -------
    list of (ImageEntry, QpnucleiError)
        The images that could not be read and are not in the report.

    Raises
    ------
    UsageError
        If `path` is not a name for a page, or is a file of the project.
    qpnuclei.errors.SaveError
        If the page cannot be written.
    """
    check_page(path)
    check_target(project, path)
    report = _Report(project, entries, path, runs, options or ReportOptions())
    for number, entry in enumerate(entries, start=1):
        progress(number - 1, entry.name)
        report.add(number, entry)
    progress(len(entries), "")
    report.write(save, missing)
    return report.failures


class _Report:
    """The report while it is made: what its page needs of the images so far."""

    def __init__(
        self,
        project: Project,
        entries: Sequence[ImageEntry],
        path: Path,
        runs: Sequence[Run],
        options: ReportOptions,
    ) -> None:
        self._project = project
        self._entries = entries
        self._path = path
        self._runs = runs
        self._options = options
        self._pages = ImagePages(path)
        self._is_divided = len(entries) > MOST_ON_A_PAGE
        self._shown: list[ImageSummary] = []
        self._sections: list[Markup] = []
        self._unfinished: list[tuple[str, str]] = []
        self._used: dict[Path, Run] = {}
        self._classes: set[str | None] = set()
        self.failures: list[tuple[ImageEntry, QpnucleiError]] = []
        self._colours: dict[str, str] = {}

    def add(self, number: int, entry: ImageEntry) -> None:
        """Add an image, the `number`-th from 1; or note why it cannot be read."""
        content = self._content(number, entry)
        if content is None:
            return
        self._classes |= content.classes
        run = content.written_by
        for used in content.runs:
            self._used.setdefault(used.path, used)
        reason = _unfinished_since(self._runs, entry.id)
        if reason:
            is_earlier = run is not None or content.is_unrecorded
            self._unfinished.append((entry.name, reason + _OF_EARLIER * is_earlier))
        link = self._place(number, entry, self._section(content, reason))
        self._shown.append(_kept(content, link, self._options.nucleus_classes is not None))

    def _content(self, number: int, entry: ImageEntry) -> ImageContent | None:
        """Return what is shown of an image; None if it cannot be read, which is noted."""

        def fail(error: QpnucleiError) -> None:
            self.failures.append((entry, error))

        with standing_alone(f"image {entry.name}", fail):
            return image_content(
                self._project,
                entry,
                number,
                self._runs,
                self._options.nucleus_classes,
                self._options.pixel_sizes,
                self._colours,
            )
        return None

    def _section(self, content: ImageContent, unfinished: str) -> Markup:
        """Return the part of a page that shows an image."""
        return Markup(
            render(
                "image.html.j2",
                image=content,
                unfinished=unfinished,
                only=len(self._entries) == 1,
                **table_values(),
            )
        )

    def _place(self, number: int, entry: ImageEntry, section: Markup) -> str:
        """Put the section of an image on its own page, or keep it; return the link to it."""
        if not self._is_divided:
            self._sections.append(section)
            return f"#image-{number}"
        return self._pages.add(number, entry.name, section)

    def write(self, save: Save, missing: Sequence[tuple[str, str]]) -> None:
        """Write the page of all images; `missing` is as for `write_report`."""
        warn_of_missing_classes(self._options.nucleus_classes, self._classes)
        name = project_name(self._project)
        runs = list(self._used.values())
        page = render(
            "report.html.j2",
            title=f"Nuclei in {name}",
            project=name,
            made=f"{datetime.now().astimezone():%Y-%m-%d %H:%M}",
            images=self._shown,
            sections=self._sections,
            runs=runs,
            unrecorded=[image.name for image in self._shown if image.is_unrecorded],
            problems=[*missing, *self._problems(runs)],
            **comparison(self._shown),
            **_methods(self._shown, runs),
            **table_values(),
        )
        self._pages.finish()
        write_page(self._path, page, save)
        self._pages.remove_others()

    def _problems(self, runs: Sequence[Run]) -> list[tuple[str, str]]:
        """Return the images that are not in the report, or not finished, and why."""
        entries = {entry.id for entry in self._entries}
        return [
            *((entry.name, error.what) for entry, error in self.failures),
            *self._unfinished,
            *((name, why) for run in runs for i, name, why in run.unfinished if i not in entries),
        ]


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
        project,
        images_of(run, project.images),
        path,
        with_others(run, project.path.parent),
        progress=progress,
    )


def check_page(path: Path) -> None:
    """Check, before long work, that a page can be written there and that browsers open it.

    Raises
    ------
    UsageError
        If the name does not end in ``.html`` or ``.htm``.
    qpnuclei.errors.SaveError
        As `check_file_target`.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{str(path)!r} is not the name of a page", "use a name ending in .html")
    check_file_target(path)


def _kept(content: ImageContent, link: str, counts_all: bool) -> ImageSummary:
    return ImageSummary(
        name=content.name,
        link=link,
        row=content.row,
        rows=content.rows,
        class_rows=content.class_rows,
        drawn_nuclei=content.drawn_nuclei,
        doubts=content.doubts,
        counts_all=counts_all or content.others is not None,
        stained=any("aematoxylin" in histogram.title for histogram in content.histograms),
        is_unrecorded=content.is_unrecorded,
        otherwise=content.otherwise,
        locked=content.locked,
        foreign=content.foreign,
        image_type=content.entry.image_type,
        runs=content.runs,
        filters=content.filters,
    )


def _methods(shown: Sequence[ImageSummary], runs: Sequence[Run]) -> dict[str, Any]:
    rows = [row for image in shown for row in image.rows if row["nuclei"] is not None]
    annotations = annotations_of(rows)
    classes = dict.fromkeys(row["class"] for row in annotations if row["class"])
    images = Counter(image.image_type for image in shown if image.row["nuclei"] is not None)
    stained = any(image.stained for image in shown)
    unrecorded = sum(image.is_unrecorded for image in shown)
    cores = len(rows) - len(annotations)
    otherwise = sum(image.otherwise for image in shown)
    locked = sum(image.locked for image in shown)
    foreign = sum(image.foreign for image in shown)
    used = [(run, {i for i, image in enumerate(shown) if run in image.runs}) for run in runs]
    filters = Counter(one for image in shown for one in image.filters)
    counts_all = {image.counts_all for image in shown if image.row["nuclei"] is not None}
    text, references = methods(
        used,
        unrecorded,
        images,
        len(annotations),
        cores,
        list(classes),
        stained,
        otherwise=otherwise,
        locked=locked,
        foreign=foreign,
        filters=filters,
        counts_all=counts_all,
    )
    models = dict.fromkeys(str(m.get("name") or "unknown") for run in runs for m in run.models)
    return {"methods": text, "references": references, "models": list(models)}
