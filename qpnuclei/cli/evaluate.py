"""``qpnuclei evaluate``: measure a model on annotated images, next to a classical baseline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qpnuclei.choices import DatasetLayout, Method
from qpnuclei.cli.options import (
    ANY_MODEL,
    DeviceOption,
    ImageGlobs,
    ImageRoot,
    Json,
    Quiet,
    SpeedOption,
    TtaOption,
    class_option,
    possible_mpp,
    within,
)
from qpnuclei.errors import UsageError
from qpnuclei.models.registry import DEFAULT_MODEL

if TYPE_CHECKING:
    from rich.progress import TaskID


def evaluate(
    dataset: Annotated[
        Path,
        typer.Argument(
            help="Folder of annotated images: images/ and labels/ (instance maps or GeoJSON), or "
            "MoNuSeg, TNBC or CoNSeP as published; or a QuPath project with --roi.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="REPORT.json",
            help="Report to write; a table (.md) and a page with pictures (.html) beside it.",
            show_default=False,
        ),
    ],
    roi: Annotated[
        list[str] | None,
        class_option(
            "--roi",
            help="For a project: class of the annotations in which every nucleus is drawn; may "
            "repeat.",
            show_default=False,
        ),
    ] = None,
    truth_class: Annotated[
        list[str] | None,
        class_option(
            "--truth-class",
            help="Class of the drawn nuclei (detections, cells or annotations) in a project or "
            "GeoJSON file; may repeat.",
            show_default="Nucleus in a project; every object of a GeoJSON file",
        ),
    ] = None,
    image: ImageGlobs = None,
    image_root: ImageRoot = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help=ANY_MODEL,
            show_default=DEFAULT_MODEL,
        ),
    ] = None,
    speed: SpeedOption = "auto",
    components: Annotated[
        bool,
        typer.Option(
            "--components",
            help="The labels are binary masks: each connected component is one nucleus, so that "
            "touching nuclei become one.",
        ),
    ] = False,
    method: Annotated[
        Method,
        typer.Option(
            "--method",
            help="model, or hematoxylin: the classical baseline that every report includes.",
        ),
    ] = "model",
    layout: Annotated[
        DatasetLayout, typer.Option("--format", help="Layout of the data set; auto detects it.")
    ] = "auto",
    mpp: Annotated[
        float | None,
        typer.Option(
            "--mpp",
            callback=possible_mpp,
            help="Pixel size of the images in µm/px.",
            show_default="0.25 for the published sets, else from the last run, project or file",
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option("--split", help="Only the images of this split.", show_default="all images"),
    ] = None,
    splits: Annotated[
        Path | None,
        typer.Option(
            "--splits",
            metavar="FILE",
            help="JSON file: names of splits to lists of image names (without suffix).",
            show_default="DATASET/splits.json",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            callback=within(1, None, "images"),
            help="Only the first N images, or boxes of a project.",
        ),
    ] = None,
    tune: Annotated[
        bool,
        typer.Option(
            "--tune", help="Find the threshold and post-processing that score best on these images."
        ),
    ] = False,
    write_model: Annotated[
        Path | None,
        typer.Option(
            "--write-model",
            metavar="FILE",
            help="With --tune: write a copy of the model with these settings.",
        ),
    ] = None,
    pictures: Annotated[
        int,
        typer.Option(
            "--pictures",
            callback=within(0, None, "images"),
            help="Show at most N images on the page.",
        ),
    ] = 20,
    device: DeviceOption = "auto",
    tta: TtaOption = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure how well nuclei are found on annotated images, with intervals and pictures.

    For example: qpnuclei evaluate monuseg-train --split val --mpp 0.25 -o report.json

    On drawn nuclei: qpnuclei evaluate project.qpproj --roi Box -o report.json
    """
    if method == "hematoxylin" and (model is not None or tune or tta is not None):
        raise UsageError(
            "--method hematoxylin uses no model: it excludes --model, --tune, --tta and --no-tta",
            "leave out --method, or the other options",
        )
    if write_model is not None and not tune:
        raise UsageError("--write-model needs --tune", "add --tune")
    if splits is not None and split is None:
        raise UsageError(f"--splits {splits} was given without --split", "add --split")
    if output.suffix.lower() != ".json":
        raise UsageError(
            f"--output {output} does not end in .json",
            "the table (.md) and the page (.html) are written beside it",
        )

    from qpnuclei.evaluation.formats import SPLITS_FILE
    from qpnuclei.evaluation.reading import read_annotated
    from qpnuclei.evaluation.report import report_files, write_report
    from qpnuclei.qupath.project import open_project
    from qpnuclei.qupath.project_file import is_project
    from qpnuclei.qupath.targets import check_target
    from qpnuclei.system.files import check_file_target, is_same_file

    project = open_project(dataset, image_root=image_root) if is_project(dataset) else None
    for file in report_files(output):
        check_file_target(file)
        if project is not None:
            check_target(project, file)
        for given in (splits, dataset / SPLITS_FILE):
            if given is not None and is_same_file(file, given):
                raise UsageError(
                    f"--output {output} is the list of splits, and would be lost",
                    "choose another name",
                )
    read = read_annotated(
        dataset,
        layout,
        split,
        splits,
        components=components,
        roi=roi or (),
        truth_classes=truth_class or (),
        images=image or (),
        mpp=mpp,
        image_root=image_root,
        limit=limit,
    )

    from rich.text import Text

    from qpnuclei.cli.console import print_json, print_status, progress_bar, stdout
    from qpnuclei.evaluation.evaluate import EvaluationOptions, evaluate_model
    from qpnuclei.evaluation.page import evaluation_page
    from qpnuclei.system.one_line import in_one_line

    options = EvaluationOptions(
        model=None if method == "hematoxylin" else model or DEFAULT_MODEL,
        speed=speed,
        mpp=mpp,
        device=device,
        tta=tta,
        tune=tune,
        write_model=write_model,
    )
    for note in read.notes[:1]:  # the report has all of them
        print_status(note)
    with progress_bar(quiet) as bar:
        tasks: dict[str, TaskID] = {}

        def progress(stage: str, done: int, total: int | None, note: str) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total, note="")
            bar.update(tasks[stage], completed=done, total=total, note=in_one_line(note))

        report = evaluate_model(read.images, read.described, options, progress, read.notes)
    # First the files: standard output may fail, for example if its reader has gone.
    try:
        write_report(report, output, evaluation_page(report, pictures))
        for file in report_files(output):
            print_status(f"written: {file}")
    finally:
        if json:
            print_json(report.to_json())
        else:
            stdout.print(Text(report.to_markdown()))
    if report.unwritten is not None:
        raise report.unwritten
