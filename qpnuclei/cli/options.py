"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qpnuclei.choices import Backend, Device

ProjectPath = Annotated[
    Path, typer.Argument(help="QuPath project: the .qpproj file or its folder.", show_default=False)
]
BackendOption = Annotated[
    Backend,
    typer.Option(
        "--backend",
        help="Backend that reads and writes the project: native needs neither QuPath nor Java, "
        "paquo uses an installed QuPath, auto uses paquo where QuPath is found.",
    ),
]
ImageRoot = Annotated[
    Path | None,
    typer.Option(
        "--image-root",
        help="Folder to search for slides that are no longer where the project says.",
        show_default="beside the project, as QuPath does",
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude",
        help="Class of annotations to leave out of the analysed area and of all counts, with * and "
        "? as wildcards; may repeat. '' excludes nothing.",
        show_default="'Ignore*', QuPath's class for what is to be ignored",
    ),
]
ImageGlobs = Annotated[
    list[str] | None,
    typer.Option(
        "--image",
        help="Only images whose name matches this pattern (*, ?), or the image of this ID, which "
        "info shows; may repeat.",
        show_default="all images",
    ),
]
ProjectMppOption = Annotated[
    float | None,
    typer.Option(
        "--mpp",
        help="Pixel size at full resolution in µm/px, for the images named with --image or for the "
        "only image; otherwise only for images without a pixel size.",
        show_default="that of the last run, else the project, else the slide",
    ),
]
MppTable = Annotated[
    Path | None,
    typer.Option(
        "--mpp-table",
        help="Pixel sizes of many images: a CSV file with the columns image (name or ID) and mpp "
        "(µm/px).",
    ),
]
MppOption = Annotated[
    float | None,
    typer.Option(
        "--mpp",
        help="Pixel size of the slide at full resolution in µm/px; overrides project and slide.",
        show_default="from the project, else the slide",
    ),
]
ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        help="Model: default, a .safetensors file made by train, or another model: "
        "torchscript:FILE or onnx:FILE with a sidecar (docs/engines.md).",
    ),
]
DeviceOption = Annotated[
    Device,
    typer.Option("--device", help="Device that runs the network; auto uses a GPU if there is one."),
]
TtaOption = Annotated[
    bool,
    typer.Option(
        "--tta",
        help="Average the network over the eight flips and right-angle rotations of every tile "
        "(test-time augmentation): eight times the network's time. On the validation images it "
        "gained the models before this one .003 AJI; measure yours with evaluate --tta.",
    ),
]
Wait = Annotated[
    bool,
    typer.Option(
        "--wait/--no-wait",
        help="While another process works on the project: wait until it is done, or stop with an "
        "error that names it.",
    ),
]
BreakLock = Annotated[
    bool,
    typer.Option(
        "--break-lock",
        help="Work on a project that a process on another computer has locked. Only if that "
        "process surely runs no more: of this computer's, that is seen without this option.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON document instead of text to standard output."),
]
