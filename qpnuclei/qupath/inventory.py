"""Describe the content of a project as plain data, for ``qpnuclei info``."""

from __future__ import annotations

from collections import Counter
from typing import Any

from qpnuclei.errors import MppError, QpnucleiError, standing_alone
from qpnuclei.qupath.analysed import Record
from qpnuclei.qupath.model import Annotation, ImageEntry, Project
from qpnuclei.qupath.pixel_size import pixel_size
from qpnuclei.qupath.regions import area_px2
from qpnuclei.slides.calibration import area_mm2


def describe_project(project: Project) -> dict[str, Any]:
    """Return a project's images with their size, calibration, annotations and detections.

    An image with unreadable objects has an ``"error"``. An image with a missing slide has
    ``"path": None``.

    Returns
    -------
    dict
        JSON types only. Areas are in mm², and None without a pixel size; the area of a class is
        that of the union of its annotations. Sizes are in px, pixel sizes in µm.
    """
    return {
        "project": str(project.path),
        "version": project.version,
        "backend": project.backend,
        "classes": [path_class.name for path_class in project.classes],
        "images": [_describe_image(entry) for entry in project.images],
    }


def _describe_image(entry: ImageEntry) -> dict[str, Any]:
    calibration = entry.calibration
    described: dict[str, Any] = {
        "id": entry.id,
        "name": entry.name,
        "path": None if entry.path is None else str(entry.path),
        "uris": list(entry.server.uris),
        "server": entry.server.provider.rsplit(".", 1)[-1],
        "transforms": [kind for kind in entry.server.builder_types if kind != "uri"],
        "width": entry.server.width,
        "height": entry.server.height,
        "pixel_width_um": calibration.width_um,
        "pixel_height_um": calibration.height_um,
        "pixel_size_from": "project",
    }

    def fail(error: QpnucleiError) -> None:
        described.update(error=error.what, hint=error.hint)

    with standing_alone(f"image {entry.name}", fail):
        described |= _describe_objects(entry)
    return described


def _describe_objects(entry: ImageEntry) -> dict[str, Any]:
    objects = entry.read()
    record = Record.of(objects.properties, entry.name)
    mpp, source = _pixel_size(entry, record)
    width_um, height_um = mpp or (None, None)
    by_class: dict[str, list[Annotation]] = {}
    for annotation in objects.annotations:
        by_class.setdefault(annotation.class_name or "", []).append(annotation)
    annotations = {
        name: {
            "count": len(members),
            "area_mm2": None if mpp is None else area_mm2(area_px2(members), mpp),
        }
        for name, members in by_class.items()
    }
    detections = objects.detections
    return {
        "pixel_width_um": width_um,
        "pixel_height_um": height_um,
        "pixel_size_from": source,
        "type": entry.image_type,
        "stains": entry.stains.name if entry.stains else None,
        "annotations": annotations,
        "detections": dict(Counter(name or "" for name in detections.class_names)),
        "detections_by_qpnuclei": int(detections.ours.sum()),
        "tma_cores": len(objects.cores),
        "missing_tma_cores": sum(core.missing for core in objects.cores),
    }


def _pixel_size(
    entry: ImageEntry, record: Record
) -> tuple[tuple[float, float], str] | tuple[None, None]:
    try:
        return pixel_size(entry, record)
    except MppError:  # the run and export commands report it
        return None, None
