"""Describe plans and backups as JSON types, for ``--json``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qpnuclei.errors import FormatError

if TYPE_CHECKING:
    from qpnuclei.pipeline.planning.image_plan import ImagePlan
    from qpnuclei.qupath.backups import Backup
    from qpnuclei.qupath.native import NativeImage

#: What is counted in a backup, and the column of each.
COUNTED = {
    "annotations": "annotations",
    "detections": "detections",
    "detections_by_qpnuclei": "by qpnuclei",
}


def describe_plan(plans: list[ImagePlan]) -> list[dict[str, Any]]:
    """Return a run's plan as JSON types."""
    return [
        {
            "image": plan.entry.name,
            "image_id": plan.entry.id,
            "model": plan.model,
            "mpp": plan.scale.mpp,
            "mpp_from": plan.mpp_source,
            "working_mpp": plan.scale.working_mpp,
            "megapixels": plan.megapixels,
            "tiles": len(plan.tiles),
            "notes": list(plan.notes),
            "annotations": [
                {
                    "name": region.label,
                    "class": region.annotation.class_name if region.annotation else None,
                    "area_mm2": plan.area_mm2(region),
                    "detections_by_qpnuclei": len(existing),
                }
                for region, existing in zip(plan.regions, plan.existing, strict=True)
            ],
        }
        for plan in plans
    ]


def describe_backups(images: Sequence[NativeImage], count: bool) -> list[dict[str, Any]]:
    """Return the backups of images as JSON types; with `count` also the number of objects."""
    return [
        {
            "image": image.name,
            "image_id": image.id,
            "backup": backup.id,
            "saved": backup.saved.isoformat(),
            "bytes": backup.size,
            **(object_counts(image, backup) if count else {}),
        }
        for image in images
        for backup in image.backups()
    ]


def object_counts(image: NativeImage, backup: Backup) -> dict[str, int | None]:
    """Return the numbers of objects in a backup by `COUNTED`; None if it cannot be read."""
    try:
        objects = image.read_backup(backup)
    except FormatError:
        return dict.fromkeys(COUNTED)
    detections = objects.detections
    counts = len(objects.annotations), len(detections), int(detections.ours.sum())
    return dict(zip(COUNTED, counts, strict=True))
