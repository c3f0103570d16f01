"""Features and files, for the tests of GeoJSON."""

from __future__ import annotations

import json
import uuid

from qpnuclei.nuclei.table import NucleiTable
from qpnuclei.qupath.geojson.reading import read_objects
from qpnuclei.qupath.model import PathClass

NUCLEUS = PathClass("Nucleus", -16732080)  # 0xFF00B050
ID = uuid.UUID("71706e75-636c-8000-8000-000000000001")


def table(*polygons, **measurements):
    return NucleiTable.from_polygons(list(polygons), measurements)


def ids(count):
    return [uuid.UUID(int=i + 1) for i in range(count)]


POLYGON = {"type": "Polygon", "coordinates": [[[0, 0], [4, 0], [4, 4], [0, 0]]]}


def feature(properties, **more):
    return {"type": "Feature", "geometry": POLYGON, "properties": properties, **more}


def read(tmp_path, value, name="x.geojson"):
    path = tmp_path / name
    path.write_text(value if isinstance(value, str) else json.dumps(value), "utf-8")
    return list(read_objects(path))
