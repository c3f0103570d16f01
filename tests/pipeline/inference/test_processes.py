"""Units on several devices, a process each, which die or hang."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from qpnuclei.choices import Range
from qpnuclei.cli.app import app
from qpnuclei.errors import ModelError, WorkerError
from qpnuclei.pipeline.inference import processes, remote, units
from qpnuclei.pipeline.inference.units import Conduct, Limits
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.run import analyse_project
from qpnuclei.qupath.native import open_project
from tests.pipeline.killing import found, make_project

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no signals")


def workers() -> list[psutil.Process]:
    """Return the processes that compute for this one."""
    children = psutil.Process().children()
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


@pytest.mark.slow
def test_processes_that_die_or_hang_change_nothing(
    tmp_path: Path, quick: RunOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, other = (make_project(tmp_path / name, 2) for name in ("place", "other"))
    undisturbed = open_project(other / "project")
    assert analyse_project(undisturbed, undisturbed.images, quick).nuclei > 0

    # Two processes, of which one is killed; what it was at is reported, the rest is done.
    victims: list[psutil.Process] = []

    def kill_one(*_: object) -> None:
        if not victims:
            victims.extend(workers()[:1])
            victims[0].kill()

    monkeypatch.setattr(remote, "TRIES", 1)
    project = open_project(place / "project")
    twice = replace(quick, device="cpu,cpu")
    summary = analyse_project(project, project.images, twice, kill_one)
    (failure,) = summary.failures
    assert isinstance(failure.error, WorkerError)
    assert "the process on cpu ended unexpectedly (signal 9)" in failure.error.what
    (entry,) = (summary.run_dir / "failures.jsonl").read_text().splitlines()
    assert json.loads(entry)["image"] == failure.name
    assert len(summary.images) == 1
    assert workers() == []

    # It is gone on with by a process that hangs: it is ended, and its unit done by another one.
    monkeypatch.setattr(remote, "TRIES", 3)
    for path in summary.run_dir.glob(f"shards/*{failure.name}/*"):
        path.unlink()
    stopped: list[psutil.Process] = []
    later = 0.0

    def monotonic() -> float:
        # Hours pass while it hangs. It may have finished some units just before.
        nonlocal later
        if stopped and stopped[0].is_running():
            later += 3600.0
        return time.monotonic() + later

    monkeypatch.setattr(processes, "time", SimpleNamespace(monotonic=monotonic))

    def stop_it(*_: object) -> None:
        if not stopped:
            stopped.extend(workers())
            stopped[0].send_signal(signal.SIGSTOP)

    again = analyse_project(project, project.images, quick, stop_it, Conduct(unit_minutes=30.0))
    assert later
    assert (again.failures, again.state, again.run_dir) == ([], "done", summary.run_dir)
    assert found(place) == found(other)
    assert workers() == []


def test_a_process_that_needs_too_much_memory_is_ended(
    tmp_path: Path, quick: RunOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "UNIT_GIB", Range(0.001, 1, "GiB"))
    place = make_project(tmp_path / "place", 1)
    project = open_project(place / "project")
    # Python alone needs more, so that no process can start.
    with pytest.raises(WorkerError, match=r"needs more than 0\.01 GiB and was ended") as caught:
        analyse_project(project, project.images, quick, conduct=Conduct(unit_gib=0.01))
    assert "--unit-gib" in (caught.value.hint or "")
    assert workers() == []
    assert len(project.images[0].read().detections.ids) == 0


def test_the_memory_of_a_process_has_a_limit_also_while_it_computes(quick: RunOptions) -> None:
    worker = processes._Worker(quick)
    theirs = multiprocessing.Pipe()
    worker.pipe, worker.is_running, worker.since = theirs[0], True, time.monotonic()
    worker._process = multiprocessing.get_context("spawn").Process(
        target=_fill, args=(theirs[1],), daemon=True
    )
    worker._process.start()
    theirs[1].close()
    worker.jobs.append(remote.Job(SimpleNamespace()))  # type: ignore[arg-type]
    assert worker.pipe.recv() == "filled"
    worker.kill_beyond(Limits(bytes=2**40))
    assert worker._process.is_alive()
    worker.kill_beyond(Limits(bytes=2**28))
    job, delivery = worker.receive()
    assert job is not None
    assert delivery.error is not None
    assert delivery.error.what == "its process needs more than 0.25 GiB and was ended"
    assert not worker._process.is_alive()


def _fill(pipe: Any) -> None:
    memory = bytearray(os.urandom(1)) * 2**29
    pipe.send("filled")
    time.sleep(600)
    memory.clear()


def test_a_unit_fails_after_three_times_and_a_bad_model_ends_the_run() -> None:
    task: Any = SimpleNamespace()
    late = remote.Delivery(error=WorkerError("late"))
    job = remote.Job(task)
    assert job.outcome(late) is None
    assert job.outcome(late) is None
    outcome = job.outcome(late)
    assert outcome is not None
    assert outcome.task is task
    assert (outcome.error, outcome.tries) == (late.error, 3)
    # If its computation did not even start, the next run tries it again.
    not_there = remote.Delivery(error=WorkerError("not there"), is_unit_error=False)
    outcome = remote.Job(task, tries=2).outcome(not_there)
    assert outcome is not None
    assert outcome.tries == 1
    with pytest.raises(ModelError, match="another"):
        remote.Job(task, tries=2).outcome(remote.Delivery(error=ModelError("another")))


@pytest.mark.parametrize("devices", ["gpu", "cpu,", "cuda:0,cuda:x", ""])
def test_a_device_that_does_not_exist_is_a_wrong_option(devices: str) -> None:
    outcome = CliRunner().invoke(app, ["infer", "nowhere", "--device", devices])
    assert outcome.exit_code == 2
    assert "is none of auto" in outcome.stderr
