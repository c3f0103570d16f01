"""The whole run on one screen: plan -> find nuclei -> write them back, image by image.

`analyse_project` is what ``qpnuclei run`` calls. `qpnuclei.pipeline.plan` decides what is to be
done, `qpnuclei.pipeline.infer` works on the pixels (read -> predict -> segment -> measure ->
stitch), `qpnuclei.pipeline.plausibility` compares what was found with the stain, and
`qpnuclei.pipeline.commit` writes the result into the project.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from qpnuclei.errors import SaveError, standing_alone
from qpnuclei.nuclei.store import temporary_shards
from qpnuclei.pipeline.commit import choose_run_dir, loss_note, new_nuclei, write_back
from qpnuclei.pipeline.infer import find_nuclei
from qpnuclei.pipeline.plan import (
    ImagePlan,
    NothingToDo,
    RunOptions,
    plan_image,
    regions_now,
)
from qpnuclei.pipeline.plausibility import Check, check
from qpnuclei.pipeline.summary import (
    ImageResult,
    RegionResult,
    RunSummary,
    describe_model,
)
from qpnuclei.qupath.counts import CountedImage, count_in_regions
from qpnuclei.qupath.images import open_image
from qpnuclei.qupath.model import ImageEntry, Project
from qpnuclei.segmentation.engine import Engine, load_engine
from qpnuclei.slides.calibration import PixelCalibration
from qpnuclei.system.interrupts import before_leaving, interrupt_postponed
from qpnuclei.system.locks import locked
from qpnuclei.system.timing import Stopwatch

if TYPE_CHECKING:
    from qpnuclei.slides.slide import Slide

_log = logging.getLogger(__name__)

#: Called as ``progress(image name, tiles done, tiles in all, nuclei so far)``.
Progress = Callable[[str, int, int, int], None]


def analyse_project(
    project: Project,
    entries: Sequence[ImageEntry],
    options: RunOptions,
    progress: Progress = lambda image, done, tiles, nuclei: None,
) -> RunSummary:
    """Find the nuclei in the chosen annotations of some images and write them back.

    Each image stands alone. It is saved as soon as it is done; one that fails, for whatever
    reason, is left as it was and reported in the summary's `failures`, and the others go on. The
    record is written after each, so that it is there whatever ends the run.

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
    with locked(project.path.parent):
        return _analyse(project, entries, options, progress)


def _analyse(
    project: Project, entries: Sequence[ImageEntry], options: RunOptions, progress: Progress
) -> RunSummary:
    engine = load_engine(options.model, options.engine)
    run_dir = choose_run_dir(project, options)
    summary = RunSummary(
        project=project.path,
        backend=project.backend,
        arguments=options.to_json(),
        model=describe_model(engine.spec),
        device=engine.execution,
        run_dir=run_dir,
        planned=tuple(entries),
    )

    def record(number: int) -> None:
        if number == signal.SIGTERM:  # by a batch system: whoever looks sees what is not done
            summary.save()

    with before_leaving(record):
        for entry in entries:
            with standing_alone(f"image {entry.name}", partial(summary.fail, entry)):
                try:
                    with open_image(entry) as slide:
                        plan = plan_image(entry, slide, engine.spec, options)
                        result = analyse_image(
                            project, plan, slide, engine, options, run_dir, progress
                        )
                        summary.images.append(result)
                except NothingToDo as nothing:
                    summary.nothing_to_do[entry.id] = str(nothing)
                    _log.info("image %s: not analysed: %s", entry.name, nothing)
            summary.device = engine.execution
            with interrupt_postponed():
                try:
                    summary.save()
                except SaveError as error:
                    _log.debug("no record yet: %s", error)
    with interrupt_postponed():
        summary.save_somewhere()
    return summary


def analyse_image(
    project: Project,
    plan: ImagePlan,
    slide: Slide,
    engine: Engine,
    options: RunOptions,
    run_dir: Path,
    progress: Progress,
) -> ImageResult:
    """Find the nuclei of one image's regions, write them into the project, and report.

    Raises
    ------
    QpnucleiError
        If the slide cannot be read or the result not saved; the project is as it was. A result
        that could not be saved lies as GeoJSON in `run_dir`, as the error says.
    """
    clock = Stopwatch()
    with temporary_shards(run_dir) as found:
        stitching = find_nuclei(
            slide,
            plan.tiles,
            engine,
            plan.scale,
            plan.stains,
            found,
            simplify_um=options.simplify_um,
            min_area_um2=options.min_area_um2,
            workers=options.workers,
            clock=clock,
            progress=lambda done, n: progress(plan.entry.name, done, len(plan.tiles), n),
        )
        with clock("check"):
            doubts = check(slide, plan.regions, plan.scale.mpp, found)
        with clock("write"):
            nuclei = new_nuclei(plan, found, options, doubts)
            with interrupt_postponed():
                replaced = write_back(project, plan, nuclei, options, run_dir)
        with clock("count"):
            regions = _counted(plan, doubts)
    loss = loss_note(project, plan.entry, replaced, len(nuclei))
    return ImageResult(
        name=plan.entry.name,
        entry=plan.entry.id,
        mpp=plan.scale.mpp,
        mpp_source=plan.mpp_source,
        working_mpp=plan.scale.working_mpp,
        stains=plan.stains.name,
        tiles=len(plan.tiles),
        megapixels=plan.megapixels,
        regions=regions,
        nuclei=len(nuclei),
        check=doubts.image,
        replaced=replaced,
        outside=nuclei.outside,
        joined=stitching.joined,
        covered=stitching.covered,
        overlapping=stitching.overlapping,
        seconds=clock.seconds,
        waited=clock.waited,
        notes=plan.notes if loss is None else (*plan.notes, loss),
    )


def _counted(plan: ImagePlan, doubts: Check) -> tuple[RegionResult, ...]:
    """Count the nuclei of each region in what was saved, as export does."""
    objects = plan.entry.read()
    calibration = PixelCalibration(*plan.scale.mpp)
    image = CountedImage("", plan.entry.name, objects, calibration)
    regions = regions_now(plan, objects)
    counts = count_in_regions(image, regions)
    return tuple(
        RegionResult.of(region, *count, doubt)
        for region, count, doubt in zip(regions, counts, doubts.regions, strict=True)
    )
