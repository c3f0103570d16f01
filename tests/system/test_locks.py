"""The lock of a folder, between threads, processes and (simulated) computers."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import NoReturn

import pytest

from qpnuclei.errors import LockedError, SaveError
from qpnuclei.system import locks, processes
from qpnuclei.system.locks import LOCK_NAME, holder_of, locked
from qpnuclei.system.processes import Process, made_by_ended_process


def started(folder: Path, program: str) -> subprocess.Popen[str]:
    """Start a program with a folder, and return when it has said "ready"."""
    head = f"""
        import os, signal, sys, time
        from pathlib import Path
        from qpnuclei.system.interrupts import leaving_on_interrupt
        from qpnuclei.system.locks import locked
        folder = Path({str(folder)!r})
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


HOLDING = """
    with leaving_on_interrupt("away"), locked(folder):
        print("ready", flush=True)
        time.sleep(100)
"""


def put_lock(folder: Path, process: Process) -> None:
    content = {**asdict(process), "since": "2026-01-02 03:04:05", "mark": "theirs"}
    (folder / LOCK_NAME).write_text(json.dumps(content))


def ended() -> Process:
    """Return a process that was there."""
    with started(Path(), 'print("ready", flush=True); time.sleep(100)') as child:
        here = replace(Process.this(), pid=child.pid, begun="12345678")
        child.kill()
    return here


def test_only_one_thread_holds_a_folder_and_nothing_is_left(tmp_path: Path) -> None:
    events = []

    def second() -> None:
        with locked(tmp_path):
            events.append("second")

    other = threading.Thread(target=second)
    with locked(tmp_path):
        other.start()
        other.join(0.2)
        events.append("first")
    other.join()
    assert events == ["first", "second"]
    assert not list(tmp_path.iterdir())


def test_the_holder_of_a_folder_may_lock_it_again(tmp_path: Path) -> None:
    with locked(tmp_path):
        with locked(tmp_path, wait=False):
            pass
        assert [path.name for path in tmp_path.iterdir()] == [LOCK_NAME]
        found = holder_of(tmp_path)
        assert found is not None
        assert found.process == Process.this()
    assert holder_of(tmp_path) is None


def test_a_second_process_is_refused_with_the_first_ones_name(tmp_path: Path) -> None:
    first = started(tmp_path, HOLDING)
    with first:
        match = f"process {first.pid} on .*, since 20..-"
        with pytest.raises(LockedError, match=match) as raised, locked(tmp_path, wait=False):
            pass
        assert raised.value.hint == "wait until it is done"
        with pytest.raises(LockedError, match="still runs"), locked(tmp_path, break_lock=True):
            pass
        first.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="signals work differently there")
@pytest.mark.usefixtures("interrupts_are_heard")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_waiting_process_says_so_reacts_to_signals_and_leaves_nothing(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    waiting = """
        import logging
        logging.basicConfig(format="%(message)s")
        print("ready", flush=True)
        with leaving_on_interrupt("away"), locked(folder):
            pass
    """
    with locked(tmp_path):
        with started(tmp_path, waiting) as second:
            assert second.stderr is not None
            said = second.stderr.readline()
            second.send_signal(number)
            _, rest = second.communicate(timeout=60)
        assert f"is in use by process {os.getpid()} on " in said
        assert said.endswith("waiting\n")
        assert (second.returncode, rest) == (code, "away\n")
        assert [path.name for path in tmp_path.iterdir()] == [LOCK_NAME]


@pytest.mark.skipif(sys.platform == "win32", reason="signals work differently there")
@pytest.mark.usefixtures("interrupts_are_heard")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_exits_at_once_removes_its_lock(
    tmp_path: Path, number: signal.Signals
) -> None:
    with started(tmp_path, HOLDING) as first:
        first.send_signal(number)
    assert not list(tmp_path.iterdir())


def test_the_lock_of_a_killed_process_is_named_and_removed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with started(tmp_path, HOLDING) as first:
        first.kill()
    assert holder_of(tmp_path) is not None
    with locked(tmp_path, wait=False):
        assert f"lock of process {first.pid} on " in caplog.text
        assert "which has ended" in caplog.text
    assert not list(tmp_path.iterdir())


def test_a_link_to_nothing_is_the_lock_of_an_unknown_process(tmp_path: Path) -> None:
    (tmp_path / LOCK_NAME).symlink_to(tmp_path / "nowhere")
    with pytest.raises(LockedError, match="an unknown process") as caught:
        locked(tmp_path, wait=False).__enter__()
    assert "--break-lock" in (caught.value.hint or "")
    with locked(tmp_path, break_lock=True):
        pass
    assert not list(tmp_path.iterdir())


def test_a_folder_in_the_place_of_the_lock_is_named(tmp_path: Path) -> None:
    (tmp_path / LOCK_NAME).mkdir()
    with pytest.raises(SaveError, match=LOCK_NAME) as caught, locked(tmp_path):
        pass
    assert f"remove {tmp_path / LOCK_NAME}" in (caught.value.hint or "")


def test_a_later_process_of_the_same_number_is_another(tmp_path: Path) -> None:
    put_lock(tmp_path, replace(Process.this(), begun="00000000"))
    with locked(tmp_path, wait=False):
        pass
    assert holder_of(tmp_path) is None


def test_another_computers_lock_is_broken_only_on_request(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put_lock(tmp_path, Process("node-7", "0123abcd", 1, "12345678"))
    match = "process 1 on node-7, since 2026-01-02 "
    with pytest.raises(LockedError, match=match) as raised, locked(tmp_path, wait=False):
        pass
    assert "--break-lock" in raised.value.hint
    with locked(tmp_path, wait=False, break_lock=True):
        assert "--break-lock" in caplog.text
        found = holder_of(tmp_path)
        assert found is not None
        assert found.process == Process.this()


@pytest.mark.parametrize("content", ["", '{"pid": ', "[1]", '{"pid": "x"}', "null"])
def test_a_lock_that_cannot_be_read_belongs_to_another_process(
    tmp_path: Path, content: str
) -> None:
    (tmp_path / LOCK_NAME).write_text(content)
    with pytest.raises(LockedError, match="an unknown process"), locked(tmp_path, wait=False):
        pass
    with locked(tmp_path, break_lock=True):
        pass
    assert not list(tmp_path.iterdir())


def test_a_lock_that_others_broke_is_not_removed_for_them(tmp_path: Path) -> None:
    theirs = Process("node-7", "0123abcd", 1, "12345678")
    with locked(tmp_path):
        put_lock(tmp_path, theirs)
    found = holder_of(tmp_path)
    assert found is not None
    assert found.process == theirs


def test_a_drive_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> NoReturn:
        raise OSError(errno.EPERM, "no links on this drive")

    monkeypatch.setattr(os, "link", refuse)
    with locked(tmp_path):
        found = holder_of(tmp_path)
        assert found is not None
        assert found.process == Process.this()
        monkeypatch.setattr(locks, "_HELD", {})  # as another process
        with pytest.raises(LockedError), locked(tmp_path, wait=False):
            pass
    assert not list(tmp_path.iterdir())


def test_in_a_read_only_folder_a_warning_takes_the_place_of_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> NoReturn:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with locked(tmp_path):
        assert "cannot be locked (Permission denied)" in caplog.text


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(SaveError, match="no longer there"), locked(tmp_path / "gone"):
        pass


def test_of_many_processes_one_at_a_time(tmp_path: Path) -> None:
    """Each begins with the lock of a killed one there, which all find at the same time."""
    put_lock(tmp_path, ended())
    counting = """
        print("ready", flush=True)
        sys.stdin.readline()
        for _ in range(5):
            with locked(folder):
                number = int((folder / "number").read_text())
                time.sleep(0.001)
                (folder / "number").write_text(str(number + 1))
    """
    (tmp_path / "number").write_text("0")
    head = "import logging\nlogging.disable()\n" + textwrap.dedent(counting)
    children = []
    for _ in range(4):
        code = (
            "import sys, time\nfrom pathlib import Path\n"
            "from qpnuclei.system.locks import locked\n"
            f"folder = Path({str(tmp_path)!r})\n" + head
        )
        pipe = subprocess.PIPE
        children.append(
            subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True)
        )
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    for child in children:
        child.communicate(timeout=120)
        assert child.returncode == 0
    assert (tmp_path / "number").read_text() == "20"
    assert [path.name for path in tmp_path.iterdir()] == ["number"]


def test_file_names_identify_their_process() -> None:
    here = Process.this()
    assert not here.is_gone
    assert not made_by_ended_process(f".x.{here.tag}-0.part")
    assert made_by_ended_process(f".x.{replace(here, begun='00000000').tag}-0.part")
    assert not made_by_ended_process(f".x.{replace(here, machine='00000000').tag}-0.part")
    assert not made_by_ended_process(".x.part")


@pytest.mark.skipif(sys.platform == "win32", reason="there are none there")
def test_a_zombie_is_gone() -> None:
    with started(Path(), 'print("ready", flush=True); time.sleep(100)') as child:
        tag = replace(Process.this(), pid=child.pid, begun=begun_of(child.pid)).tag
        assert not made_by_ended_process(tag)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie from now on
        assert made_by_ended_process(tag)


def begun_of(pid: int) -> str:
    begun = processes._begun(pid)
    assert begun is not None
    return begun
