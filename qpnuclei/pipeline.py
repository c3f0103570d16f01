"""The whole run: choose annotations -> plan tiles -> find nuclei -> write them back.

`analyse_project` is what ``qpnuclei run`` calls. The work on the pixels of one image is
`qpnuclei.detect.find_nuclei`: read -> attend -> segment -> measure -> stitch.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from uuid import UUID

import numpy as np
import shapely

from qpnuclei.detect import find_nuclei, plan_tiles
from qpnuclei.errors import QpnucleiError, SaveError, UsageError
from qpnuclei.nuclei import NucleiTable
from qpnuclei.qupath import geojson
from qpnuclei.qupath.model import (
    DEFAULT_HE,
    Detections,
    DetectionGroup,
    Edit,
    ImageEntry,
    ImageObjects,
    PathClass,
    Project,
    Stains,
    is_ours,
    nucleus_id,
)
from qpnuclei.qupath.pixels import open_image
from qpnuclei.roi import Region, RoiSelection, check_selection, owners, select_regions
from qpnuclei.slides.resolution import resolve_mpp, working_downsample
from qpnuclei.summary import ImageResult, RegionResult, RunSummary, Stopwatch

if TYPE_CHECKING:
    from qpnuclei.nn.segmenter import Segmenter
    from qpnuclei.segmentation.tiles import TilePlan
    from qpnuclei.slides.slide import Slide

_LOG = logging.getLogger(__name__)

#: Colour of our class where the project does not have it yet (packed ARGB: green).
NEW_CLASS_COLOR = -16732080


@dataclass(frozen=True)
class RunOptions:
    """What ``qpnuclei run`` is asked to do; the command's help explains each.

    Raises
    ------
    UsageError
        If the class name is empty.
    """

    selection: RoiSelection
    images: tuple[str, ...] = ()
    model: str = "default"
    device: str = "auto"
    mpp: float | None = None
    class_name: str = "Nucleus"
    on_existing: Literal["replace", "append", "skip", "error"] = "replace"
    tile_px: int = 1024
    batch_size: int = 1
    max_nucleus_um: float = 25.0
    simplify_um: float = 0.0
    geojson_dir: Path | None = None
    parquet_dir: Path | None = None
    run_dir: Path | None = None

    def __post_init__(self) -> None:
        if not self.class_name.strip():
            raise UsageError("the class of the detections is empty", "name it with --class")


@dataclass(frozen=True, eq=False)
class ImagePlan:
    """What is to be done in one image.

    Parameters
    ----------
    mpp : (float, float)
        µm per level-0 px in x and y.
    downsample : (float, float)
        Level-0 px per px that the network sees, in x and y.
    existing : sequence of frozenset of UUID
        For each region, the detections in it that qpnuclei wrote before.
    tiles : TilePlan
        In px that the network sees.
    """

    entry: ImageEntry
    objects: ImageObjects
    mpp: tuple[float, float]
    mpp_source: str
    downsample: tuple[float, float]
    stains: Stains
    regions: Sequence[Region]
    existing: Sequence[frozenset[UUID]]
    tiles: TilePlan
    notes: tuple[str, ...] = ()

    @property
    def working_mpp(self) -> tuple[float, float]:
        """µm per px that the network sees."""
        return self.mpp[0] * self.downsample[0], self.mpp[1] * self.downsample[1]

    @property
    def megapixels(self) -> float:
        """Area of the regions in millions of px that the network sees."""
        area = shapely.union_all([region.geometry for region in self.regions]).area
        return float(area / (self.downsample[0] * self.downsample[1]) / 1e6)

    def area_mm2(self, region: Region) -> float:
        """Area of a region in mm²."""
        return float(region.geometry.area * self.mpp[0] * self.mpp[1] * 1e-6)


def plan_project(project: Project, options: RunOptions) -> list[ImagePlan]:
    """Return what `analyse_project` would do, changing nothing.

    Raises
    ------
    QpnucleiError
        Whatever would stop the run.
    """
    from qpnuclei.nn.segmenter import Segmenter

    entries = choose_images(project, options)
    segmenter = Segmenter.load(options.model, device=options.device)
    plans = []
    for entry in entries:
        with open_image(entry) as slide:
            plan = plan_image(entry, slide, segmenter, options)
        if plan.regions:
            plans.append(plan)
    return plans


def analyse_project(
    project: Project, options: RunOptions, progress: Callable[[str, int, int, int], None]
) -> RunSummary:
    """Find the nuclei in the chosen annotations of a project and write them back.

    Every image is saved as soon as it is done; one that fails is reported in the summary's
    `failures`, left as it was, and the others go on.

    Parameters
    ----------
    progress : callable
        Called as ``progress(image name, tiles done, tiles in all, nuclei so far)``.

    Raises
    ------
    QpnucleiError
        If the request is wrong or the result folder cannot be written; nothing was changed.
    """
    from qpnuclei.nn.segmenter import Segmenter

    entries = choose_images(project, options)
    run_dir = make_run_dir(project, options)
    segmenter = Segmenter.load(options.model, device=options.device)
    start = time.perf_counter()
    summary = RunSummary.begin(project, options, segmenter)
    for entry in entries:
        try:
            with open_image(entry) as slide:
                plan = plan_image(entry, slide, segmenter, options)
                if plan.regions:
                    result = analyse_image(plan, slide, segmenter, options, run_dir, progress)
                    summary.images.append(result)
        except QpnucleiError as error:
            summary.failures.append((entry.name, error))
    summary.seconds = time.perf_counter() - start
    summary.save(run_dir / "run.json")
    return summary


def choose_images(project: Project, options: RunOptions) -> list[ImageEntry]:
    """Return the images that the run concerns, having checked that the selection means something.

    Raises
    ------
    UsageError
        If the project has no such image, or no image has such an annotation.
    """
    entries = [
        entry
        for entry in project.images
        if not options.images
        or any(fnmatchcase(entry.name, pattern) for pattern in options.images)
    ]
    if not entries:
        names = ", ".join(entry.name for entry in project.images)
        raise UsageError(
            f"no image of {project.path} matches {' or '.join(map(repr, options.images))}"
            if options.images
            else f"{project.path} has no images",
            f"images there: {names}" if names else "add slides in QuPath",
        )
    if not options.selection.tissue:
        annotations = [a for entry in entries for a in entry.read().annotations]
        check_selection(options.selection, annotations, str(project.path))
    return entries


def plan_image(
    entry: ImageEntry, slide: Slide, segmenter: Segmenter, options: RunOptions
) -> ImagePlan:
    """Return what is to be done in one image.

    Raises
    ------
    MppError
        If its pixel size is missing or absurd.
    UsageError
        If ``on_existing="error"`` and qpnuclei wrote into a chosen annotation before.
    FormatError
        If its data cannot be read.
    """
    objects = entry.read()
    mpp, mpp_source = resolve_mpp(options.mpp, entry.calibration, slide.mpp)
    regions = (
        [Region(None, find_tissue(slide, mpp))]
        if options.selection.tissue
        else select_regions(options.selection, objects.annotations, slide.width, slide.height)
    )
    existing = [_ours_within(region, objects.detections) for region in regions]
    if options.on_existing == "error" and any(existing):
        name = next(r.label for r, ids in zip(regions, existing, strict=True) if ids)
        raise UsageError(
            f"qpnuclei has written detections into {name} of image {entry.name!r} before",
            "choose --on-existing replace, append or skip",
        )
    if options.on_existing == "skip":
        regions, existing = [r for r, e in zip(regions, existing, strict=True) if not e], []
        existing = [frozenset()] * len(regions)
    downsample = working_downsample(mpp, segmenter.mpp)
    return ImagePlan(...)
