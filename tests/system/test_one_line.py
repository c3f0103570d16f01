"""A name in a message cannot imitate another message."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from qpnuclei.pipeline.folder import RunFolder
from qpnuclei.system.one_line import OneLineFormatter

NAME = "a.svs\n2026-01-01 00:00:00,000 1 INFO done\x1b[2J"


def test_a_message_is_one_line_and_a_traceback_keeps_its_own() -> None:
    try:
        raise ZeroDivisionError("division by zero")
    except ZeroDivisionError:
        raised = sys.exc_info()
    record = logging.LogRecord("x", logging.ERROR, "", 1, "%s\nTraceback b", ("a",), raised)
    first, *others, last = OneLineFormatter("%(levelname)s %(message)s").format(record).split("\n")
    assert first == r"ERROR a\nTraceback b"
    assert others[0] == "Traceback (most recent call last):"
    assert last == "ZeroDivisionError: division by zero"


def test_a_log_that_cannot_be_opened_does_not_end_the_run(tmp_path: Path) -> None:
    (tmp_path / "run.log").mkdir()
    folder = RunFolder(tmp_path)
    with folder.logging():
        folder.log("planned")
    assert list((tmp_path / "run.log").iterdir()) == []


def test_the_log_of_a_run_has_a_line_for_each_message(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with folder.logging():
        folder.log("planned: %s", NAME)
        logging.getLogger("qpnuclei.anything").warning("%s has no pixel size", NAME)
    first, second = (tmp_path / "run.log").read_text(encoding="utf-8").splitlines()
    escaped = r"a.svs\n2026-01-01 00:00:00,000 1 INFO done\x1b[2J"
    assert first.endswith(f"INFO planned: {escaped}")
    assert second.endswith(f"WARNING {escaped} has no pixel size")
