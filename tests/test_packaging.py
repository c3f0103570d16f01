"""Wheels carry what is needed; the recipes of containers name all that a wheel is built from."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import qpnuclei
from qpnuclei.qupath.scripts import script_files
from tests.paths import ROOT

COPIED = {
    "Dockerfile": r"^COPY (.+) /source/\S*$",
    "qpnuclei.def": r"^    (\S+) /source/\S+$",
}


@pytest.mark.parametrize("recipe", COPIED)
def test_a_recipe_copies_what_the_wheel_is_built_from(recipe: str) -> None:
    text = (ROOT / "packaging" / recipe).read_text()
    copied = {name for line in re.findall(COPIED[recipe], text, re.M) for name in line.split()}
    assert {"pyproject.toml", "README.md", "LICENSE", "qpnuclei", "qupath_scripts"} <= copied
    assert all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "qpnuclei" in project["project"]["scripts"]
    torch = [line for line in project["project"]["dependencies"] if line.startswith("torch")]
    assert all(f'"{line}"' in text for line in torch)
    # Its Python is one that is supported and tested.
    (python,) = set(re.findall(r"python:(3\.\d+)-slim", text))
    assert f"Programming Language :: Python :: {python}" in project["project"]["classifiers"]
    tested = (ROOT / "docs" / "reproducibility.md").read_text(encoding="utf-8")
    assert f"Python {python}." in tested


#: Names of conda-forge for packages that PyPI calls otherwise.
ON_CONDA = {
    "opencv-python-headless": "py-opencv",
    "openslide-bin": "openslide",
    "torch": "pytorch",
}


def test_the_conda_recipe_has_the_dependencies_and_the_version_of_the_package() -> None:
    recipe = yaml.safe_load((ROOT / "packaging" / "conda" / "recipe.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {f"python{project['requires-python']}"}
    for dependency in project["dependencies"]:
        name, version = re.fullmatch(r"([\w-]+)(.*)", dependency).groups()
        wanted.add(ON_CONDA.get(name, name) + version)
    assert {line.replace(" ", "") for line in recipe["requirements"]["run"]} == wanted
    assert recipe["package"]["version"] == qpnuclei.__version__
    copied = {name.removesuffix("/**") for name in recipe["source"]["filter"]}
    assert {"pyproject.toml", "README.md", "LICENSE", "qpnuclei", "qupath_scripts"} <= copied
    assert all((ROOT / name).exists() for name in copied)


def test_a_wheel_carries_the_scripts_for_qupath(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    # In the packed package, too, and not only in the checkout, it is found by the code itself.
    code = (
        "import qpnuclei.qupath.scripts as s; print(s.scripts_folder()); print(*s.script_files())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=unpacked, check=True, capture_output=True, text=True
    )
    folder, names = done.stdout.splitlines()
    assert Path(folder).is_relative_to(unpacked.resolve())
    assert names.split() == list(script_files())
