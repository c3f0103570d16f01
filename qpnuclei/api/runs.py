"""Runs in Python: a whole run, and each of its phases."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qpnuclei.api.projects import held
from qpnuclei.errors import UsageError, quoted
from qpnuclei.qupath.model import Project
from qpnuclei.system.arguments import checked_texts, listed, path_or_none

if TYPE_CHECKING:
    from qpnuclei.pipeline.options import RunOptions
    from qpnuclei.pipeline.summary import RunSummary


def run(
    project: str | os.PathLike[str] | Project,
    options: RunOptions | None = None,
    images: Sequence[str] = (),
    progress: Callable[[str, int, int, int], object] | None = None,
    *,
    roi: Sequence[str] = (),
    resume: bool = True,
    retry_failed: bool = False,
) -> RunSummary:
    """Find the nuclei in the chosen annotations of a project and write them back as detections.

    This is what ``qpnuclei run`` does: `plan`, `infer` and `commit`, image by image. Images that
    fail are listed in `failures` of the summary.

    Parameters
    ----------
    project : path-like or Project
        A `Project` is opened again, as another program may have changed it.
    options : RunOptions, optional
        Selection of annotations, and settings.
    images : sequence of str
        Names or patterns (``*``, ``?``) of images; all by default.
    progress : callable, optional
        Called as ``progress(image name, tiles done, tiles in all, nuclei so far)``, for the tiles
        that are computed: those of an earlier start, or of other shards, do not count.
    roi : sequence of str
        Classes of the annotations to analyse, if no options are given.
    resume : bool
        Continue an unfinished run with the same options.
    retry_failed : bool
        Also try units again that failed three times.

    Raises
    ------
    qpnuclei.errors.QpnucleiError
        If the request, the model or the device is wrong. Then nothing was changed.

    Examples
    --------
    The example is a slide with two nuclei of 8 µm. All of its tissue is analysed:

    >>> import numpy as np
    >>> from PIL import Image
    >>> from qpnuclei import RunOptions, Selection, count, create_project
    >>> y, x = np.mgrid[:256, :256]
    >>> rgb = np.full((256, 256, 3), (235, 200, 225), np.uint8)
    >>> rgb[((y - 80) ** 2 + (x - 80) ** 2 < 256) | ((y - 160) ** 2 + (x - 170) ** 2 < 256)] = (
    ...     90, 60, 140)
    >>> Image.fromarray(rgb).save("tissue.png")
    >>> project = create_project("project-of-tissue", ["tissue.png"], mpp=0.25)
    >>> summary = run(project, RunOptions(Selection(tissue=True), device="cpu"))
    >>> summary.nuclei, summary.failures
    (2, [])
    >>> [row["nuclei"] for row in count(project, by="image")]
    [2]
    """
    from qpnuclei.pipeline.inference.units import Conduct, no_progress
    from qpnuclei.pipeline.request import check_request
    from qpnuclei.pipeline.run import analyse_project
    from qpnuclei.pipeline.selection import choose_images

    asked = _options(options, images, roi)
    check_request(asked)
    conduct = Conduct(resume=resume, retry_failed=retry_failed)
    with held(project) as opened:
        options = _in_project(asked, opened)
        entries = choose_images(opened, options.images, options.selection)
        return analyse_project(opened, entries, options, progress or no_progress, conduct)


def plan(
    project: str | os.PathLike[str] | Project,
    options: RunOptions | None = None,
    images: Sequence[str] = (),
    *,
    roi: Sequence[str] = (),
    resume: bool = True,
    retry_failed: bool = False,
) -> Path:
    """Plan a run and save the plan in a folder, like ``qpnuclei plan``.

    Parameters
    ----------
    project, options, images, roi, resume
        As for `run`.
    retry_failed : bool
        Let `infer` also try units again that failed three times.

    Returns
    -------
    Path
        The folder, for `infer` and `commit`.

    Raises
    ------
    qpnuclei.errors.QpnucleiError
        If the request is wrong (then nothing was planned), or an image cannot be planned.

    Examples
    --------
    This is a run in its three phases. The second may run on other machines:

    >>> import numpy as np
    >>> from PIL import Image
    >>> from qpnuclei import RunOptions, Selection, create_project
    >>> y, x = np.mgrid[:256, :256]
    >>> rgb = np.full((256, 256, 3), (235, 200, 225), np.uint8)
    >>> rgb[(y - 80) ** 2 + (x - 80) ** 2 < 256] = (90, 60, 140)
    >>> Image.fromarray(rgb).save("planned.png")
    >>> project = create_project("project-to-plan", ["planned.png"], mpp=0.25)
    >>> folder = plan(project, RunOptions(Selection(tissue=True)))
    >>> summary = commit(infer(folder, device="cpu"))
    >>> summary.nuclei, summary.state
    (1, 'done')
    """
    from qpnuclei.pipeline.inference.units import Conduct
    from qpnuclei.pipeline.phases import plan_run
    from qpnuclei.pipeline.selection import choose_images
    from qpnuclei.segmentation.engine import engine_specs

    asked = _options(options, images, roi)
    engine_specs(asked.models)
    conduct = Conduct(resume=resume, retry_failed=retry_failed, fail_fast=True)
    with held(project) as opened:
        options = _in_project(asked, opened)
        entries = choose_images(opened, options.images, options.selection)
        return plan_run(opened, entries, options, conduct)[0].path


def infer(
    run_dir: str | os.PathLike[str],
    *,
    shard: tuple[int, int] = (1, 1),
    device: str = "auto",
    workers: int | None = None,
    slides_from: str | os.PathLike[str] | None = None,
    retry_failed: bool = False,
    dask: str | None = None,
    unit_minutes: float | None = None,
    unit_gib: float | None = None,
    progress: Callable[[str, int, int, int], object] | None = None,
) -> Path:
    """Find the nuclei of a plan, and save them in its folder, like ``qpnuclei infer``.

    Finished units are not computed again. Failed units are listed in ``failures.jsonl``. `commit`
    reports the images with failed units.

    Parameters
    ----------
    run_dir : path-like
        From `plan`.
    shard : (int, int)
        Number of this shard, from 1, and number of equal shards.
    device : str
        See `qpnuclei.models.device.resolve_device`. Several devices, separated by commas, work in
        parallel.
    workers : int, optional
        Processor cores to use; all by default.
    slides_from : path-like, optional
        Folder of the slides on this machine.
    retry_failed : bool
        Also try units again that failed three times.
    dask : str, optional
        Compute on a Dask cluster: the address of its scheduler, or ``local:N``.
    unit_minutes : float, optional
        Time limit for a unit, in minutes (0.01 to 10,000). A unit that takes longer fails.
    unit_gib : float, optional
        Memory limit for the process of a unit, in GiB (0.1 to 10,000). A unit that needs more
        fails.
    progress : callable, optional
        As for `run`.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    qpnuclei.errors.QpnucleiError
        If there is no plan, a limit is out of its range, or the model or the device cannot be used.

    Examples
    --------
    This plan has nothing to do, so nothing is computed:

    >>> from PIL import Image
    >>> from qpnuclei import RunOptions, Selection, create_project
    >>> Image.new("RGB", (640, 480), "white").save("empty.png")
    >>> project = create_project("project-of-glass", ["empty.png"], mpp=0.25)
    >>> folder = infer(plan(project, RunOptions(Selection(tissue=True))), device="cpu")
    >>> sorted(path.name for path in folder.iterdir())
    ['plan.json', 'run.json', 'run.log']
    """
    from qpnuclei.pipeline.folder import RunFolder
    from qpnuclei.pipeline.inference.units import Conduct, no_progress
    from qpnuclei.pipeline.phases import infer_run
    from qpnuclei.system.threads import available_cores

    folder = RunFolder(Path(run_dir))
    options = replace(
        folder.plan().options(),
        device=device,
        batch_size=None,
        workers=available_cores() if workers is None else workers,
    )
    infer_run(
        folder,
        options,
        share=shard,
        slides_from=path_or_none(slides_from),
        conduct=Conduct(
            retry_failed=retry_failed, dask=dask, unit_minutes=unit_minutes, unit_gib=unit_gib
        ),
        progress=progress or no_progress,
    )
    return folder.path


def commit(
    run_dir: str | os.PathLike[str],
    project: str | os.PathLike[str] | Project | None = None,
    *,
    force: bool = False,
    geojson_dir: str | os.PathLike[str] | None = None,
    parquet_dir: str | os.PathLike[str] | None = None,
    slides_from: str | os.PathLike[str] | None = None,
) -> RunSummary:
    """Write the nuclei that `infer` found into the project, like ``qpnuclei commit``.

    Images that are already written are skipped; only missing copies of their nuclei are written.

    Parameters
    ----------
    run_dir : path-like
    project : path-like or Project, optional
        Project to write into; the planned one by default. A `Project` is opened again.
    force : bool
        Write even if another program saved the image since it was planned; see ``--force``.
    geojson_dir, parquet_dir : path-like, optional
        Folders for a copy of each image's nuclei in this format.
    slides_from : path-like, optional
        Folder of the slides on this machine.

    Raises
    ------
    qpnuclei.errors.QpnucleiError
        If there is no plan, or the project or the folder of the slides does not exist.

    Examples
    --------
    >>> import numpy as np
    >>> from PIL import Image
    >>> from qpnuclei import RunOptions, Selection, create_project
    >>> y, x = np.mgrid[:256, :256]
    >>> rgb = np.full((256, 256, 3), (235, 200, 225), np.uint8)
    >>> rgb[(y - 80) ** 2 + (x - 80) ** 2 < 256] = (90, 60, 140)
    >>> Image.fromarray(rgb).save("twice.png")
    >>> project = create_project("project-to-commit", ["twice.png"], mpp=0.25)
    >>> folder = infer(plan(project, RunOptions(Selection(tissue=True))), device="cpu")
    >>> first, second = commit(folder), commit(folder)
    >>> first.nuclei == second.nuclei == 1, first.resumed, second.resumed
    (True, 0, 1)
    """
    from qpnuclei.pipeline.folder import RunFolder
    from qpnuclei.pipeline.phases import check_slides_from, commit_run

    slides = path_or_none(slides_from)
    check_slides_from(slides)
    folder = RunFolder(Path(run_dir))
    planned = folder.plan()
    options = replace(
        planned.options(),
        force=force,
        geojson_dir=path_or_none(geojson_dir),
        parquet_dir=path_or_none(parquet_dir),
    )
    with held(project or planned.project) as opened:
        return commit_run(opened, folder, options, slides_from=slides)


def _options(options: RunOptions | None, images: Sequence[str], roi: Sequence[str]) -> RunOptions:
    """Return the options of a run for some images or for annotations of some classes.

    Raises
    ------
    UsageError
        If `options` is something else, for example a selection alone.
    """
    from qpnuclei.pipeline.options import RunOptions
    from qpnuclei.pipeline.selection import Selection

    if options is not None and listed(roi):
        raise UsageError(
            "roi and options were both given", "give the classes in the options: Selection(classes)"
        )
    chosen = (
        RunOptions(Selection(classes=checked_texts("roi", roi))) if options is None else options
    )
    if not isinstance(chosen, RunOptions):
        raise UsageError(
            f"the options are not RunOptions, but {quoted(chosen)}", "give RunOptions(selection)"
        )
    return replace(chosen, images=checked_texts("images", images) or chosen.images)


def _in_project(options: RunOptions, project: Project) -> RunOptions:
    """Return options with pixel sizes by entry ID, and not by name.

    Raises
    ------
    UsageError
        As `qpnuclei.qupath.pixel_size.mpp_by_id`.
    """
    from qpnuclei.qupath.pixel_size import mpp_by_id

    given = (("mpp_by_image", name, mpp) for name, mpp in options.mpp_by_image.items())
    return replace(options, mpp_by_image=mpp_by_id(given, project.images))
