"""Units on a Dask cluster: a scheduler and workers that are processes of their own."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from qpnuclei.cli.app import app
from qpnuclei.errors import NotFoundError, TerminatedError, UsageError, WorkerError
from qpnuclei.pipeline.inference import cluster, remote, scheduler
from qpnuclei.pipeline.inference.cluster import cluster_of
from qpnuclei.pipeline.inference.computing import computing
from qpnuclei.pipeline.inference.executors import Task
from qpnuclei.pipeline.inference.scheduler import check_scheduler
from qpnuclei.pipeline.inference.units import Conduct
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.phases import plan_run
from qpnuclei.pipeline.planning.layout import layout_of
from qpnuclei.pipeline.run import analyse_project
from qpnuclei.qupath.native import open_project
from qpnuclei.segmentation.engine import engine_specs
from tests.paths import ROOT
from tests.pipeline.killing import found, make_project


@contextmanager
def processes(
    folder: Path, *options: str
) -> Iterator[tuple[str, Callable[[], subprocess.Popen[bytes]]]]:
    """Begin a scheduler, to which a dead worker is enough to give a unit up.

    Yields its address, and what begins a worker.
    """
    file = folder / "scheduler.json"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0",
    }
    with ExitStack() as stack, (folder / "dask.log").open("wb") as log:

        def start(what: str, *arguments: str) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.dask_{what}", *arguments],
                env=environment,
                stdout=log,
                stderr=log,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        here = "--host", "127.0.0.1", "--no-dashboard"
        start("scheduler", *here, "--port", "0", "--scheduler-file", str(file))
        for_gpus = "--nthreads", "1", "--no-nanny", "--resources", "GPU=1"
        while not file.exists():
            time.sleep(0.05)
        of_this = "--scheduler-file", str(file)
        yield str(file), lambda: start("worker", *here, *for_gpus, *of_this, *options)


@pytest.mark.slow
def test_a_worker_of_a_cluster_that_is_killed_changes_nothing(
    tmp_path: Path, quick: RunOptions
) -> None:
    place, other = (make_project(tmp_path / name, 2) for name in ("place", "other"))
    undisturbed = open_project(other / "project")
    project = open_project(place / "project")
    seen: list[str] = []
    with processes(tmp_path) as (address, begin_worker):
        workers = [begin_worker(), begin_worker()]
        assert analyse_project(undisturbed, undisturbed.images, quick).nuclei > 0

        def kill_one(image: str, *_: object) -> None:
            if not seen:
                workers[0].kill()
            seen.append(image)

        conduct = Conduct(dask=address)
        summary = analyse_project(project, project.images, quick, kill_one, conduct)
    assert (summary.failures, summary.state) == ([], "done")
    assert set(seen) == {"0.tif", "1.tif"}
    assert found(place) == found(other)
    # Where workers see the folder, nothing but the shards is left of it.
    assert [path.name for path in summary.run_dir.iterdir() if path.name.startswith(".")] == []


#: What a worker runs first, maybe twice: it dies of one unit.
DEADLY = """
import os
from qpnuclei.pipeline.inference import remote

healthy = remote.healthy = getattr(remote, "healthy", remote.compute_unit)

def compute_unit(order):
    if order.image.name == "0.tif" and order.unit.name.startswith("00000-"):
        os._exit(1)
    return healthy(order)

remote.compute_unit = compute_unit
"""


@pytest.mark.slow
def test_a_unit_that_kills_its_workers_is_reported_and_a_run_without_workers_says_so(
    tmp_path: Path,
    quick: RunOptions,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    place = make_project(tmp_path / "place", 2)
    project = open_project(place / "project")
    caplog.set_level(logging.INFO, "qpnuclei")
    (tmp_path / "deadly.py").write_text(DEADLY)
    monkeypatch.setattr(cluster, "_WORKERS_EVERY_S", 0.1)
    monkeypatch.setattr(cluster, "_FIRST_WARNING_S", 0.1)
    with processes(tmp_path, "--preload", str(tmp_path / "deadly.py")) as (address, begin_worker):
        begin_worker()
        # It is told to end when the worker has died: no unit could be finished first.
        conduct = Conduct(dask=address, stop=lambda: "had no workers with GPU" in caplog.text)
        with pytest.raises(TerminatedError):
            analyse_project(project, project.images, quick, conduct=conduct)
        caplog.clear()
        begin_worker()

        class Listener(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                if "had no workers with GPU" in record.getMessage():
                    begin_worker()

        log = logging.getLogger("qpnuclei.pipeline.inference.cluster")
        listener = Listener()
        log.addHandler(listener)
        conduct = Conduct(dask=address, unit_minutes=60)
        try:
            summary = analyse_project(project, project.images, quick, conduct=conduct)
        finally:
            log.removeHandler(listener)
    assert [image.name for image in summary.images] == ["1.tif"]
    (failure,) = summary.failures
    assert failure.name == "0.tif"
    assert "all 1 workers that computed it died" in failure.error.what
    assert "a unit that took more than 60 min" in failure.error.hint
    (line,) = (summary.run_dir / "failures.jsonl").read_text().splitlines()
    assert json.loads(line)["tries"] == 3
    assert "Ctrl-C ends the run and keeps finished units" in caplog.text
    assert "the Dask scheduler has workers again: the run continues" in caplog.text


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals there")
def test_a_run_that_waits_for_the_first_worker_ends_when_it_is_told_to(
    tmp_path: Path, quick: RunOptions
) -> None:
    place = make_project(tmp_path / "place", 1)
    command = [sys.executable, "-m", "qpnuclei", "run", str(place / "project"), "--roi", "Tumor"]
    with processes(tmp_path) as (address, _):
        for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
            with subprocess.Popen(
                [*command, "--model", quick.model, "--backend", "native", "--dask", address],
                cwd=ROOT,
                stderr=subprocess.PIPE,
                text=True,
            ) as run:
                assert run.stderr is not None
                for line in run.stderr:
                    if "no workers yet" in line:
                        break
                run.send_signal(number)
                said = run.stderr.read()
            assert run.returncode == code, said
            assert "finished work is kept" in said
            assert "run the same command again to continue" in said
            assert "Traceback" not in said
    assert not list((place / "project").glob("qpnuclei/*/run.json"))


def test_where_a_worker_does_not_see_the_folder_it_sends_the_shard(
    tmp_path: Path, quick: RunOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make_project(tmp_path / "place", 1)
    project = open_project(place / "project")
    folder, plan, _ = plan_run(project, project.images, quick)
    (image,) = plan.images
    layout = layout_of(image, plan.spec(image), quick)
    task = Task(image, layout, layout.units[0], folder)
    path = folder.shard(image, layout.units[0].name)

    specs = engine_specs(quick.models)

    sent = remote.compute_unit(remote.Job(task).order(specs, quick, None, "no such file"))
    assert sent.error is None
    assert sent.shard is not None
    assert not path.exists()
    (folder.path / "token").touch()
    kept = remote.compute_unit(remote.Job(task).order(specs, quick, None, "token"))
    assert (kept.shard, kept.error, kept.nuclei) == (None, None, sent.nuclei)
    assert path.exists()

    # A version of qpnuclei, or a model, that is another one is an error of the whole run.
    order = remote.Job(task).order(specs, quick, None)
    other = remote.compute_unit(replace(order, version="0.0"))
    assert isinstance(other.error, UsageError)
    wrong = remote.compute_unit(replace(order, spec=replace(order.spec, sha256="0" * 64)))
    assert "is not the one that was planned" in wrong.error.what
    # A worker may have another working folder.
    monkeypatch.chdir(place)
    near = replace(quick, model=f"onnx:{os.path.relpath(quick.model.removeprefix('onnx:'))}")
    order = remote.Job(task).order(engine_specs(near.models), near, Path())
    monkeypatch.chdir(tmp_path)
    delivered = remote.compute_unit(order)
    assert (delivered.error, delivered.nuclei) == (None, sent.nuclei)
    # A slide that is not there is none of the unit.
    lost = remote.compute_unit(replace(order, slides_from=tmp_path / "place" / "project"))
    assert isinstance(lost.error, NotFoundError)
    assert not lost.is_unit_error


@pytest.mark.parametrize("address", ["local:", "local:0", "local:x"])
def test_a_wrong_number_of_workers(address: str) -> None:
    with pytest.raises(UsageError, match="number of workers"), cluster_of(address):
        pass


def test_without_dask_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UsageError, match="not installed") as raised, cluster_of("local:2"):
        pass
    assert "qpnuclei[dask]" in raised.value.hint
    # Before slides are read and a project is made; a dry run computes nothing.
    with pytest.raises(UsageError, match="not installed"):
        check_scheduler("local:2")
    check_scheduler("local:2", asks=False)


@pytest.mark.parametrize("address", ["head-node", "tcp://head-node:x", "absent.json", ":8786", ""])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(UsageError, match="neither the address of a scheduler nor"):
        check_scheduler(address)


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"address": 5}', '{"address": "a"}'])
def test_what_is_no_file_of_a_scheduler(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "WRITTEN_AFTER_S", 0.1)
    path = tmp_path / "scheduler.json"
    path.write_text(content)
    with pytest.raises(UsageError, match="nor a scheduler file"):
        check_scheduler(str(path))


def test_what_dask_cannot_connect_to() -> None:
    with pytest.raises(UsageError, match="unknown address scheme 'ftp'"):
        check_scheduler("ftp://head-node:1")


def test_without_a_scheduler_it_is_said_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "CONNECTED_AFTER_S", 0.3)
    command = ["run", str(tmp_path), "-o", str(tmp_path / "results"), "--dask", "127.0.0.1:9"]
    with pytest.raises(WorkerError, match="no Dask scheduler answers at") as raised:
        app(command, standalone_mode=False)
    assert raised.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_devices_and_a_cluster_exclude_each_other(quick: RunOptions) -> None:
    two = replace(quick, device="cpu,cpu")
    with pytest.raises(UsageError, match="exclude"), computing(two, Conduct(dask="local:1")):
        pass
