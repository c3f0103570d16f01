import numpy as np

from qpnuclei.qupath.qpdata import java_nodes, java_writer
from qpnuclei.qupath.qpdata.new_records import NewRecords
from qpnuclei.qupath.qpdata.record_columns import Column
from qpnuclei.qupath.qpdata.record_shapes import Shape
from tests.qupath.qpdata.record_nodes import contents, holder, record
from tests.qupath.qpdata.streams import stream_of


def test_new_records_are_written_like_nodes():
    shared = java_nodes.JavaString(b"a")
    texts, arrays = ["x", "", "zzz"], [[1.0], [2.0, 3.0], []]
    first = record("first", [0.5], shared)
    made = [record(t, a, shared) for t, a in zip(texts, arrays, strict=True)]
    defined = java_writer.StreamWriter(lambda _: None)
    java_nodes.run(defined.value(first))
    shape = Shape(made[0], defined.handles)
    _, string, array, _ = contents(made[0])
    columns = {
        shape.slot_of(string): Column(b"xzzz", np.array([0, 1, 1, 4])),
        shape.slot_of(array): Column(
            np.array([1, 2, 3], ">f4").tobytes(), np.array([0, 4, 12, 12])
        ),
    }
    new = NewRecords(shape, columns, 3)
    after = java_nodes.JavaString(b"after")  # handles go on after the records
    as_records = stream_of([holder([first, new, after]), after])
    assert as_records == stream_of([holder([first, *made, after]), after])
