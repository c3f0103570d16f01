"""``qpnuclei project``: create and extend QuPath projects, and restore backups."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from qpnuclei.cli.command import Command, Group
from qpnuclei.cli.completing import complete_image
from qpnuclei.cli.options import BreakLock, Json, NewSlidesMpp, ProjectPath, Wait
from qpnuclei.errors import number_of

if TYPE_CHECKING:
    from qpnuclei.qupath.model import ImageEntry, Project

project_app = typer.Typer(
    name="project",
    add_completion=False,
    cls=Group,
    help="Create and extend QuPath projects without QuPath, and restore backups.",
    no_args_is_help=True,
)

Hdab = Annotated[
    bool,
    typer.Option(
        "--hdab",
        help="The slides are stained with haematoxylin and DAB: image type Brightfield (H-DAB), "
        "with QuPath's default stain vectors. Experimental.",
        show_default="H&E",
    ),
]


@project_app.callback()
def _project() -> None:
    pass


@project_app.command(cls=Command)
def create(
    directory: Annotated[
        Path, typer.Argument(help="Folder of the new project; created if missing.")
    ],
    slides: Annotated[
        list[Path],
        typer.Argument(
            help="Slides to add, in this order: files, folders of them, or patterns (*, ?, **)."
        ),
    ],
    mpp: NewSlidesMpp = None,
    hdab: Hdab = False,
    json: Json = False,
) -> None:
    """Create a QuPath project from slides, by default as Brightfield (H&E) images.

    For example: qpnuclei project create my-project slides/*.svs
    """
    from qpnuclei.cli.console import add_slide_failure
    from qpnuclei.cli.inputs import slides_named
    from qpnuclei.qupath.create import create_from_slides
    from qpnuclei.slides.stains import DEFAULT_H_DAB, DEFAULT_HE

    failures: list[dict[str, Any]] = []
    stains = DEFAULT_H_DAB if hdab else DEFAULT_HE
    found = slides_named(slides)
    project = create_from_slides(
        directory, found, mpp, stains=stains, failed=partial(add_slide_failure, failures)
    )
    said = f"{project.path}, images: {len(project.images)}"
    _finish(project, "images", project.images, failures, said, json)


@project_app.command(cls=Command)
def add(
    project: ProjectPath,
    slides: Annotated[
        list[Path],
        typer.Argument(
            help="Slides to add, in this order: files, folders of them, or patterns (*, ?, **). "
            "Slides that the project already has are skipped.",
            show_default=False,
        ),
    ],
    mpp: NewSlidesMpp = None,
    hdab: Hdab = False,
    wait: Wait = True,
    break_lock: BreakLock = False,
    json: Json = False,
) -> None:
    """Add slides to a project, by default as Brightfield (H&E) images. Close it in QuPath first.

    For example: qpnuclei project add project.qpproj more-slides/
    """
    from qpnuclei.cli.console import add_slide_failure
    from qpnuclei.cli.inputs import slides_named
    from qpnuclei.qupath.adding import add_slides
    from qpnuclei.qupath.project_file import find_project_file
    from qpnuclei.slides.stains import DEFAULT_H_DAB, DEFAULT_HE
    from qpnuclei.system.locks import locked

    failures: list[dict[str, Any]] = []
    found = slides_named(slides)
    path = find_project_file(project)
    with locked(path.parent, wait=wait, break_lock=break_lock):
        stains = DEFAULT_H_DAB if hdab else DEFAULT_HE
        opened, added = add_slides(
            path, found, mpp, stains=stains, failed=partial(add_slide_failure, failures)
        )
    new = [entry for entry in opened.images if entry.id in added]
    said = f"{opened.path}, images: {len(opened.images)}, of which new: {len(new)}"
    _finish(opened, "added", new, failures, said, json)


def _finish(
    project: Project,
    key: str,
    new: Sequence[ImageEntry],
    failures: Sequence[dict[str, Any]],
    said: str,
    json: bool,
) -> NoReturn:
    """Print `said`, or `new` images as JSON under a key, and the slides left out; and exit."""
    from qpnuclei.cli.console import print_json, stdout

    if json:
        images = [{"id": e.id, "name": e.name, "mpp": e.calibration.mpp} for e in new]
        print_json({"project": str(project.path), key: images, "failures": failures})
    else:
        stdout.print(said)
        _print_without_mpp(new)
        if failures:
            stdout.print(f"left out: {number_of(len(failures), 'slide')}, see above")
    sys.exit(1 if failures else 0)


def _print_without_mpp(images: Sequence[ImageEntry]) -> None:
    from qpnuclei.cli.console import stdout
    from qpnuclei.qupath.image_names import image_option

    for entry in images:
        if entry.calibration.mpp is None:
            stdout.print(
                f"{entry.name} has no pixel size: set it in QuPath, or pass to run "
                f"{image_option(entry)} --mpp 0.5 (20x scans have about 0.5 µm/px, 40x about 0.25)"
            )


@project_app.command(cls=Command)
def backups(
    project: ProjectPath,
    count: Annotated[
        bool,
        typer.Option(
            "--count", help="Read each backup to count its objects (slow for large ones)."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """List the backups: the newest five states of every image."""
    from qpnuclei.cli.console import print_json, stdout
    from qpnuclei.cli.descriptions import describe_backups
    from qpnuclei.cli.tables import backups_table
    from qpnuclei.qupath.native import open_project

    images = open_project(project).images
    if json:
        print_json(describe_backups(images, count))
    elif any(image.backups() for image in images):
        stdout.print(backups_table(images, count))
    else:
        stdout.print("no backups: no run has replaced anything")


@project_app.command(cls=Command)
def restore(
    project: ProjectPath,
    image: Annotated[
        str,
        typer.Option(
            "--image",
            autocompletion=complete_image,
            help="Name (or ID) of the image.",
            show_default=False,
        ),
    ],
    backup: Annotated[
        str | None,
        typer.Option(
            "--backup", help="ID of the backup, as listed by backups.", show_default=False
        ),
    ] = None,
    latest: Annotated[bool, typer.Option("--latest", help="Restore the newest backup.")] = False,
    wait: Wait = True,
    break_lock: BreakLock = False,
    json: Json = False,
) -> None:
    """Restore an image's annotations and detections from before a run.

    The current state becomes a backup itself. Close the image in QuPath first.

    For example: qpnuclei project restore project.qpproj --image slide-1.svs --latest
    """
    from qpnuclei.cli.console import print_json, stdout
    from qpnuclei.errors import UsageError
    from qpnuclei.qupath.backups import choose_backup
    from qpnuclei.qupath.image_names import one_image
    from qpnuclei.qupath.native import open_project
    from qpnuclei.qupath.project_file import find_project_file
    from qpnuclei.system.locks import locked

    path = find_project_file(project)
    if latest == (backup is not None):
        entry = one_image(open_project(path).images, image)
        known = ", ".join(kept.id for kept in entry.backups()) or "none"
        raise UsageError(
            "say which backup to restore: either --backup ID or --latest", f"there are: {known}"
        )
    with locked(path.parent, wait=wait, break_lock=break_lock):
        entry = one_image(open_project(path).images, image)
        chosen = choose_backup(entry.backups(), backup)
        entry.restore(chosen)
    if json:
        print_json({"image": entry.name, "image_id": entry.id, "restored": chosen.id})
        return
    stdout.print(f"{entry.name}: restored {chosen.id}; the previous state is now the newest backup")
