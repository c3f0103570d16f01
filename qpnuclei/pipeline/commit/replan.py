"""The plan of an image that another program saved after it was planned."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from uuid import UUID

import shapely

from qpnuclei.errors import ConflictError, FormatError, UsageError
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.planning.image_plan import (
    ImagePlan,
    NothingToDo,
    area_to_clear,
    earlier_nuclei,
    not_analysed,
)
from qpnuclei.pipeline.selection import (
    Locked,
    has_results,
    our_tissue,
    ours_within,
    select_regions,
    without_excluded,
)
from qpnuclei.qupath.analysed import Record
from qpnuclei.qupath.areas import polygonal, union, without_slivers
from qpnuclei.qupath.images import stains_of
from qpnuclei.qupath.model import Annotation, ImageObjects
from qpnuclei.qupath.regions import Region, same_outline
from qpnuclei.slides.stains import stain_rows, stains_agree

_EXCLUDED = "what is excluded from {} changed since the image was planned"


def plan_again(plan: ImagePlan, options: RunOptions) -> ImagePlan:
    """Return the plan for an image that another program saved after it was planned.

    Tiles and nuclei stay the same, so the selection must mean the same areas; everything else of
    the image may have changed.

    Raises
    ------
    ConflictError
        If an annotation was deleted or its outline changed, others are chosen or excluded now, the
        image is measured with other stain vectors now, the file cannot be read, or another run has
        written into an annotation that ``on_existing`` protects.
    """
    try:
        objects = plan.entry.read()
        stains = stains_of(plan.entry)
    except FormatError as error:
        raise ConflictError(error.what, error.hint) from error
    if plan.entry.image_type == "FLUORESCENCE" or not stains_agree(
        stain_rows(stains), stain_rows(plan.stains)
    ):
        raise ConflictError("the image type or the stain vectors changed since it was planned")
    record = Record.of(objects.properties, plan.entry.name)
    outdated = [
        annotation
        for annotation in our_tissue(objects.annotations, record)
        if annotation.id in {a.id for a in plan.outdated}
    ]
    tissue = plan.tissue
    if tissue is None:
        regions = _with_same_annotations(plan.regions, objects)
    else:
        tissue = dataclasses.replace(tissue, handle=len(objects.annotations) - len(outdated))
        regions = [Region(tissue, plan.regions[0].geometry)]
    to_clear = area_to_clear(plan.left_out, options.on_existing)
    existing, left_behind = earlier_nuclei(regions, to_clear, outdated, objects.detections)
    if options.on_existing in ("skip", "error"):
        # A skipping run may analyse only a part of an annotation, beside nuclei of earlier runs.
        parts = [Region(None, region.geometry) for region in regions]
        held = (
            existing if options.on_existing == "error" else ours_within(parts, objects.detections)
        )
        name = next((r.label for r, rows in zip(regions, held, strict=True) if rows), None)
        if name is not None:
            raise ConflictError(f"qpnuclei wrote detections into {name} since it was planned")
    if options.selection.tissue:
        _check_tissue(plan, options, objects, record)
    else:
        _check_chosen(plan, regions, options, objects, record)
    again = dataclasses.replace(
        plan,
        fingerprint=objects.fingerprint,
        regions=regions,
        existing=existing,
        record=record,
        tissue=tissue,
        outdated=outdated,
        locked=Locked.of(objects.detections, [*existing, left_behind]),
        left_behind=left_behind,
    )
    return again.to_write(objects, options.on_existing)


def _check_chosen(
    plan: ImagePlan,
    regions: Sequence[Region],
    options: RunOptions,
    objects: ImageObjects,
    record: Record,
) -> None:
    """Check that the selection means the planned regions, here with their present annotations.

    Raises
    ------
    ConflictError
        If others are chosen now, or other parts of them are excluded.
    """
    selection = options.selection
    for region in regions:
        if region.annotation is not None and not selection.matches(region.annotation):
            raise ConflictError(
                f"the annotation {region.label} is not chosen any more: its class or name changed "
                "since it was planned"
            )
    try:
        chosen = select_regions(selection, objects.annotations, *plan.size)
        now, left_out = without_excluded(chosen, selection, objects.annotations)
        if options.on_existing == "skip":
            now = not_analysed(now, record, objects.detections, plan.entry)
    except UsageError as error:
        raise ConflictError(f"the chosen annotations changed: {error.what}") from error
    except NothingToDo:
        now = []
    present = {region.handle: region for region in now}
    for region in regions:
        found = present.pop(region.handle, None)
        if found is None or not _is_same_area(found.geometry, region.geometry):
            raise ConflictError(_EXCLUDED.format(region.label))
    for region in present.values():
        if not any(same_outline(region.geometry, planned.geometry) for planned in regions):
            raise ConflictError(
                f"the annotation {region.label} is to be analysed, too: it was drawn, or its class "
                "or name changed, since the image was planned"
            )
    changed = _difference(left_out, plan.left_out)
    if options.on_existing == "replace" and has_results(changed, record, objects.detections):
        raise ConflictError(_EXCLUDED.format("the chosen annotations"))


def _check_tissue(
    plan: ImagePlan, options: RunOptions, objects: ImageObjects, record: Record
) -> None:
    """Check that the same parts of the tissue are excluded as when it was planned.

    Raises
    ------
    ConflictError
        If they are not.
    """
    planned = union(region.geometry for region in plan.regions)
    tissue = Region(None, polygonal(union([planned, plan.left_out])))
    now, _ = without_excluded([tissue], options.selection, objects.annotations)
    if options.on_existing == "skip":
        try:
            now = not_analysed(now, record, objects.detections, plan.entry)
        except NothingToDo:
            now = []
    if not _is_same_area(union(region.geometry for region in now), planned):
        raise ConflictError(_EXCLUDED.format("the tissue"))


def _is_same_area(a: shapely.Geometry, b: shapely.Geometry) -> bool:
    """Tell whether two areas are equal up to the precision of stored coordinates."""
    return bool(_difference(a, b).is_empty)


def _difference(a: shapely.Geometry, b: shapely.Geometry) -> shapely.MultiPolygon:
    """Return where two areas differ by more than the precision of stored coordinates."""
    return without_slivers(shapely.symmetric_difference(a, b))


def regions_now(plan: ImagePlan, objects: ImageObjects) -> list[Region]:
    """Return a plan's regions with the annotations of a later state of the image."""
    found = _same_annotations(plan.regions, objects)
    return [
        Region(annotation or region.annotation, region.geometry)
        for region, annotation in zip(plan.regions, found, strict=True)
    ]


def _with_same_annotations(regions: Sequence[Region], objects: ImageObjects) -> list[Region]:
    """Return regions with the annotations of a later state of the image.

    Raises
    ------
    ConflictError
        If it lacks one.
    """
    found = _same_annotations(regions, objects)
    for region, annotation in zip(regions, found, strict=True):
        if region.annotation and not annotation:
            raise ConflictError(
                f"the annotation {region.label} was deleted or its outline changed since it was "
                "planned"
            )
    return [Region(a, region.geometry) for region, a in zip(regions, found, strict=True)]


def _same_annotations(regions: Sequence[Region], objects: ImageObjects) -> list[Annotation | None]:
    """Find the annotation of each region in a later state of the image, each for one region."""
    named: dict[tuple[str, UUID | str | None], list[Annotation]] = {}
    for annotation in objects.annotations:
        for key in (("UUID", annotation.id), ("name", annotation.name)):
            named.setdefault(key, []).append(annotation)
    found: dict[int, Annotation] = {}
    taken: set[int] = set()
    # Without UUIDs, several annotations may have the same outline, of one class or of several.
    for needs_class in (True, False):
        for position, wanted in enumerate(region.annotation for region in regions):
            if wanted is None or position in found:
                continue
            # QuPath gives UUIDs to objects that were saved without one.
            key = ("UUID", wanted.id) if wanted.id else ("name", wanted.name)
            for annotation in named.get(key, ()):
                if (
                    annotation.handle not in taken
                    and (annotation.z, annotation.t) == (wanted.z, wanted.t)
                    and (annotation.class_name == wanted.class_name or not needs_class)
                    and same_outline(annotation.geometry, wanted.geometry)
                ):
                    found[position] = annotation
                    taken.add(annotation.handle)
                    break
    return [found.get(position) for position in range(len(regions))]
