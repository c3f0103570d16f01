"""``qpnuclei plan``, ``infer`` and ``commit``: the three phases of a run, each on its own."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from qpnuclei.cli.options import (
    BackendOption,
    Batch,
    BreakLock,
    Dask,
    DevicesOption,
    FailFast,
    GeojsonDir,
    ImageRoot,
    Json,
    NoReport,
    ParquetDir,
    ProjectPath,
    Quiet,
    RetryFailed,
    RunFolderArgument,
    SlidesFrom,
    UnitGib,
    UnitMinutes,
    Wait,
    Workers,
    with_options_of,
)
from qpnuclei.cli.run import run
from qpnuclei.cli.running import (
    INTERRUPTED,
    asked_for,
    checked_arguments,
    opening,
    print_summary,
    stopping_between_units,
    write_page,
)
from qpnuclei.errors import UsageError, number_of


@with_options_of(
    run,
    *("inputs", "output", "device", "dask", "unit_minutes", "unit_gib", "batch", "workers"),
    *("dry_run", "force", "geojson", "parquet", "no_report"),
)
def plan(project: ProjectPath, **given: Any) -> None:
    """Plan a run and save the plan in a folder; infer and commit execute it.

    Needs the project and its slides, but loads neither the model's weights nor torch. Prints the
    folder. The same command again continues an unfinished plan.

    For example: qpnuclei plan project.qpproj --roi Tumor --run-dir the-run
    """
    from qpnuclei.cli.console import print_json, print_status, stdout
    from qpnuclei.cli.tables import print_failures
    from qpnuclei.qupath.project_file import find_project_file

    defaults = {"device": "auto", "batch": None, "workers": None, "force": False}
    defaults |= {"geojson": None, "parquet": None, "dry_run": False}
    given = {**defaults, **given}
    find_project_file(project)  # the first error if there is no project
    given = checked_arguments(given, computes=False)
    with opening(project, given) as opened:
        entries, options = asked_for(opened, given)
        from qpnuclei.pipeline.inference.units import Conduct
        from qpnuclei.pipeline.phases import plan_run

        conduct = Conduct(
            given["resume"],
            retry_failed=given["retry_failed"],
            fail_fast=given["fail_fast"],
        )
        folder, planned, summary = plan_run(opened, entries, options, conduct)
    units = sum(len(image.units) for image in planned.images)
    if given["json"]:
        content = {"run_dir": str(folder.path), "images": len(planned.images), "units": units}
        print_json({**content, "failures": summary.to_json()["failures"]})
    else:
        stdout.print(str(folder.path))
    print_status(f"{number_of(units, 'unit')} in {number_of(len(planned.images), 'image')}")
    if summary.failures:
        print_failures([failure.name for failure in summary.failures], len(summary.planned))
        sys.exit(1)


def infer(
    run_dir: RunFolderArgument,
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard",
            metavar="I/N",
            help="Compute only part I of N equal parts of the units: one part for each of N jobs.",
            show_default="all units",
        ),
    ] = None,
    slides_from: SlidesFrom = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="Path of the planned model on this machine.",
            show_default="the path in the plan",
        ),
    ] = None,
    device: DevicesOption = "auto",
    dask: Dask = None,
    unit_minutes: UnitMinutes = None,
    unit_gib: UnitGib = None,
    batch: Batch = None,
    workers: Workers = None,
    retry_failed: RetryFailed = False,
    fail_fast: FailFast = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find the nuclei of a plan and save them in its folder.

    Needs the slides and the model, but neither the project nor Java. Finished units are not
    computed again. Parts from different machines are joined by copying their folders together.

    For example: qpnuclei infer the-run --shard 3/20
    """
    from qpnuclei.cli.console import print_json, print_status, tile_progress
    from qpnuclei.cli.tables import print_failures
    from qpnuclei.system.interrupts import leaving_on_interrupt
    from qpnuclei.system.memory import keep_freed_memory
    from qpnuclei.system.threads import available_cores

    share = _share(shard)
    with leaving_on_interrupt(INTERRUPTED):
        from qpnuclei.pipeline.folder import RunFolder
        from qpnuclei.pipeline.inference.units import Conduct, count_missing
        from qpnuclei.pipeline.phases import infer_run

        folder = RunFolder(run_dir)
        planned = folder.plan().options()
        options = replace(
            planned,
            model=planned.model if model is None else model,
            device=device,
            batch_size=batch,
            workers=workers or available_cores(),
        )
        with (
            keep_freed_memory(),
            stopping_between_units() as stop,
            tile_progress(quiet) as progress,
        ):
            failures = infer_run(
                folder,
                options,
                share=share,
                slides_from=slides_from,
                conduct=Conduct(
                    retry_failed=retry_failed,
                    fail_fast=fail_fast,
                    stop=stop,
                    dask=dask,
                    unit_minutes=unit_minutes,
                    unit_gib=unit_gib,
                ),
                progress=progress,
            )
        plan = folder.plan()
        missing = count_missing(folder, plan, options)
    images, units = len(plan.images), sum(len(image.units) for image in plan.images)
    if json:
        failed = [
            {"image": image.name, "entry": image.entry, "error": error.what, "hint": error.hint}
            for image, error in failures
        ]
        content = {"run_dir": str(folder.path), "images": images, "units": units}
        print_json({**content, "missing": missing, "failures": failed})
    print_status(f"units: {units - missing} of {units} are there; {missing} missing")
    if failures:
        print_failures([image.name for image, _ in failures], images)
        sys.exit(1)


def commit(
    run_dir: RunFolderArgument,
    project: Annotated[
        Path | None,
        typer.Option(
            "--project",
            help="QuPath project to write into: the .qpproj file or its folder.",
            show_default="the project in the plan",
        ),
    ] = None,
    slides_from: SlidesFrom = None,
    geojson: GeojsonDir = None,
    parquet: ParquetDir = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Write even if QuPath or another program saved the image since it was planned, as "
            "long as the same areas are chosen and excluded. A backup of that state is kept.",
        ),
    ] = False,
    backend: BackendOption = "auto",
    image_root: ImageRoot = None,
    fail_fast: FailFast = False,
    no_report: NoReport = False,
    wait: Wait = True,
    break_lock: BreakLock = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write the nuclei that infer found into the project.

    Images already written are skipped; only missing copies (--geojson, --parquet) of their nuclei
    are written, as the run found them.

    Needs the project, but neither slides nor model for images that infer has finished.

    For example: qpnuclei commit the-run
    """
    from qpnuclei.cli.console import print_json
    from qpnuclei.qupath.project import held_project
    from qpnuclei.system.interrupts import leaving_on_interrupt

    with leaving_on_interrupt(INTERRUPTED):
        from qpnuclei.pipeline.folder import RunFolder
        from qpnuclei.pipeline.inference.units import Conduct
        from qpnuclei.pipeline.phases import check_slides_from, commit_run

        check_slides_from(slides_from)
        folder = RunFolder(run_dir)
        planned = folder.plan()
        path = project or Path(planned.project)
        options = replace(planned.options(), force=force, geojson_dir=geojson, parquet_dir=parquet)
        with (
            held_project(path, backend, image_root, wait=wait, break_lock=break_lock) as opened,
            stopping_between_units() as stop,
        ):
            conduct = Conduct(fail_fast=fail_fast, stop=stop)
            summary = commit_run(opened, folder, options, slides_from=slides_from, conduct=conduct)
    page = None if no_report or not summary.images else write_page(opened, summary, quiet)
    content = print_summary(summary, json, page)
    if json:
        print_json(content)
    if summary.failures:
        sys.exit(1)


def _share(text: str | None) -> tuple[int, int]:
    """Read ``I/N``.

    Raises
    ------
    UsageError
        If the text does not have this form.
    """
    if text is None:
        return 1, 1
    part, separator, parts = text.partition("/")
    if separator and part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts):
        return int(part), int(parts)
    raise UsageError(
        f"--shard {text!r} is not a part I/N with I from 1 to N",
        "for the third of twenty parts: --shard 3/20",
    )
