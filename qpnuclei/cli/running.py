"""Shared by the commands that run something: read their arguments, and print the results."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qpnuclei.cli.selecting import selection_of

if TYPE_CHECKING:
    from qpnuclei.errors import QpnucleiError
    from qpnuclei.pipeline.options import RunOptions
    from qpnuclei.pipeline.summary import RunSummary
    from qpnuclei.qupath.model import ImageEntry, Project

INTERRUPTED = "interrupted: finished work is kept; run the same command again to continue"


def run_project(path: Path, given: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Run one project, and print the result.

    Parameters
    ----------
    path : Path
    given : dict
        The arguments of `run`.

    Returns
    -------
    (dict, bool)
        The result as JSON types, and whether an image failed.
    """
    from qpnuclei.qupath.project_file import find_project_file

    find_project_file(path)  # the first error if there is no project
    given = checked_arguments(given)
    with opening(path, given) as opened:
        entries, options = asked_for(opened, given)
        if given["dry_run"]:
            return show_plan([(entries, options)], given["json"])
        summary = analyse(opened, entries, options, given)
    shown = summary.images and not given["no_report"]
    page = write_page(opened, summary, given["quiet"]) if shown else None
    return print_summary(summary, given["json"], page), bool(summary.failures)


def show_plan(
    parts: Sequence[tuple[Sequence[ImageEntry], RunOptions]], json: bool
) -> tuple[dict[str, Any], bool]:
    """Print the plan; return it as JSON types, and whether an image would fail.

    Parameters
    ----------
    parts : sequence of (sequence of ImageEntry, RunOptions)
        Images of one or more projects, and the options for them.
    """
    from qpnuclei.cli.console import add_failure, stdout
    from qpnuclei.cli.descriptions import describe_plan
    from qpnuclei.cli.tables import plan_view
    from qpnuclei.pipeline.planning.image_plan import ImagePlan, plan_images
    from qpnuclei.pipeline.positivity import require_some_dab

    thresholds = parts[0][1].positive_thresholds  # the same for all
    require_some_dab([entry for entries, _ in parts for entry in entries], thresholds)
    plans: list[ImagePlan] = []
    failed: list[tuple[ImageEntry, QpnucleiError]] = []
    for entries, options in parts:
        planned, unplanned = plan_images(entries, options)
        plans += planned
        failed += unplanned
    if not json:
        stdout.print(plan_view(plans), soft_wrap=True)
    failures: list[dict[str, Any]] = []
    for entry, error in failed:
        add_failure(failures, entry, error)
    return {"plan": describe_plan(plans), "failures": failures}, bool(failed)


def stopping_between_units() -> AbstractContextManager[Callable[[], bool]]:
    """Let the first SIGTERM end the command after the current unit, and the second at once."""
    from qpnuclei.system.interrupts import asking_to_stop

    message = "terminating: units in progress are finished first"
    return asking_to_stop(message, [signal.SIGTERM], end="terminated at once")


def analyse(
    opened: Project,
    entries: Sequence[ImageEntry],
    options: RunOptions,
    given: dict[str, Any],
    extend: bool = False,
) -> RunSummary:
    """Run with a progress bar; for `extend` see `Conduct`."""
    from qpnuclei.cli.console import tile_progress
    from qpnuclei.pipeline.inference.units import Conduct
    from qpnuclei.pipeline.run import analyse_project
    from qpnuclei.system.interrupts import leaving_on_interrupt
    from qpnuclei.system.memory import keep_freed_memory

    with (
        keep_freed_memory(),
        leaving_on_interrupt(INTERRUPTED),
        stopping_between_units() as stop,
        tile_progress(given["quiet"]) as progress,
    ):
        conduct = Conduct(
            given["resume"],
            extend,
            given["retry_failed"],
            given["fail_fast"],
            stop,
            given["dask"],
            given["unit_minutes"],
            given["unit_gib"],
        )
        return analyse_project(opened, entries, options, progress, conduct)


def checked_arguments(given: dict[str, Any], computes: bool = True) -> dict[str, Any]:
    """Check what needs no project: nobody waits for a project to hear of a wrong option.

    Parameters
    ----------
    given : dict
        The arguments of `run`.
    computes : bool
        Whether this process looks for nuclei, unless only the plan is shown.

    Returns
    -------
    dict
        The arguments, with the backend that was chosen: it is searched for once.

    Raises
    ------
    QpnucleiError
        If options contradict each other, or a model, device, backend, table or folder cannot be
        used.
    """
    from qpnuclei.pipeline.request import check_request
    from qpnuclei.qupath.pixel_size import check_mpp_table
    from qpnuclei.qupath.project import checked_image_root, choose_backend
    from qpnuclei.segmentation.engine import engine_specs

    options = options_of(given)
    check_mpp_table(given["mpp_table"])
    given = {**given, "backend": choose_backend(given["backend"])}
    checked_image_root(given["image_root"])
    if computes and not given["dry_run"]:
        check_request(options, given["dask"], given["unit_gib"])
    else:
        engine_specs(options.models)
    return given


def opening(path: Path, given: dict[str, Any]) -> AbstractContextManager[Project]:
    """Open the project of a run, and hold it within the block unless only the plan is shown.

    Parameters
    ----------
    path : Path
    given : dict
        The arguments of `run`.
    """
    from qpnuclei.qupath.project import held_project, open_project

    backend, image_root = given["backend"], given["image_root"]
    if given["dry_run"]:
        return nullcontext(open_project(path, backend, image_root))
    return held_project(
        path, backend, image_root, wait=given["wait"], break_lock=given["break_lock"]
    )


def asked_for(
    opened: Project, given: dict[str, Any], is_temporary: bool = False, **changes: Any
) -> tuple[list[ImageEntry], RunOptions]:
    """Return the chosen images of a project, and the options of the run.

    Parameters
    ----------
    opened : Project
    given : dict
        The arguments of `run`.
    is_temporary : bool
        Whether the project is deleted after the run; if so, its path is not printed.
    **changes
        Fields of the options that override the arguments.
    """
    from qpnuclei.cli.console import print_status
    from qpnuclei.pipeline.selection import choose_images
    from qpnuclei.qupath.pixel_size import asked_mpp

    options = options_of(given)
    if not is_temporary:
        print_status(f"{opened.path}: opened with the {opened.backend} backend")
    entries = choose_images(opened, options.images, options.selection)
    asked = asked_mpp(options.mpp, given["mpp_table"], opened, entries, options.images)
    pixel_sizes: dict[str, Any] = {
        "mpp_only_missing": asked.only_missing,
        "mpp_by_image": asked.by_id,
    }
    return entries, replace(options, **(pixel_sizes | changes))


def options_of(given: dict[str, Any]) -> RunOptions:
    """Return the options of a run; check those that need no project."""
    from qpnuclei.pipeline.options import RunOptions

    workers = given["workers"]
    return RunOptions(
        selection=selection_of(given),
        model=given["model"],
        speed=given["speed"],
        device=given["device"],
        mpp=given["mpp"],
        tissue_annotation=not given["no_annotation"],
        qc=given["qc"],
        class_name=given["class_name"],
        on_existing=given["on_existing"],
        tile_px=given["tile"],
        batch_size=given["batch"],
        precision=given["precision"],
        tta=given["tta"],
        **({} if workers is None else {"workers": workers}),
        max_nucleus_um=given["max_nucleus"],
        simplify_um=given["simplify"],
        threshold=given["threshold"],
        min_area_um2=given["min_area_um2"],
        cell_expansion_um=given["cell_expansion"],
        positive_thresholds=tuple(given["positive_threshold"] or ()),
        geojson_dir=given["geojson"],
        parquet_dir=given["parquet"],
        run_dir=given["run_dir"],
        force=given["force"],
        images=tuple(given["image"] or ()),
    )


def print_summary(summary: RunSummary, json: bool, page: Path | None) -> dict[str, Any]:
    """Print the results of a run and the path of its report; return them as JSON types."""
    from qpnuclei.cli.console import print_status, print_warning, stdout
    from qpnuclei.cli.tables import print_account, print_failures, summary_table

    if json:
        pass
    elif summary.images:
        stdout.print(summary_table(summary))
    elif not summary.failures:
        print_warning("nothing was analysed: all selected annotations were skipped")
    print_account(summary)
    if page is not None:
        print_status(f"report: {page}")
    if summary.failures:
        print_failures([failure.name for failure in summary.failures], len(summary.planned))
    return {**summary.to_json(), "report": None if page is None else str(page)}


def write_page(project: Project, summary: RunSummary, quiet: bool) -> Path | None:
    """Write the report of a run; if that fails, only print an error: the nuclei are saved."""
    from qpnuclei.cli.console import image_progress, print_error
    from qpnuclei.errors import standing_alone
    from qpnuclei.report.page import write_report_of_run

    page: Path | None = None

    def fail(error: QpnucleiError) -> None:
        print_error(error, "no report: ")

    with (
        image_progress("report", len(summary.images), quiet) as progress,
        standing_alone("the report", fail),
    ):
        page, failed = write_report_of_run(project, summary.run_dir, progress)
        for entry, error in failed:
            print_error(error, f"not in the report: {error.naming('image', entry.name)}")
    return page
