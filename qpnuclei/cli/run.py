"""``qpnuclei run``: find the nuclei in a project's annotations and write them back."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qpnuclei.choices import (
    DEFAULT_MAX_NUCLEUS_UM,
    DEFAULT_SIMPLIFY_UM,
    DEFAULT_TILE_PX,
    NUCLEUS_CLASS,
    OnExisting,
    Precision,
)
from qpnuclei.cli.options import (
    BackendOption,
    BreakLock,
    DeviceOption,
    FailFast,
    ImageGlobs,
    ImageRoot,
    Json,
    ModelOption,
    MppTable,
    NoReport,
    ProjectMppOption,
    ProjectPath,
    Quiet,
    Resume,
    RetryFailed,
    RunDir,
    TtaOption,
    Wait,
    within,
)
from qpnuclei.cli.selecting import (
    Exclude,
    Roi,
    RoiAll,
    RoiDerived,
    RoiId,
    RoiName,
    Tissue,
    excluded_classes,
)
from qpnuclei.models.registry import DEFAULT_MODEL

if TYPE_CHECKING:
    from qpnuclei.pipeline.plan import RunOptions
    from qpnuclei.pipeline.summary import RunSummary
    from qpnuclei.qupath.model import ImageEntry, Project


def run(
    project: ProjectPath,
    roi: Roi = None,
    roi_derived: RoiDerived = False,
    roi_name: RoiName = None,
    roi_id: RoiId = None,
    roi_all: RoiAll = False,
    tissue: Tissue = False,
    exclude: Exclude = None,
    no_annotation: Annotated[
        bool,
        typer.Option(
            "--no-annotation",
            help="With --tissue: do not add a locked annotation of class Tissue.",
        ),
    ] = False,
    image: ImageGlobs = None,
    model: ModelOption = DEFAULT_MODEL,
    device: DeviceOption = "auto",
    mpp: ProjectMppOption = None,
    mpp_table: MppTable = None,
    image_root: ImageRoot = None,
    backend: BackendOption = "auto",
    class_name: Annotated[
        str, typer.Option("--class", help="QuPath class of the detections.")
    ] = NUCLEUS_CLASS,
    on_existing: Annotated[
        OnExisting,
        typer.Option(
            "--on-existing",
            help="What to do where qpnuclei has written detections before (others are never "
            "touched): replace them, append to them, skip the annotation, or stop with an error.",
        ),
    ] = "replace",
    tile: Annotated[
        int,
        typer.Option(
            "--tile",
            callback=within(128, 8192, "px"),
            help="Core of a tile in px of the model, 128 to 8192.",
        ),
    ] = DEFAULT_TILE_PX,
    batch: Annotated[
        int | None,
        typer.Option(
            "--batch",
            callback=within(1, None, "tiles"),
            help="Tiles per batch of the network.",
            show_default="on a GPU as many as fit into its memory, at most 8; 1 on a CPU",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            callback=within(1, None, "cores"),
            help="Processor cores to use; the result does not depend on it.",
            show_default="all cores",
        ),
    ] = None,
    precision: Annotated[
        Precision,
        typer.Option(
            "--precision",
            help="Number format of the network; auto: float16 on CUDA, float32 elsewhere. "
            "bfloat16 takes half the time on CPUs that have it, and moves a few outlines by a "
            "pixel.",
        ),
    ] = "auto",
    tta: TtaOption = False,
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold",
            callback=within(0.01, 0.99, "attention"),
            help="Attention (0.01 to 0.99) above which a pixel belongs to a nucleus: lower finds "
            "more nuclei and larger ones. Compare values with preview.",
            show_default="that of the model",
        ),
    ] = None,
    min_area_um2: Annotated[
        float,
        typer.Option(
            "--min-area-um2",
            callback=within(0, 1000, "µm²"),
            help="Leave out nuclei with a smaller area, in µm² (0 to 1000), beside those that the "
            "model itself leaves out.",
        ),
    ] = 0.0,
    cell_expansion: Annotated[
        float,
        typer.Option(
            "--cell-expansion",
            callback=within(0, 50, "µm"),
            help="Write QuPath cells: each nucleus with the outline of a cell that reaches so many "
            "µm (0 to 50) beyond it, and no nearer to another nucleus; 0 writes nuclei alone.",
        ),
    ] = 0.0,
    max_nucleus: Annotated[
        float,
        typer.Option(
            "--max-nucleus",
            callback=within(1, 200, "µm"),
            help="Diameter of the largest nucleus in µm, 1 to 200; tiles overlap by this much.",
        ),
    ] = DEFAULT_MAX_NUCLEUS_UM,
    simplify: Annotated[
        float,
        typer.Option(
            "--simplify",
            callback=within(0, 5, "µm"),
            help="How far in µm (0 to 5), about, the vertices left out of the smooth outlines may "
            "lie from them; 0 keeps the stairs along pixel edges.",
        ),
    ] = DEFAULT_SIMPLIFY_UM,
    geojson: Annotated[
        Path | None,
        typer.Option("--geojson", help="Also write QuPath GeoJSON (.geojson.gz) to this folder."),
    ] = None,
    parquet: Annotated[
        Path | None,
        typer.Option("--parquet", help="Also write the nuclei as Parquet tables to this folder."),
    ] = None,
    run_dir: RunDir = None,
    resume: Resume = True,
    retry_failed: RetryFailed = False,
    fail_fast: FailFast = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Write even if another program (QuPath) saved the image during the run, "
            "provided that its annotations are unchanged; both states are kept.",
        ),
    ] = False,
    no_report: NoReport = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan, and stop.")] = False,
    wait: Wait = True,
    break_lock: BreakLock = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find the nuclei inside the chosen annotations and write them back as detections.

    A run that was ended before, by whatever, is gone on with by the same command.

    For example: qpnuclei run project.qpproj --roi Tumor
    """
    given = dict(locals())
    from qpnuclei.cli.console import describe_error, print_error, print_json, stdout, tile_progress
    from qpnuclei.cli.tables import describe_plan, plan_view
    from qpnuclei.system.interrupts import ending_on_terminate, leaving_on_interrupt
    from qpnuclei.system.locks import locked
    from qpnuclei.system.memory import keep_freed_memory

    opened, entries, options = asked_for(given)
    # Slow imports come after the arguments are checked.
    with leaving_on_interrupt("interrupted: nothing was changed"):
        from qpnuclei.pipeline.plan import plan_images
        from qpnuclei.pipeline.run import analyse_project
        from qpnuclei.pipeline.units import Conduct

    if dry_run:
        plans, failed = plan_images(entries, options)
        if json:
            failures = [describe_error(error, entry) for entry, error in failed]
            print_json({"plan": describe_plan(plans), "failures": failures})
        else:
            stdout.print(plan_view(plans), soft_wrap=True)
        for entry, error in failed:
            print_error(error, "" if entry.name in error.what else f"image {entry.name}: ")
        sys.exit(1 if failed else 0)
    with (
        keep_freed_memory(),
        leaving_on_interrupt(INTERRUPTED),
        locked(opened.path.parent, wait=wait, break_lock=break_lock),
        ending_on_terminate(TERMINATING) as stop,
        tile_progress(quiet) as progress,
    ):
        conduct = Conduct(resume, retry_failed, fail_fast, stop)
        summary = analyse_project(opened, entries, options, progress, conduct)
    page = None if no_report or not summary.images else write_page(opened, summary, quiet)
    print_summary(summary, json, page)


INTERRUPTED = "interrupted: what is finished is kept; the same command goes on from here"
TERMINATING = "terminating: what is being computed is finished first"


def asked_for(given: dict[str, Any]) -> tuple[Project, list[ImageEntry], RunOptions]:
    """Open the project that a command names, and return its images and the options of the run.

    Parameters
    ----------
    given : dict
        The arguments of `run`.
    """
    from qpnuclei.cli.console import stderr
    from qpnuclei.pipeline.selection import Selection, choose_images
    from qpnuclei.qupath.pixel_size import read_mpp_table
    from qpnuclei.qupath.project import open_project
    from qpnuclei.system.interrupts import leaving_on_interrupt

    images = tuple(given["image"] or ())
    selection = Selection(
        classes=tuple(given["roi"] or ()),
        derived=given["roi_derived"],
        names=tuple(given["roi_name"] or ()),
        ids=tuple(given["roi_id"] or ()),
        everything=given["roi_all"],
        tissue=given["tissue"],
        excluded=excluded_classes(given["exclude"]),
    )
    with leaving_on_interrupt("interrupted: nothing was changed"):
        opened = open_project(
            given["project"], backend=given["backend"], image_root=given["image_root"]
        )
        stderr.print(f"{opened.path}: opened with the {opened.backend} backend", highlight=False)
        entries = choose_images(opened, images, selection)
        table = given["mpp_table"]
        by_image = {} if table is None else read_mpp_table(table, opened.images)
        from qpnuclei.pipeline.plan import RunOptions

    workers = given["workers"]
    options = RunOptions(
        selection=selection,
        model=given["model"],
        device=given["device"],
        mpp=given["mpp"],
        mpp_only_missing=not images and len(entries) > 1,
        mpp_by_image=by_image,
        tissue_annotation=not given["no_annotation"],
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
        geojson_dir=given["geojson"],
        parquet_dir=given["parquet"],
        run_dir=given["run_dir"],
        force=given["force"],
        images=images,
    )
    return opened, entries, options


def print_summary(summary: RunSummary, json: bool, page: Path | None) -> None:
    """Print what a run has found, and where its report is; end with 1 if an image failed."""
    from qpnuclei.cli.console import print_json, stderr, stdout
    from qpnuclei.cli.tables import print_account, print_failures, summary_table

    if json:
        print_json({**summary.to_json(), "report": None if page is None else str(page)})
    elif summary.images:
        stdout.print(summary_table(summary))
    elif not summary.failures:
        stderr.print("nothing was analysed: all selected annotations were skipped")
    print_account(summary)
    if page is not None:
        stderr.print(f"report: {page}", highlight=False, soft_wrap=True)
    if summary.failures:
        print_failures(summary)
        sys.exit(1)


def write_page(project: Project, summary: RunSummary, quiet: bool) -> Path | None:
    """Write the report of a run; where that fails, say so: the nuclei are saved in any case."""
    from qpnuclei.cli.console import image_progress, print_error
    from qpnuclei.errors import QpnucleiError, standing_alone
    from qpnuclei.report.page import write_report_of_run
    from qpnuclei.system.interrupts import leaving_on_interrupt

    page: Path | None = None

    def fail(error: QpnucleiError) -> None:
        print_error(error, "no report: ")

    saved = f"interrupted: the nuclei are saved; qpnuclei report {summary.run_dir} shows them"
    with (
        leaving_on_interrupt(saved),
        image_progress("report", len(summary.images), quiet) as progress,
        standing_alone("the report", fail),
    ):
        page, failed = write_report_of_run(project, summary.run_dir, progress)
        for entry, error in failed:
            print_error(error, f"not in the report: image {entry.name}: ")
    return page
