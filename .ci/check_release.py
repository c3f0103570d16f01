"""Refuse a tag that is not the package's version, or has no dated entry in the changelog."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def problem(tag: str, version_file: str, changelog: str) -> str | None:
    """Return what is wrong with a tag, None if nothing is.

    Parameters
    ----------
    tag : str
        For example ``"v0.2.0"``.
    version_file : str
        Text of ``qpnuclei/_version.py``.
    changelog : str
        Text of ``CHANGELOG.md``.
    """
    found = re.search(r'^__version__ = "([^"]+)"$', version_file, re.MULTILINE)
    if found is None or tag != f"v{found[1]}":
        return f"the tag is {tag}, but the package's version is {found and found[1]}"
    heading = rf"^## \[{re.escape(found[1])}\] - \d{{4}}-\d{{2}}-\d{{2}}$"
    entry = re.search(heading + r"\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    if entry is None or not entry[1].strip():
        return f"CHANGELOG.md has no entry '## [{found[1]}] - YYYY-MM-DD'"
    return None


if __name__ == "__main__":
    sys.exit(
        problem(
            sys.argv[1],
            (ROOT / "qpnuclei" / "_version.py").read_text(encoding="utf-8"),
            (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
        )
    )
