from __future__ import annotations

from qpnuclei.doctor import Status, check_installation
from qpnuclei.models.metadata import read_metadata
from qpnuclei.models.registry import resolve_model


def test_the_model_is_named_with_its_quality() -> None:
    (check,) = (c for c in check_installation() if c.name == "model default")

    aji = read_metadata(resolve_model("default")).validation["mean"]["AJI"]
    assert check.status is Status.OK
    assert f"AJI {aji:.3f}" in check.found
