"""A run of slides: a project is made of them, and its results are written into a folder."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qpnuclei.cli.running import (
    analyse,
    asked_for,
    print_summary,
    show_plan,
)
from qpnuclei.errors import QpnucleiError, standing_alone

if TYPE_CHECKING:
    from qpnuclei.qupath.model import ImageEntry, Project
    from qpnuclei.qupath.pixel_size import AskedMpp
    from qpnuclei.qupath.results import ResultsFolder

#: Names of the table and the page in the folder of results.
COUNTS, PAGE = "counts.csv", "report.html"

#: Arguments that choose annotations; without any, the tissue is found.
_CHOICES = ("roi", "roi_name", "roi_id", "roi_all")


def run_slides(
    paths: Sequence[Path], results: Path, given: dict[str, Any]
) -> tuple[dict[str, Any], bool]:
    """Make or extend a project of slides, run it, and write the table and the report.

    Parameters
    ----------
    paths : sequence of Path
        Slides, folders of them, or patterns.
    results : Path
        Folder of results; it may be new.
    given : dict
        The arguments of `qpnuclei.cli.run.run`.

    Returns
    -------
    (dict, bool)
        What was found as JSON types, and whether a slide failed.
    """
    from qpnuclei.cli.console import print_error
    from qpnuclei.qupath.results import ResultsFolder, changed_pixel_sizes
    from qpnuclei.slides.files import find_slides

    folder = ResultsFolder(results)
    folder.check()
    slides = find_slides(paths)
    asked = _pixel_sizes(folder, slides, given)
    unread: list[dict[str, str]] = []

    def failed(slide: Path, error: QpnucleiError) -> None:
        if given["fail_fast"]:
            raise error
        unread.append({"slide": str(slide), "error": error.what, "hint": error.hint})
        print_error(error, "" if str(slide) in error.what else f"{slide}: ")

    if not any(given[name] for name in _CHOICES):
        given = {**given, "tissue": True}
    # What is said of pixel sizes is kept in the project.
    given = {**given, "mpp": None, "mpp_table": None}
    if given["dry_run"]:
        content, has_failures = _show_plan(folder, slides, asked, given, failed)
        return {**content, "unreadable": unread}, has_failures or bool(unread)
    known = {path.resolve() for path in slides}
    project = folder.project_of(slides, asked, failed)

    def is_given(entry: ImageEntry) -> bool:
        return entry.path is not None and entry.path.resolve() in known

    changed = changed_pixel_sizes(list(filter(is_given, project.images)), asked)
    opened, entries, options = asked_for(project.path, given, mpp_by_image=changed)
    summary = analyse(opened, entries, options, given, extend=True)
    content = print_summary(summary, given["json"], None)
    files = _write_results(folder, opened, given)
    content = {**content, **files, "unreadable": unread}
    return content, bool(summary.failures or unread or None in files.values())


def _pixel_sizes(folder: ResultsFolder, slides: list[Path], given: dict[str, Any]) -> AskedMpp:
    from qpnuclei.qupath.native import open_project
    from qpnuclei.qupath.new_image import names_of
    from qpnuclei.qupath.pixel_size import AskedMpp, read_named_mpp

    table = given["mpp_table"]
    by_name: dict[str, float] = {}
    if table is not None:
        images = open_project(folder.path).images if folder.is_made else []
        others = [*(path.name for path in slides), *(entry.name for entry in images)]
        by_name = read_named_mpp(table, names_of(slides), others)
    return AskedMpp(given["mpp"], len(slides) > 1, by_name)


def _show_plan(
    folder: ResultsFolder, slides: list[Path], asked: AskedMpp, given: dict[str, Any], failed: Any
) -> tuple[dict[str, Any], bool]:
    """Show what would be done with the images that are there, and with new slides."""
    from qpnuclei.qupath.create import create_from_slides

    new = folder.new_ones(slides)
    entries: list[ImageEntry] = []
    options = None
    with tempfile.TemporaryDirectory() as temporary:
        if folder.is_made:
            _, entries, options = asked_for(folder.path, given)
        if new:
            project = create_from_slides(Path(temporary, "new"), new, asked, failed=failed)
            tissue = {**given, **dict.fromkeys(_CHOICES), "tissue": True, "backend": "native"}
            _, more, of_new = asked_for(project.path, tissue, is_temporary=True)
            entries, options = [*entries, *more], options or of_new
        assert options is not None  # there are slides, new ones or known ones
        return show_plan(entries, options, given["json"])


def _write_results(
    folder: ResultsFolder, project: Project, given: dict[str, Any]
) -> dict[str, str | None]:
    """Write the table of counts and the report of all images; say where they are."""
    from qpnuclei.cli.console import image_progress, print_error, stderr
    from qpnuclei.qupath.count_table import write_counts
    from qpnuclei.qupath.counts import count_project
    from qpnuclei.report.page import write_report
    from qpnuclei.report.runs import runs_of

    written: dict[str, str | None] = {"counts": None}

    def fail(error: QpnucleiError) -> None:
        print_error(error)

    def left_out(entry: ImageEntry, error: QpnucleiError) -> None:
        print_error(error, "" if entry.name in error.what else f"image {entry.name}: ")

    with standing_alone("the table of counts", fail):
        # A row for each slide, also where there is no tissue; else for each chosen annotation.
        rows = count_project(
            project,
            project.images,
            "image" if given["tissue"] else "annotation",
            roi_classes=given["roi"],
            failed=left_out,
        )
        written["counts"] = str(folder.write(COUNTS, lambda path: write_counts(rows, path)))
    if not given["no_report"]:
        written["report"] = None
        images = project.images
        with (
            standing_alone("the report", fail),
            image_progress("report", len(images), given["quiet"]) as progress,
        ):
            runs = runs_of(project.path.parent)

            def write(path: Path) -> None:
                for entry, error in write_report(project, images, path, runs, progress=progress):
                    left_out(entry, error)

            written["report"] = str(folder.write(PAGE, write))
    for what, name in written.items():
        stderr.print(f"{what}: {name or 'not written'}", highlight=False, soft_wrap=True)
    stderr.print(
        f"project: {project.path} (every nucleus: qpnuclei export {project.path.parent} "
        "--by nucleus -o nuclei.parquet)",
        highlight=False,
        soft_wrap=True,
    )
    return written
