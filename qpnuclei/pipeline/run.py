"""The whole run on one screen: plan -> find nuclei -> write them back, image by image.

`analyse_project` is what ``qpnuclei run`` calls. `qpnuclei.pipeline.plan` decides what is to be
done, `qpnuclei.pipeline.infer` works on the pixels (read -> predict -> segment -> measure ->
stitch), and `qpnuclei.pipeline.commit` writes the result into the project.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qpnuclei.errors import QpnucleiError
from qpnuclei.nuclei.store import temporary_shards
from qpnuclei.pipeline.commit import choose_run_dir, new_nuclei, write_back
from qpnuclei.pipeline.infer import find_nuclei
from qpnuclei.pipeline.plan import ImagePlan, RunOptions, plan_image
from qpnuclei.pipeline.summary import (
    ImageResult,
    RegionResult,
    RunSummary,
    describe_model,
)
from qpnuclei.qupath.images import open_image
from qpnuclei.qupath.model import ImageEntry, Project
from qpnuclei.segmentation.engine import Engine, load_engine
from qpnuclei.system.interrupts import interrupt_postponed
from qpnuclei.system.memory import keep_freed_memory
from qpnuclei.system.timing import Stopwatch

if TYPE_CHECKING:
    from qpnuclei.slides.slide import Slide

_LOG = logging.getLogger(__name__)

#: Called as ``progress(image name, tiles done, tiles in all, nuclei so far)``.
Progress = Callable[[str, int, int, int], None]


def analyse_project(
    project: Project,
    entries: Sequence[ImageEntry],
    options: RunOptions,
    progress: Progress = lambda image, done, tiles, nuclei: None,
) -> RunSummary:
    """Find the nuclei in the chosen annotations of some images and write them back.

    Every image is saved as soon as it is done; one that fails is left as it was and reported in
    the summary's `failures`, and the others go on.

    Parameters
    ----------
    entries : sequence of ImageEntry
        Images of the project, from `qpnuclei.pipeline.selection.choose_images`.

    Raises
    ------
    QpnucleiError
        If the model or device is wrong or the result folder cannot be written; nothing was
        changed.
    """
    keep_freed_memory()
    engine = load_engine(options.model, options.engine)
    run_dir = choose_run_dir(project, options)
    summary = RunSummary(
        project=project.path,
        backend=project.backend,
        arguments=options.to_json(),
        model=describe_model(engine.spec),
        device=engine.execution,
        run_dir=run_dir,
    )
    for entry in entries:
        try:
            with open_image(entry) as slide:
                plan = plan_image(entry, slide, engine.spec, options)
                if plan.regions:
                    result = analyse_image(project, plan, slide, engine, options, run_dir, progress)
                    summary.images.append(result)
        except QpnucleiError as error:
            summary.failures.append((entry.name, error))
    summary.device = engine.execution
    with interrupt_postponed():
        summary.save()
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
            workers=options.workers,
            clock=clock,
            progress=lambda done, n: progress(plan.entry.name, done, len(plan.tiles), n),
        )
        with clock("write"):
            nuclei = new_nuclei(plan, found, options)
            with interrupt_postponed():
                replaced = write_back(project, plan, nuclei, options, run_dir)
    return ImageResult(
        name=plan.entry.name,
        entry=plan.entry.id,
        mpp=plan.scale.mpp,
        mpp_source=plan.mpp_source,
        working_mpp=plan.scale.working_mpp,
        stains=plan.stains.name,
        tiles=len(plan.tiles),
        megapixels=plan.megapixels,
        regions=tuple(
            RegionResult.of(region, plan.area_mm2(region), count)
            for region, count in zip(plan.regions, nuclei.counts.sum(axis=0).tolist(), strict=True)
        ),
        replaced=replaced,
        outside=nuclei.outside,
        joined=stitching.joined,
        covered=stitching.covered,
        overlapping=stitching.overlapping,
        seconds=clock.seconds,
        waited=clock.waited,
        notes=plan.notes,
    )
