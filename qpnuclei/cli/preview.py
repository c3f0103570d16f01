"""``qpnuclei preview``: compare settings on a few fields, before a long run."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from qpnuclei.choices import MIN_AREA_UM2, THRESHOLD, Range, Speed
from qpnuclei.cli.options import (
    BackendOption,
    DeviceOption,
    ImageGlobs,
    ImageRoot,
    Json,
    ProjectMppOption,
    Quiet,
    SpeedOption,
    TtaOption,
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
    arguments_of,
    selection_of,
)
from qpnuclei.errors import NotFoundError, QpnucleiError, UsageError, number_of
from qpnuclei.models.registry import DEFAULT_MODEL, check_speed, networks_of

if TYPE_CHECKING:
    from qpnuclei.qupath.model import ImageEntry
    from qpnuclei.report.preview import Field, Setting

T = TypeVar("T")

#: Thresholds that are compared if nothing else is. None is the threshold of the model.
_THRESHOLDS = (0.35, None, 0.65)


def preview(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="PROJECT|SLIDE",
            help="QuPath project (the .qpproj file or its folder), or a slide, to show fields of "
            "its tissue.",
            show_default=False,
        ),
    ],
    roi: Roi = None,
    roi_derived: RoiDerived = False,
    roi_name: RoiName = None,
    roi_id: RoiId = None,
    roi_all: RoiAll = False,
    tissue: Tissue = False,
    exclude: Exclude = None,
    threshold: Annotated[
        list[str] | None,
        typer.Option(
            "--threshold",
            help="Attention (0.01 to 0.99) above which a pixel belongs to a nucleus; may repeat, "
            "or name several: 0.4,0.5,0.6.",
            show_default="0.35, that of the model, and 0.65; that of the model if something else "
            "is compared",
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            help="Model, as for run; may repeat, or name several with commas.",
            show_default=DEFAULT_MODEL,
        ),
    ] = None,
    speed: SpeedOption = "auto",
    min_area_um2: Annotated[
        list[str] | None,
        typer.Option(
            "--min-area-um2",
            help="Leave out nuclei with a smaller area, in µm²; may repeat, or name several: "
            "0,10,20.",
            show_default="0",
        ),
    ] = None,
    fields: Annotated[
        int,
        typer.Option(
            "--fields",
            callback=within(1, 12, "fields"),
            help="Fields to show, 1 to 12, of 128 µm each.",
        ),
    ] = 4,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE.html",
            help="Page to write; a picture (.png) is written beside it.",
            show_default="PROJECT/qpnuclei/preview.html, or SLIDE-preview.html in this folder",
        ),
    ] = None,
    image: ImageGlobs = None,
    device: DeviceOption = "auto",
    tta: TtaOption = None,
    mpp: ProjectMppOption = None,
    image_root: ImageRoot = None,
    backend: BackendOption = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show the nuclei of several settings in a few fields, as a page and a picture, in seconds.

    Nothing is written to the project. The page has the command that runs each setting.

    For example: qpnuclei preview project.qpproj --roi Tumor --threshold 0.4,0.5,0.6
    """
    given = dict(locals())
    models, thresholds, areas = _compared(model, speed, threshold, min_area_um2)

    from qpnuclei.cli.console import add_failure, image_progress, print_json
    from qpnuclei.pipeline.selection import choose_images
    from qpnuclei.qupath.names import cut
    from qpnuclei.qupath.pixel_size import AskedMpp, asked_mpp
    from qpnuclei.qupath.project import open_project
    from qpnuclei.qupath.project_file import OWN_FOLDER
    from qpnuclei.qupath.targets import check_target
    from qpnuclei.system.files import name_of
    from qpnuclei.system.interrupts import leaving_on_interrupt
    from qpnuclei.system.memory import keep_freed_memory

    if output is not None:
        _check_targets(output)
    is_slide = _is_slide(source)
    if is_slide and (roi or roi_name or roi_id or roi_all):
        raise UsageError(
            f"{source} is a slide: it has no annotations to choose",
            "leave out the --roi options: the tissue is previewed",
        )
    selection = selection_of({**given, "tissue": tissue or is_slide})
    with leaving_on_interrupt("interrupted: no preview was written"):
        if is_slide:
            if image or image_root:
                raise UsageError("--image and --image-root are for projects", "leave them out")
            path = output or Path(f"{cut(source.name)}-preview.html")
            asked = AskedMpp(mpp)
        else:
            opened = open_project(source, backend=backend, image_root=image_root)
            entries = choose_images(opened, tuple(image or ()), selection)
            path = output or opened.path.parent / OWN_FOLDER / "preview.html"
            for target in (path, path.with_suffix(".png")):
                check_target(opened, target)
            asked = asked_mpp(mpp, None, opened, entries, image)

        if output is None:
            _check_targets(path, is_own_folder=not is_slide)
        # Slow imports come after the arguments are checked.
        from qpnuclei.pipeline.options import RunOptions
        from qpnuclei.report.preview import preview_project, preview_slide, settings_of
        from qpnuclei.report.preview_page import write_preview

        settings = settings_of(models, thresholds, areas)
        options = RunOptions(
            selection,
            device=device,
            tta=tta,
            mpp=asked.mpp,
            mpp_only_missing=asked.only_missing,
        )
        total = fields * len(
            dict.fromkeys((setting.model, setting.threshold) for setting in settings)
        )
        failed: Sequence[tuple[ImageEntry, QpnucleiError]] = ()
        with keep_freed_memory(), image_progress("preview", total, quiet) as progress:
            if is_slide:
                shown = preview_slide(source, mpp, options, settings, fields, progress)
            else:
                shown, failed = preview_project(entries, options, settings, fields, progress)
        common = [*arguments_of(selection), *_more_arguments(image, mpp, tta, image_root)]
        commands = _commands(source, is_slide, settings, common)
        write_preview(shown, settings, path, name_of(source), commands)
    failures: list[dict[str, Any]] = []
    for entry, error in failed:
        add_failure(failures, entry, error)
    if json:
        print_json({**_as_json(path, shown, settings, commands), "failures": failures})
    else:
        _print_counts(path, shown, settings)
    sys.exit(1 if failures else 0)


def _compared(
    model: Sequence[str] | None,
    speed: Speed,
    threshold: Sequence[str] | None,
    min_area_um2: Sequence[str] | None,
) -> tuple[list[str], list[float | None], list[float]]:
    """Return the models, the thresholds and the smallest areas to compare."""
    models = _several("--model", model, str) or [DEFAULT_MODEL]
    for name in models:
        check_speed(name, speed)
    if speed != "auto":
        models = [*networks_of(DEFAULT_MODEL, speed)]
    areas = _several("--min-area-um2", min_area_um2, partial(_number, limits=MIN_AREA_UM2)) or [0.0]
    thresholds: list[float | None] = [
        *_several("--threshold", threshold, partial(_number, limits=THRESHOLD))
    ]
    if not thresholds:
        thresholds = [None] if len(models) > 1 or len(areas) > 1 else [*_THRESHOLDS]
    return models, thresholds, areas


def _is_slide(source: Path) -> bool:
    """Tell whether a path is that of a slide; refuse it if it is not that of a project either."""
    from qpnuclei.qupath.project_file import find_project_file

    if not source.exists():
        raise NotFoundError(
            f"{source}: no such file", "name a project.qpproj or its folder, or a slide"
        )
    if source.is_file() and source.suffix.lower() not in (".qpproj", ".json"):
        return True
    find_project_file(source)
    return False


def _more_arguments(
    image: Sequence[str] | None, mpp: float | None, tta: bool | None, image_root: Path | None
) -> list[str]:
    """Return the options of a run that are those of the preview, besides its selection."""
    arguments = []
    for name in image or ():
        arguments += ["--image", name]
    if mpp is not None:
        arguments += ["--mpp", f"{mpp:g}"]
    if tta is not None:
        arguments += ["--tta" if tta else "--no-tta"]
    if image_root is not None:
        arguments += ["--image-root", str(image_root)]
    return arguments


def _commands(
    source: Path, is_slide: bool, settings: Sequence[Setting], common: Sequence[str]
) -> list[str]:
    """Return for each setting the command that runs it; for a slide, with that of its project."""
    from qpnuclei.report.preview_page import options_of
    from qpnuclei.system.commands import as_typed

    project = "my-project" if is_slide else str(source)
    commands = [
        as_typed(["qpnuclei", "run", project, *common, *options_of(setting, settings)])
        for setting in settings
    ]
    if not is_slide:
        return commands
    made = as_typed(["qpnuclei", "project", "create", project, str(source)])
    return [f"{made}\n{command}" for command in commands]


def _as_json(
    page: Path, shown: Sequence[Field], settings: Sequence[Setting], commands: Sequence[str]
) -> dict[str, Any]:
    """Return what was compared, and the nuclei found, as JSON types."""
    return {
        "page": str(page),
        "picture": str(page.with_suffix(".png")),
        "fields": [
            {"image": f.image, "region": f.region, "box_px": f.box, "mm2": f.area_mm2}
            for f in shown
        ],
        "settings": [
            {
                "model": setting.model,
                "threshold": setting.threshold,
                "min_area_um2": setting.min_area_um2,
                "nuclei": [field.counts[number] for field in shown],
                "command": command,
            }
            for number, (setting, command) in enumerate(zip(settings, commands, strict=True))
        ],
    }


def _print_counts(page: Path, shown: Sequence[Field], settings: Sequence[Setting]) -> None:
    """Print the numbers of nuclei of each setting, and the files."""
    from qpnuclei.cli.console import print_status, stdout
    from qpnuclei.report.preview_page import label_of

    for number, setting in enumerate(settings):
        *first, last = (field.counts[number] for field in shown)
        counts = ", ".join([*map(str, first), number_of(last, "nucleus")])
        stdout.print(f"{label_of(setting, settings)}: {counts}")
    print_status(f"page:    {page}")
    print_status(f"picture: {page.with_suffix('.png')}")


def _check_targets(page: Path, *, is_own_folder: bool = False) -> None:
    """Check, before long work, that the page and the picture beside it can be written.

    In a folder of qpnuclei, all pictures are its own.
    """
    from qpnuclei.report.page import check_page
    from qpnuclei.slides.pixels import is_picture
    from qpnuclei.system.files import check_file_target

    check_page(page)
    picture = page.with_suffix(".png")
    check_file_target(picture)
    if picture.exists() and not is_own_folder and not is_picture(picture):
        raise UsageError(
            f"the picture {picture} would replace a file that is not one of qpnuclei's",
            "choose another name for the page: -o",
        )


def _several(option: str, texts: Sequence[str] | None, read: Callable[[str], T]) -> list[T]:
    """Return the values of an option that may repeat and may list several values with commas."""
    values = []
    for text in (part.strip() for whole in texts or () for part in whole.split(",")):
        try:
            values.append(read(text))
        except ValueError as error:
            raise UsageError(f"{option}: {text!r} {error}", f"see --help for {option}") from None
    return values


def _number(text: str, limits: Range) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError("is not a number") from None
    if not math.isfinite(value):
        raise ValueError("is not a number")
    if not limits.allow(value):
        raise ValueError(f"{limits.unit} is not in the range: {limits.text}")
    return value
