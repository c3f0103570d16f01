from __future__ import annotations

import pytest

from qpnuclei.system import memory


def test_memory_is_limited_by_every_cgroup_above(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    leaf = tmp_path / "job" / "step"
    leaf.mkdir(parents=True)
    (tmp_path / "job" / "memory.max").write_text("1000000\n")
    (leaf / "memory.max").write_text("max\n")
    monkeypatch.setattr(memory, "_cgroups", lambda: [(leaf, "memory.max")])
    assert memory.available_memory() == 1_000_000
