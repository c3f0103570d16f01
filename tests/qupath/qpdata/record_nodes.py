"""Similar objects as nodes, for the tests of records."""

import numpy as np

from qpnuclei.qupath.qpdata import java_nodes

HOLDER = java_nodes.ClassDesc("Holder", 1, java_nodes.SC_EXTERNALIZABLE | java_nodes.SC_BLOCK_DATA)
RECORD = java_nodes.ClassDesc("Record", 1, java_nodes.SC_EXTERNALIZABLE | java_nodes.SC_BLOCK_DATA)
FLOATS = java_nodes.ClassDesc("[F", 1, java_nodes.SC_SERIALIZABLE)


def record(text, floats, shared, probability=b"\x7f\xf8"):
    array = java_nodes.JavaArray(FLOATS, np.asarray(floats, ">f4").tobytes(), None)
    contents = [shared, java_nodes.JavaString.of(text), array, java_nodes.BlockData(probability)]
    return java_nodes.JavaObject(RECORD, [java_nodes.Part(RECORD, b"", [], contents)])


def holder(items):
    return java_nodes.JavaObject(HOLDER, [java_nodes.Part(HOLDER, b"", [], list(items))])


def contents(item):
    return item.parts[0].contents
