"""The recipes of containers name what there is, and all that a wheel is built from."""

from __future__ import annotations

import re
import tomllib

import pytest

from tests.paths import ROOT

COPIED = {
    "Dockerfile": r"^COPY (.+) /source/\S*$",
    "qpnuclei.def": r"^    (\S+) /source/\S+$",
}


@pytest.mark.parametrize("recipe", COPIED)
def test_a_recipe_copies_what_the_wheel_is_built_from(recipe: str) -> None:
    text = (ROOT / "packaging" / recipe).read_text()
    copied = {name for line in re.findall(COPIED[recipe], text, re.M) for name in line.split()}
    assert {"pyproject.toml", "README.md", "LICENSE", "qpnuclei"} <= copied
    assert all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "qpnuclei" in project["project"]["scripts"]
    # Its Python is one that is supported.
    (python,) = set(re.findall(r"python:(3\.\d+)-slim", text))
    assert f"Programming Language :: Python :: {python}" in project["project"]["classifiers"]
