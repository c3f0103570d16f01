"""``qpnuclei adapt``: fit the packaged model to the user's slides, without labels."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qpnuclei.cli.options import (
    DeviceOption,
    ImageGlobs,
    ImageRoot,
    Json,
    Quiet,
    ResumeTraining,
    Seed,
    class_option,
    possible_mpp,
)
from qpnuclei.cli.train import STOPPING, ConsoleCallbacks, leave_stopped
from qpnuclei.errors import number_of
from qpnuclei.models.registry import DEFAULT_MODEL

if TYPE_CHECKING:
    from qpnuclei.training.adaptation import Adaptation


def adapt(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="PROJECT",
            help="QuPath project; or slides, image patches and folders of them. Labels are not "
            "used.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="RUN_DIR",
            help="New folder for the model, its model card, a picture of what changed, and the "
            "state of the run.",
            show_default=False,
        ),
    ],
    image: ImageGlobs = None,
    roi: Annotated[
        list[str] | None,
        class_option(
            "--roi",
            help="Learn only inside annotations of this class; may repeat.",
            show_default="whole images",
        ),
    ] = None,
    corrections: Annotated[
        list[str] | None,
        class_option(
            "--corrections",
            help="Also learn from the nuclei in annotations of this class, in which somebody has "
            "drawn or corrected every nucleus, as for evaluate --roi; may repeat.",
            show_default="no labels are used",
        ),
    ] = None,
    truth_class: Annotated[
        list[str] | None,
        class_option(
            "--truth-class",
            help="With --corrections: class of the drawn nuclei; may repeat.",
            show_default="Nucleus",
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            help="Model to start from: default (its network for the pixel size of the slides), "
            "another model's name, or the .safetensors file of a student.",
        ),
    ] = DEFAULT_MODEL,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a field of the recipe adapted; may repeat. --set start_share=0.2 adapts "
            "more to these slides, and may do worse on others.",
            show_default="as in the recipe",
        ),
    ] = None,
    mpp: Annotated[
        float | None,
        typer.Option(
            "--mpp",
            callback=possible_mpp,
            help="Pixel size of all slides at full resolution in µm/px; overrides projects and "
            "files.",
            show_default="from the last run, project or slide",
        ),
    ] = None,
    image_root: ImageRoot = None,
    resume: ResumeTraining = False,
    seed: Seed = 0,
    device: DeviceOption = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Adapt the model to the slides of a project, and say what changed. It needs no labels.

    Takes minutes without a GPU. Ctrl-C saves and stops. Use the new model with run --model.

    For example: qpnuclei adapt project.qpproj --image "ward 3*" -o runs/ours

    With drawn nuclei: qpnuclei adapt project.qpproj --corrections Box -o runs/ours
    """
    from qpnuclei.training.config import read_settings
    from qpnuclei.training.sources import find_sources

    fields = read_settings(settings or ())
    found = find_sources(
        sources,
        mpp=() if mpp is None else (mpp,),
        roi=roi or (),
        image_root=image_root,
        images=image or (),
    )

    from qpnuclei.cli.console import print_json, print_status, progress_bar
    from qpnuclei.evaluation.boxes import read_corrected
    from qpnuclei.models.device import resolve_device
    from qpnuclei.system.interrupts import asking_to_stop
    from qpnuclei.system.memory import keep_freed_memory
    from qpnuclei.training.adaptation import adapt as adapt_model
    from qpnuclei.training.adaptation import network_to_adapt

    drawn = read_corrected(
        sources,
        corrections or (),
        truth_class or (),
        images=image or (),
        mpp=mpp,
        image_root=image_root,
    )
    for note in drawn.notes:
        print_status(note)
    chosen = resolve_device(device)
    start = network_to_adapt(model, found)
    print_status(f"adapting {start} to {number_of(len(found), 'image')} on {chosen}")
    with (
        keep_freed_memory(),
        progress_bar(quiet, long_notes=True) as bar,
        asking_to_stop(STOPPING) as interrupted,
    ):
        result = adapt_model(
            found,
            output,
            model=start,
            settings=fields,
            device=chosen,
            seed=seed,
            resume=resume,
            callbacks=ConsoleCallbacks(bar, interrupted),
            corrections=drawn.images,
        )
    if json:
        print_json(asdict(result))
    elif not result.training.stopped:
        _print(result, output)
    if result.training.stopped:
        leave_stopped(interrupted.exit_code)


def _print(result: Adaptation, folder: Path) -> None:
    from rich.table import Table

    from qpnuclei.cli.console import print_status, print_warning, stdout
    from qpnuclei.training.adaptation import CARD_FILE, PICTURE_FILE

    table = Table("image", "mm²", box=None, padding=(0, 2))
    for column in ("nuclei before", "after", "agreement with haematoxylin before", "after"):
        table.add_column(column, justify="right")
    for change in result.changes:
        agreements = (change.agreement_before, change.agreement_after)
        table.add_row(
            change.image,
            f"{change.area_mm2:.3f}",
            str(change.nuclei_before),
            str(change.nuclei_after),
            *("–" if value is None else f"{value:.3f}" for value in agreements),
        )
    stdout.print(table)
    for doubt in result.doubts:
        print_warning(f"doubtful: {doubt}")
    print_status(
        f"what changed, as a picture: {folder / PICTURE_FILE}; model card: {folder / CARD_FILE}"
    )
    stdout.print(str(result.training.model))
