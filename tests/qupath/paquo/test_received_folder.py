"""A project folder that someone sent runs nothing of its own, wherever the program is started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.qupath.paquo.test_installation import make_installation
from tests.qupath.samples import copy_project

#: Code that a folder brings, wherever it would run: it leaves a file behind.
MARK = "from pathlib import Path\nPath({!r}).write_text('it ran')\n"


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """Return the folder of a project within others, all of which would like to run something."""
    project = copy_project("0.5.1", tmp_path / "received").parent
    mark = MARK.format(str(tmp_path / "ran"))
    for folder in (project, project.parent, tmp_path / "received"):
        qupath = make_installation(folder / "QuPath-0.5.1")
        settings = f"qupath_dir = {str(qupath)!r}\n"
        for name in (".paquo.toml", ".paquo.local.toml", "config/.paquo.toml", "settings.toml"):
            file = folder / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(settings)
            (file.parent / "dynaconf_hooks.py").write_text(mark)
        (folder / ".env").write_text(f"PAQUO_QUPATH_DIR={qupath}\n")
        make_installation(folder / "c:" / "Program Files" / "QuPath-0.5.1")  # relative on Linux
    return project


def call(hostile: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PAQUO", "CONDA"))}
    home = hostile.parents[2]
    environment |= {"PYTHONPATH": str(ROOT), "HOME": str(home), "XDG_CONFIG_HOME": str(home)}
    return subprocess.run(
        [sys.executable, "-P", *arguments],
        cwd=hostile,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


FIND = """
import json
from qpnuclei.qupath.paquo.installation import find_qupath, paquo_settings
found = find_qupath()
print(json.dumps([found and str(found.path), paquo_settings()]))
"""
WHAT_PAQUO_SEES = """
import json, sys
from qpnuclei.qupath.paquo.installation import shield_paquo
shield_paquo()
import paquo, paquo.jpype_backend
from paquo._config import settings, to_kwargs
print(json.dumps([paquo.settings is settings, "dynaconf" in sys.modules, to_kwargs(settings)]))
"""
PAQUO_ALONE = "from paquo import settings; print(settings.qupath_dir)"


def test_the_folder_would_run_its_code_without_us(hostile: Path) -> None:
    found = call(hostile, "-c", PAQUO_ALONE)
    assert found.stdout.strip() == str(hostile / "QuPath-0.5.1"), found.stderr
    assert (hostile.parents[2] / "ran").is_file()


@pytest.mark.parametrize("backend", ["auto", "paquo"])
def test_no_command_takes_a_qupath_from_it(hostile: Path, backend: str) -> None:
    done = call(hostile, "-m", "qpnuclei", "info", ".", "--json", "--backend", backend)
    assert not (hostile.parents[2] / "ran").exists()
    assert str(hostile) not in done.stderr
    if backend == "auto" and done.returncode == 0:
        return  # natively, or by a QuPath that this machine really has
    assert done.returncode == 2
    assert "no QuPath found" in done.stderr


def test_neither_we_nor_paquo_read_its_settings(hostile: Path) -> None:
    path, ours = json.loads(call(hostile, "-c", FIND).stdout)
    assert path is None or not Path(path).is_relative_to(hostile.parents[2])
    same, dynaconf, seen = json.loads(call(hostile, "-c", WHAT_PAQUO_SEES).stdout)
    assert same
    assert not dynaconf
    assert seen == ours
    assert seen["qupath_dir"] == seen["jvm_path_override"] == ""
    assert all(Path(folder).expanduser().is_absolute() for folder in seen["qupath_search_dirs"])
    assert not (hostile.parents[2] / "ran").exists()


def test_numba_takes_no_settings_from_it(hostile: Path) -> None:
    (hostile / ".numba_config.yaml").write_text("cache_dir: compiled\n")
    done = call(hostile, "-m", "qpnuclei", "info", ".", "--backend", "native")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 2
    assert ".numba_config.yaml" in done.stderr
    assert not (hostile / "compiled").exists()
