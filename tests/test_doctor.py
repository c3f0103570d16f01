from __future__ import annotations

import pytest

from qpnuclei.doctor import Status, check_installation
from qpnuclei.models.metadata import read_metadata
from qpnuclei.models.registry import resolve_model


@pytest.mark.parametrize("model", ["default", "light"])
def test_every_model_is_named_with_its_quality(model: str) -> None:
    (check,) = (c for c in check_installation() if c.name == f"model {model}")

    aji = read_metadata(resolve_model(model)).validation["mean"]["AJI"]
    assert check.status is Status.OK
    assert f"AJI {aji:.3f}" in check.found
