"""Images that are counted, for the tests of counts."""

from __future__ import annotations

import uuid

import numpy as np
import shapely

from qpnuclei.qupath.analysed import Record, UsedMpp
from qpnuclei.qupath.counted_image import CountedImage
from qpnuclei.qupath.model import Annotation, Detections, ImageObjects
from qpnuclei.qupath.regions import Region
from qpnuclei.slides.calibration import PixelCalibration

OTHER = uuid.UUID("0f8fad5b-d9cb-469f-a165-70867728950e")
OURS = uuid.UUID("71706e75-636c-8123-8123-000000000000")
RECTANGLE = shapely.box(10, 10, 20, 20)


def annotation(geometry, class_name="Tumor", roi_type="PolygonROI", handle=0, **more):
    return Annotation(
        handle, uuid.UUID(int=handle + 1), None, class_name, roi_type, geometry, **more
    )


def detections(points, class_names=None, ids=None, measurements=None, planes=None):
    points = np.array(points, float).reshape(-1, 2)
    n = len(points)
    return Detections(
        ids=ids or [OTHER] * n,
        kinds=["detection"] * n,
        class_names=class_names or ["Nucleus"] * n,
        geometries=shapely.buffer(shapely.points(points), 1.0),
        centroids=points,
        planes=np.zeros((n, 2), int) if planes is None else np.array(planes),
        parents=np.full(n, -1),
        measurements=measurements or {},
    )


def image(
    annotations,
    found,
    calibration=PixelCalibration(0.5, 0.25),  # noqa: B008
    size=(2000, 1000),
    analysed=None,
):
    """Return an image all of whose annotations a run has analysed, or only those that are named."""
    regions = [Region.of(a) for a in (annotations if analysed is None else analysed)]
    record = Record().with_run(regions, UsedMpp((0.5, 0.25), "project", (0.5, 0.25)))
    objects = ImageObjects(tuple(annotations), found, "", record.to_properties())
    return CountedImage("p/project.qpproj", "a.svs", objects, calibration, size)


def nuclei(rows):
    return [row["nuclei"] for row in rows]
