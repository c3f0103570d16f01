"""``qpnuclei adapt``: fit the packaged model to slides of one's own, without labels."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qpnuclei.cli.completing import complete_class
from qpnuclei.cli.options import DeviceOption, ImageGlobs, ImageRoot, Json, MppOption, Quiet, Seed
from qpnuclei.cli.train import STOPPING, ConsoleWatcher, number_of, training_bar
from qpnuclei.models.registry import DEFAULT_MODEL

if TYPE_CHECKING:
    from qpnuclei.training.adaptation import Adaptation


def adapt(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="PROJECT",
            help="QuPath project; or slides, image patches and folders of them. No labels are "
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
            help="New folder for the model, its card, a picture of what changed, and the state of "
            "the run.",
            show_default=False,
        ),
    ],
    images: ImageGlobs = None,
    roi: Annotated[
        list[str] | None,
        typer.Option(
            "--roi",
            autocompletion=complete_class,
            metavar="CLASS",
            help="Learn only inside annotations of this class; may repeat.",
            show_default="whole images",
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            help="Model to start from: default, or the .safetensors file of a student.",
        ),
    ] = DEFAULT_MODEL,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a field of the recipe adapted; may repeat. --set start_share=0.2 learns "
            "more of these slides, and forgets more of others.",
            show_default="as in the recipe",
        ),
    ] = None,
    mpp: MppOption = None,
    image_root: ImageRoot = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue the run in RUN_DIR with exactly the same result."),
    ] = False,
    seed: Seed = 0,
    device: DeviceOption = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Adapt the model to the slides of a project, without labels, and say what changed.

    Takes minutes without a GPU. Ctrl-C saves and stops. Use the new model with run --model.

    For example: qpnuclei adapt project.qpproj --image "ward 3*" -o runs/ours
    """
    from qpnuclei.training.config import read_settings
    from qpnuclei.training.sources import find_sources

    fields = read_settings(settings or ())
    found = find_sources(
        sources,
        mpp=() if mpp is None else (mpp,),
        roi=roi or (),
        image_root=image_root,
        images=images or (),
    )

    from qpnuclei.cli.console import print_json, stderr, this_command
    from qpnuclei.models.device import resolve_device
    from qpnuclei.system.interrupts import EXIT_CODE, asking_to_stop
    from qpnuclei.system.memory import keep_freed_memory
    from qpnuclei.training.adaptation import adapt as adapt_model

    chosen = resolve_device(device)
    stderr.print(f"adapting {model} to {number_of(len(found), 'image')} on {chosen}")
    with (
        keep_freed_memory(),
        training_bar(quiet) as bar,
        asking_to_stop(STOPPING) as interrupted,
    ):
        result = adapt_model(
            found,
            output,
            model=model,
            settings=fields,
            device=chosen,
            seed=seed,
            resume=resume,
            watcher=ConsoleWatcher(bar, interrupted),
        )
    if json:
        print_json(asdict(result))
    elif not result.training.stopped:
        _print(result, output)
    if result.training.stopped:
        stderr.print(f"stopped and saved; to continue: {this_command('--resume')}", soft_wrap=True)
        sys.exit(EXIT_CODE)


def _print(result: Adaptation, folder: Path) -> None:
    from rich.table import Table
    from rich.text import Text

    from qpnuclei.cli.console import stderr, stdout
    from qpnuclei.training.adaptation import CARD_FILE, PICTURE_FILE

    table = Table("image", "mm²", box=None, padding=(0, 2))
    for column in ("nuclei before", "after", "agreement with haematoxylin before", "after"):
        table.add_column(column, justify="right")
    for change in result.changes:
        agreements = (change.agreement_before, change.agreement_after)
        table.add_row(
            Text(change.image),
            f"{change.area_mm2:.3f}",
            str(change.nuclei_before),
            str(change.nuclei_after),
            *("–" if value is None else f"{value:.3f}" for value in agreements),
        )
    stdout.print(table)
    for doubt in result.doubts:
        stderr.print(f"doubtful: {doubt}", soft_wrap=True)
    stderr.print(
        f"what changed, as a picture: {folder / PICTURE_FILE}; model card: {folder / CARD_FILE}",
        soft_wrap=True,
    )
    stdout.print(str(result.training.model), soft_wrap=True)
