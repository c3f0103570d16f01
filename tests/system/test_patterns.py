"""Only ``*`` and ``?`` are wildcards in the names and patterns that users give."""

from __future__ import annotations

from pathlib import Path

import pytest

from qpnuclei.system.patterns import files_matching, has_wildcards, matches


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("slide[1].svs", "slide[1].svs", True),
        ("slide[1].svs", "slide1.svs", False),
        ("slide[1]*", "slide[1].svs", True),
        ("[!a]?.svs", "[!a]1.svs", True),
        ("[!a]?.svs", "b1.svs", False),
        ("*.svs", "a/b.svs", True),
        ("a?.svs", "A1.svs", False),
        ("a", "ab", False),
    ],
)
def test_brackets_stand_for_themselves(pattern: str, name: str, expected: bool) -> None:
    assert matches(name, pattern) is expected


def test_files_are_found_below_folders_with_brackets(tmp_path: Path) -> None:
    wanted = tmp_path / "study [old]" / "a" / "slide[1].png"
    for path in (wanted, wanted.with_name("slide1.png"), tmp_path / "study o" / "slide[1].png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert files_matching(tmp_path / "study [old]" / "**" / "slide[1].*") == [wanted]
    assert not has_wildcards(wanted.name)
