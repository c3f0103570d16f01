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


@pytest.mark.parametrize(
    ("word", "typed"),
    [
        ("--min-area-um2", "--min-area-um2"),
        (r"C:\Größe\p_1.qpproj", r"C:\Größe\p_1.qpproj"),
        (r"C:\my slides", r'"C:\my slides"'),
        ("case(1).svs", '"case(1).svs"'),
        (r"C:\R&D\p.qpproj", r'"C:\R&D\p.qpproj"'),
        ("C:\\R&D\\", r'"C:\R&D\\"'),
        ("Tumor;2", '"Tumor;2"'),
        # PowerShell makes two words of it.
        ("0.4,0.5", '"0.4,0.5"'),
        ("it's", '"it\'s"'),
        ("@a", '"@a"'),
        ('a;"b', r'"a;\"b"'),
        ("", '""'),
    ],
)
def test_on_windows_words_with_syntax_are_in_double_quotes(
    word: str, typed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.name", "nt")
    command = as_typed(["qpnuclei", word, "--json"])
    monkeypatch.undo()
    assert command == f"qpnuclei {typed} --json"
