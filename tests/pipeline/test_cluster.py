"""Units on a Dask cluster: a scheduler and workers that are processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from qpnuclei.errors import NotFoundError, UsageError
from qpnuclei.pipeline import remote
from qpnuclei.pipeline.cluster import cluster_of
from qpnuclei.pipeline.computing import computing
from qpnuclei.pipeline.executors import Task
from qpnuclei.pipeline.layout import layout_of
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.phases import plan_run
from qpnuclei.pipeline.run import analyse_project
from qpnuclei.pipeline.units import Conduct
from qpnuclei.qupath.native import open_project
from tests.paths import ROOT
from tests.pipeline.killing import found, make_project


@contextmanager
def processes(folder: Path, workers: int) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """Begin a scheduler, to which a dead worker is enough to give a unit up, and workers."""
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
        started = [
            start("worker", *here, *for_gpus, "--scheduler-file", str(file)) for _ in range(workers)
        ]
        while not file.exists():
            time.sleep(0.05)
        yield str(file), started


@pytest.mark.slow
def test_a_worker_of_a_cluster_that_is_killed_changes_nothing(
    tmp_path: Path, quick: RunOptions
) -> None:
    place, other = (make_project(tmp_path / name, 2) for name in ("place", "other"))
    undisturbed = open_project(other / "project")
    project = open_project(place / "project")
    seen: list[str] = []
    with processes(tmp_path, 2) as (address, workers):
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


def test_where_a_worker_does_not_see_the_folder_it_sends_the_shard(
    tmp_path: Path, quick: RunOptions
) -> None:
    place = make_project(tmp_path / "place", 1)
    project = open_project(place / "project")
    folder, plan, _ = plan_run(project, project.images, quick)
    (image,) = plan.images
    layout = layout_of(image, plan.spec(), quick)
    task = Task(image, layout, layout.units[0], folder)
    path = folder.shard(image, layout.units[0].name)

    sent = remote.compute_unit(remote.Job(task).order(plan.spec(), quick, None, "no such file"))
    assert sent.error is None
    assert sent.shard is not None
    assert not path.exists()
    (folder.path / "token").touch()
    kept = remote.compute_unit(remote.Job(task).order(plan.spec(), quick, None, "token"))
    assert (kept.shard, kept.error, kept.nuclei) == (None, None, sent.nuclei)
    assert path.exists()

    # A version of qpnuclei, or a model, that is another one is an error of the whole run.
    order = remote.Job(task).order(plan.spec(), quick, None)
    other = remote.compute_unit(replace(order, version="0.0"))
    assert isinstance(other.error, UsageError)
    wrong = remote.compute_unit(replace(order, spec=replace(plan.spec(), sha256="0" * 64)))
    assert "is another than the one" in wrong.error.what
    # A slide that is not there is none of the unit.
    lost = remote.compute_unit(replace(order, slides_from=tmp_path / "place" / "project"))
    assert isinstance(lost.error, NotFoundError)
    assert not lost.is_begun


@pytest.mark.parametrize("address", ["local:", "local:0", "local:x"])
def test_a_wrong_number_of_workers(address: str) -> None:
    with pytest.raises(UsageError, match="how many workers"), cluster_of(address):
        pass


def test_without_dask_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UsageError, match="not installed") as raised, cluster_of("local:2"):
        pass
    assert "qpnuclei[dask]" in raised.value.hint


def test_without_a_scheduler_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qpnuclei.pipeline.cluster._CONNECTED_AFTER_S", 0.3)
    with pytest.raises(NotFoundError, match="no Dask scheduler at"), cluster_of("127.0.0.1:9"):
        pass


def test_devices_and_a_cluster_exclude_each_other(quick: RunOptions) -> None:
    two = replace(quick, device="cpu,cpu")
    with pytest.raises(UsageError, match="exclude"), computing(two, Conduct(dask="local:1")):
        pass
