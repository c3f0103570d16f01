"""Compile the loops that Numba compiles once after an installation.

The processes that run the tests in parallel would otherwise each compile them:

    python .ci/compile_loops.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from qpnuclei.demo.demonstration import demonstrate

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        demonstrate(Path(folder), size=(1300, 1100), device="cpu")
