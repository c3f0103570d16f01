import pytest

from qpnuclei.errors import FormatError
from qpnuclei.qupath.qpdata.stains import format_stains, parse_stains
from tests.paths import SAMPLES
from tests.qupath.samples import dump


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[1]", '{"Name" : 1}', '{"Name" : "x", "Stain 1" : "H", "Values 1" : "1 0"}'],
)
def test_broken_stains(text):
    with pytest.raises(FormatError, match="stains"):
        parse_stains(text)


def test_stains_are_written_as_qupath_writes_them():
    text = dump((SAMPLES / "0.5.1/project/data/1/data.qpdata").read_bytes())["stains"]
    assert format_stains(parse_stains(text)) == text
