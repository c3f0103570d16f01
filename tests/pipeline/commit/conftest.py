from __future__ import annotations

from pathlib import Path

import pytest

from qpnuclei.qupath.native import NativeProject, open_project
from tests.pipeline.killing import make_project


@pytest.fixture
def project(tmp_path: Path) -> NativeProject:
    """A project of one image with two annotations, in the folder ``place``."""
    return open_project(make_project(tmp_path / "place", 1) / "project")
