"""A run of slides: it makes a project of them, and writes the results into a folder."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qpnuclei.cli.running import (
    analyse,
    asked_for,
    checked_arguments,
    opening,
    print_summary,
    show_plan,
)
from qpnuclei.cli.slide_inputs import SlideInputs, refuse_early
from qpnuclei.errors import QpnucleiError, standing_alone

if TYPE_CHECKING:
    from qpnuclei.pipeline.options import RunOptions
    from qpnuclei.pipeline.summary import RunSummary
    from qpnuclei.qupath.model import ImageEntry, Project
    from qpnuclei.qupath.pixel_size import AskedMpp
    from qpnuclei.qupath.results_folder import ResultsFolder
    from qpnuclei.system.files import Save

#: Names of the table and the page in the folder of results.
COUNTS, PAGE = "counts.csv", "report.html"

#: Arguments that choose annotations; without any, the tissue is analysed.
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
    from qpnuclei.cli.inputs import slides_named
    from qpnuclei.qupath.results_folder import ResultsFolder

    folder = ResultsFolder(results)
    folder.check()
    if not any(given[name] for name in _CHOICES):
        given = {**given, "tissue": True}
    given = checked_arguments(given)
    slides = slides_named(paths)
    with _held(folder, given):
        return _run_held(folder, slides, given)


def _held(folder: ResultsFolder, given: dict[str, Any]) -> AbstractContextManager[None]:
    """Hold a folder of results, if it has a project and not only the plan is shown."""
    from qpnuclei.system.locks import locked

    if given["dry_run"] or not folder.is_made:
        return nullcontext()
    return locked(folder.path, wait=given["wait"], break_lock=given["break_lock"])


def _run_held(
    folder: ResultsFolder, slides: Sequence[Path], given: dict[str, Any]
) -> tuple[dict[str, Any], bool]:
    """Run slides as `run_slides` says; no other process works on a project that is there."""
    from qpnuclei.cli.console import add_slide_failure
    from qpnuclei.cli.tables import print_unreadable
    from qpnuclei.qupath.pixel_size import changed_pixel_sizes

    inputs = SlideInputs.of(folder, slides, given["image"] or (), given["image_root"])
    refuse_early(inputs, given)
    asked = inputs.pixel_sizes(given["mpp"], given["mpp_table"])
    readable = set(inputs.chosen_new.values())
    unread: list[dict[str, Any]] = []

    def failed(slide: Path, error: QpnucleiError) -> None:
        readable.discard(slide)
        if given["fail_fast"] or not (readable or inputs.chosen):
            raise error
        add_slide_failure(unread, slide, error)

    # The project keeps the given pixel sizes.
    without_sizes = {**given, "mpp": None, "mpp_table": None}
    if given["dry_run"]:
        content, has_failures = _show_plan(inputs, asked, without_sizes, failed)
        return {**content, "unreadable": unread}, has_failures or bool(unread)
    project = _project_of(inputs, asked, failed)
    if project is None:  # the other run may still hold it, and its project changes the inputs
        with _held(folder, given):
            return _run_held(folder, slides, given)
    given = without_sizes
    inputs.warn_of_kept_sizes(asked, project.images)
    changed = changed_pixel_sizes(inputs.images, asked)
    with opening(project.path, given) as opened:  # a new project is not held yet
        entries, options = asked_for(opened, given, mpp_by_image=changed)
        if inputs.new and not given["tissue"]:
            _say_not_analysed(inputs)
        summary = analyse(opened, entries, options, given, extend=True)
        # First the files: standard output may fail, for example if its reader has gone. Of two
        # runs, the second writes them last, with the images of both.
        files = _write_results(folder, opened, given, summary, unread)
    content = print_summary(summary, given["json"], None)
    _print_results(files, opened)
    print_unreadable([slide["slide"] for slide in unread], len(inputs.slides))
    content = {**content, **files, "unreadable": unread}
    return content, bool(summary.failures or unread or None in files.values())


def _project_of(inputs: SlideInputs, asked: AskedMpp, failed: Any) -> Project | None:
    """Make or extend the project; return None if another run has made it meanwhile."""

    def is_overtaken() -> bool:
        return inputs.project is None and inputs.folder.is_made

    if is_overtaken():
        return None
    try:
        return inputs.folder.project_of([*inputs.new.values()], asked, failed)
    except QpnucleiError:
        if is_overtaken():  # while the slides were read
            return None
        raise


def _say_not_analysed(inputs: SlideInputs) -> None:
    from qpnuclei.cli.console import print_warning

    print_warning(f"new slides have no annotations and are not analysed: {', '.join(inputs.new)}")


def _show_plan(
    inputs: SlideInputs, asked: AskedMpp, given: dict[str, Any], failed: Any
) -> tuple[dict[str, Any], bool]:
    """Show the plan for the project's images and for new slides."""
    from qpnuclei.cli.console import print_status
    from qpnuclei.qupath.adding import without_moved
    from qpnuclei.qupath.create import create_project
    from qpnuclei.qupath.new_image import describe_slides
    from qpnuclei.qupath.pixel_size import changed_pixel_sizes

    # Both projects number their images from 1, so an ID in a table refers to only one project.
    parts: list[tuple[list[ImageEntry], RunOptions]] = []
    made: Sequence[ImageEntry] = []
    with tempfile.TemporaryDirectory() as temporary:
        if inputs.chosen:
            changed = changed_pixel_sizes(inputs.images, asked)
            with opening(inputs.folder.path, given) as opened:
                parts.append(asked_for(opened, given, mpp_by_image=changed))
        if inputs.new and not given["tissue"]:
            _say_not_analysed(inputs)
        elif inputs.chosen_new:
            taken = {entry.name for entry in inputs.images}
            described, errors = describe_slides(list(inputs.new.values()), asked, taken=taken)
            stored = inputs.folder.project()  # as it is when the slides are added
            if stored is not None:
                described, moved = without_moved(described, stored.images)
                errors += moved
            for path, error in errors:
                failed(path, error)
            if described:
                project = create_project(Path(temporary, "new"), described)
                made = project.images
            if any(entry.name in inputs.chosen_new for entry in made):
                # New slides have no annotations to exclude, and this project no classes of its own.
                parts.append(asked_for(project, {**given, "exclude": None}, is_temporary=True))
        if inputs.project is None:
            print_status(f"{inputs.folder.new_project}: would be made")
        inputs.warn_of_kept_sizes(asked, [*inputs.images, *made])
        return show_plan(parts, given["json"])


def _write_results(
    folder: ResultsFolder,
    project: Project,
    given: dict[str, Any],
    summary: RunSummary,
    unread: Sequence[Mapping[str, Any]],
) -> dict[str, str | None]:
    """Write the table of counts and the report of all images; return their paths.

    Parameters
    ----------
    summary : RunSummary
        Of the run. Its failures are not reported again; the table names them as those of `unread`.
    unread : sequence of mapping
        New slides that cannot be read. They are not in the project, but in the table and report.
    """
    from qpnuclei.cli.console import image_progress, print_error
    from qpnuclei.cli.tables import print_without_row
    from qpnuclei.errors import MppError
    from qpnuclei.qupath.analysed import Status
    from qpnuclei.qupath.count_table import write_counts
    from qpnuclei.qupath.project_counts import count_project, without_row
    from qpnuclei.report.page import write_report
    from qpnuclei.report.runs import runs_of

    written: dict[str, str | None] = {"counts": None}
    names = {entry.name for entry in project.images}  # a slide that was moved has its row already
    missing = [
        (name, slide["error"])
        for slide in unread
        if (name := Path(slide["slide"]).name) not in names
    ]
    failures = {failure.entry: failure.error for failure in summary.failures}
    reasons = summary.nothing_to_do | {entry: error.what for entry, error in failures.items()}
    reported = {(entry, error.what) for entry, error in failures.items()}
    uncounted: set[str] = set()

    def fail(error: QpnucleiError) -> None:
        print_error(error)

    def left_out(entry: ImageEntry, error: QpnucleiError) -> None:
        if (entry.id, error.what) not in reported:
            reported.add((entry.id, error.what))
            print_error(error, error.naming("image", entry.name))

    def uncountable(entry: ImageEntry, error: QpnucleiError) -> None:
        uncounted.add(entry.id)
        left_out(entry, error)

    with standing_alone("the table of counts", fail):
        # A row for each slide, with or without tissue; or for each chosen annotation.
        rows = count_project(
            project,
            project.images,
            "image" if given["tissue"] else "annotation",
            roi_classes=given["roi"],
            failed=uncountable,
            warned={entry for entry, error in failures.items() if isinstance(error, MppError)},
        )
        for row in rows:
            if row["status"] == Status.NOT_ANALYSED and row["check"] is None:
                row["check"] = reasons.get(row["image_id"])
        if given["tissue"]:
            rows += [
                {"image": name, "type": "image", "status": str(Status.NOT_ANALYSED), "check": error}
                for name, error in missing
            ]
        else:
            empty = without_row(project.images, rows, uncounted)
            print_without_row(empty, len(project.images), given["roi"])
        written["counts"] = str(folder.write(COUNTS, partial(write_counts, rows)))
    if not given["no_report"]:
        written["report"] = None
        images = project.images
        with (
            standing_alone("the report", fail),
            image_progress("report", len(images), given["quiet"]) as progress,
        ):
            runs = runs_of(project.path.parent)

            def write(path: Path, save: Save) -> None:
                failed = write_report(
                    project, images, path, runs, progress=progress, save=save, missing=missing
                )
                for entry, error in failed:
                    left_out(entry, error)

            written["report"] = str(folder.write(PAGE, write))
    return written


def _print_results(written: Mapping[str, str | None], project: Project) -> None:
    """Print the paths of the results; of those that are not written, a warning."""
    from qpnuclei.cli.console import print_status, print_warning
    from qpnuclei.system.commands import as_typed

    for what, name in written.items():
        if name is None:
            print_warning(f"{what}: not written")
        else:
            print_status(f"{what}: {name}")
    export = as_typed(["qpnuclei", "export", str(project.path.parent)])
    print_status(
        f"project: {project.path} (every nucleus: {export} --by nucleus -o nuclei.parquet)"
    )
