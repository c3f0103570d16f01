"""A complete analysis of one slide: project, annotations, run, export, pictures and a score."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import shapely

from qpnuclei.datasets.synthetic.layout import demo_annotations
from qpnuclei.datasets.synthetic.slide import make_slide
from qpnuclei.demo.overlay import draw_overlay
from qpnuclei.demo.score import NucleiScore, match_nuclei
from qpnuclei.errors import SlideError, UsageError, number_of
from qpnuclei.models.registry import DEFAULT_MODEL
from qpnuclei.nuclei.table import NucleiTable
from qpnuclei.pipeline.inference.units import Progress, no_progress
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.planning.image_plan import ImagePlan, plan_images
from qpnuclei.pipeline.run import analyse_project
from qpnuclei.pipeline.selection import TISSUE_CLASS, TISSUE_COLOR, Selection
from qpnuclei.pipeline.summary import RunSummary
from qpnuclei.qupath.areas import union
from qpnuclei.qupath.count_table import write_counts
from qpnuclei.qupath.create import create_from_slides
from qpnuclei.qupath.images import open_image
from qpnuclei.qupath.model import Edit, NewAnnotation, PathClass, Project
from qpnuclei.qupath.native import open_project
from qpnuclei.qupath.pixel_size import AskedMpp
from qpnuclei.qupath.project_counts import count_project
from qpnuclei.qupath.project_file import DEFAULT_COLORS
from qpnuclei.report.views import busiest
from qpnuclei.slides.resolution import resolve_mpp
from qpnuclei.slides.slide import open_slide
from qpnuclei.slides.tissue import find_tissue
from qpnuclei.system.files import make_writable_folder, resolved
from qpnuclei.system.interrupts import interrupt_postponed

_log = logging.getLogger(__name__)

SYNTHETIC_SLIDE = "synthetic-he.tif"
_COLORS = {**DEFAULT_COLORS, TISSUE_CLASS: TISSUE_COLOR}
_CLOSE_UP_PX = 400

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Demonstration:
    """The results of a demonstration.

    Parameters
    ----------
    project : Path
        The ``.qpproj`` file.
    summary : RunSummary
    counts : Path
        The table of nuclei per annotation.
    picture : Path
        The slide with annotations and nuclei, and a close-up where tiles meet.
    score : NucleiScore or None
        Agreement with the known nuclei; None for a slide of the user's own.
    """

    project: Path
    summary: RunSummary
    counts: Path
    picture: Path
    score: NucleiScore | None


def demonstrate(
    directory: Path,
    slide: Path | None = None,
    mpp: float | None = None,
    model: str = DEFAULT_MODEL,
    device: str = "auto",
    progress: Progress = no_progress,
    say: Callable[[str], None] = _log.info,
    size: tuple[int, int] = (6400, 5200),
) -> Demonstration:
    """Make a synthetic slide, or use the given one; make a project, find the nuclei, draw them.

    A second call with the same folder uses its slide and project, and replaces the nuclei.

    Parameters
    ----------
    directory : Path
        Made if missing.
    slide : Path, optional
        The user's own slide; its tissue is annotated automatically.
    say : callable
        Called with a line of text before each step.
    size : (int, int)
        Width and height of the synthetic slide in px.

    Raises
    ------
    UsageError
        If the folder holds something else.
    QpnucleiError
        Whatever makes a run fail.
    """
    truth = None
    folder = directory / "project"
    earlier = _earlier_project(folder, directory / SYNTHETIC_SLIDE if slide is None else slide)
    if slide is None:
        make_writable_folder(directory)
        say("painting a synthetic H&E slide of known nuclei")
        synthetic = make_slide(directory / SYNTHETIC_SLIDE, size)
        slide, truth = synthetic.path, synthetic.nuclei
        annotations = [
            _annotation(wanted.name, wanted.class_name, wanted.geometry)
            for wanted in demo_annotations((synthetic.width, synthetic.height))
        ]
    else:
        say(f"looking for tissue in {slide}")
        annotations = [_annotation("Tissue 1", TISSUE_CLASS, _tissue(slide, mpp))]
        make_writable_folder(directory)
    with interrupt_postponed():
        project = earlier or _new_project(folder, slide, mpp, annotations)
    say(f"finding the nuclei in {number_of(len(annotations), 'annotation')} of {project.path}")
    options = RunOptions(Selection(everything=True), model=model, device=device, mpp=mpp)
    plans, failed = plan_images(project.images, options)
    for _, error in failed:
        raise error
    (plan,) = plans
    summary = analyse_project(project, project.images, options, progress)
    for failure in summary.failures:
        raise failure.error
    counts = directory / "counts.csv"
    write_counts(count_project(project, project.images, pixel_sizes=AskedMpp(mpp)), counts)
    say("drawing what was found")
    entry = project.images[0]
    found = entry.read()
    nuclei = NucleiTable.from_polygons(found.detections.geometries[found.detections.ours])
    picture = directory / "nuclei.png"
    with open_image(entry) as opened:
        xs, ys = _seams(plan)
        crossings = np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2)
        middle = np.array([[opened.width / 2, opened.height / 2]])
        draw_overlay(
            opened,
            [(a.class_name or "unclassified", a.geometry) for a in found.annotations],
            nuclei,
            picture,
            mpp=plan.scale.mpp[0],
            zoom_at=busiest(
                crossings if len(crossings) else middle, nuclei.centroids(), _CLOSE_UP_PX
            ),
            seams_x=xs.tolist(),
            seams_y=ys.tolist(),
        )
    score = None
    if truth is not None:
        region = union(a.area for a in found.annotations)
        score = match_nuclei(nuclei, truth, region, plan.scale.mpp[0])
    return Demonstration(project.path, summary, counts, picture, score)


def _annotation(name: str, class_name: str | None, geometry: shapely.Geometry) -> NewAnnotation:
    path_class = None if class_name is None else PathClass(class_name, _COLORS[class_name])
    identity = uuid.uuid5(uuid.NAMESPACE_OID, f"qpnuclei demo {name}")
    return NewAnnotation(geometry, identity, name, path_class)


def _tissue(path: Path, mpp: float | None) -> shapely.Geometry:
    with open_slide(path, crop_to_bounds=True) as slide:
        true_mpp, _ = resolve_mpp(mpp, None, slide.mpp, str(path))
        tissue = find_tissue(slide, true_mpp)
    if tissue.is_empty:
        raise SlideError(f"no tissue found in {path}", "annotate it by hand in QuPath")
    # Two decimals are what QuPath keeps of areas, too.
    return shapely.set_precision(tissue, 0.01)


def _earlier_project(folder: Path, slide: Path) -> Project | None:
    """Return the project of an earlier demonstration with this slide; None if there is none."""
    if not folder.exists():
        return None
    project = open_project(folder)
    if [e.path and resolved(e.path) for e in project.images] != [resolved(slide)]:
        raise UsageError(
            f"{project.path} is a project of another slide than {slide}",
            "name another folder for this demonstration",
        )
    return project


def _new_project(
    folder: Path, slide: Path, mpp: float | None, annotations: Sequence[NewAnnotation]
) -> Project:
    made = create_from_slides(folder, [slide], mpp)
    entry = made.images[0]
    entry.write(Edit(annotations=annotations), entry.read().fingerprint)
    return made


def _seams(plan: ImagePlan) -> tuple[Floats, Floats]:
    """Return where vertical and horizontal borders between tiles lie, in level-0 px."""
    cores = np.array([tile.core[:2] for tile in plan.tiles], float)
    xs, ys = (np.unique(cores[:, axis])[1:] * plan.scale.downsample[axis] for axis in (0, 1))
    return xs, ys
