"""``qpnuclei demo``: a complete analysis of a synthetic slide, or of the user's own."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from qpnuclei.cli.options import DeviceOption, Json, ModelOption, NewSlidesMpp, Quiet
from qpnuclei.models.registry import DEFAULT_MODEL


def demo(
    directory: Annotated[Path, typer.Argument(help="Folder for the demonstration's files.")],
    slide: Annotated[
        Path | None,
        typer.Option(
            "--slide",
            help="Slide to use; its tissue is detected automatically and becomes the annotation.",
            show_default="a synthetic slide with known nuclei",
        ),
    ] = None,
    mpp: NewSlidesMpp = None,
    model: ModelOption = DEFAULT_MODEL,
    device: DeviceOption = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a slide and a QuPath project, find and count the nuclei, and draw them.

    Without --slide, also report how many of the known nuclei were found.
    """
    from qpnuclei.cli.console import print_json, print_status, stdout, tile_progress
    from qpnuclei.cli.running import INTERRUPTED
    from qpnuclei.cli.tables import print_account, summary_table
    from qpnuclei.demo.demonstration import demonstrate
    from qpnuclei.system.interrupts import leaving_on_interrupt
    from qpnuclei.system.memory import keep_freed_memory

    with (
        keep_freed_memory(),
        leaving_on_interrupt(INTERRUPTED),
        tile_progress(quiet) as progress,
    ):
        made = demonstrate(directory, slide, mpp, model, device, progress, print_status)
    if json:
        print_json(
            {
                "project": str(made.project),
                "counts": str(made.counts),
                "picture": str(made.picture),
                "score": made.score and asdict(made.score),
                "run": made.summary.to_json(),
            }
        )
        return
    stdout.print(summary_table(made.summary))
    print_account(made.summary)
    if made.score is not None:
        by_outline, by_centre = made.score.iou, made.score.centroid
        stdout.print(
            f"against the {by_outline.n_truth} known nuclei of the synthetic slide: "
            f"precision {by_outline.precision:.2f}, recall {by_outline.recall:.2f} "
            f"(outlines overlap by IoU >= 0.5); precision {by_centre.precision:.2f}, "
            f"recall {by_centre.recall:.2f} (centres within 3 µm)"
        )
    stdout.print(f"counts:  {made.counts}")
    stdout.print(f"picture: {made.picture}")
    stdout.print(f"project: {made.project}")
