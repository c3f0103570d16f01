"""What a run has to do in one image of a project."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING
from uuid import UUID

import shapely

from qpnuclei.errors import QpnucleiError, UsageError, standing_alone
from qpnuclei.nuclei.ids import made_id
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.planning.tiles import plan_tiles
from qpnuclei.pipeline.positivity import require_dab
from qpnuclei.pipeline.selection import (
    TISSUE_CLASS,
    Locked,
    our_tissue,
    ours_within,
    select_regions,
    tissue_region,
    without_excluded,
)
from qpnuclei.qupath.analysed import Record, Status
from qpnuclei.qupath.areas import polygonal, union
from qpnuclei.qupath.images import open_image, stains_of
from qpnuclei.qupath.model import Annotation, ImageEntry, ImageObjects
from qpnuclei.qupath.pixel_size import pixel_size
from qpnuclei.qupath.regions import Region, same_outline
from qpnuclei.segmentation.engine import EngineSpec, engine_specs
from qpnuclei.slides.remix import has_dab
from qpnuclei.slides.resolution import Scale, working_downsample
from qpnuclei.slides.stains import DEFAULT_HE, Stains
from qpnuclei.tiling.plan import TilePlan

if TYPE_CHECKING:
    from qpnuclei.slides.slide import Slide

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ImagePlan:
    """What is to be done in one image.

    Parameters
    ----------
    entry : ImageEntry
    model : str
        The one of ``RunOptions.models`` that finds its nuclei.
    fingerprint : str
        Identifies the state of the image's data when it was planned.
    taken : frozenset of UUID
        UUIDs of all detections in the image before the run.
    scale : Scale
        Pixel size, and the grid that the network sees.
    mpp_source : str
        Where the pixel size comes from, as `qpnuclei.qupath.pixel_size.pixel_size` says it.
    stains : Stains
        For the measurements.
    regions : sequence of Region
    existing : sequence of frozenset of UUID
        For each region, the detections in it that qpnuclei wrote before.
    tiles : TilePlan
        On the grid that the network sees.
    record : Record
        Record of earlier runs in the image.
    tissue : Annotation or None
        The annotation of the tissue, if the run makes a new one.
    outdated : frozenset of UUID
        Annotations of tissue that earlier runs made, which the run removes.
    marker : str
        Identifies the run in the image's record.
    locked : Locked
        Those of `existing` that stay, because a user has locked them.
    """

    entry: ImageEntry
    model: str
    fingerprint: str
    taken: frozenset[UUID]
    scale: Scale
    mpp_source: str
    stains: Stains
    regions: Sequence[Region]
    existing: Sequence[frozenset[UUID]]
    tiles: TilePlan
    record: Record = field(default_factory=Record)
    tissue: Annotation | None = None
    outdated: frozenset[UUID] = frozenset()
    notes: tuple[str, ...] = ()
    marker: str = ""
    locked: Locked = field(default_factory=Locked)

    @property
    def replaceable(self) -> frozenset[UUID]:
        """The detections of earlier runs that a run with ``on_existing="replace"`` removes."""
        return frozenset[UUID]().union(*self.existing) - self.locked.ids

    @property
    def megapixels(self) -> float:
        """Area of the regions in millions of px that the network sees."""
        area = union(region.geometry for region in self.regions).area
        return float(area / (self.scale.downsample[0] * self.scale.downsample[1]) / 1e6)

    def area_mm2(self, region: Region) -> float:
        """Area of a region in mm²."""
        return float(region.area_px2 * self.scale.mpp[0] * self.scale.mpp[1] * 1e-6)


class NothingToDo(Exception):  # noqa: N818 - no error
    """There is nothing to analyse in an image, for the reason that it says."""


def plan_images(
    entries: Sequence[ImageEntry], options: RunOptions
) -> tuple[list[ImagePlan], list[tuple[ImageEntry, QpnucleiError]]]:
    """Return what `qpnuclei.pipeline.run.analyse_project` would do with images; change nothing.

    Returns
    -------
    (list of ImagePlan, list of (ImageEntry, QpnucleiError))
        The plans, and the images that would fail with their errors.

    Raises
    ------
    QpnucleiError
        If a model cannot be used.
    """
    specs = engine_specs(options.models)
    plans = []
    failures: list[tuple[ImageEntry, QpnucleiError]] = []
    for entry in entries:

        def fail(error: QpnucleiError, entry: ImageEntry = entry) -> None:
            failures.append((entry, error))

        with standing_alone(f"image {entry.name}", fail):
            try:
                with open_image(entry) as slide:
                    objects = entry.read()
                    if options.qc:
                        objects = _as_marked(entry, objects, slide, options)
                    plans.append(plan_image(entry, slide, specs, options, objects))
            except NothingToDo as nothing:
                _log.info("image %s: nothing to do: %s", entry.name, nothing)
    return plans, failures


def _as_marked(
    entry: ImageEntry, objects: ImageObjects, slide: Slide, options: RunOptions
) -> ImageObjects:
    """Return the objects of an image as they will be when its artefacts are marked."""
    from qpnuclei.pipeline.planning.artefacts import find_marks, report_marks

    marks = find_marks(entry, objects, slide, options.pixel_sizes)
    report_marks(entry, marks.area_mm2)
    return marks.applied_to(objects)


def plan_image(
    entry: ImageEntry,
    slide: Slide,
    specs: Mapping[str, EngineSpec],
    options: RunOptions,
    objects: ImageObjects | None = None,
) -> ImagePlan:
    """Return the plan of one image.

    Parameters
    ----------
    specs : mapping of str to EngineSpec
        Specifications of ``options.models``; the pixel size of the image decides which is used.
    objects : ImageObjects, optional
        Objects of the image, if they have just been read.

    Raises
    ------
    NothingToDo
        If no chosen annotation encloses an area in the image and is still to be analysed.
    MppError
        If its pixel size is missing or absurd.
    UsageError
        If ``on_existing="error"`` and qpnuclei wrote into a chosen annotation before, or if nuclei
        are to be classified by DAB and the image has no DAB.
    FormatError
        If its data cannot be read, or its stain vectors cannot be used.
    """
    require_dab(entry, options.positive_thresholds)
    stains = stains_of(entry)
    objects = objects or entry.read()
    record = Record.of(objects.properties, f"image {entry.name}")
    mpp, mpp_source = pixel_size(entry, record, options.pixel_sizes, lambda: slide.mpp)
    tissue = None
    outdated: list[Annotation] = []
    if options.selection.tissue:
        regions = without_excluded(
            tissue_region(slide, mpp), options.selection, objects.annotations
        )
        if regions and options.tissue_annotation:
            outdated = our_tissue(objects.annotations, record)
            regions, tissue = _annotated(regions[0], outdated, objects, entry)
    else:
        regions = select_regions(options.selection, objects.annotations, slide.width, slide.height)
    if not regions:
        raise NothingToDo(
            "no tissue was found"
            if options.selection.tissue
            else "no chosen annotation encloses an area"
            + (
                " that is not excluded"
                if any(map(options.selection.excludes, objects.annotations))
                else ""
            )
        )
    existing = ours_within(regions, objects.detections)
    if regions and outdated:
        existing = [
            existing[0].union(*ours_within([Region.of(a) for a in outdated], objects.detections))
        ]
    if options.on_existing == "error" and any(existing):
        name = next(r.label for r, ids in zip(regions, existing, strict=True) if ids)
        raise UsageError(
            f"qpnuclei has already written detections into {name} of image {entry.name!r}",
            "choose --on-existing replace, append or skip",
        )
    if options.on_existing == "skip":
        regions = [
            region
            for region, ids in zip(regions, existing, strict=True)
            if not ids and not _is_analysed(region, record)
        ]
        existing = [frozenset[UUID]() for _ in regions]
        if not regions:
            raise NothingToDo("all chosen annotations were analysed by an earlier run")
    notes = []
    if entry.stains is not None and has_dab(entry.stains):
        notes.append("haematoxylin and DAB are shown to the network as H&E: experimental")
    elif entry.image_type not in (None, "BRIGHTFIELD_H_E", "UNSET"):
        notes.append(f"image type is {entry.image_type}; the models were trained on H&E")
    if entry.stains is None:
        notes.append(f"no stain vectors are set: measured with {DEFAULT_HE.name}")
    model = options.model_for(mpp)
    scale = Scale(mpp, working_downsample(mpp, specs[model].mpp))
    return ImagePlan(
        entry=entry,
        model=model,
        fingerprint=objects.fingerprint,
        taken=ids_of_detections(objects),
        scale=scale,
        mpp_source=mpp_source,
        stains=stains,
        regions=regions,
        existing=existing,
        tiles=plan_tiles(
            union(region.geometry for region in regions),
            (slide.width, slide.height),
            scale,
            specs[model],
            tile_px=options.tile_px,
            max_nucleus_um=options.max_nucleus_um,
        ),
        record=record,
        tissue=tissue,
        outdated=frozenset(a.id for a in outdated if a.id is not None),
        notes=tuple(notes),
        locked=Locked.of(objects.detections, existing),
    )


def _annotated(
    region: Region, earlier: list[Annotation], objects: ImageObjects, entry: ImageEntry
) -> tuple[list[Region], Annotation | None]:
    """Return the tissue as the region of an annotation, and the annotation if it is new.

    One that an earlier run made of the same tissue is taken again, and from `earlier`.
    """
    # QuPath also stores outlines of areas with two decimals.
    geometry = polygonal(shapely.set_precision(region.geometry, 0.01))
    for annotation in earlier:
        if same_outline(annotation.geometry, geometry):
            earlier.remove(annotation)
            return [Region.of(annotation)], None
    taken = {annotation.id for annotation in objects.annotations}
    seed = f"{entry.id}/{entry.name}/".encode() + shapely.to_wkb(geometry)
    ids = (
        made_id(blake2b(seed + bytes([number]), digest_size=10).digest()) for number in range(256)
    )
    tissue = Annotation(
        handle=len(objects.annotations) - len(earlier),
        id=next(own_id for own_id in ids if own_id not in taken),
        name=None,
        class_name=TISSUE_CLASS,
        roi_type="GeometryROI",
        geometry=geometry,
        locked=True,
    )
    return [Region(tissue, geometry)], tissue


def _is_analysed(region: Region, record: Record) -> bool:
    """Return whether a run has analysed an annotation as it is now: it may have found nothing."""
    known = region.annotation
    return known is not None and record.status(known) is Status.ANALYSED


def ids_of_detections(objects: ImageObjects) -> frozenset[UUID]:
    """Return the UUIDs of the detections of an image that have one."""
    return frozenset(own_id for own_id in objects.detections.ids if own_id is not None)
