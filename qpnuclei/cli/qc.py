"""``qpnuclei qc``: mark pen, folds and blur."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer

from qpnuclei.cli.options import (
    BackendOption,
    BreakLock,
    ImageGlobs,
    ImageRoot,
    Json,
    MppTable,
    ProjectMppOption,
    ProjectPath,
    Wait,
)


def qc(
    project: ProjectPath,
    image: ImageGlobs = None,
    mpp: ProjectMppOption = None,
    mpp_table: MppTable = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be marked; change nothing.")
    ] = False,
    image_root: ImageRoot = None,
    backend: BackendOption = "auto",
    wait: Wait = True,
    break_lock: BreakLock = False,
    json: Json = False,
) -> None:
    """Mark pen, folds and tissue out of focus with annotations of class Ignore*.

    They can be edited or deleted in QuPath. Runs leave these areas out (see run --exclude). The
    same command again replaces these annotations, except those that somebody has changed.

    For example: qpnuclei qc project.qpproj
    """
    from qpnuclei.cli.console import image_alone, print_json, stdout
    from qpnuclei.pipeline.planning.artefacts import mark_artefacts
    from qpnuclei.qupath.image_names import match_images
    from qpnuclei.qupath.pixel_size import asked_mpp, check_mpp_table
    from qpnuclei.qupath.project import held_project

    check_mpp_table(mpp_table)
    results: list[dict[str, Any]] = []
    with held_project(project, backend, image_root, wait=wait, break_lock=break_lock) as opened:
        entries = match_images(opened, tuple(image or ()))
        asked = asked_mpp(mpp, mpp_table, opened, entries, image)
        for entry in entries:
            with image_alone(entry, results):
                done = mark_artefacts(opened, entry, asked, write=not dry_run)
                results.append({"image": entry.name, "image_id": entry.id, **asdict(done)})
                if not json:
                    areas = ", ".join(f"{k} {v:.3f} mm²" for k, v in done.area_mm2.items())
                    changed = f"{done.added} added, {done.removed} removed, {done.kept} kept"
                    text = f"{entry.name}: {areas}; annotations: {changed}"
                    stdout.print(text)
    if json:
        print_json(results)
    sys.exit(1 if any("error" in result for result in results) else 0)
