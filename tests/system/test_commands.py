"""Commands that are printed can be typed."""

from __future__ import annotations

import subprocess

import pytest

from qpnuclei.system.commands import as_typed


def test_a_shell_reads_the_words_of_a_command() -> None:
    words = ["plain", "a folder", "it's", 'a "b"', "$HOME", "*", ""]
    shown = subprocess.check_output(
        ["bash", "-c", f"printf '<%s>\n' {as_typed(words)}"], encoding="utf-8"
    )
    assert shown.splitlines() == [f"<{word}>" for word in words]


def test_on_windows_words_are_in_double_quotes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.name", "nt")
    typed = as_typed(["qpnuclei", "run", r"C:\my slides"])
    monkeypatch.undo()
    assert typed == r'qpnuclei run "C:\my slides"'
