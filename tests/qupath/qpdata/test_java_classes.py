from qpnuclei.qupath.qpdata import java_classes as jc
from qpnuclei.qupath.qpdata import java_nodes, java_parser
from qpnuclei.qupath.qpdata.java_instances import Catalog
from tests.paths import SAMPLES
from tests.qupath.qpdata.streams import stream_of


def test_new_class_descriptors_are_qupaths():
    """Every descriptor that we make equals the one that real QuPath wrote."""
    catalog = Catalog()
    theirs = {}
    for path in SAMPLES.glob("*/project/data/*/data.qpdata"):
        for node in java_parser.parse(path.read_bytes(), "file").nodes:
            if isinstance(node, java_nodes.ClassDesc):
                theirs[node.name] = node
    for name in jc.DESCRIPTORS:
        ours, real = catalog.desc(name), theirs[name]
        assert stream_of([java_nodes.JavaArray(ours, None, [])]) == stream_of(
            [java_nodes.JavaArray(real, None, [])]
        )
