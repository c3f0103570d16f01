import pytest

from qpnuclei.errors import FormatError
from qpnuclei.qupath.model import Edit
from qpnuclei.qupath.qpdata import java_fields as jf
from qpnuclei.qupath.qpdata import java_nodes
from qpnuclei.qupath.qpdata.data_file import DataFile
from qpnuclei.qupath.qpdata.hierarchy import annotations_of
from qpnuclei.qupath.qpdata.packed_records import Packed
from qpnuclei.qupath.qpdata.path_objects import split_children
from tests.qupath.qpdata.data_files import group, load, saved
from tests.qupath.qpdata.streams import stream_of


@pytest.mark.parametrize("at", [0, 1, 2, 30, 49, 50])
def test_children_are_split_anywhere(at):
    data_file = load()
    data_file.add(Edit(add=[group(50)]))
    children = annotations_of(DataFile.parse(saved(data_file), "file")._root(), [0])[0].children
    first, rest = split_children(children, at)
    sizes = [[len(c) if isinstance(c, Packed) else 1 for c in part] for part in (first, rest)]
    assert [sum(s) for s in sizes] == [at, sum(map(sum, sizes)) - at]
    assert stream_of([*first, *rest]) == stream_of(children)
    with pytest.raises(FormatError, match="missing: 1 object"):
        split_children(children, sum(map(sum, sizes)) + 1)


def test_no_cycle_in_the_hierarchy():
    data_file = load()
    view = annotations_of(data_file._root(), range(9))[0]
    view.set_children([view.node])
    with pytest.raises(FormatError, match="its own ancestor"):
        data_file.read()


def test_wrong_number_of_children():
    data_file = load()
    contents = jf.contents(data_file._root())
    index = next(i for i, c in enumerate(contents) if isinstance(c, java_nodes.BlockData))
    contents[index] = java_nodes.BlockData(b"\x7f\xff\xff\xff")
    with pytest.raises(FormatError, match=r"file: .*the number of its children is wrong"):
        data_file.read()
