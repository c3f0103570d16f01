from __future__ import annotations

import pytest

from qpnuclei.doctor import Status, check_installation
from qpnuclei.models.metadata import read_metadata
from qpnuclei.models.registry import resolve_model


@pytest.mark.parametrize("network", ["default-40x", "default-20x"])
def test_the_networks_of_the_model_are_named_with_their_quality(network: str) -> None:
    (check,) = (c for c in check_installation() if c.name == f"model {network}")

    aji = read_metadata(resolve_model(network)).validation["mean"]["AJI"]
    assert check.status is Status.OK
    assert f"AJI {aji:.3f}" in check.found
