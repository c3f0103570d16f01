from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from qpnuclei.__main__ import collect_later
from tests.paths import SAMPLES


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


@pytest.mark.usefixtures("interrupts_are_heard")
@pytest.mark.parametrize(
    "words",
    [
        ["qc", "PROJECT"],
        ["info", "PROJECT"],
        ["run", "PROJECT", "--tissue"],
        ["infer", "nowhere"],
    ],
)
def test_ctrl_c_while_numpy_is_loaded_gives_one_line(words: list[str], tmp_path: Path) -> None:
    program = """
import signal, sys

class AtItsLastPart:
    def find_spec(self, name, path=None, target=None):
        if name == "numpy.lib":
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, AtItsLastPart())
from qpnuclei.__main__ import main
main()
"""
    project = str(SAMPLES / "0.5.1" / "project" / "project.qpproj")
    given = [project if word == "PROJECT" else word for word in words]
    done = subprocess.run(
        [sys.executable, "-c", program, *given],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")
