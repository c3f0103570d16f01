"""A run: plan, infer and commit in one process, image by image."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

from qpnuclei.errors import QpnucleiError, standing_alone
from qpnuclei.pipeline.commit.commit_image import ImageCommit
from qpnuclei.pipeline.commit.same_image import check_still_same
from qpnuclei.pipeline.folder import choose_folder
from qpnuclei.pipeline.inference.computing import computing
from qpnuclei.pipeline.inference.units import Conduct, Progress, infer_images, no_progress
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.plan_project import plan_project
from qpnuclei.pipeline.planning.plan_file import PlannedImage
from qpnuclei.pipeline.positivity import require_some_dab
from qpnuclei.pipeline.space import check_space, need_of_results, need_of_shards
from qpnuclei.pipeline.summary import RunSummary
from qpnuclei.qupath.model import ImageEntry, Project
from qpnuclei.qupath.project_file import data_file
from qpnuclei.system.files import check_folder_target
from qpnuclei.system.locks import locked

_log = logging.getLogger(__name__)


def analyse_project(
    project: Project,
    entries: Sequence[ImageEntry],
    options: RunOptions,
    progress: Progress = no_progress,
    conduct: Conduct | None = None,
) -> RunSummary:
    """Find the nuclei in the chosen annotations of some images and write them back.

    Each image is saved as soon as it is done. An image that fails is left as it was and reported in
    the summary's `failures`; the run continues with the others. The record is written repeatedly
    (`is_due`), so that it exists however the run ends.

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
        folder = choose_folder(project, options, conduct.resume, conduct.extend)
        with folder.logging():
            planned = plan_project(project, entries, options, folder, conduct)
            plan = planned.plan
            todo = [image for image in plan.images if image.entry not in planned.committed]
            check_space(need_of_shards(folder, todo) + need_of_results(project, todo, options))
            by_id = {entry.id: entry for entry in entries}
            summary = RunSummary.begun(project, plan, options, folder.path)
            summary.device = computer.device
            summary.try_to_save()

            def fail(image: PlannedImage, error: QpnucleiError) -> None:
                summary.fail(image.entry, error)
                if conduct.fail_fast:
                    summary.try_to_save()
                    raise error
                summary.save_if_due()

            def commit_of(image: PlannedImage) -> ImageCommit:
                entry, spec = by_id[image.entry], plan.spec(image)
                return ImageCommit(project, entry, image, folder, spec, options)

            summary.fail_planned(planned.errors, planned.committed)
            with summary.noting_a_stop():
                for image in plan.images:
                    if image.entry in planned.committed:
                        with standing_alone(f"image {image.name}", partial(fail, image)):
                            data = planned.committed[image.entry]
                            summary.add_earlier(commit_of(image).complete_earlier(data))
                writable = []
                for image in todo:  # or else this is known only after hours
                    with standing_alone(f"image {image.name}", partial(fail, image)):
                        check_folder_target(data_file(project.path.parent, image.entry).parent)
                        writable.append(image)
                for image in infer_images(
                    folder,
                    plan,
                    writable,
                    computer.executor,
                    computer.engine,
                    fail,
                    conduct,
                    options,
                    progress=progress,
                ):
                    with standing_alone(f"image {image.name}", partial(fail, image)):
                        check_still_same(project, image)
                        commit = commit_of(image)
                        summary.images.append(commit.write())
                        summary.device = commit.device or summary.device
                    summary.save_if_due()
            summary.finish()
            folder.log("%s", summary.outcome)
            summary.save_somewhere()
    return summary
