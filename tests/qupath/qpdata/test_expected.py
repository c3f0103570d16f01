"""What we read from a data file is what the QuPath that wrote it reads from it."""

import json
import re

import pytest

from tests.paths import SAMPLES
from tests.qupath.samples import VERSIONS, dump

TYPES = {
    "Brightfield (H&E)": "BRIGHTFIELD_H_E",
    "Brightfield (H-DAB)": "BRIGHTFIELD_H_DAB",
    "Brightfield (other)": "BRIGHTFIELD_OTHER",
}


def strip(tree, drop):
    kept = {k: v for k, v in tree.items() if k not in drop}
    kept["children"] = [strip(child, drop) for child in tree["children"]]
    return kept


def rounded(text):
    """Round all numbers to the 8 decimals that expected-*.json shows (0.6+ stores 16)."""
    return re.sub(r"\d+\.\d+", lambda number: f"{float(number.group()):.8g}", text)


@pytest.mark.parametrize("entry", ["1", "2", "3"])
@pytest.mark.parametrize("version", VERSIONS)
def test_reads_what_qupath_reads(version, entry):
    folder = SAMPLES / version
    expected = json.loads((folder / f"expected-{entry}.json").read_text())
    found = dump((folder / "project" / "data" / entry / "data.qpdata").read_bytes())
    assert found["type"] == TYPES[expected["type"]]
    assert rounded(found["stains"]) == rounded(expected["stains"])
    assert found["tma"] == expected["tma"]
    assert found["props"] == sorted(expected["props"])
    # "mlcls" is the class in QuPath's memory, "level" is checked by our own depth.
    assert strip(found["root"], ()) == strip(expected["root"], ("mlcls",))
    # QuPath adds default steps of its own while it reads: ours must be there, in order.
    steps = iter([[name, script.rstrip(";")] for name, script in expected["workflow"]])
    assert all([name, script.rstrip(";")] in steps for name, script in found["workflow"])
