"""``qpnuclei train``: learn to find nuclei from unlabelled slides."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="SOURCE...",
            help="Slides, image patches, folders of them, or QuPath projects. No labels are used. "
            "Of a folder with images/ and splits.json, only the split 'train'.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="RUN_DIR",
            help="Folder for the model, the metrics, the pictures and the state of the run.",
            show_default=False,
        ),
    ],
    config: Annotated[
        str,
        typer.Option(
            "--config",
            help="Recipe: proposed (the paper's), its ablations no-smooth, no-equiv, no-sparse and "
            "no-wsi, scale-equiv (a term of the authors' code), anchored or student (ours), or "
            "the path of a .yaml file.",
        ),
    ] = "proposed",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a field of the recipe; may repeat. --set width=16 is for a laptop.",
            show_default="as in the recipe",
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option("--epochs", min=1, help="Number of epochs.", show_default="as in the recipe"),
    ] = None,
    scales: Annotated[
        str | None,
        typer.Option(
            "--scales",
            help="Magnifications to tell apart, in µm/px, finest first.",
            show_default="0.25,0.5,1.0",
        ),
    ] = None,
    mpp: Annotated[
        float | None,
        typer.Option(
            "--mpp",
            help="Pixel size of all sources and validation images in µm/px; overrides what the "
            "files say.",
            show_default="from the project, else the file",
        ),
    ] = None,
    roi: Annotated[
        list[str] | None,
        typer.Option(
            "--roi",
            metavar="CLASS",
            help="Learn only inside the annotations of this class of QuPath projects; may repeat.",
            show_default="whole images",
        ),
    ] = None,
    validation: Annotated[
        Path | None,
        typer.Option(
            "--validation",
            metavar="DIR",
            help="Folder with images/ and labels/ (instance maps) that chooses the best epoch, and "
            "nothing else. With splits.json, its split 'val'.",
            show_default="none: the last epoch is kept",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in RUN_DIR, exactly.")
    ] = False,
    backbone_weights: Annotated[
        Path | None,
        typer.Option(
            "--backbone-weights",
            metavar="FILE",
            help="What the scale network starts from: .safetensors, or .pth as torchvision "
            "publishes it.",
            show_default="ImageNet weights, downloaded once",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Of the initial weights and of all that is drawn.")
    ] = 0,
    device: Annotated[
        str,
        typer.Option(
            "--device", help="auto (a GPU where there is one), cpu, cuda, cuda:N or mps."
        ),
    ] = "auto",
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=0,
            help="Processes that read tiles; 0 reads in the main process.",
            show_default="0 without a GPU, else one per core, at most 8",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Learn to find nuclei from unlabelled slides, patches or projects.

    For example: qpnuclei train project.qpproj -o runs/ours --config anchored
    """
    from qpnuclei.training.config import attention_recipe, read_recipe

    fields = read_recipe(config, settings or ())
    if epochs is not None:
        fields["epochs"] = epochs
    if scales is not None:
        fields["scales"] = _numbers(scales)
    if fields.get("family") == "student":
        from qpnuclei.training.student import train_student
        ...
    recipe = attention_recipe(fields)
