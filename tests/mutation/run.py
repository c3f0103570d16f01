"""Apply each mutant to a copy of the package and say which of them no test notices.

``python -m tests.mutation.run [WORD ...]``: only those whose description has one of the words.
Exits with 1 if one survives.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.mutation.mutants import MUTANTS, Mutant
from tests.paths import ROOT

#: What pytest says when tests ran and some failed; other codes are no answer.
_FAILED, _PASSED = 1, 0


def survives(mutant: Mutant, folder: Path) -> bool:
    """Run the tests of a mutant in a copy of the package.

    Raises
    ------
    RuntimeError
        If no test ran.
    """
    path = folder / "qpnuclei" / mutant.file
    original = path.read_text()
    path.write_text(mutated(original, mutant))
    try:
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [*command, *mutant.tests], cwd=folder, env=environment, capture_output=True, text=True
        )
    finally:
        path.write_text(original)
    if done.returncode not in (_FAILED, _PASSED):
        raise RuntimeError(f"{mutant.guards}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == _PASSED


def mutated(text: str, mutant: Mutant) -> str:
    """Return the text of a file with the change made.

    Raises
    ------
    ValueError
        If what is to be replaced is not there exactly once.
    """
    if text.count(mutant.old) != 1:
        raise ValueError(
            f"{mutant.file} has {text.count(mutant.old)} times {mutant.old!r}: "
            "tests/mutation/mutants.py names what it replaces"
        )
    return text.replace(mutant.old, mutant.new)


def main(words: list[str]) -> int:
    """Try the mutants; return how many survive."""
    chosen = [m for m in MUTANTS if not words or any(word in m.guards for word in words)]
    survivors = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("qpnuclei", "tests"):
            ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
            shutil.copytree(ROOT / part, folder / part, ignore=ignored)
        shutil.copy2(ROOT / "pyproject.toml", folder)
        for mutant in chosen:
            survived = survives(mutant, folder)
            survivors += survived
            print(f"{'SURVIVES' if survived else 'noticed '}  {mutant.guards}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} are noticed")
    return survivors


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1:]) else 0)
