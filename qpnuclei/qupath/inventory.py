"""What a project holds, as plain data: what ``qpnuclei info`` shows."""

from __future__ import annotations

from collections import Counter
from typing import Any

from qpnuclei.errors import QpnucleiError
from qpnuclei.nuclei.ids import is_ours
from qpnuclei.qupath.model import ImageEntry, Project


def describe_project(project: Project) -> dict[str, Any]:
    """Return a project's images with their size, calibration, annotations and detections.

    An image whose objects cannot be read is described by its ``"error"``; one whose slide is not
    found has ``"path": None``.

    Returns
    -------
    dict
        JSON types only. Areas are in mm² where the image is calibrated, else None; sizes in px;
        pixel sizes in µm.
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
    }
    try:
        objects = entry.read()
        described["type"] = entry.image_type
        described["stains"] = entry.stains.name if entry.stains else None
    except QpnucleiError as error:
        return {**described, "error": error.what, "hint": error.hint}
    px_mm2 = None
    if calibration.width_um and calibration.height_um:
        px_mm2 = calibration.width_um * calibration.height_um * 1e-6
    annotations: dict[str, dict[str, Any]] = {}
    for annotation in objects.annotations:
        row = annotations.setdefault(
            annotation.class_name or "", {"count": 0, "area_mm2": None if px_mm2 is None else 0.0}
        )
        row["count"] += 1
        if px_mm2 is not None:
            row["area_mm2"] += annotation.area.area * px_mm2
    detections = objects.detections
    return {
        **described,
        "annotations": annotations,
        "detections": dict(Counter(name or "" for name in detections.class_names)),
        "detections_by_qpnuclei": sum(map(is_ours, detections.ids)),
    }
