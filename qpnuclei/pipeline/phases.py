"""The phases of a run, each on its own: plan, infer, commit.

`plan_run` plans the run and needs the project and its slides. `infer_run` computes the nuclei into
the run's folder and needs only slides and model. `commit_run` writes them into the project.
Finished work is kept as files in the folder and is not repeated.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from numbers import Integral
from pathlib import Path
from typing import Any

from qpnuclei.errors import (
    ConflictError,
    NotFoundError,
    QpnucleiError,
    UsageError,
    number_of,
    quoted,
    standing_alone,
)
from qpnuclei.pipeline.commit.commit_image import ImageCommit, copies_lost, stored_result
from qpnuclei.pipeline.commit.copies import are_missing
from qpnuclei.pipeline.commit.same_image import check_still_same
from qpnuclei.pipeline.folder import RunFolder, choose_folder
from qpnuclei.pipeline.inference.computing import computing
from qpnuclei.pipeline.inference.join import join_image
from qpnuclei.pipeline.inference.units import (
    Conduct,
    Progress,
    check_complete,
    infer_images,
    no_progress,
)
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.plan_project import plan_project
from qpnuclei.pipeline.planning.layout import layout_of
from qpnuclei.pipeline.planning.plan_file import PlannedImage, RunPlan
from qpnuclei.pipeline.positivity import require_some_dab
from qpnuclei.pipeline.space import check_space, need_of_copies, need_of_results, need_of_shards
from qpnuclei.pipeline.summary import RunSummary
from qpnuclei.qupath.analysed import Record
from qpnuclei.qupath.model import ImageEntry, Project
from qpnuclei.segmentation.engine import Engine, engine_specs, load_engine
from qpnuclei.system.arguments import listed
from qpnuclei.system.commands import as_typed
from qpnuclei.system.files import check_folder
from qpnuclei.system.locks import locked

_log = logging.getLogger(__name__)


def plan_run(
    project: Project,
    entries: Sequence[ImageEntry],
    options: RunOptions,
    conduct: Conduct | None = None,
) -> tuple[RunFolder, RunPlan, RunSummary]:
    """Plan a run and write the plan into its folder; neither torch nor weights are loaded.

    Raises
    ------
    QpnucleiError
        As `analyse_project`.
    """
    conduct = conduct or Conduct()
    require_some_dab(entries, options.positive_thresholds)
    engine_specs(options.models)  # refuses them before a folder is made
    with locked(project.path.parent):
        folder = choose_folder(project, options, conduct.resume, conduct.extend)
        with folder.logging():
            planned = plan_project(project, entries, options, folder, conduct)
            todo = [i for i in planned.plan.images if i.entry not in planned.committed]
            check_space(need_of_shards(folder, todo))
            summary = RunSummary.begun(project, planned.plan, options, folder.path)
            summary.fail_planned(planned.errors, planned.committed)
            summary.state = "planned"
            summary.save()
    return folder, planned.plan, summary


def infer_run(
    folder: RunFolder,
    options: RunOptions,
    *,
    share: tuple[int, int] = (1, 1),
    slides_from: Path | None = None,
    conduct: Conduct | None = None,
    progress: Progress = no_progress,
) -> list[tuple[PlannedImage, QpnucleiError]]:
    """Compute the nuclei of a plan into its folder; the project is not needed.

    Parameters
    ----------
    options : RunOptions
        Those of the plan, with the device, workers and model of this machine.
    share : (int, int)
        Number of this share, from 1, and number of shares.
    slides_from : Path, optional
        Folder of the slides on this machine.

    Returns
    -------
    list of (PlannedImage, QpnucleiError)
        Images with failed units.

    Raises
    ------
    UsageError
        If there is no such share.
    QpnucleiError
        If there is no plan, or the model or the device cannot be used.
    """
    conduct = conduct or Conduct()
    share = _checked_share(share)
    plan = folder.plan()
    check_slides_from(slides_from)
    failures: list[tuple[PlannedImage, QpnucleiError]] = []

    def fail(image: PlannedImage, error: QpnucleiError) -> None:
        _log.error("%snot analysed: %s", error.naming("image", image.name), error)
        failures.append((image, error))
        if conduct.fail_fast:
            raise error

    check_space(need_of_shards(folder, plan.images, share))
    with computing(options, conduct, slides_from) as computer, folder.logging():
        for _ in infer_images(
            folder,
            plan,
            plan.images,
            computer.executor,
            computer.engine,
            fail,
            conduct,
            options,
            share=share,
            slides_from=slides_from,
            progress=progress,
        ):
            pass
    return failures


def _checked_share(share: Any) -> tuple[int, int]:
    """Return the numbers of a share as `int`."""
    numbers = listed(share)
    if len(numbers) == 2 and all(isinstance(number, Integral) for number in numbers):
        part, parts = map(int, numbers)
        if 1 <= part <= parts:
            return part, parts
    raise UsageError(
        f"shard={quoted(share)}: not a part (I, N) with I from 1 to N",
        "for the third of twenty parts: shard=(3, 20)",
    )


def check_slides_from(folder: Path | None) -> None:
    """Check the folder of the slides on this machine, if it is given.

    Raises
    ------
    NotFoundError
        If it does not exist.
    """
    if folder is not None:
        check_folder(folder, "of the slides on this machine")


def commit_run(
    project: Project,
    folder: RunFolder,
    options: RunOptions,
    *,
    slides_from: Path | None = None,
    conduct: Conduct | None = None,
) -> RunSummary:
    """Write the computed nuclei into the project; images already written are skipped.

    Parameters
    ----------
    options : RunOptions
        Those of the plan.

    Raises
    ------
    UsageError
        If the project has none of the planned images.
    QpnucleiError
        If there is no plan, or another process works on the project.
    """
    conduct = conduct or Conduct()
    plan = folder.plan()
    check_slides_from(slides_from)
    entries = _planned_entries(project, folder, plan)
    engine = cache(lambda model: load_engine(model, options.engine))
    with locked(project.path.parent), folder.logging():
        todo = [image for image in plan.images if not _is_saved(folder, image)]
        lacking = _without_copies(project, entries, folder, plan, options)
        check_space(need_of_results(project, todo, options) + need_of_copies(lacking, options))
        if lacking:
            _log.info(
                "the copies of %s already in the project are of the nuclei as this run wrote them; "
                "qpnuclei export --by nucleus has their present state",
                number_of(len(lacking), "image"),
            )
        summary = RunSummary.begun(project, plan, options, folder.path)
        errors = {one.entry: QpnucleiError(one.error, one.hint) for one in plan.failures}
        summary.fail_planned(errors, {image.entry for image in plan.images})
        # The device that computed the images already committed.
        summary.device = str(folder.record().get("device", ""))
        failed = folder.failed()
        for image in plan.images:

            def fail(error: QpnucleiError, image: PlannedImage = image) -> None:
                summary.fail(image.entry, error)
                if conduct.fail_fast:
                    raise error

            with standing_alone(f"image {image.name}", fail):
                entry = entries.get(image.entry)
                if entry is None:
                    raise _not_in_project(image, project)
                commit = ImageCommit(project, entry, image, folder, plan.spec(image), options)
                _commit_image(commit, summary, failed, engine, slides_from)
            summary.save_if_due()
            with summary.noting_a_stop():
                conduct.check_stop()
        summary.finish()
        folder.log("%s", summary.outcome)
        summary.save_somewhere()
    return summary


def _commit_image(
    commit: ImageCommit,
    summary: RunSummary,
    failed: dict[str, dict[str, object]],
    engine: Callable[[str], Engine],
    slides_from: Path | None,
) -> None:
    """Write the nuclei of one image into the project, and note this in the summary.

    If an earlier start of the run has written them already, it only notes what they are.

    Parameters
    ----------
    failed : dict
        The units that failed, from `RunFolder.failed`.
    engine : callable
        Returns the engine of a model.
    """
    entry, image, folder, options = commit.entry, commit.image, commit.folder, commit.options
    objects = entry.read()
    record = Record.of(objects.properties, entry.name)

    def join() -> None:
        if not folder.shard(image, commit.layout.name).exists():
            check_complete(folder, image, commit.layout, failed)
            seeing = partial(engine, options.model_for(image.mpp))
            join_image(folder, image, commit.layout, seeing, options, slides_from)

    if record.had_run(image.marker):
        if stored_result(folder, image) is None:  # a copy of the folder, or of the plan, wrote them
            join()
        # Nuclei that a later run has replaced cannot be counted again.
        is_replaced = not record.has_run(image.marker)
        done = commit.complete_earlier(objects.fingerprint, is_replaced=is_replaced)
        summary.add_earlier(done)
        return
    try:
        check_still_same(commit.project, image)
    except ConflictError as error:
        raise ConflictError(error.what, _to_plan_again(folder)) from error
    join()
    try:
        result = commit.write()
    except ConflictError as error:
        raise ConflictError(error.what, _after_conflict(folder, options)) from error
    summary.images.append(result)
    summary.device = commit.device or summary.device


def _planned_entries(project: Project, folder: RunFolder, plan: RunPlan) -> dict[str, ImageEntry]:
    """Return the images of a plan that the project has, by entry ID.

    Raises
    ------
    UsageError
        If it has none of them: it is another project.
    """
    # Other projects use the same IDs, so the name must agree too.
    names = plan.names
    found = {entry.id: entry for entry in project.images if names.get(entry.id) == entry.name}
    if names and not found:
        raise UsageError(
            f"{project.path} has none of the images of the plan in {folder.path}",
            "give the project that was planned: --project",
        )
    return found


def _not_in_project(image: PlannedImage, project: Project) -> NotFoundError:
    return NotFoundError(
        f"{project.path} has no image {image.name} with the ID {image.entry}",
        "if it was renamed since it was planned, give it that name again; or plan the run again",
    )


def _after_conflict(folder: RunFolder, options: RunOptions) -> str:
    """Return what to do about an image that changed since it was planned.

    The plan has the old state, so that repeating the commit alone would fail again.
    """
    hint = _to_plan_again(folder)
    return (
        hint
        if options.force
        else f"{hint}; or commit --force if the same areas are chosen and excluded"
    )


def _to_plan_again(folder: RunFolder) -> str:
    return (
        "close the image in QuPath; repeat plan with the same options and "
        f"{as_typed(['--run-dir', str(folder.path)])} (finished units are kept), "
        "then infer and commit"
    )


def _is_saved(folder: RunFolder, image: PlannedImage) -> bool:
    """Return whether the folder says that the nuclei of an image are in the project."""
    stored = stored_result(folder, image)
    return stored is not None and stored.is_saved


def _without_copies(
    project: Project,
    entries: Mapping[str, ImageEntry],
    folder: RunFolder,
    plan: RunPlan,
    options: RunOptions,
) -> list[PlannedImage]:
    """Return the images already in the project of which a requested copy is missing.

    Raises
    ------
    UsageError
        If the folder no longer has the nuclei of one: the next run removes the shards of a run in
        the project's own folder.
    """
    lacking: list[PlannedImage] = []
    for image in plan.images:
        entry, stored = entries.get(image.entry), stored_result(folder, image)
        if entry is None or stored is None or not stored.is_saved:
            continue
        if not are_missing(entry, options, stored):
            continue
        path = folder.shard(image, layout_of(image, plan.spec(image), options).name)
        if not path.exists():
            raise copies_lost(project, image, path)
        lacking.append(image)
    return lacking
