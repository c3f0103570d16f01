"""``qpnuclei run``: find the nuclei in a project's annotations and write them back."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from qpnuclei.choices import (
    CELL_EXPANSION_UM,
    DEFAULT_MAX_NUCLEUS_UM,
    DEFAULT_SIMPLIFY_UM,
    DEFAULT_TILE_PX,
    MAX_NUCLEUS_UM,
    MIN_AREA_UM2,
    NUCLEUS_CLASS,
    SIMPLIFY_UM,
    THRESHOLD,
    TILE_PX,
    OnExisting,
    Precision,
)
from qpnuclei.cli.options import (
    BackendOption,
    Batch,
    BreakLock,
    Dask,
    DevicesOption,
    FailFast,
    GeojsonDir,
    ImageGlobs,
    ImageRoot,
    Json,
    ModelOption,
    MppTable,
    NoReport,
    ParquetDir,
    ProjectMppOption,
    Quiet,
    Resume,
    RetryFailed,
    RunDir,
    SpeedOption,
    TtaOption,
    UnitGib,
    UnitMinutes,
    Wait,
    Workers,
    class_option,
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
)
from qpnuclei.models.registry import DEFAULT_MODEL


def run(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="PROJECT|SLIDES",
            help="QuPath projects (.qpproj or folder), or slides: files, folders, patterns.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Folder for all results; required for slides.",
        ),
    ] = None,
    roi: Roi = None,
    roi_derived: RoiDerived = False,
    roi_name: RoiName = None,
    roi_id: RoiId = None,
    roi_all: RoiAll = False,
    tissue: Tissue = False,
    exclude: Exclude = None,
    qc: Annotated[
        bool,
        typer.Option(
            "--qc",
            help="First mark pen, folds and tissue out of focus, as qpnuclei qc does, and leave "
            "them out. Reads each whole slide at 1 µm/px, also with --dry-run.",
        ),
    ] = False,
    no_annotation: Annotated[
        bool,
        typer.Option(
            "--no-annotation",
            help="With --tissue: do not add a locked annotation of class Tissue.",
        ),
    ] = False,
    image: ImageGlobs = None,
    model: ModelOption = DEFAULT_MODEL,
    speed: SpeedOption = "auto",
    device: DevicesOption = "auto",
    dask: Dask = None,
    unit_minutes: UnitMinutes = None,
    unit_gib: UnitGib = None,
    mpp: ProjectMppOption = None,
    mpp_table: MppTable = None,
    image_root: ImageRoot = None,
    backend: BackendOption = "auto",
    class_name: Annotated[
        str,
        class_option("--class", help="QuPath class of the detections."),
    ] = NUCLEUS_CLASS,
    on_existing: Annotated[
        OnExisting,
        typer.Option(
            "--on-existing",
            help="With nuclei of an earlier run: replace them (locked ones stay), append, skip "
            "what was analysed, or error.",
        ),
    ] = "replace",
    tile: Annotated[
        int,
        typer.Option(
            "--tile",
            callback=within(*TILE_PX),
            help="Side of a tile without its overlap, in px of the model, 128 to 8192.",
        ),
    ] = DEFAULT_TILE_PX,
    batch: Batch = None,
    workers: Workers = None,
    precision: Annotated[
        Precision,
        typer.Option(
            "--precision",
            help="Number format of the network: auto (float16 on CUDA, float32 elsewhere), float32 "
            "or bfloat16, which takes half the time on CPUs that have it, and moves a few outlines "
            "by a pixel.",
        ),
    ] = "auto",
    tta: TtaOption = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold",
            callback=within(*THRESHOLD),
            help="Attention (0.01 to 0.99) above which a pixel belongs to a nucleus.",
            show_default="the model's",
        ),
    ] = None,
    min_area_um2: Annotated[
        float,
        typer.Option(
            "--min-area-um2",
            callback=within(*MIN_AREA_UM2),
            help="Leave out smaller nuclei, in µm² (0 to 1000).",
        ),
    ] = 0.0,
    cell_expansion: Annotated[
        float,
        typer.Option(
            "--cell-expansion",
            callback=within(*CELL_EXPANSION_UM),
            help="Write QuPath cells: each nucleus gets a cell outline that reaches at most this "
            "far beyond it, in µm (0 to 50), and ends halfway to a neighbouring nucleus. 0 writes "
            "nuclei without cells.",
        ),
    ] = 0.0,
    positive_threshold: Annotated[
        list[float] | None,
        typer.Option(
            "--positive-threshold",
            help="Mean optical density of DAB in a nucleus (0 to 5) from which it is Positive, "
            "else Negative. Give it three times for 1+, 2+ and 3+. Only for images stained with "
            "haematoxylin and DAB; experimental.",
            show_default="no Positive and Negative",
        ),
    ] = None,
    max_nucleus: Annotated[
        float,
        typer.Option(
            "--max-nucleus",
            callback=within(*MAX_NUCLEUS_UM),
            help="Diameter of the largest nucleus in µm, 1 to 200; tiles overlap by this much.",
        ),
    ] = DEFAULT_MAX_NUCLEUS_UM,
    simplify: Annotated[
        float,
        typer.Option(
            "--simplify",
            callback=within(*SIMPLIFY_UM),
            help="Leave out vertices that lie within about this distance of the smooth outline, in "
            "µm (0 to 5). 0 keeps outlines along pixel edges.",
        ),
    ] = DEFAULT_SIMPLIFY_UM,
    geojson: GeojsonDir = None,
    parquet: ParquetDir = None,
    run_dir: RunDir = None,
    resume: Resume = True,
    retry_failed: RetryFailed = False,
    fail_fast: FailFast = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Write even if QuPath or another program saved the image during the run, as long "
            "as the same areas are chosen and excluded. A backup of that state is kept.",
        ),
    ] = False,
    no_report: NoReport = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan, and stop.")] = False,
    wait: Wait = True,
    break_lock: BreakLock = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find nuclei in annotations or slides. Run it again to continue a stopped run.

    For example: qpnuclei run project.qpproj --roi Tumor

    Without a project: qpnuclei run slides/ -o results
    """
    given = dict(locals())
    from qpnuclei.cli.console import print_json
    from qpnuclei.cli.inputs import Inputs

    chosen = Inputs.of(inputs, output)
    if dask is not None:
        from qpnuclei.pipeline.inference.scheduler import check_scheduler

        check_scheduler(dask, asks=not dry_run)
    if chosen.results is not None:
        from qpnuclei.cli.slides import run_slides

        content, failed = run_slides(chosen.slides, chosen.results, given)
    elif len(chosen.projects) == 1:
        from qpnuclei.cli.running import run_project

        content, failed = run_project(chosen.projects[0], given)
    else:
        from qpnuclei.cli.several import run_each

        content, failed = run_each(chosen.projects, given)
    if json:
        print_json(content)
    if failed:
        sys.exit(1)
