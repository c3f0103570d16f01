"""Sample data files and new detections, for the tests of the codec."""

import numpy as np
import shapely

from qpnuclei.nuclei.table import NucleiTable
from qpnuclei.qupath.model import DetectionGroup, PathClass
from qpnuclei.qupath.qpdata.data_file import DataFile
from tests.ids import nucleus_id
from tests.paths import SAMPLES

FILE = SAMPLES / "0.5.1" / "project" / "data" / "1" / "data.qpdata"
GRID = SAMPLES / "0.5.1" / "project" / "data" / "2" / "data.qpdata"


def load(path=FILE):
    return DataFile.parse(path.read_bytes(), "file")


def saved(data_file):
    buffer = bytearray()
    data_file.write(buffer.extend)
    return bytes(buffer)


def group(n, parent=0, names=("Area µm^2",), start=0):
    rng = np.random.default_rng(start)
    polygons = [
        shapely.Point(rng.uniform(0, 400, 2)).buffer(5, quad_segs=int(rng.integers(1, 6)))
        for _ in range(n)
    ]
    ids = [nucleus_id((start + i).to_bytes(4, "big") * 3) for i in range(n)]
    columns = {name: rng.random(n).astype(np.float32) for name in names}
    table = NucleiTable.from_polygons(polygons, columns)
    return DetectionGroup(parent, table, ids, PathClass("Nucleus", -7146))
