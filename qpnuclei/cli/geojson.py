"""``qpnuclei geojson``: objects of a project to GeoJSON files and back."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qpnuclei.choices import ExportedObjects
from qpnuclei.cli.command import Command, Group
from qpnuclei.cli.completing import complete_image
from qpnuclei.cli.options import (
    BackendOption,
    BreakLock,
    ImageGlobs,
    Json,
    ProjectPath,
    Wait,
    class_option,
)
from qpnuclei.errors import number_of

if TYPE_CHECKING:
    from qpnuclei.qupath.geojson.exporting import Exported
    from qpnuclei.qupath.geojson.importing import Imported
    from qpnuclei.qupath.model import ImageEntry

geojson_app = typer.Typer(
    name="geojson",
    add_completion=False,
    cls=Group,
    help="Export annotations and detections to GeoJSON, and import them.",
    no_args_is_help=True,
)


@geojson_app.command("export", cls=Command)
def export_geojson(
    project: ProjectPath,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FOLDER", help="Folder of the files.", show_default=False
        ),
    ],
    image: ImageGlobs = None,
    objects: Annotated[
        ExportedObjects, typer.Option("--objects", help="Which objects to export.")
    ] = "all",
    roi: Annotated[
        list[str] | None,
        class_option(
            "--roi",
            help="Only annotations of this class, and the detections in them; may repeat.",
            show_default="all",
        ),
    ] = None,
    backend: BackendOption = "auto",
    json: Json = False,
) -> None:
    """Write annotations and detections as GeoJSON that QuPath reads, one file for each image.

    For example: qpnuclei geojson export project.qpproj -o geojson --objects annotations
    """
    from qpnuclei.cli.console import image_alone, print_json, print_some, stdout
    from qpnuclei.qupath.annotation_classes import check_classes
    from qpnuclei.qupath.geojson.exporting import export_image
    from qpnuclei.qupath.image_names import match_images
    from qpnuclei.qupath.project import open_project
    from qpnuclei.system.files import check_folder_target

    opened = open_project(project, backend=backend)
    entries = match_images(opened, tuple(image or ()))
    check_classes(opened, entries, tuple(roi or ()))
    check_folder_target(output)
    results: list[dict[str, Any]] = []

    for entry in entries:
        with image_alone(entry, results):
            done = export_image(
                opened,
                entry,
                output,
                annotations=objects != "detections",
                detections=objects != "annotations",
                classes=tuple(roi or ()),
            )
            results.append(_described(entry, done))
            if not json:
                stdout.print(f"{done.path}: {_objects(done)}")
            print_some("not exported", done.left_out)
            print_some("not written to the file", done.losses)
    if json:
        print_json(results)
    sys.exit(1 if any(map(_has_failed, results)) else 0)


@geojson_app.command("import", cls=Command)
def import_geojson(
    project: ProjectPath,
    files: Annotated[
        list[Path],
        typer.Argument(
            help="GeoJSON files (.geojson, .geojson.gz), each named after its image or as geojson "
            "export names it.",
            show_default=False,
        ),
    ],
    image: Annotated[
        str | None,
        typer.Option(
            "--image",
            autocompletion=complete_image,
            help="Name (or ID) of the image that the files belong to.",
            show_default="from the file names",
        ),
    ] = None,
    class_name: Annotated[
        str | None,
        class_option(
            "--class",
            help="Class of everything that is imported.",
            show_default="the classes in the file",
        ),
    ] = None,
    backend: BackendOption = "auto",
    wait: Wait = True,
    break_lock: BreakLock = False,
    json: Json = False,
) -> None:
    """Add the annotations and detections of GeoJSON files to the images of a project.

    Objects that an image already has (same UUID and place) are not added again; a cell is the same
    as its nucleus. From a file of export --by nucleus, only the nuclei of the image are imported.

    For example: qpnuclei geojson import project.qpproj slide-1.svs.geojson
    """
    from qpnuclei.cli.console import image_alone, print_json
    from qpnuclei.errors import NotFoundError, UsageError
    from qpnuclei.qupath.geojson.file_names import image_of_file
    from qpnuclei.qupath.geojson.importing import import_file
    from qpnuclei.qupath.image_names import one_image
    from qpnuclei.qupath.names import checked_class_name
    from qpnuclei.qupath.project import held_project
    from qpnuclei.qupath.project_file import find_project_file

    find_project_file(project)
    if class_name is not None:
        class_name = checked_class_name(class_name)
    for path in files:
        if not path.exists():
            raise NotFoundError(f"{path}: no such file", "check the path")
        if path.is_dir():
            raise UsageError(f"{path} is a folder", "name the GeoJSON files in it")
    results: list[dict[str, Any]] = []

    with held_project(project, backend, wait=wait, break_lock=break_lock) as opened:
        only = None if image is None else one_image(opened.images, image)
        # Match every file with its image before anything is written.
        entries = [only or image_of_file(opened, path) for path in files]
        for path, entry in zip(files, entries, strict=True):
            with image_alone(entry, results):
                done = import_file(opened, entry, path, class_name)
                results.append({"file": str(path), **_described(entry, done)})
                _print_import(entry, path, done, quiet=json)
    if json:
        print_json(results)
    sys.exit(1 if any(map(_has_failed, results)) else 0)


def _described(entry: ImageEntry, done: Exported | Imported) -> dict[str, Any]:
    return {"image": entry.name, "image_id": entry.id, **asdict(done)}


def _has_failed(result: dict[str, Any]) -> bool:
    return "error" in result or bool(result["left_out"])


def _objects(done: Exported | Imported) -> str:
    annotations = number_of(done.annotations, "annotation")
    return f"{annotations}, {number_of(done.detections, 'detection')}"


def _print_import(entry: ImageEntry, path: Path, done: Imported, quiet: bool) -> None:
    """Print the result of a file; if `quiet`, only what was not imported."""
    from qpnuclei.cli.console import print_some, stdout

    parts = [f"{_objects(done)} imported"]
    if done.already_there:
        parts.append(f"{done.already_there} already existed")
    if done.new_ids:
        parts.append(f"{done.new_ids} got a new UUID, because theirs is in use")
    if done.other_images:
        parts.append(f"{sum(o.objects for o in done.other_images)} belong to other images")
    if done.left_out:
        parts.append(f"{len(done.left_out)} could not be imported")
    print_some("not imported", [other.label for other in done.other_images])
    print_some("not imported", done.left_out)
    print_some("imported in part", done.losses)
    if not quiet:
        stdout.print(f"{path} into {entry.name}: {'; '.join(parts)}")
