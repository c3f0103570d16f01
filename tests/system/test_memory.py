from __future__ import annotations

import gc

import pytest

from qpnuclei.system import memory


def test_memory_is_limited_by_every_cgroup_above(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    leaf = tmp_path / "job" / "step"
    leaf.mkdir(parents=True)
    (tmp_path / "job" / "memory.max").write_text("1000000\n")
    (leaf / "memory.max").write_text("max\n")
    monkeypatch.setattr(memory, "_cgroups", lambda: [(leaf, "memory.max")])
    assert memory.available_memory() == 1_000_000


class Libc:
    """Records the calls of mallopt."""

    def __init__(self) -> None:
        self.settings: dict[int, int] = {}
        self.trimmed = 0

    def mallopt(self, option: int, value: int) -> None:
        self.settings[option] = value

    def malloc_trim(self, _: int) -> None:
        self.trimmed += 1


def test_memory_kept_by_malloc_is_returned_after_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    libc = Libc()
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: libc)
    with memory.keep_freed_memory():
        assert libc.settings == {-3: 2**30, -1: 2**31 - 1, -8: 1}
    assert libc.settings == {-3: 131072, -1: 131072, -8: 0}  # mallopt(3)
    assert libc.trimmed == 1


def test_without_glibc_nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: pytest.fail("asked malloc"))
    with memory.keep_freed_memory():
        pass
    memory.return_freed_memory()


@pytest.mark.parametrize("was_on", [True, False])
def test_the_search_for_garbage_goes_on_after_the_block_if_it_was_on(was_on: bool) -> None:
    if not was_on:
        gc.disable()
    try:
        with memory.no_collection():
            assert not gc.isenabled()
        assert gc.isenabled() == was_on
    finally:
        gc.enable()
