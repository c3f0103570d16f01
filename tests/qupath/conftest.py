from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings

from qpnuclei.qupath.qpdata import data_file

# The same examples on every run; no deadline, because machines are shared.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True, scope="session")
def few_detections_are_read_in_bulk_too() -> Iterator[None]:
    """Let small files take the way of large ones; without it, only files of hundreds do."""
    before, data_file._FEW = data_file._FEW, 0
    yield
    data_file._FEW = before
