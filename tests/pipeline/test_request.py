from __future__ import annotations

from dataclasses import replace

import pytest

from qpnuclei.errors import UsageError
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.request import check_request


def test_only_the_networks_of_torch_need_a_device_of_torch(
    quick: RunOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("qpnuclei.pipeline.request.takes_cpu", asked.append)
    assert str(quick.model).startswith("onnx:")
    check_request(replace(quick, device="cuda"))
    assert asked == []
    check_request(replace(quick, device="cuda:0,cuda:1", model="default-40x"))
    assert asked == ["cuda:0", "cuda:1"]


def test_dask_has_a_limit_of_memory_of_its_own(quick: RunOptions) -> None:
    with pytest.raises(UsageError, match="--unit-gib and --dask exclude each other"):
        check_request(quick, dask="local:1", unit_gib=4)


def test_a_device_that_does_not_exist_is_refused(quick: RunOptions) -> None:
    with pytest.raises(UsageError, match="gpu"):
        check_request(replace(quick, device="gpu", model="default-40x"))
