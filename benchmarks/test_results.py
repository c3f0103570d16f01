"""Published figures say what they were measured with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.measuring import RESULTS, describe, machine


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_results_name_the_weights_they_were_measured_with(path: Path) -> None:
    about = json.loads(path.read_text(encoding="utf-8"))["machine"]
    assert about["weights"]
    assert describe(about) in path.with_suffix(".md").read_text(encoding="utf-8")


def test_a_measurement_records_the_packaged_weights() -> None:
    about = machine()
    assert set(about["weights"]) == {"default-20x", "default-40x", "open-40x"}
    assert f"default-40x {about['weights']['default-40x']}" in describe(about)
