from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from qpnuclei.qupath.model import Project
from qpnuclei.qupath.native import open_project
from tests.paths import SAMPLES


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return open_project(Path(shutil.copytree(SAMPLES / "0.5.1", tmp_path / "p")) / "project")
