import numpy as np
import pytest
import shapely

from qpnuclei.errors import FormatError
from qpnuclei.qupath.model import Edit
from qpnuclei.qupath.qpdata import java_classes as jc
from qpnuclei.qupath.qpdata import java_fields as jf
from qpnuclei.qupath.qpdata import java_nodes, java_parser
from qpnuclei.qupath.qpdata.annotations import id_metadata
from qpnuclei.qupath.qpdata.data_file import DataFile
from qpnuclei.qupath.qpdata.java_instances import Catalog
from qpnuclei.qupath.qpdata.new_data_file import data_file_of_objects
from qpnuclei.qupath.qpdata.rois import Plane, make_roi
from tests.ids import nucleus_id
from tests.qupath.qpdata.data_files import GRID, group, load, saved
from tests.qupath.qpdata.streams import stream_of
from tests.qupath.samples import dump


def test_packed_detections_read_like_single_ones():
    """What QuPath wrote packed (48 of 50 detections) must equal the node-by-node dump."""
    objects = load(GRID).read()
    flat = [o for o in dump(GRID.read_bytes())["root"]["children"] if o["cls"].endswith("onObject")]
    detections = [o for o in flat if o["cls"] == "PathDetectionObject"]
    table = objects.detections
    assert [str(i) for i in table.ids] == [o["id"] for o in detections]
    assert list(table.class_names) == [o["class"][0] for o in detections]
    for name, values in table.measurements.items():
        expected = [dict(o["meas"]).get(name, np.nan) for o in detections]
        np.testing.assert_array_equal(values, np.array(expected, float))
    for geometry, item in zip(table.geometries, detections, strict=True):
        points = item["roi"][4]
        assert geometry.equals_exact(shapely.Polygon(points))


def test_columns_are_made_when_they_are_asked_for():
    data_file = load()
    data_file.add(Edit(add=[group(50)]))
    detections = DataFile.parse(saved(data_file), "file").read().detections
    columns = {"ids", "kinds", "class_names", "geometries", "centroids", "parents", "measurements"}
    assert len(detections) == 50 + len(load().read().detections)
    assert not columns & vars(detections).keys()
    assert len(detections.ids) == len(detections)
    assert columns & vars(detections).keys() == {"ids"}


def test_an_error_in_an_object_names_its_byte():
    """One of many packed detections has one y less than x."""
    data_file = load()
    data_file.add(Edit(add=[group(50)]))
    items = java_parser.parse(saved(data_file), "file").items
    wanted = str(group(50).ids[30]).encode()

    def detections(stream):
        return [
            node
            for node in java_parser.parse(stream, "file").nodes
            if isinstance(node, java_nodes.JavaObject) and node.class_name == jc.DETECTION
        ]

    data = stream_of(items)
    index, node = next(
        (i, node) for i, node in enumerate(detections(data)) if wanted in stream_of([node])
    )
    start = data.index(wanted)
    points = len(group(50).nuclei.polygons()[30].exterior.coords) - 1
    y_length = points.to_bytes(4, "big")
    at = data.index(y_length, data.index(y_length, start) + 4 * points)
    shorter = data[:at] + (points - 1).to_bytes(4, "big") + data[at + 8 :]
    broken = DataFile.parse(shorter, "file", lambda: "try again").read().detections
    assert len(broken.ids) == len(broken)
    with pytest.raises(FormatError, match=rf"^file: byte {node.offset}: .*x and y have") as error:
        broken.geometries  # noqa: B018
    assert error.value.hint == "try again"
    assert detections(shorter)[index].offset == node.offset


@pytest.mark.parametrize("shared", [True, False])
def test_locks_of_packed_detections(shared):
    """QuPath refers to one TRUE and one FALSE; another writer may spell each out."""
    catalog = Catalog()
    locked = [i % 3 == 0 for i in range(40)]
    nodes = []
    for i, lock in enumerate(locked):
        node = catalog.path_object(
            jc.DETECTION,
            metadata=id_metadata(catalog, nucleus_id(bytes([i]) * 10)),
            is_locked=lock,
            roi=make_roi(catalog, shapely.box(i, 0, i + 1, 1), Plane()),
        )
        if not shared:
            at = next(
                k for k, item in enumerate(jf.contents(node))
                if getattr(item, "class_name", None) == jc.BOOLEAN
            )  # fmt: skip
            jf.contents(node)[at] = catalog.make(jc.BOOLEAN, {"value": lock})
        nodes.append(node)
    data = saved(data_file_of_objects(catalog, nodes))
    # The end mark, which objects alone do not need.
    items = [*java_parser.parse(data, "file").items, java_nodes.JavaString(b"EOF")]
    detections = DataFile.parse(stream_of(items), "file").read().detections
    assert detections.locked.tolist() == locked
    assert load().read().detections.locked.tolist() == [False] * 7
