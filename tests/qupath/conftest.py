from __future__ import annotations

from collections.abc import Iterator

import pytest

from qpnuclei.qupath.qpdata import data_file


@pytest.fixture(autouse=True, scope="session")
def few_detections_are_read_in_bulk_too() -> Iterator[None]:
    """Let small files take the way of large ones; without it, only files of hundreds do."""
    before, data_file._FEW = data_file._FEW, 0
    yield
    data_file._FEW = before
