"""The plan of an image that another program saved after it was planned."""

from __future__ import annotations

import dataclasses

from qpnuclei.errors import ConflictError, FormatError
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.planning.image_plan import ImagePlan, ids_of_detections
from qpnuclei.pipeline.selection import Locked, ours_within
from qpnuclei.qupath.analysed import Record
from qpnuclei.qupath.model import Annotation, ImageObjects
from qpnuclei.qupath.regions import Region, same_outline


def plan_again(plan: ImagePlan, options: RunOptions) -> ImagePlan:
    """Return the plan for an image that another program saved after it was planned.

    Tiles and nuclei stay the same, so the annotations must be unchanged; everything else of the
    image may have changed.

    Raises
    ------
    ConflictError
        If an annotation was deleted or its outline changed, the file cannot be read, or another run
        has written into an annotation that ``on_existing`` protects.
    """
    try:
        objects = plan.entry.read()
    except FormatError as error:
        raise ConflictError(error.what, error.hint) from error
    there = {annotation.id for annotation in objects.annotations}
    outdated = plan.outdated & there
    tissue = plan.tissue
    if tissue is None:
        regions = [Region(_same_annotation(r, objects), r.geometry) for r in plan.regions]
    else:
        tissue = dataclasses.replace(tissue, handle=len(objects.annotations) - len(outdated))
        regions = [Region(tissue, plan.regions[0].geometry)]
    existing = ours_within(regions, objects.detections)
    if options.on_existing in ("skip", "error") and any(existing):
        name = next(r.label for r, ids in zip(regions, existing, strict=True) if ids)
        raise ConflictError(f"qpnuclei wrote detections into {name} since it was planned")
    return dataclasses.replace(
        plan,
        fingerprint=objects.fingerprint,
        taken=ids_of_detections(objects),
        regions=regions,
        existing=existing,
        record=Record.of(objects.properties, f"image {plan.entry.name}"),
        tissue=tissue,
        outdated=outdated,
        locked=Locked.of(objects.detections, existing),
    )


def regions_now(plan: ImagePlan, objects: ImageObjects) -> list[Region]:
    """Return a plan's regions with the annotations of a later state of the image."""
    return [
        Region(_find_annotation(region.annotation, objects) or region.annotation, region.geometry)
        if region.annotation
        else region
        for region in plan.regions
    ]


def _same_annotation(region: Region, objects: ImageObjects) -> Annotation | None:
    """Find the annotation of a region among the objects of a later state of the image."""
    wanted = region.annotation
    if wanted is None:
        return None
    found = _find_annotation(wanted, objects)
    if found is None:
        raise ConflictError(
            f"the annotation {wanted.label} was deleted or its outline changed since it was planned"
        )
    return found


def _find_annotation(wanted: Annotation, objects: ImageObjects) -> Annotation | None:
    for found in objects.annotations:
        # QuPath gives UUIDs to objects that were saved without one.
        is_wanted = found.id == wanted.id if wanted.id else found.name == wanted.name
        if is_wanted and same_outline(found.geometry, wanted.geometry):
            return found
    return None
