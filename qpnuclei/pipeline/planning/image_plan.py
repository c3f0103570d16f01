"""What a run has to do in one image of a project."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import shapely

from qpnuclei.choices import OnExisting
from qpnuclei.errors import QpnucleiError, UsageError, number_of, standing_alone
from qpnuclei.nuclei.ids import free_id
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.planning.tiles import plan_tiles
from qpnuclei.pipeline.positivity import require_dab
from qpnuclei.pipeline.selection import (
    BORDER_PX,
    TISSUE_CLASS,
    Locked,
    Staying,
    our_tissue,
    ours_within,
    select_regions,
    tissue_region,
    without_excluded,
)
from qpnuclei.qupath.analysed import Record, Status, UsedMpp
from qpnuclei.qupath.analysed_area import NO_AREA, Basis
from qpnuclei.qupath.areas import polygonal, union
from qpnuclei.qupath.images import open_image, stains_of
from qpnuclei.qupath.model import Annotation, Detections, ImageEntry, ImageObjects
from qpnuclei.qupath.pixel_size import pixel_size
from qpnuclei.qupath.regions import Region, same_outline
from qpnuclei.segmentation.engine import EngineSpec, engine_specs
from qpnuclei.slides.calibration import area_mm2
from qpnuclei.slides.hdab_as_he import has_dab
from qpnuclei.slides.resolution import Scale, mpp_text, working_downsample
from qpnuclei.slides.stains import DEFAULT_HE, Stains, stain_rows
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
    size : (width, height) of int
        Of the image, level-0 px.
    scale : Scale
        Pixel size, and the grid that the network sees.
    mpp_source : str
        Where the pixel size comes from, as `qpnuclei.qupath.pixel_size.pixel_size` says it.
    project_mpp : (float, float) or None
        Pixel size in the project when the image was planned.
    stains : Stains
        For the measurements.
    regions : sequence of Region
    existing : sequence of frozenset of int
        For each region, the rows of the detections in it that qpnuclei wrote before.
    tiles : TilePlan
        On the grid that the network sees.
    record : Record
        Record of earlier runs in the image.
    tissue : Annotation or None
        The annotation of the tissue, if the run makes a new one.
    outdated : sequence of Annotation
        Tissue that earlier runs made, which the run removes.
    marker : str
        Identifies the run in the image's record.
    locked : Locked
        Those of `existing` and `left_behind` that stay, because a user has locked them.
    left_out : shapely geometry
        What is excluded from the chosen area, level-0 px.
    left_behind : frozenset of int
        Rows of detections that qpnuclei wrote before, in `area_to_clear` or in `outdated` tissue.
    staying : Staying
        What the run leaves in the image; needed only to write.
    """

    entry: ImageEntry
    model: str
    fingerprint: str
    size: tuple[int, int]
    scale: Scale
    mpp_source: str
    project_mpp: tuple[float, float] | None
    stains: Stains
    regions: Sequence[Region]
    existing: Sequence[frozenset[int]]
    tiles: TilePlan
    record: Record = field(default_factory=Record)
    tissue: Annotation | None = None
    outdated: Sequence[Annotation] = ()
    notes: tuple[str, ...] = ()
    marker: str = ""
    locked: Locked = field(default_factory=Locked)
    left_out: shapely.Geometry = NO_AREA
    left_behind: frozenset[int] = frozenset()
    staying: Staying = field(default_factory=Staying)

    def removed(self, on_existing: OnExisting) -> frozenset[int]:
        """Return the rows of the detections of earlier runs that the run removes."""
        if on_existing != "replace":
            return frozenset()
        return self.left_behind.union(*self.existing) - self.locked.rows

    def to_write(self, objects: ImageObjects, on_existing: OnExisting) -> ImagePlan:
        """Return the plan with what its run leaves of the image's objects."""
        staying = Staying.of(objects, self.regions, self.removed(on_existing))
        return replace(self, staying=staying)

    @property
    def megapixels(self) -> float:
        """Area of the regions in millions of px that the network sees."""
        area = union(region.geometry for region in self.regions).area
        return float(area / (self.scale.downsample[0] * self.scale.downsample[1]) / 1e6)

    def area_mm2(self, region: Region) -> float:
        """Area of a region in mm²."""
        return area_mm2(region.area_px2, self.scale.mpp)

    def record_after(
        self,
        on_existing: OnExisting,
        check: str = "",
        checks: Sequence[str] = (),
        added: Sequence[int] = (),
    ) -> Record:
        """Return the record of the image after the run.

        Parameters
        ----------
        on_existing : str
            As in `RunOptions`.
        check, checks : str, sequence of str
            Why the run found the image, and each region, doubtful.
        added : sequence of int
            How many nuclei the run adds to each region.
        """
        gone = self.removed(on_existing)
        return self.record.with_run(
            self.regions,
            UsedMpp(self.scale.mpp, self.mpp_source, self.project_mpp),
            self.outdated,
            check,
            checks,
            self.marker,
            nuclei=[
                len(earlier - gone) + new
                for earlier, new in zip(
                    self.existing, added or [0] * len(self.regions), strict=True
                )
            ],
            stains=stain_rows(self.stains),
            left_out=self.left_out,
            keeps_nuclei=on_existing != "replace",
            keeps_doubts=on_existing == "skip" or any(self.existing),
        )


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
        If no chosen annotation encloses an area in the image and is still to be analysed, and no
        earlier result is to be removed from excluded areas.
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
    record = Record.of(objects.properties, entry.name)
    mpp, mpp_source = pixel_size(entry, record, options.pixel_sizes, lambda: slide.mpp)
    tissue = None
    outdated: list[Annotation] = []
    if options.selection.tissue:
        chosen = tissue_region(slide, mpp)
    else:
        chosen = select_regions(options.selection, objects.annotations, slide.width, slide.height)
    regions, left_out = without_excluded(chosen, options.selection, objects.annotations)
    to_clear = area_to_clear(left_out, options.on_existing)
    if options.selection.tissue and options.tissue_annotation and (regions or to_clear.area > 0):
        outdated = our_tissue(objects.annotations, record)
        if regions:
            regions, tissue = _annotated(regions[0], outdated, objects, entry)
    existing, left_behind = earlier_nuclei(regions, to_clear, outdated, objects.detections)
    locked = Locked.of(objects.detections, [*existing, left_behind])
    removes = bool(outdated or left_behind - locked.rows) or record.has_analysed(to_clear)
    if not (regions or removes):
        has_area = bool(chosen) or not left_out.is_empty
        raise NothingToDo(_why_nothing(has_area, is_tissue=options.selection.tissue))
    if options.on_existing == "error" and (any(existing) or left_behind):
        # Outdated tissue may have nuclei where the tissue that was found now has none.
        names = (r.label for r, rows in zip(regions, existing, strict=True) if rows)
        name = next(names, regions[0].label)
        raise UsageError(
            f"qpnuclei has already written detections into {name} of image {entry.name!r}",
            "choose --on-existing replace, append or skip",
        )
    basis = Basis(mpp, stain_rows(stains))
    if options.on_existing == "skip":
        _warn_of_other_bases(entry, objects.annotations, record, basis)
        regions = not_analysed(regions, record, objects.detections, entry)
        existing = [frozenset[int]() for _ in regions]
    notes = []
    removed = left_behind.difference(locked.rows, *existing)
    if removed and options.on_existing == "replace":
        count = number_of(len(removed), "nucleus")
        notes.append(f"removed where nothing is analysed any more: {count} of earlier runs")
    if entry.stains is not None and has_dab(entry.stains):
        notes.append("haematoxylin and DAB are shown to the network as H&E: experimental")
    elif entry.image_type not in (None, "BRIGHTFIELD_H_E", "UNSET"):
        notes.append(f"image type is {entry.image_type}; the models were trained on H&E")
    if entry.stains is None:
        notes.append(f"no stain vectors are set: measured with {DEFAULT_HE.name}")
    model = options.model_for(mpp)
    scale = Scale(mpp, working_downsample(mpp, specs[model].mpp))
    plan = ImagePlan(
        entry=entry,
        model=model,
        fingerprint=objects.fingerprint,
        size=(slide.width, slide.height),
        scale=scale,
        mpp_source=mpp_source,
        project_mpp=entry.calibration.mpp_xy,
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
            cell_expansion_um=options.cell_expansion_um,
        ),
        record=record,
        tissue=tissue,
        outdated=outdated,
        notes=tuple(notes),
        locked=locked,
        left_out=left_out,
        left_behind=left_behind,
    )
    # What a run adds to the record has its own pixel size and stains; with very many annotations,
    # finding out what it leaves takes long.
    if options.on_existing != "skip" and record.has_other_bases(basis):
        after = plan.record_after(options.on_existing)
        _warn_of_other_bases(entry, objects.annotations, after, basis)
    return plan


def area_to_clear(left_out: shapely.Geometry, on_existing: OnExisting) -> shapely.Geometry:
    """Return the excluded area from which a run removes the nuclei of earlier runs."""
    return left_out if on_existing == "replace" else NO_AREA


def earlier_nuclei(
    regions: Sequence[Region],
    to_clear: shapely.Geometry,
    outdated: Sequence[Annotation],
    detections: Detections,
) -> tuple[list[frozenset[int]], frozenset[int]]:
    """Return the rows of the detections of earlier runs that concern a run.

    Returns
    -------
    (list of frozenset of int, frozenset of int)
        Those in each region; and those in `area_to_clear` or in outdated tissue.
    """
    behind = [Region(None, to_clear), *map(Region.of, outdated)]
    found = ours_within([*regions, *behind], detections)
    return found[: len(regions)], frozenset[int]().union(*found[len(regions) :])


def _why_nothing(has_area: bool, *, is_tissue: bool) -> str:
    """Return why no region is left; `has_area` tells whether there were any to begin with."""
    if is_tissue:
        return "all tissue is excluded" if has_area else "no tissue was found"
    area = "no chosen annotation encloses an area"
    return f"{area} that is not excluded" if has_area else area


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
    tissue = Annotation(
        handle=len(objects.annotations) - len(earlier),
        id=free_id(seed, taken),
        name=None,
        class_name=TISSUE_CLASS,
        roi_type="GeometryROI",
        geometry=geometry,
        locked=True,
    )
    return [Region(tissue, geometry)], tissue


def not_analysed(
    regions: Sequence[Region], record: Record, detections: Detections, entry: ImageEntry
) -> list[Region]:
    """Return the parts of regions that no run has analysed.

    A region is skipped, with a warning, if nuclei of qpnuclei are in such a part: the record does
    not tell what they cover.

    Raises
    ------
    NothingToDo
        If there are none.
    """
    # An annotation may count as analysed although an earlier run has excluded a part of it.
    parts = map(record.part_not_analysed, regions)
    left = [part for part in parts if not part.geometry.is_empty]
    # A centroid on the border of an analysed area is inside it, up to rounding.
    inner = [Region(None, shapely.buffer(part.geometry, -BORDER_PX)) for part in left]
    chosen = []
    for part, rows in zip(left, ours_within(inner, detections), strict=True):
        if rows:
            _log.warning(
                "image %s: %s has %s of qpnuclei where no recorded run has looked: skipped; "
                "--on-existing replace analyses it",
                entry.name,
                part.label,
                number_of(len(rows), "nucleus"),
            )
        else:
            chosen.append(part)
    if not chosen:
        raise NothingToDo(
            "all chosen annotations were analysed by an earlier run"
            if not left
            else "no chosen annotation is without nuclei of earlier runs"
        )
    return chosen


def _warn_of_other_bases(
    entry: ImageEntry, annotations: Sequence[Annotation], record: Record, now: Basis
) -> None:
    """Warn of annotations whose nuclei stay and have another pixel size or other stains."""
    if not record.image_other_bases(now):
        return
    analysed = [a for a in annotations if record.status(a) is not Status.NOT_ANALYSED]
    found = {a.label: record.other_bases(Region.of(a), now) for a in analysed}
    again = "until they are analysed again, with --on-existing replace"
    of_mpp = {
        label: [basis.mpp for basis in bases if basis.has_other_mpp(now)]
        for label, bases in found.items()
    }
    sizes = dict.fromkeys(size for sizes in of_mpp.values() for size in sizes if size is not None)
    if sizes and now.mpp is not None:
        _log.warning(
            "image %s: the nuclei in %s were found at %s µm/px, and this run uses %s: areas and "
            "densities there are wrong %s",
            entry.name,
            _first_of([label for label, sizes in of_mpp.items() if sizes]),
            " and ".join(map(mpp_text, sizes)),
            mpp_text(now.mpp),
            again,
        )
    of_stains = [
        label
        for label, bases in found.items()
        if any(basis.has_other_stains(now) for basis in bases)
    ]
    if of_stains:
        _log.warning(
            "image %s: the nuclei in %s were measured with other stain vectors than this run uses: "
            "their stain measurements, and classes by them, cannot be compared %s",
            entry.name,
            _first_of(of_stains),
            again,
        )


def _first_of(labels: Sequence[str]) -> str:
    """Return the first label, and how many others there are."""
    first, *others = labels
    return first + (f" and {number_of(len(others), 'other annotation')}" if others else "")
