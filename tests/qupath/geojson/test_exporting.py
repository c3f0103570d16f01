from __future__ import annotations

from pathlib import Path

import shapely

from qpnuclei.qupath.geojson.exporting import export_image
from qpnuclei.qupath.geojson.reading import read_objects
from qpnuclei.qupath.model import PathClass, Project


def test_only_some_objects_are_exported(project: Project, tmp_path: Path) -> None:
    image = project.images[0]
    done = export_image(project, image, tmp_path, detections=False, classes=["Stroma"])
    written = {o.name: o for o in read_objects(done.path)}
    assert list(written) == [a.name for a in image.read().annotations if a.class_name == "Stroma"]
    assert written["nested"].path_class == PathClass("Stroma", -6895466)
    done = export_image(project, image, tmp_path, annotations=False, classes=["Stroma"])
    inside = [o.id for o in read_objects(done.path)]
    table = image.read().detections
    areas = [a.geometry for a in image.read().annotations if a.class_name == "Stroma"]
    assert inside == [
        own_id
        for own_id, at in zip(table.ids, table.centroids, strict=True)
        if any(area.intersects(shapely.Point(at)) for area in areas)
    ]
    assert 0 < len(inside) < len(table)
