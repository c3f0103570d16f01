from __future__ import annotations

import gc
import subprocess
import sys

from qpnuclei.__main__ import collect_later


def test_garbage_is_searched_for_as_usual_after_the_start() -> None:
    usual, callbacks = gc.get_threshold(), list(gc.callbacks)
    try:
        collect_later()
        assert gc.get_threshold()[0] > usual[0]
        gc.collect()
        assert gc.get_threshold() == usual
        assert gc.callbacks == callbacks
        assert gc.get_freeze_count() > 0
    finally:
        gc.set_threshold(*usual)
        gc.unfreeze()


def test_garbage_is_not_searched_for_at_the_end() -> None:
    code = """
import atexit, gc, sys
atexit.register(lambda: print("frozen:", gc.get_freeze_count() > 0))
from qpnuclei.__main__ import main
sys.argv = ["qpnuclei", "--version"]
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1:] == ["frozen: True"]
