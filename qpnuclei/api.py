"""The public functions that combine several packages, a few lines each.

Import them from `qpnuclei` itself, as all public names: see `qpnuclei.__all__`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qpnuclei.choices import NUCLEUS_CLASS, Grouping
from qpnuclei.errors import FormatError, NotFoundError
from qpnuclei.models.registry import DEFAULT_MODEL
from qpnuclei.nuclei.ids import NucleusIds
from qpnuclei.nuclei.table import NucleiTable, concatenate
from qpnuclei.qupath.counts import Row, count_project
from qpnuclei.qupath.model import PathClass, Project
from qpnuclei.qupath.names import NEW_CLASS_COLOR
from qpnuclei.qupath.project import open_project
from qpnuclei.qupath.regions import match_images
from qpnuclei.system.files import atomic_file

if TYPE_CHECKING:
    from qpnuclei.evaluation.report import Report
    from qpnuclei.pipeline.plan import RunOptions
    from qpnuclei.pipeline.summary import RunSummary
    from qpnuclei.training.adaptation import Adaptation
    from qpnuclei.training.callbacks import TrainingResult, Watcher

_PARQUET = ".parquet"
#: The column of a Parquet table that holds outlines, as WKB.
_GEOMETRY = "geometry"
#: Columns of such a table that are not measurements.
_CENTROIDS = tuple(f"centroid_{axis}_{unit}" for axis in "xy" for unit in ("px", "um"))


def create_project(
    directory: str | os.PathLike[str],
    slides: Sequence[str | os.PathLike[str]],
    mpp: float | None = None,
) -> Project:
    """Make a QuPath project of Brightfield (H&E) images in a new folder.

    Parameters
    ----------
    directory : path-like
        New, or an empty folder.
    slides : sequence of path-like
    mpp : float, optional
        Pixel size in µm/px of all slides; by default, that of each slide file.

    Raises
    ------
    NotFoundError, qpnuclei.errors.SlideError
        If a slide is missing or cannot be read.
    qpnuclei.errors.MppError
        If `mpp` is absurd.
    UsageError
        If the folder holds anything.
    qpnuclei.errors.SaveError
        If the project cannot be written; nothing is left behind.

    Examples
    --------
    >>> from PIL import Image
    >>> Image.new("RGB", (640, 480), "white").save("slide.png")
    >>> project = create_project("project", ["slide.png"], mpp=0.25)
    >>> [(image.name, image.calibration.mpp) for image in project.images]
    [('slide.png', 0.25)]
    """
    from qpnuclei.qupath.create import create_from_slides

    return create_from_slides(Path(directory), [Path(slide) for slide in slides], mpp)


def add_slides(
    project: str | os.PathLike[str],
    slides: Sequence[str | os.PathLike[str]],
    mpp: float | None = None,
) -> Project:
    """Add slides to a project as Brightfield (H&E) images: what ``qpnuclei project add`` does.

    Those that it has already are passed over. Close the project in QuPath first.

    Parameters
    ----------
    project : path-like
    slides : sequence of path-like
    mpp : float, optional
        Pixel size in µm/px of the new slides; by default, that of each slide file.

    Raises
    ------
    NotFoundError, qpnuclei.errors.SlideError
        If there is no such project, or a slide is missing or cannot be read; nothing is added.
    qpnuclei.errors.MppError
        If `mpp` is absurd.
    qpnuclei.errors.SaveError
        If the project cannot be written; it is as it was.

    Examples
    --------
    >>> from PIL import Image
    >>> for name in ("first.png", "second.png"):
    ...     Image.new("RGB", (640, 480), "white").save(name)
    >>> project = create_project("growing", ["first.png"], mpp=0.25)
    >>> project = add_slides("growing", ["first.png", "second.png"], mpp=0.25)
    >>> [image.name for image in project.images]
    ['first.png', 'second.png']
    """
    from qpnuclei.qupath import adding

    return adding.add_slides(Path(project), [Path(slide) for slide in slides], mpp)[0]


def run(
    project: str | os.PathLike[str] | Project,
    options: RunOptions | None = None,
    images: Sequence[str] = (),
    progress: Callable[[str, int, int, int], None] = lambda image, done, tiles, nuclei: None,
    *,
    roi: Sequence[str] = (),
    resume: bool = True,
) -> RunSummary:
    """Find the nuclei in the chosen annotations of a project and write them back as detections.

    It is what ``qpnuclei run`` does: `plan`, `infer` and `commit`, image by image. Images that fail
    are in the summary's `failures`.

    Parameters
    ----------
    project : path-like or Project
    options : RunOptions, optional
        Which annotations, and how.
    images : sequence of str
        Names or patterns (``*``, ``?``) of images; all by default.
    progress : callable
        Called as ``progress(image name, tiles done, tiles in all, nuclei so far)``.
    roi : sequence of str
        Classes of the annotations to analyse, where no options are given.
    resume : bool
        Go on with a run of the same options that was not finished.

    Raises
    ------
    qpnuclei.errors.QpnucleiError
        If nothing was changed, because the request, the model or the device is wrong.

    Examples
    --------
    A slide with two nuclei of 8 µm, and all of its tissue:

    >>> import numpy as np
    >>> from PIL import Image
    >>> from qpnuclei import RunOptions, Selection
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
    from qpnuclei.pipeline.run import analyse_project
    from qpnuclei.pipeline.selection import choose_images
    from qpnuclei.pipeline.units import Conduct

    options = _options(options, images, roi)
    opened = _opened(project)
    entries = choose_images(opened, options.images, options.selection)
    return analyse_project(opened, entries, options, progress, Conduct(resume=resume))


def plan(
    project: str | os.PathLike[str] | Project,
    options: RunOptions | None = None,
    images: Sequence[str] = (),
    *,
    roi: Sequence[str] = (),
    resume: bool = True,
) -> Path:
    """Say in a folder what a run has to do: what ``qpnuclei plan`` does.

    Parameters
    ----------
    project, options, images, roi, resume
        As for `run`.

    Returns
    -------
    Path
        The folder, for `infer` and `commit`.

    Raises
    ------
    qpnuclei.errors.QpnucleiError
        If nothing was planned, because the request is wrong, or for the first image that cannot be
        planned.

    Examples
    --------
    A run in its three phases, of which the second may be on other machines:

    >>> import numpy as np
    >>> from PIL import Image
    >>> from qpnuclei import RunOptions, Selection
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
    from qpnuclei.pipeline.run import plan_run
    from qpnuclei.pipeline.selection import choose_images
    from qpnuclei.pipeline.units import Conduct

    options = _options(options, images, roi)
    opened = _opened(project)
    entries = choose_images(opened, options.images, options.selection)
    conduct = Conduct(resume=resume, fail_fast=True)
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
    progress: Callable[[str, int, int, int], None] = lambda image, done, tiles, nuclei: None,
) -> Path:
    """Find the nuclei of a plan, and keep them in its folder: what ``qpnuclei infer`` does.

    What is there already is not done again. Units that fail are in ``failures.jsonl``; `commit`
    says which images lack them.

    Parameters
    ----------
    run_dir : path-like
        From `plan`.
    shard : (int, int)
        Which of so many equal parts of the work, from 1.
    device : str
        See `qpnuclei.models.device.resolve_device`. Several, separated by commas, work side by
        side.
    workers : int, optional
        Processor cores to use; all by default.
    slides_from : path-like, optional
        Folder that holds the slides here.
    retry_failed : bool
        Try again what failed three times before.
    dask : str, optional
        Compute on a Dask cluster: the address of its scheduler, or ``local:N``.
    unit_minutes : float, optional
        A unit of the work that takes longer fails.
    progress : callable
        As for `run`.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    qpnuclei.errors.QpnucleiError
        If there is no plan, or the model or the device cannot be used.

    Examples
    --------
    Where there is nothing to do, nothing is done:

    >>> from PIL import Image
    >>> from qpnuclei import RunOptions, Selection
    >>> Image.new("RGB", (640, 480), "white").save("empty.png")
    >>> project = create_project("project-of-glass", ["empty.png"], mpp=0.25)
    >>> folder = infer(plan(project, RunOptions(Selection(tissue=True))), device="cpu")
    >>> sorted(path.name for path in folder.iterdir())
    ['plan.json', 'run.json', 'run.log']
    """
    from qpnuclei.pipeline.folder import RunFolder
    from qpnuclei.pipeline.run import infer_run
    from qpnuclei.pipeline.units import Conduct
    from qpnuclei.system.threads import available_cores

    folder = RunFolder(Path(run_dir))
    options = replace(
        folder.plan().options(),
        device=device,
        batch_size=None,
        workers=workers or available_cores(),
    )
    infer_run(
        folder,
        options,
        share=shard,
        slides_from=None if slides_from is None else Path(slides_from),
        conduct=Conduct(retry_failed=retry_failed, dask=dask, unit_minutes=unit_minutes),
        progress=progress,
    )
    return folder.path


def commit(
    run_dir: str | os.PathLike[str],
    project: str | os.PathLike[str] | Project | None = None,
    *,
    force: bool = False,
) -> RunSummary:
    """Write the nuclei that `infer` has found into the project: what ``qpnuclei commit`` does.

    What was written before is left as it is.

    Parameters
    ----------
    run_dir : path-like
    project : path-like or Project, optional
        The one that was planned by default.
    force : bool
        Write even if the image was saved by another program meanwhile; see ``--force``.

    Raises
    ------
    qpnuclei.errors.QpnucleiError
        If there is no plan, or no such project.

    Examples
    --------
    >>> import numpy as np
    >>> from PIL import Image
    >>> from qpnuclei import RunOptions, Selection
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
    from qpnuclei.pipeline.run import commit_run

    folder = RunFolder(Path(run_dir))
    planned = folder.plan()
    options = replace(planned.options(), force=force, geojson_dir=None, parquet_dir=None)
    return commit_run(_opened(project or planned.project), folder, options)


def _options(options: RunOptions | None, images: Sequence[str], roi: Sequence[str]) -> RunOptions:
    """Return the options of a run of some images, or of annotations of some classes."""
    from qpnuclei.pipeline.plan import RunOptions
    from qpnuclei.pipeline.selection import Selection

    chosen = options or RunOptions(Selection(classes=tuple(roi)))
    return replace(chosen, images=tuple(images) or chosen.images)


def count(
    project: str | os.PathLike[str] | Project,
    by: Grouping = "annotation",
    *,
    images: Sequence[str] = (),
    roi_classes: Sequence[str] | None = None,
    nucleus_classes: Sequence[str] | None = None,
    mpp: float | None = None,
) -> list[Row]:
    """Count the detections of a project, as ``qpnuclei export`` does.

    Parameters
    ----------
    project : path-like or Project
    by : {"annotation", "class", "image"}
        Meaning of a row.
    images : sequence of str
        Names or patterns (``*``, ``?``) of images; all by default.
    roi_classes, nucleus_classes : sequence of str, optional
        Only annotations, or detections, of these classes.
    mpp : float, optional
        µm/px of all the images, over what the project says.

    Returns
    -------
    list of dict
        One for each row of the table.

    Raises
    ------
    UsageError, NotFoundError, FormatError
        If there is no such project, image or class, or it cannot be read.

    Examples
    --------
    A new project was not analysed yet, so the number of nuclei is unknown rather than 0:

    >>> from PIL import Image
    >>> Image.new("RGB", (640, 480), "white").save("glass.png")
    >>> project = create_project("project-to-count", ["glass.png"], mpp=0.25)
    >>> (row,) = count(project, by="image")
    >>> row["image"], row["nuclei"]
    ('glass.png', None)
    """
    opened = _opened(project)
    return count_project(
        opened,
        match_images(opened, tuple(images)),
        by,
        roi_classes=roi_classes,
        nucleus_classes=nucleus_classes,
        mpp=mpp,
    )


def write_report(
    project: str | os.PathLike[str] | Project,
    path: str | os.PathLike[str],
    images: Sequence[str] = (),
    *,
    nucleus_classes: Sequence[str] | None = None,
    mpp: float | None = None,
) -> None:
    """Write a page that shows what was found: what ``qpnuclei report`` does of a project.

    Parameters
    ----------
    project : path-like or Project
    path : path-like
        The page, ``.html``. With more than 20 images, each has a page in a folder beside it.
    images : sequence of str
        Names or patterns (``*``, ``?``) of images; all by default.
    nucleus_classes : sequence of str, optional
        As for `count`; by default, in images where no run has been, all detections count.
    mpp : float, optional
        µm/px of all the images, over what the project says.

    Raises
    ------
    UsageError, NotFoundError
        If there is no such project or image, or `path` is not that of a page.
    qpnuclei.errors.QpnucleiError
        If an image cannot be read, or the page not be written; the others are in it.

    Examples
    --------
    >>> from PIL import Image
    >>> Image.new("RGB", (640, 480), "white").save("glass.png")
    >>> project = create_project("project-to-see", ["glass.png"], mpp=0.25)
    >>> write_report(project, "report.html")
    >>> Path("report.html").read_text(encoding="utf-8")[:15]
    '<!doctype html>'
    """
    from qpnuclei.qupath.pixel_size import AskedMpp
    from qpnuclei.report.page import ReportOptions, write_report
    from qpnuclei.report.runs import runs_of

    opened = _opened(project)
    classes = None if nucleus_classes is None else tuple(nucleus_classes)
    failures = write_report(
        opened,
        match_images(opened, tuple(images)),
        Path(path),
        runs_of(opened.path.parent),
        ReportOptions(classes, AskedMpp(mpp)),
    )
    for _, error in failures:
        raise error


def evaluate(
    dataset: str | os.PathLike[str],
    model: str | None = None,
    *,
    split: str | None = None,
    layout: str = "auto",
    roi: Sequence[str] = (),
    truth_class: Sequence[str] = (),
    **options: Any,
) -> Report:
    """Measure a model on annotated images: what ``qpnuclei evaluate`` does.

    Parameters
    ----------
    dataset : path-like
        Folder of the images and their labels; or a project, with `roi`.
    model : str, optional
        As for ``qpnuclei run``; the default model if not given.
    split : str, optional
        Only the images of this split.
    layout : str
        Of the folder; see ``qpnuclei evaluate --format``.
    roi : sequence of str
        Of a project: classes of the annotations in which all nuclei are drawn.
    truth_class : sequence of str
        Classes of the drawn nuclei; see ``qpnuclei evaluate --truth-class``.
    **options
        Further fields of `qpnuclei.evaluation.assessment.AssessmentOptions`.

    Raises
    ------
    qpnuclei.errors.QpnucleiError
        If the model, the device, an image or its labels are not there or not usable.

    Examples
    --------
    >>> import numpy as np
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> y, x = np.mgrid[:256, :256]
    >>> nucleus = (y - 120) ** 2 + (x - 130) ** 2 < 256
    >>> rgb = np.full((256, 256, 3), (235, 200, 225), np.uint8)
    >>> rgb[nucleus] = (90, 60, 140)
    >>> for folder, picture in (("images", rgb), ("labels", nucleus.astype(np.uint16))):
    ...     Path("labelled", folder).mkdir(parents=True)
    ...     Image.fromarray(picture).save(f"labelled/{folder}/one.png")
    >>> report = evaluate("labelled", mpp=0.25, device="cpu")
    >>> report.result.mean["recall"]
    1.0
    """
    from qpnuclei.evaluation.assessment import AssessmentOptions, assess
    from qpnuclei.evaluation.reading import read_annotated

    chosen = AssessmentOptions(**options) if model is None else AssessmentOptions(model, **options)
    read = read_annotated(
        Path(dataset), layout, split, roi=roi, truth_classes=truth_class, mpp=chosen.mpp
    )
    return assess(read.images, {**read.described, "limit": None}, chosen, notes=read.notes)


def train(
    sources: Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    config: str = "student",
    settings: Mapping[str, Any] | None = None,
    *,
    mpp: float | None = None,
    roi: Sequence[str] = (),
    device: str = "auto",
    seed: int = 0,
    validation: str | os.PathLike[str] | None = None,
    resume: bool = False,
    watcher: Watcher | None = None,
) -> TrainingResult:
    """Train a model on unlabelled tissue: what ``qpnuclei train`` does, in one process.

    Parameters
    ----------
    sources : sequence of path-like
        Slides, images, folders of them, or QuPath projects.
    folder : path-like
        For the model and all other output.
    config : str
        Name of a recipe, or its YAML file.
    settings : mapping, optional
        Fields of the recipe to change.
    mpp : float, optional
        µm/px of all sources and validation images, over what the files say.
    roi : sequence of str
        Of projects, only what lies in annotations of these classes.
    device : str
        See `qpnuclei.models.device.resolve_device`.
    seed : int
    validation : path-like, optional
        Labelled images that choose the epoch and the post-processing.
    resume : bool
        Continue the training in `folder`.
    watcher : Watcher, optional
        Is told of the progress, and may stop the training.

    Raises
    ------
    qpnuclei.errors.QpnucleiError
        If the recipe, the sources or the folder do not allow the training, or it went wrong.

    Examples
    --------
    Far too small and short to learn anything:

    >>> import numpy as np
    >>> from PIL import Image
    >>> noise = np.random.default_rng(0).normal((200, 130, 170), 25, (256, 256, 3))
    >>> Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save("patch.png")
    >>> tiny = {"width": 4, "dilations": [1], "scale_width": 4, "scales": [0.25, 0.5],
    ...     "tile_px": 112, "crop_px": 64, "batch_size": 2, "batches_per_epoch": 1, "epochs": 1}
    >>> result = train(["patch.png"], "training", "anchored", tiny, mpp=0.25, device="cpu")
    >>> result.epochs, result.model.name
    (1, 'model.safetensors')
    """
    from qpnuclei.models.device import resolve_device
    from qpnuclei.training.config import read_recipe
    from qpnuclei.training.sources import find_sources
    from qpnuclei.training.train import train_model

    found = find_sources(
        [Path(source) for source in sources], mpp=() if mpp is None else [mpp], roi=roi
    )
    return train_model(
        {**read_recipe(config), **(settings or {})},
        found,
        Path(folder),
        device=resolve_device(device),
        seed=seed,
        validation=None if validation is None else Path(validation),
        mpp=mpp,
        resume=resume,
        watcher=watcher,
    )


def adapt(
    sources: Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    model: str = DEFAULT_MODEL,
    settings: Mapping[str, Any] | None = None,
    *,
    images: Sequence[str] = (),
    roi: Sequence[str] = (),
    corrections: Sequence[str] = (),
    truth_class: Sequence[str] = (),
    mpp: float | None = None,
    device: str = "auto",
    seed: int = 0,
    resume: bool = False,
    watcher: Watcher | None = None,
) -> Adaptation:
    """Adapt a model to slides of one's own: what ``qpnuclei adapt`` does.

    Parameters
    ----------
    sources : sequence of path-like
        Projects, slides, image patches or folders of them.
    folder : path-like
        New, for the model, its card, and what changed.
    model : str
        To start from: a name, or the file of a student.
    settings : mapping, optional
        Fields of the recipe ``adapted`` to change.
    images : sequence of str
        Names or patterns of images of the projects; all by default.
    roi : sequence of str
        Learn only inside annotations of these classes.
    corrections : sequence of str
        Classes of the annotations of the projects in which every nucleus is drawn: learn from
        these nuclei as well.
    truth_class : sequence of str
        Classes of the drawn nuclei; ``Nucleus`` by default.
    mpp : float, optional
        µm/px of all sources, over whatever they say.
    device : str
        See `qpnuclei.segmentation.engine.EngineOptions`.
    seed : int
        Of all random choices.
    resume : bool
        Go on with the run in `folder`.
    watcher : Watcher, optional
        Is told of the progress, and may stop it.

    Raises
    ------
    qpnuclei.errors.QpnucleiError
        If the model, the sources, the boxes or the folder do not allow it, or it went wrong.

    Examples
    --------
    Far too short to learn anything:

    >>> import numpy as np
    >>> from PIL import Image
    >>> y, x = np.mgrid[:320, :320]
    >>> rgb = np.full((320, 320, 3), (225, 165, 200), np.uint8)
    >>> rgb[(y % 64 - 32) ** 2 + (x % 64 - 32) ** 2 < 200] = (95, 60, 140)
    >>> Image.fromarray(rgb).save("ours.png")
    >>> short = {"first_round_batches": 1, "batch_size": 2, "crop_px": 64, "renditions": 0}
    >>> result = adapt(["ours.png"], "adapted", settings=short, mpp=0.25, device="cpu")
    >>> result.training.model.name, len(result.changes)
    ('model.safetensors', 1)
    """
    from qpnuclei.evaluation.boxes import read_corrected
    from qpnuclei.models.device import resolve_device
    from qpnuclei.training.adaptation import adapt as adapt_model
    from qpnuclei.training.sources import find_sources

    paths = [Path(source) for source in sources]
    found = find_sources(paths, mpp=() if mpp is None else [mpp], roi=roi, images=images)
    drawn = read_corrected(paths, corrections, truth_class, images=images, mpp=mpp)
    return adapt_model(
        found,
        Path(folder),
        model=model,
        settings=settings,
        device=resolve_device(device),
        seed=seed,
        resume=resume,
        watcher=watcher,
        corrections=drawn.images,
    )


def write_nuclei(
    nuclei: NucleiTable, path: str | os.PathLike[str], class_name: str = NUCLEUS_CLASS
) -> None:
    """Write nuclei as GeoJSON that QuPath opens, or as GeoParquet.

    Parameters
    ----------
    nuclei : NucleiTable
    path : path-like
        ``.geojson``, ``.geojson.gz`` or ``.parquet``. Replaced in one step.
    class_name : str
        Of the detections in QuPath; a Parquet table has none.

    Raises
    ------
    UsageError
        If the suffix is none of these.
    qpnuclei.errors.SaveError
        If the file cannot be written.

    Examples
    --------
    >>> import shapely
    >>> nuclei = NucleiTable.from_polygons([shapely.box(2, 3, 9, 11)], {"Area µm^2": [3.5]})
    >>> write_nuclei(nuclei, "nuclei.geojson")
    >>> read_nuclei("nuclei.geojson").measurements["Area µm^2"].tolist()
    [3.5]
    """
    from qpnuclei.qupath.geojson.writing import write_detections

    path = Path(path)
    outlines = [polygon.wkb for polygon in nuclei.polygons()]
    if path.suffix.lower() == _PARQUET:
        import pyarrow as pa
        import pyarrow.parquet as pq

        from qpnuclei.nuclei.exports.geoparquet import geo_metadata

        table = pa.table({_GEOMETRY: pa.array(outlines, pa.binary()), **nuclei.measurements})
        table = table.replace_schema_metadata(geo_metadata(["Polygon"] if outlines else []))
        with atomic_file(path) as stream:
            pq.write_table(table, stream)
        return
    digests = b"".join(blake2b(outline, digest_size=10).digest() for outline in outlines)
    ids = NucleusIds(np.frombuffer(digests, np.uint8).reshape(-1, 10))
    write_detections(path, nuclei, ids, PathClass(class_name, NEW_CLASS_COLOR))


def read_nuclei(path: str | os.PathLike[str]) -> NucleiTable:
    """Read nuclei from a file of `write_nuclei` or of a run, or GeoJSON that QuPath exported.

    Parameters
    ----------
    path : path-like
        ``.geojson``, ``.geojson.gz`` or ``.parquet``. Of GeoJSON, detections
        are read, and cells by their nucleus, if they have one.

    Raises
    ------
    NotFoundError
        If there is no such file.
    FormatError
        If it cannot be read, or a nucleus is not one polygon.

    Examples
    --------
    >>> import shapely
    >>> nuclei = NucleiTable.from_polygons([shapely.box(2, 3, 9, 11)], {"Area µm^2": [3.5]})
    >>> write_nuclei(nuclei, "nuclei.parquet")
    >>> read_nuclei("nuclei.parquet").polygons()[0].bounds
    (2.0, 3.0, 9.0, 11.0)
    """
    path = Path(path)
    if not path.is_file():
        raise NotFoundError(f"{path} does not exist")
    try:
        return _from_parquet(path) if path.suffix.lower() == _PARQUET else _from_geojson(path)
    except ValueError as error:
        raise FormatError(f"{path}: {error}", "give detections, each one polygon") from error


def _from_geojson(path: Path) -> NucleiTable:
    from qpnuclei.qupath.geojson.reading import read_objects

    tables = []
    for found in read_objects(path):
        if found.kind in ("detection", "cell"):
            columns = {name: [value] for name, value in found.measurements.items()}
            outline = found.geometry if found.nucleus is None else found.nucleus
            tables.append(NucleiTable.from_polygons([outline], columns))
    return concatenate(tables)


def _from_parquet(path: Path) -> NucleiTable:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import shapely

    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise FormatError(f"{path} is no Parquet table: {error}", "copy it again") from error
    if _GEOMETRY not in table.column_names:
        raise FormatError(
            f"{path} has no column {_GEOMETRY!r}, but {', '.join(table.column_names)}",
            "give a table that qpnuclei wrote",
        )
    measurements = {
        field.name: table[field.name].to_numpy()
        for field in table.schema
        if pa.types.is_floating(field.type) and field.name not in _CENTROIDS
    }
    outlines = shapely.from_wkb(table[_GEOMETRY].to_pylist())
    return NucleiTable.from_polygons(outlines, measurements)


def _opened(project: str | os.PathLike[str] | Project) -> Project:
    if isinstance(project, str | os.PathLike):
        return open_project(project)
    return project
