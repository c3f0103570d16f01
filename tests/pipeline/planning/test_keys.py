"""What makes two requests the same."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from qpnuclei.models.registry import resolve_model
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.planning.keys import request_of
from qpnuclei.pipeline.selection import Selection


@pytest.mark.parametrize(
    "spelled", [Path, Path.absolute, lambda path: Path("b", "..", path), os.path.realpath]
)
@pytest.mark.parametrize("name", ["model", "geojson_dir", "parquet_dir"])
def test_a_path_in_any_spelling_is_the_same_request(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    spelled: Callable[[Path], Path],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("b").mkdir()
    for copy in ("m.safetensors", "b/m.safetensors"):
        shutil.copy(resolve_model("default-20x"), copy)
    options = RunOptions(Selection(tissue=True))

    def request(path: Path) -> str:
        return request_of(replace(options, **{name: path}))

    assert request(spelled(Path("m.safetensors"))) == request(Path("m.safetensors"))
    before = request(Path("m.safetensors"))
    monkeypatch.chdir("b")
    assert request(Path("m.safetensors")) != before  # it is another file
    assert request(Path("..", "m.safetensors")) == before
