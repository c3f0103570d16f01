import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpnuclei.qupath.qpdata import java_nodes, java_parser
from qpnuclei.qupath.qpdata.packed_records import Packed
from qpnuclei.qupath.qpdata.path_objects import packed_kind
from qpnuclei.qupath.qpdata.record_packer import RecordPacker
from tests.qupath.qpdata.record_nodes import contents, holder, record
from tests.qupath.qpdata.streams import stream_of
from tests.qupath.samples import DATA_FILES


def parse(data):
    packer = RecordPacker(lambda node: "r" if node.class_name == "Record" else "")
    return java_parser.parse(data, "file", packer).items


def test_similar_objects_are_packed_and_come_back():
    a, b = java_nodes.JavaString(b"class a"), java_nodes.JavaString(b"class b")
    shared = [a, a, b, a, b, b, a, a]
    items = [holder(record(f"r{i}" * i, range(i), s) for i, s in enumerate(shared))]
    data = stream_of(items)
    parsed = parse(data)
    # The first defines the classes and `a`, the second is learned; the third defines `b`.
    kinds = [type(c).__name__ for c in contents(parsed[0])]
    assert kinds == ["JavaObject", "JavaObject", "JavaObject", "Packed", "JavaObject", "Packed"]
    assert [len(c) for c in contents(parsed[0]) if isinstance(c, Packed)] == [1, 3]
    assert stream_of(parsed) == data


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.text(max_size=3), st.integers(0, 4), st.booleans()),
        max_size=25,
    )
)
def test_packing_changes_no_byte(rows):
    shared = [java_nodes.JavaString(b"a"), java_nodes.JavaString(b"b"), None]
    made = []
    for which, text, size, again in rows:
        made.append(record(text, range(size), shared[which], b"\x7f\xf8"[: 1 + size % 2]))
        if again:  # something later refers to a string inside a record, or to a whole one
            shared[1] = contents(made[-1])[1]
            made.append(made[0])
    data = stream_of([holder(made), *made[-1:], shared[1]])
    assert stream_of(parse(data)) == data
    assert stream_of(java_parser.parse(data, "file").items) == data


def test_reference_into_a_packed_record():
    shared = java_nodes.JavaString(b"a")
    made = [record(str(i), [i], shared) for i in range(6)]
    inner = contents(made[4])[1]
    data = stream_of([holder(made), inner])
    items = parse(data)
    packed = contents(items[0])[2]
    assert isinstance(packed, Packed)
    assert list(packed.nodes) == [2]
    assert contents(packed.nodes[2])[1] is items[1]
    assert stream_of(items) == data


def test_records_left_over_define_what_the_removed_ones_defined():
    shared = java_nodes.JavaString(b"shared by all")
    items = parse(stream_of([holder(record(str(i), range(i), shared) for i in range(6))]))
    packed = contents(items[0])[2]
    kept = packed.take(np.array([False, True, False, True]))
    contents(items[0])[:] = [kept]
    expected = [holder(record(str(i), range(i), shared) for i in (3, 5))]
    assert stream_of(items) == stream_of(expected)


@pytest.mark.parametrize("path", DATA_FILES, ids=lambda p: "-".join(p.parts[-5:-1:3]))
def test_sample_files_round_trip_packed(path):
    data = path.read_bytes()
    packer = RecordPacker(packed_kind)
    assert stream_of(java_parser.parse(data, "file", packer).items) == data


@given(st.binary(max_size=9))
def test_a_record_is_recognised_where_it_matches(rest):
    shared = java_nodes.JavaString(b"a")
    data = stream_of([holder(record(str(i) * i, range(i), shared) for i in range(5))])
    known = contents(parse(data)[0])[2].shapes[0]
    starts = np.empty(9, np.int64)
    for start in range(len(data)):
        for text in (data + rest, data[: start + 30]):
            assert known.is_at(text, start) == (known.match(text, start, starts)[0] > 0)
