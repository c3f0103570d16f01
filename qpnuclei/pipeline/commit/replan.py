"""The plan of an image that another program saved after it was planned."""

from __future__ import annotations

import dataclasses
from uuid import UUID

from qpnuclei.errors import ConflictError, FormatError
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.planning.image_plan import ImagePlan, earlier_nuclei, ids_of_detections
from qpnuclei.pipeline.selection import Locked, ours_within
from qpnuclei.qupath.analysed import Record
from qpnuclei.qupath.model import Annotation, ImageObjects
from qpnuclei.qupath.regions import Region, same_outline

_Named = dict[tuple[str, UUID | str | None], list[Annotation]]


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
        known = _by_name(objects)
        regions = [Region(_same_annotation(r, known), r.geometry) for r in plan.regions]
    else:
        tissue = dataclasses.replace(tissue, handle=len(objects.annotations) - len(outdated))
        regions = [Region(tissue, plan.regions[0].geometry)]
    tissues = [a for a in objects.annotations if a.id in outdated]
    existing, left_behind = earlier_nuclei(regions, plan.left_out, tissues, objects.detections)
    if options.on_existing in ("skip", "error"):
        # A skipping run may analyse only a part of an annotation, beside nuclei of earlier runs.
        parts = [Region(None, region.geometry) for region in regions]
        held = (
            existing if options.on_existing == "error" else ours_within(parts, objects.detections)
        )
        name = next((r.label for r, ids in zip(regions, held, strict=True) if ids), None)
        if name is not None:
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
        locked=Locked.of(objects.detections, [*existing, left_behind]),
        left_behind=left_behind,
    )


def regions_now(plan: ImagePlan, objects: ImageObjects) -> list[Region]:
    """Return a plan's regions with the annotations of a later state of the image."""
    known = _by_name(objects)
    return [
        Region(_find_annotation(region.annotation, known) or region.annotation, region.geometry)
        if region.annotation
        else region
        for region in plan.regions
    ]


def _by_name(objects: ImageObjects) -> _Named:
    """Return the annotations by UUID and by name."""
    named: _Named = {}
    for annotation in objects.annotations:
        for key in (("UUID", annotation.id), ("name", annotation.name)):
            named.setdefault(key, []).append(annotation)
    return named


def _same_annotation(region: Region, known: _Named) -> Annotation | None:
    """Find the annotation of a region among the annotations of a later state of the image."""
    wanted = region.annotation
    if wanted is None:
        return None
    found = _find_annotation(wanted, known)
    if found is None:
        raise ConflictError(
            f"the annotation {wanted.label} was deleted or its outline changed since it was planned"
        )
    return found


def _find_annotation(wanted: Annotation, known: _Named) -> Annotation | None:
    # QuPath gives UUIDs to objects that were saved without one.
    key = ("UUID", wanted.id) if wanted.id else ("name", wanted.name)
    for found in known.get(key, ()):
        if same_outline(found.geometry, wanted.geometry):
            return found
    return None
