from __future__ import annotations

from qpnuclei.doctor import Status, check_installation
from qpnuclei.models.checkpoint import read_metadata
from qpnuclei.models.registry import DEFAULT_MODEL, resolve_model


def test_the_model_is_named_with_its_quality() -> None:
    (check,) = (c for c in check_installation() if c.name == f"model {DEFAULT_MODEL}")

    aji = read_metadata(resolve_model(DEFAULT_MODEL)).validation["mean"]["AJI"]
    assert check.status is Status.OK
    assert f"AJI {aji:.3f}" in check.found
