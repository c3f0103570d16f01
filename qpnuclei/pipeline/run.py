"""A run in three phases: plan -> infer -> commit, each of which can be gone on with.

`plan_run` says what is to be done, from the project alone. `infer_run` computes the nuclei into the
run's folder, from slides and model alone. `commit_run` writes them into the project. What is
finished is a file there, and nothing finished is done again. `analyse_project`, which is what
``qpnuclei run`` calls, is the three of them; it writes each image as soon as it is done.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path

from qpnuclei._version import __version__
from qpnuclei.errors import (
    QpnucleiError,
    SaveError,
    TerminatedError,
    UsageError,
    standing_alone,
)
from qpnuclei.pipeline.computing import computing
from qpnuclei.pipeline.folder import RunFolder, choose_folder
from qpnuclei.pipeline.join import join_image
from qpnuclei.pipeline.plan import (
    NothingToDo,
    RunOptions,
    plan_image,
)
from qpnuclei.pipeline.positivity import require_some_dab
from qpnuclei.pipeline.saving import commit_image, committed_image
from qpnuclei.pipeline.shards import ImageNuclei
from qpnuclei.pipeline.space import check_space
from qpnuclei.pipeline.summary import RunSummary, describe_model
from qpnuclei.pipeline.units import Conduct, Progress, check_complete, infer_images
from qpnuclei.pipeline.work import (
    Layout,
    PlannedImage,
    PlannedSlide,
    RunPlan,
    inputs_of,
    planned_image,
    request_of,
)
from qpnuclei.qupath.analysed import Record
from qpnuclei.qupath.images import open_image
from qpnuclei.qupath.model import ImageEntry, ImageObjects, Project
from qpnuclei.segmentation.engine import EngineSpec, engine_spec, load_engine
from qpnuclei.system.interrupts import interrupt_postponed
from qpnuclei.system.locks import locked

_log = logging.getLogger(__name__)


def analyse_project(
    project: Project,
    entries: Sequence[ImageEntry],
    options: RunOptions,
    progress: Progress = lambda image, done, tiles, nuclei: None,
    conduct: Conduct | None = None,
) -> RunSummary:
    """Find the nuclei in the chosen annotations of some images and write them back.

    Each image stands alone. It is saved as soon as it is done; one that fails, for whatever
    reason, is left as it was and reported in the summary's `failures`, and the others go on. The
    record is written again and again (`is_due`), so that it is there whatever ends the run.

    Parameters
    ----------
    entries : sequence of ImageEntry
        Images of the project, from `qpnuclei.pipeline.selection.choose_images`.

    Raises
    ------
    QpnucleiError
        If the model or device is wrong, the result folder cannot be written, or another process
        works on the project; nothing was changed.
    """
    conduct = conduct or Conduct()
    require_some_dab(entries, options.positive_thresholds)
    with locked(project.path.parent), computing(options, conduct) as computer:
        folder = choose_folder(
            project, options, request_of(options), conduct.resume, conduct.extend
        )
        with folder.logging():
            planned = _plan(project, entries, options, folder, conduct)
            plan = planned.plan
            todo = [image for image in plan.images if image.entry not in planned.committed]
            check_space(project, folder.path, todo, options)
            summary = _summary(project, entries, plan, folder, options)
            summary.device = computer.device
            _save_soon(summary, always=True)
            by_id = {entry.id: entry for entry in entries}

            def fail(image: PlannedImage, error: QpnucleiError) -> None:
                summary.fail(by_id[image.entry], error)
                _save_soon(summary, conduct.fail_fast)
                if conduct.fail_fast:
                    raise error

            for entry_id, error in planned.errors.items():
                summary.fail(by_id[entry_id], error)
            try:
                for image in plan.images:
                    if image.entry in planned.committed:
                        with standing_alone(f"image {image.name}", partial(fail, image)):
                            done = committed_image(
                                project, by_id[image.entry], image, folder, plan.spec(), options
                            )
                            summary.images.append(done)
                            summary.resumed += 1
                for image, layout in infer_images(
                    folder,
                    plan,
                    todo,
                    computer.executor,
                    computer.engine,
                    fail,
                    conduct,
                    options,
                    progress=progress,
                ):
                    with standing_alone(f"image {image.name}", partial(fail, image)):
                        summary.images.append(
                            commit_image(
                                project, by_id[image.entry], image, layout, folder, options
                            )
                        )
                        summary.device = _device_of(folder, image, layout)
                    _save_soon(summary)
            except TerminatedError:
                summary.state = "stopped"
                _save_soon(summary, always=True)
                raise
            order = [entry.id for entry in entries]
            summary.images.sort(key=lambda result: order.index(result.entry))
            summary.failures.sort(key=lambda failure: order.index(failure.entry))
            summary.finish()
            folder.note("%s: %d nuclei", summary.state, summary.nuclei)
            with interrupt_postponed():
                summary.save_somewhere()
    return summary


def plan_run(
    project: Project,
    entries: Sequence[ImageEntry],
    options: RunOptions,
    conduct: Conduct | None = None,
) -> tuple[RunFolder, RunPlan, RunSummary]:
    """Write into a run's folder what is to be done; neither torch nor weights are loaded.

    Raises
    ------
    QpnucleiError
        As `analyse_project`.
    """
    conduct = conduct or Conduct()
    require_some_dab(entries, options.positive_thresholds)
    with locked(project.path.parent):
        folder = choose_folder(
            project, options, request_of(options), conduct.resume, conduct.extend
        )
        with folder.logging():
            planned = _plan(project, entries, options, folder, conduct)
            summary = _summary(project, entries, planned.plan, folder, options)
            by_id = {entry.id: entry for entry in entries}
            for entry_id, error in planned.errors.items():
                summary.fail(by_id[entry_id], error)
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
    progress: Progress = lambda image, done, tiles, nuclei: None,
) -> list[tuple[PlannedImage, QpnucleiError]]:
    """Compute the nuclei of a plan into its folder; the project is not needed.

    Parameters
    ----------
    options : RunOptions
        Those of the plan, with the device, workers and model of this machine.
    share : (int, int)
        Which of so many shares of the units, from 1.
    slides_from : Path, optional
        Folder in which the slides are here.

    Returns
    -------
    list of (PlannedImage, QpnucleiError)
        Images of which units failed.

    Raises
    ------
    QpnucleiError
        If there is no plan, or the model or the device cannot be used.
    """
    conduct = conduct or Conduct()
    plan = folder.plan()
    failures: list[tuple[PlannedImage, QpnucleiError]] = []

    def fail(image: PlannedImage, error: QpnucleiError) -> None:
        _log.error("image %s: %s", image.name, error.what)
        failures.append((image, error))
        if conduct.fail_fast:
            raise error

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


def commit_run(
    project: Project,
    folder: RunFolder,
    options: RunOptions,
    *,
    slides_from: Path | None = None,
    conduct: Conduct | None = None,
) -> RunSummary:
    """Write what was computed into the project; what was written before is left as it is.

    Parameters
    ----------
    options : RunOptions
        Those of the plan.

    Raises
    ------
    QpnucleiError
        If there is no plan, or another process works on the project.
    """
    conduct = conduct or Conduct()
    plan = folder.plan()
    by_id = {entry.id: entry for entry in project.images}
    entries = [by_id[image.entry] for image in plan.images if image.entry in by_id]
    engine = cache(lambda: load_engine(options.model, options.engine))
    with locked(project.path.parent), folder.logging():
        summary = _summary(project, entries, plan, folder, options)
        spec, failed = plan.spec(), folder.failed()
        for image in plan.images:
            entry = by_id.get(image.entry)
            if entry is None or entry.name != image.name:
                raise UsageError(
                    f"{project.path} has no image {image.name} (ID {image.entry}), of which the "
                    f"plan in {folder.path} is",
                    "name the project that was planned with --project",
                )

            def fail(error: QpnucleiError, entry: ImageEntry = entry) -> None:
                summary.fail(entry, error)
                if conduct.fail_fast:
                    raise error

            with standing_alone(f"image {image.name}", fail):
                if Record.of(entry.read().properties).run == image.marker:
                    done = committed_image(project, entry, image, folder, spec, options)
                    summary.images.append(done)
                    summary.resumed += 1
                    continue
                layout = image.layout(spec, options)
                if not folder.shard(image, layout.name).exists():
                    check_complete(folder, image, layout, failed)
                    join_image(folder, image, layout, engine, options, slides_from)
                result = commit_image(project, entry, image, layout, folder, options)
                summary.images.append(result)
                summary.device = _device_of(folder, image, layout)
            _save_soon(summary)
            conduct.check_stop()
        summary.device = summary.device or str(folder.record().get("device", ""))
        summary.finish()
        folder.note("%s: %d nuclei", summary.state, summary.nuclei)
        with interrupt_postponed():
            summary.save_somewhere()
    return summary


@dataclass(frozen=True)
class _Planned:
    """A plan, the images of it that are in the project already, and what could not be planned."""

    plan: RunPlan
    committed: frozenset[str]
    errors: dict[str, QpnucleiError]


def _plan(
    project: Project,
    entries: Sequence[ImageEntry],
    options: RunOptions,
    folder: RunFolder,
    conduct: Conduct,
) -> _Planned:
    """Plan the images, and write the plan."""
    spec = engine_spec(options.model)
    earlier: dict[str, PlannedImage] = {}
    goes_on = conduct.resume and (conduct.extend or not folder.is_done)
    if goes_on and folder.plan_path.exists():
        earlier = {image.entry: image for image in folder.plan().images}
    images, committed = [], set()
    errors: dict[str, QpnucleiError] = {}
    nothing: dict[str, str] = {}
    for entry in entries:

        def fail(error: QpnucleiError, entry: ImageEntry = entry) -> None:
            errors[entry.id] = error
            if conduct.fail_fast:
                raise error

        with standing_alone(f"image {entry.name}", fail):
            try:
                known = earlier.get(entry.id)
                image, is_done = _plan_image(project, entry, spec, options, known)
            except NothingToDo as reason:
                nothing[entry.id] = str(reason)
                _log.info("image %s: not analysed: %s", entry.name, reason)
            else:
                images.append(image)
                if is_done:
                    committed.add(entry.id)
        conduct.check_stop()
    plan = RunPlan(
        project=str(project.path),
        backend=project.backend,
        request=request_of(options),
        arguments=options.to_json(),
        engine=asdict(spec),
        images=tuple(images),
        failures=tuple(
            {"entry": entry_id, "error": error.what, "hint": error.hint}
            for entry_id, error in errors.items()
        ),
        nothing_to_do=nothing,
    )
    folder.save_plan(plan)
    folder.note("qpnuclei %s: %d images are planned", __version__, len(images))
    if conduct.retry_failed:
        folder.forget_failures()
    if earlier:
        there = [folder.shard(image, name).exists() for image in images for name in image.units]
        # Otherwise something has changed that all of it depends on: it is a new run.
        if committed or any(there):
            _log.info(
                "going on with %s: %d of %d images are in the project, %d of %d units are there",
                folder.path,
                len(committed),
                len(images),
                sum(there),
                len(there),
            )
    return _Planned(plan, frozenset(committed), errors)


def _plan_image(
    project: Project,
    entry: ImageEntry,
    spec: EngineSpec,
    options: RunOptions,
    earlier: PlannedImage | None,
) -> tuple[PlannedImage, bool]:
    """Plan an image; tell whether it is one of the same run that is in the project already."""
    objects = entry.read()
    with open_image(entry) as slide:
        file = PlannedSlide.of(slide)
        inputs = _inputs(entry, objects, spec, options, file)
        is_same = earlier is not None and earlier.inputs == inputs
        if earlier is not None and is_same:
            record = Record.of(objects.properties, f"image {entry.name}")
            if record.run == earlier.marker:
                return earlier, True
        # What an earlier try of this run marked is among its inputs.
        if options.qc and not is_same:
            from qpnuclei.pipeline.artefacts import mark_artefacts, report_marks

            report_marks(entry, mark_artefacts(project, entry, options.pixel_sizes).area_mm2)
            objects = entry.read()
            inputs = _inputs(entry, objects, spec, options, file)
        plan = plan_image(entry, slide, spec, options, objects)
    return planned_image(plan, file, inputs, spec, options), False


def _inputs(
    entry: ImageEntry,
    objects: ImageObjects,
    spec: EngineSpec,
    options: RunOptions,
    file: PlannedSlide,
) -> str:
    selection = options.selection
    chosen = [a for a in objects.annotations if not selection.tissue and selection.matches(a)]
    excluded = [a for a in objects.annotations if selection.excludes(a)]
    known = [repr(entry.calibration), repr(entry.stains)]
    return inputs_of(options, spec, file, chosen, excluded, known)


def _summary(
    project: Project,
    entries: Sequence[ImageEntry],
    plan: RunPlan,
    folder: RunFolder,
    options: RunOptions,
) -> RunSummary:
    """Return the record of a run that begins."""
    return RunSummary(
        project=project.path,
        backend=project.backend,
        arguments=options.to_json(),
        model=describe_model(plan.spec()),
        device="",
        run_dir=folder.path,
        planned=tuple(entries),
        nothing_to_do=dict(plan.nothing_to_do),
        request=plan.request,
    )


def _device_of(folder: RunFolder, image: PlannedImage, layout: Layout) -> str:
    """Return where the network ran on an image, whoever did it and when."""
    return ImageNuclei(folder.shard(image, layout.name), layout.key).about.device


def is_due(images: int) -> bool:
    """Return whether to write the record after so many images.

    It is after each of the first 200, and then after each percent: it holds all of them, and would
    take longer than the analysis of ten thousand small slides.
    """
    return images % max(images // 100, 1) == 0


def _save_soon(summary: RunSummary, always: bool = False) -> None:
    """Write the record if it is due; if that is not possible now, it is tried again later."""
    if not (always or is_due(len(summary.images) + len(summary.failures))):
        return
    with interrupt_postponed():
        try:
            summary.save()
        except SaveError as error:
            _log.debug("no record yet: %s", error)
