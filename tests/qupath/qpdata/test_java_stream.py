import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qpnuclei.errors import FormatError
from qpnuclei.qupath.qpdata import java_nodes, java_parser
from tests.qupath.qpdata.streams import stream_of
from tests.qupath.samples import DATA_FILES, REAL_DATA_FILES

HEADER = "aced 0005"
#: class Point { int x; } with serialVersionUID 1: descriptor, no annotation, no superclass.
POINT = "72 0005 506f696e74 0000000000000001 02 0001 49 0001 78 78 70"


def stream(*hexes):
    return bytes.fromhex(" ".join((HEADER, *hexes)))


def parse(data):
    return java_parser.parse(data, "file").items


@pytest.mark.parametrize(
    ("hexes", "check"),
    [
        (["70"], lambda items: items == [None]),
        (["74 0002 6869"], lambda items: items[0].text == "hi"),
        # A reference is the same object again, not an equal one.
        (["74 0002 6869", "71 007e0000"], lambda items: items[0] is items[1]),
        (["7c 0000000000000001 61"], lambda items: items[0].is_long and items[0].text == "a"),
        (["77 04 00000007"], lambda items: items[0].data == b"\0\0\0\7"),
        (["7a 00000001 07"], lambda items: items[0].is_long),
        (["73", POINT, "0000002a"], lambda i: i[0].parts[0].primitives == b"\0\0\0\x2a"),
        # Handle 0 is the descriptor, handle 1 the first object.
        (["73", POINT, "00000001", "73 71 007e0000 00000002"], lambda i: i[0].desc is i[1].desc),
        # float[2]: class [F, two values.
        (
            ["75 72 0002 5b46 0b9c818922e00c42 02 0000 78 70 00000002 3f800000 40000000"],
            lambda i: struct.unpack(">ff", i[0].data) == (1.0, 2.0),
        ),
        # Object[] that contains itself.
        (
            ["75 72 0002 5b4c 0000000000000000 02 0000 78 70 00000001 71 007e0001"],
            lambda i: i[0].items[0] is i[0],
        ),
        (
            ["7e 72 0001 45 0000000000000000 12 0000 78 70 74 0001 41"],
            lambda i: i[0].name.text == "A",
        ),
        (["76", POINT], lambda i: i[0].desc.name == "Point"),
        # A proxy of one interface, with no data of its own.
        (["73 7d 00000001 0001 49 78 70"], lambda i: i[0].desc.interfaces == ("I",)),
        # After a reset, handles count from the start.
        (["74 0001 61 79 74 0001 62 71 007e0000"], lambda i: i[3] is i[2]),
        (["7b 74 0001 62"], lambda i: i[0].throwable.text == "b"),
        # Externalizable with block data: contents up to the end mark.
        (
            ["73 72 0001 58 0000000000000001 0c 0000 78 70 77 01 ff 74 0001 61 78"],
            lambda i: (
                [type(c).__name__ for c in i[0].parts[0].contents] == ["BlockData", "JavaString"]
            ),
        ),
    ],
)
def test_literal_streams(hexes, check):
    data = stream(*hexes)
    items = parse(data)
    assert check(items)
    assert stream_of(items) == data


@pytest.mark.parametrize("path", DATA_FILES, ids=lambda p: "-".join(p.parts[-5:-1:3]))
def test_sample_files_round_trip(path):
    data = path.read_bytes()
    assert stream_of(parse(data)) == data


@pytest.mark.shared
@pytest.mark.skipif(not REAL_DATA_FILES, reason="../shared/data/qupath-real is not there")
def test_real_files_round_trip():
    for path in REAL_DATA_FILES:
        data = path.read_bytes()
        assert stream_of(parse(data)) == data, path


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "byte 0: starts with ''"),
        (b"PK\3\4", "byte 0: starts with '504b0304'"),
        (stream("74 0005 6869"), "byte 7: a string needs 5 bytes, but only 2 are left"),
        (stream("71 007e0000"), "byte 4: reference to object 0"),
        (stream("99"), "byte 4: unknown item type 0x99"),
        (stream("78"), "byte 4: item type 0x78 is not allowed here"),
        # 2 GB announced in a file of some bytes: refused before anything is allocated.
        (
            stream("75 72 0002 5b46 0b9c818922e00c42 02 0000 78 70 7fffffff"),
            "an array of 2147483647 values needs 8589934588 bytes, but only 0 are left",
        ),
        (
            stream("75 72 0002 5b4c 0000000000000000 02 0000 78 70 7fffffff 70"),
            "an array of 2147483647 objects does not fit into the file",
        ),
        (stream("7a ffffffff"), "a data block needs 4294967295 bytes"),
        (stream("7c 7fffffffffffffff"), "a string needs 9223372036854775807 bytes"),
        (stream("73 7d 7fffffff"), "2147483647 interfaces do not fit into the file"),
        (stream("73", POINT, "00"), "fields of Point needs 4 bytes"),
        (stream("73 70"), "an object without a class"),
        (stream("73 74 0001 61"), "item type 0x74 is not a class"),
        (
            stream("73 72 0001 58 0000000000000001 0c 0000 78 70 77 01 ff"),
            "ends within the data of an object",
        ),
        (
            stream("73 72 0001 58 0000000000000001 0c 0000 78 70 7b 70"),
            "Java reported an error here while it wrote the file",
        ),
        (stream("73 72 0002 c3 28"), "is not modified UTF-8"),
    ],
)
def test_broken_streams(data, message):
    with pytest.raises(FormatError) as error:
        parse(data)
    assert str(error.value).startswith("file: byte ")
    assert message in str(error.value)


def test_nesting_costs_no_recursion():
    # Object[] { Object[] { ... } }: each level 10 bytes, the class given once.
    levels = 40_000
    first = "75 72 0002 5b4c 0000000000000000 02 0000 78 70 00000001"
    data = stream(first, "75 71 007e0000 00000001" * (levels - 1), "70")
    assert stream_of(parse(data)) == data


def test_nesting_without_end_is_refused():
    first = "75 72 0002 5b4c 0000000000000000 02 0000 78 70 00000001"
    with pytest.raises(FormatError, match="nested deeper than"):
        parse(stream(first, "75 71 007e0000 00000001" * java_parser.MAX_STEPS))


def test_superclasses_do_not_multiply_memory():
    # 200 empty superclasses would give every 6-byte object 200 parts.
    chain = "".join("72 0001 41 0000000000000000 02 0000 78 " for _ in range(200))
    with pytest.raises(FormatError, match="superclasses"):
        parse(stream("73", chain, "70"))


@given(st.text())
def test_modified_utf8_round_trip(text):
    # Lone surrogates cannot come from st.text(); NUL and other planes can.
    data = java_nodes.encode_utf(text)
    assert b"\0" not in data
    assert java_nodes.decode_utf(data) == text


def test_modified_utf8_is_javas():
    # U+0000 as C0 80; U+1D11E as the surrogates D834 DD1E, three bytes each.
    assert java_nodes.encode_utf("\0") == b"\xc0\x80"
    assert java_nodes.encode_utf("\U0001d11e") == bytes.fromhex("eda0b4 edb49e")


def string():
    return st.builds(java_nodes.JavaString.of, st.text(max_size=5))


@st.composite
def graphs(draw):
    """Draw top-level items that share and contain each other."""
    object_array = java_nodes.ClassDesc("[Ljava.lang.Object;", 1, java_nodes.SC_SERIALIZABLE)
    doubles = java_nodes.ClassDesc("[D", 2, java_nodes.SC_SERIALIZABLE)
    base = java_nodes.ClassDesc("B", 3, java_nodes.SC_SERIALIZABLE, (java_nodes.Field("I", "i"),))
    plain = java_nodes.ClassDesc(
        "P",
        -4,
        java_nodes.SC_SERIALIZABLE | java_nodes.SC_WRITE_METHOD,
        (java_nodes.Field("D", "d"), java_nodes.Field("L", "o", java_nodes.JavaString(b"LP;"))),
        super_desc=base,
    )
    external = java_nodes.ClassDesc("E", 5, java_nodes.SC_EXTERNALIZABLE | java_nodes.SC_BLOCK_DATA)
    color = java_nodes.ClassDesc("C", 0, java_nodes.SC_SERIALIZABLE | java_nodes.SC_ENUM)
    nodes = [java_nodes.JavaString(b"first")]
    for _ in range(draw(st.integers(0, 12))):

        def value():
            return draw(st.none() | st.sampled_from(nodes))

        def extra():
            blocks = st.builds(java_nodes.BlockData, st.binary(max_size=4))
            return draw(st.lists(blocks | st.none() | st.sampled_from(nodes), max_size=4))

        kind = draw(st.integers(0, 5))
        if kind == 0:
            node = draw(string())
        elif kind == 1:
            node = java_nodes.JavaArray(object_array, None, [value() for _ in range(3)])
        elif kind == 2:
            node = java_nodes.JavaArray(doubles, struct.pack(">d", draw(st.floats())), None)
        elif kind == 3:
            parts = [java_nodes.Part(base, draw(st.binary(min_size=4, max_size=4)), [], None)]
            parts.append(java_nodes.Part(plain, struct.pack(">d", 1.5), [value()], extra()))
            node = java_nodes.JavaObject(plain, parts)
        elif kind == 4:
            node = java_nodes.JavaObject(external, [java_nodes.Part(external, b"", [], extra())])
        else:
            node = java_nodes.JavaEnum(color, draw(string()))
        nodes.append(node)
    array = java_nodes.JavaArray(object_array, None, list(nodes))
    array.items.append(array)  # and a cycle
    return [array, *draw(st.lists(st.sampled_from(nodes), max_size=3))]


@given(graphs())
def test_graphs_round_trip(items):
    data = stream_of(items)
    assert stream_of(parse(data)) == data


SMALL = (next(p for p in DATA_FILES if "0.5.1" in p.parts)).read_bytes()


@settings(max_examples=300)
@given(st.integers(4, len(SMALL) - 1), st.binary(min_size=1, max_size=6), st.booleans())
def test_mutated_files_are_read_or_refused(position, patch, truncate):
    data = SMALL[:position] + patch + (b"" if truncate else SMALL[position + len(patch) :])
    try:
        items = parse(data)
    except FormatError as error:
        refusal = str(error)
    else:
        refusal = "file: byte" if stream_of(items) == data else "written differently"
    assert "file: byte" in refusal


@pytest.mark.parametrize("size", [10, 100, 1000, 5000])
def test_every_truncation_is_refused_with_its_offset(size):
    with pytest.raises(FormatError, match="file: byte"):
        parse(SMALL[:size])
