"""``qpnuclei filter``: remove the nuclei that the model was least sure of."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qpnuclei.cli.options import (
    BackendOption,
    BreakLock,
    ImageGlobs,
    ImageRoot,
    Json,
    ProjectPath,
    Wait,
    class_option,
    within,
)

if TYPE_CHECKING:
    from qpnuclei.qupath.certainty_filter import OwnNuclei
    from qpnuclei.qupath.model import ImageEntry, Project


def filter_nuclei(
    project: ProjectPath,
    min_certainty: Annotated[
        float | None,
        typer.Option(
            "--min-certainty",
            callback=within(0, 1),
            help="Remove the nuclei whose measurement 'Attention: Mean' is below this value (0 to "
            "1).",
            show_default=False,
        ),
    ] = None,
    roi: Annotated[
        list[str] | None,
        class_option(
            "--roi",
            help="Only in annotations of this class; may repeat.",
            show_default="everywhere",
        ),
    ] = None,
    image: ImageGlobs = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Change nothing; count the nuclei that would stay for several values."
        ),
    ] = False,
    image_root: ImageRoot = None,
    backend: BackendOption = "auto",
    wait: Wait = True,
    break_lock: BreakLock = False,
    json: Json = False,
) -> None:
    """Remove nuclei that the model was not sure of, without another run.

    Only detections that qpnuclei wrote are removed; those locked in QuPath stay. A backup is kept:
    qpnuclei project restore brings them back.

    For example: qpnuclei filter project.qpproj --dry-run

    Then: qpnuclei filter project.qpproj --min-certainty 0.8
    """
    from qpnuclei.cli.console import image_alone, print_json, stdout
    from qpnuclei.cli.tables import certainty_table
    from qpnuclei.errors import UsageError
    from qpnuclei.qupath.certainty_filter import STEPS, OwnNuclei
    from qpnuclei.qupath.project import held_project, open_project
    from qpnuclei.qupath.project_file import find_project_file

    find_project_file(project)
    if min_certainty is None and not dry_run:
        raise UsageError(
            "--min-certainty was not given",
            "give it, or --dry-run to see how many nuclei would stay for several values",
        )
    classes = tuple(roi or ())
    failures: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    seen: list[OwnNuclei] = []

    steps = sorted({*STEPS, *(() if min_certainty is None else (min_certainty,))})
    if dry_run:
        opened = open_project(project, backend, image_root)
        for entry in _chosen(opened, image, classes):
            with image_alone(entry, failures):
                own = OwnNuclei.of(entry, classes)
                seen.append(own)
                stay = {f"{step:g}": own.staying(step) for step in steps}
                results.append({**_described(own), "stay": stay})
        if not json and seen:
            stdout.print(certainty_table(seen, steps))
    else:
        assert min_certainty is not None
        with held_project(project, backend, image_root, wait=wait, break_lock=break_lock) as opened:
            for entry in _chosen(opened, image, classes):
                with image_alone(entry, failures):
                    own = OwnNuclei.of(entry, classes)
                    removed = own.remove_below(min_certainty)
                    results.append({**_described(own), "removed": removed})
                    if not json:
                        _print_removed(own, removed, str(opened.path))
    if json:
        print_json({"images": results, "failures": failures})
    sys.exit(1 if failures else 0)


def _chosen(
    opened: Project, images: Sequence[str] | None, classes: tuple[str, ...]
) -> list[ImageEntry]:
    """Return the images of a project that ``--image`` selects; check the names of the classes."""
    from qpnuclei.qupath.annotation_classes import check_classes
    from qpnuclei.qupath.image_names import match_images

    entries = match_images(opened, tuple(images or ()))
    check_classes(opened, entries, classes)
    return entries


def _described(own: OwnNuclei) -> dict[str, Any]:
    return {
        "image": own.entry.name,
        "image_id": own.entry.id,
        "nuclei": len(own),
        "locked": int(own.locked.sum()),
        "without_certainty": own.unknown,
    }


def _print_removed(own: OwnNuclei, removed: int, project: str) -> None:
    from qpnuclei.cli.console import print_status, stdout
    from qpnuclei.errors import number_of
    from qpnuclei.qupath.image_names import image_option
    from qpnuclei.system.commands import as_typed

    kept = [f"{own.unknown} without a certainty"] if own.unknown else []
    if own.locked.any():
        kept.append(f"{int(own.locked.sum())} locked")
    more = f" (kept in any case: {', '.join(kept)})" if kept else ""
    nuclei = number_of(len(own), "nucleus")
    stdout.print(f"{own.entry.name}: removed {removed} of {nuclei} by qpnuclei{more}")
    if removed:
        undo = as_typed(["qpnuclei", "project", "restore", project])
        print_status(f"undo: {undo} {image_option(own.entry)} --latest")
