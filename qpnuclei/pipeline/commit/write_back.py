"""Save the nuclei of an image in the project, or rescue them if that fails."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from qpnuclei._version import __version__
from qpnuclei.errors import ConflictError, QpnucleiError, SaveError, number_of
from qpnuclei.pipeline.commit.copies import write_copies
from qpnuclei.pipeline.commit.new_nuclei import NewNuclei, new_nuclei
from qpnuclei.pipeline.commit.replan import plan_again
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.planning.image_plan import ImagePlan
from qpnuclei.pipeline.positivity import NucleusClasses, classes_of_nuclei
from qpnuclei.pipeline.selection import TISSUE_CLASS, TISSUE_COLOR
from qpnuclei.qupath.backups import list_backups
from qpnuclei.qupath.geojson.writing import write_groups
from qpnuclei.qupath.image_names import image_option
from qpnuclei.qupath.model import (
    Annotation,
    DetectionGroup,
    Edit,
    ImageEntry,
    NewAnnotation,
    Project,
)
from qpnuclei.qupath.names import class_of, file_stem
from qpnuclei.qupath.project_file import data_file
from qpnuclei.system.commands import as_typed
from qpnuclei.system.files import folders_of_last_resort, make_folder_below

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Written:
    """Result saved in the project; it differs from the plan if the image changed in between.

    Parameters
    ----------
    replaced : int
        Detections of earlier runs that were removed.
    nuclei : NewNuclei
        What was added.
    plan : ImagePlan
        Plan of the image as it was at the save.
    """

    replaced: int
    nuclei: NewNuclei
    plan: ImagePlan


def write_back(
    project: Project,
    plan: ImagePlan,
    nuclei: NewNuclei,
    options: RunOptions,
    run_dir: Path,
    before: Callable[[Written], object] = lambda planned: None,
) -> Written:
    """Write nuclei into the project, and the requested copies beside it.

    Parameters
    ----------
    before : callable
        Called with what will be saved, before each attempt to save it.

    Raises
    ------
    QpnucleiError
        If the project could not be saved; it is unchanged, and the error says where the nuclei are.
    SaveError
        If a copy could not be written; the project is saved.
    """
    stem = file_stem(plan.entry)
    try:
        classes = classes_of_nuclei(options.class_name, options.positive_thresholds, project)
        written = _save(project, plan, nuclei, classes, options, before)
    except QpnucleiError as error:
        # Whatever went wrong, results of hours of computing must not be lost.
        groups = nuclei.groups(
            [None] * len(plan.regions),
            classes_of_nuclei(options.class_name, options.positive_thresholds),
        )
        raise _rescued(error, f"{stem}.rescued.geojson.gz", groups, project, run_dir) from error
    write_copies(project, written.plan, written.nuclei, options)
    return written


def _save(
    project: Project,
    plan: ImagePlan,
    nuclei: NewNuclei,
    classes: NucleusClasses,
    options: RunOptions,
    before: Callable[[Written], object],
) -> Written:
    """Write nuclei into the project; with `force` also if the image changed meanwhile."""
    try:
        return _write(project, plan, nuclei, classes, options, before)
    except ConflictError:
        if not options.force:
            raise
        plan = plan_again(plan, options)
        # Nuclei may have been locked or unlocked in between.
        nuclei = new_nuclei(plan, nuclei.found, nuclei.doubts)
        written = _write(project, plan, nuclei, classes, options, before)
        _log.warning(
            "image %s was changed since it was planned: the nuclei are added to its present state, "
            "and that state without them is the newest backup",
            plan.entry.name,
        )
        return written


def _write(
    project: Project,
    plan: ImagePlan,
    nuclei: NewNuclei,
    classes: NucleusClasses,
    options: RunOptions,
    before: Callable[[Written], object],
) -> Written:
    """Write nuclei into the project if the image is unchanged since it was planned."""
    removed = plan.removed(options.on_existing)
    parents = [region.handle for region in plan.regions]
    tissue = [] if plan.tissue is None else [_tissue(project, plan.tissue)]
    added = nuclei.counts.sum(axis=0).tolist()
    doubts = nuclei.doubts
    record = plan.record_after(options.on_existing, doubts.image, doubts.regions, added)
    step = ("qpnuclei run", f"// qpnuclei {__version__}: run with {options.to_json()}")
    edit = Edit(
        remove=removed,
        remove_annotations=frozenset(annotation.handle for annotation in plan.outdated),
        add=nuclei.groups(parents, classes),
        annotations=tissue,
        workflow_step=step,
        properties=record.to_properties(),
    )
    planned = Written(len(removed), nuclei, plan)
    before(planned)
    plan.entry.write(edit, plan.fingerprint)
    return planned


def _tissue(project: Project, found: Annotation) -> NewAnnotation:
    """Return the annotation that a run with --tissue adds."""
    if found.id is None:
        raise ValueError("an annotation of ours has a UUID")
    path_class = class_of(project, TISSUE_CLASS, TISSUE_COLOR)
    return NewAnnotation(found.geometry, found.id, None, path_class, locked=True)


def loss_note(project: Project, entry: ImageEntry, replaced: int, written: int) -> str | None:
    """Say if a run removed most of the earlier nuclei without replacement, and how to undo it.

    Parameters
    ----------
    replaced, written : int
        Nuclei of earlier runs that were removed, and nuclei that were written.
    """
    if written >= replaced / 2:
        return None
    verb = "was" if replaced == 1 else "were"
    message = f"{number_of(replaced, 'nucleus')} of earlier runs {verb} replaced by {written}"
    backups = list_backups(data_file(project.path.parent, entry.id))
    if not backups:
        return message
    restore = as_typed(["qpnuclei", "project", "restore", str(project.path)])
    return (
        f"{message}; the backup {backups[0].id} has the state before, which comes back with: "
        f"{restore} {image_option(entry)} --backup {backups[0].id}"
    )


def _rescued(
    error: QpnucleiError,
    name: str,
    groups: Sequence[DetectionGroup],
    project: Project,
    run_dir: Path,
) -> QpnucleiError:
    """Write nuclei that could not be saved to another place; return the error that names it."""
    # The project's disk may be full or its drive gone: do not make a folder in its place.
    for folder in (run_dir, *folders_of_last_resort()):
        try:
            make_folder_below(project.path.parent, folder)
            write_groups(folder / name, groups)
        except SaveError as refused:
            _log.warning("%s", refused)
            continue
        return type(error)(
            f"{error.what}; the project is unchanged, the nuclei are in {folder / name}",
            error.hint or "run again, or import that file with: qpnuclei geojson import",
        )
    return type(error)(
        f"{error.what}; the project is unchanged, and the nuclei could not be saved elsewhere",
        error.hint or "make room, and run again",
    )
