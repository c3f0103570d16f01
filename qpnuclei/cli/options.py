"""Options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from qpnuclei.choices import (
    BATCH,
    MAX_MPP,
    MIN_MPP,
    UNIT_GIB,
    UNIT_MINUTES,
    WORKERS,
    Backend,
    Device,
    Range,
    Speed,
)
from qpnuclei.cli.completing import complete_class, complete_image

_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?|mps")

Number = TypeVar("Number", int, float, int | None, float | None, list[float] | None)


def within(
    low: float, high: float | None, unit: str = "", remark: str = ""
) -> Callable[[Number], Number]:
    """Return the check that the value or values of an option are in a range; NaN never is."""
    limits = Range(low, high, unit)
    unit = f" {unit}" if unit else ""
    remark = f" ({remark})" if remark else ""

    def check(given: Number) -> Number:
        for value in given if isinstance(given, list) else [given]:
            if value is not None and not limits.allow(value):
                raise typer.BadParameter(
                    f"{value:g}{unit} is not in the range: {limits.text}{remark}"
                )
        return given

    return check


def class_option(flag: str, help: str, show_default: bool | str = True) -> Any:  # noqa: A002
    """Return an option whose value is a class of the project, which a shell completes."""
    return typer.Option(
        flag, autocompletion=complete_class, metavar="CLASS", help=help, show_default=show_default
    )


#: The check of every option that is a pixel size.
possible_mpp = within(MIN_MPP, MAX_MPP, "µm/px", "40x scans have about 0.25, 20x about 0.5")


ProjectPath = Annotated[
    Path, typer.Argument(help="QuPath project: the .qpproj file or its folder.", show_default=False)
]
BackendOption = Annotated[
    Backend,
    typer.Option(
        "--backend",
        help="Backend that reads and writes the project: native needs neither QuPath nor Java, "
        "paquo uses an installed QuPath, auto uses paquo where QuPath 0.4 or newer is found.",
    ),
]
ImageRoot = Annotated[
    Path | None,
    typer.Option(
        "--image-root",
        help="Folder of slides that are no longer where the project says: each is tried at its "
        "stored path below it, with fewer and fewer leading folders, at last by name alone. Other "
        "subfolders are not searched.",
        show_default="beside the project, as QuPath does",
    ),
]
ImageGlobs = Annotated[
    list[str] | None,
    typer.Option(
        "--image",
        autocompletion=complete_image,
        help="Only images of this name (* and ? match any) or ID; may repeat.",
        show_default="all images",
    ),
]
ProjectMppOption = Annotated[
    float | None,
    typer.Option(
        "--mpp",
        callback=possible_mpp,
        help="Pixel size at full resolution in µm/px. For several images without --image: only "
        "where none is known.",
        show_default="from the last run, project or slide",
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
#: Of slides that no project describes yet.
NewSlidesMpp = Annotated[
    float | None,
    typer.Option(
        "--mpp",
        callback=possible_mpp,
        help="Pixel size of each new slide at full resolution in µm/px; overrides its file.",
        show_default="from each slide",
    ),
]
#: Help of every option that takes any model.
ANY_MODEL = (
    "default, default-40x, default-20x, open-40x (for commercial use), a .safetensors file, or "
    "torchscript:FILE, onnx:FILE."
)
ModelOption = Annotated[str, typer.Option("--model", help=ANY_MODEL)]
SpeedOption = Annotated[
    Speed,
    typer.Option(
        "--speed",
        help="Network of the default model. auto: default-20x for slides of more than 0.36 µm/px, "
        "default-40x for others. fast: default-20x for all, which takes 1/1.8 of the processor "
        "time for 40x slides and scores 0.010 less AJI on the validation images.",
    ),
]
DeviceOption = Annotated[
    Device,
    typer.Option("--device", help="auto (a GPU if there is one), cpu, cuda or mps."),
]
Batch = Annotated[
    int | None,
    typer.Option(
        "--batch",
        callback=within(*BATCH),
        help="Tiles per batch of the network.",
        show_default="on a GPU as many as fit into its memory, at most 8; 1 on a CPU",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        callback=within(*WORKERS),
        help="Processor cores to use; results do not depend on it.",
        show_default="all",
    ),
]


def _check_devices(value: str) -> str:
    """Check the names of devices, separated by commas."""
    for name in value.split(","):
        if not _DEVICE.fullmatch(name):
            raise typer.BadParameter(f"{name!r} is none of auto, cpu, cuda, cuda:N and mps")
    return value


DevicesOption = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="DEVICES",
        callback=_check_devices,
        help="auto (a GPU if there is one), cpu, cuda, cuda:N or mps; several at once: "
        "cuda:0,cuda:1.",
    ),
]
Dask = Annotated[
    str | None,
    typer.Option(
        "--dask",
        metavar="ADDRESS",
        help="Compute on a Dask cluster: the address of its scheduler or the file that it wrote, "
        "or local:N for N workers on this machine (docs/cluster.md).",
        show_default="on this machine",
    ),
]
UnitMinutes = Annotated[
    float | None,
    typer.Option(
        "--unit-minutes",
        callback=within(*UNIT_MINUTES),
        help="Time limit in minutes for a unit (some 25 tiles). A unit that takes longer is "
        "stopped and tried again; after three attempts it is reported, and the run continues "
        "without it.",
        show_default="no limit",
    ),
]
UnitGib = Annotated[
    float | None,
    typer.Option(
        "--unit-gib",
        callback=within(*UNIT_GIB),
        help="Memory limit in GiB for the process of a unit (some 25 tiles), its network included. "
        "A process that needs more is stopped, as with --unit-minutes.",
        show_default="no limit",
    ),
]
TtaOption = Annotated[
    bool | None,
    typer.Option(
        "--tta/--no-tta",
        help="Average the network over the eight flips and right-angle rotations of every tile "
        "(test-time augmentation): eight times the network's time. Earlier students gained 0.003 "
        "AJI by it on the validation images, attention much more; measure yours with evaluate.",
        show_default="as in the model: --tta for those of the attention recipes",
    ),
]
Wait = Annotated[
    bool,
    typer.Option(
        "--wait/--no-wait",
        help="If another process works on the project: wait until it is done, or stop with an "
        "error that names it.",
    ),
]
BreakLock = Annotated[
    bool,
    typer.Option(
        "--break-lock",
        help="Work on a project that a process on another computer has locked. Use it only if that "
        "process has surely ended. Processes of this computer need no such option.",
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        "--seed",
        callback=within(0, None),
        help="Seed of the initial weights and all random choices, from 0.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON document instead of text."),
]
RunDir = Annotated[
    Path | None,
    typer.Option(
        "--run-dir",
        help="Folder of the run: its plan, finished units, record (run.json), report.html and log.",
        show_default="PROJECT/qpnuclei/<date and time>",
    ),
]
GeojsonDir = Annotated[
    Path | None,
    typer.Option("--geojson", help="Also write QuPath GeoJSON (.geojson.gz) to this folder."),
]
ParquetDir = Annotated[
    Path | None,
    typer.Option("--parquet", help="Also write the nuclei as Parquet tables to this folder."),
]
NoReport = Annotated[
    bool,
    typer.Option(
        "--no-report",
        help="Write no report.html.",
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume/--no-resume",
        help="Continue the unfinished run with the same options, without repeating what it has "
        "finished; or start a new run.",
    ),
]
ResumeTraining = Annotated[
    bool,
    typer.Option("--resume", help="Continue the run in RUN_DIR with exactly the same result."),
]
RetryFailed = Annotated[
    bool,
    typer.Option(
        "--retry-failed",
        help="Also try units again that failed three times (listed in failures.jsonl in the run's "
        "folder).",
    ),
]
FailFast = Annotated[
    bool,
    typer.Option(
        "--fail-fast", help="Stop at the first error instead of continuing with the rest."
    ),
]
RunFolderArgument = Annotated[
    Path,
    typer.Argument(metavar="RUN_DIR", help="Folder that qpnuclei plan made.", show_default=False),
]
SlidesFrom = Annotated[
    Path | None,
    typer.Option(
        "--slides-from",
        help="Folder of the slides on this machine, searched with its subfolders. Slides are "
        "recognised by name and content.",
        show_default="the paths in the plan",
    ),
]

Command = TypeVar("Command", bound=Callable[..., Any])


def with_options_of(other: Callable[..., Any], *without: str) -> Callable[[Command], Command]:
    """Give a command that takes ``**given`` also the options of another command.

    Parameters
    ----------
    other : callable
    *without : str
        Parameters of `other` that the command does not get.
    """

    def change(command: Command) -> Command:
        whole = signature(other, eval_str=True)
        kept = list(signature(command, eval_str=True).parameters.values())[:-1]
        kept += [p for name, p in whole.parameters.items() if name not in without]
        command.__signature__ = whole.replace(parameters=kept)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in kept}
        return command

    return change
