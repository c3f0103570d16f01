"""Compute units on a Dask cluster: one Dask task per unit.

The workers need the slides, the model and the same version of qpnuclei. A worker that sees the
run's folder writes the shard there; otherwise the shard comes back through the scheduler.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from qpnuclei.errors import SaveError, WorkerError, number_of, short_reason
from qpnuclei.pipeline.folder import TRIES, RunFolder
from qpnuclei.pipeline.inference.executors import Advance, Outcome, Task
from qpnuclei.pipeline.inference.remote import Delivery, Job, compute_unit
from qpnuclei.pipeline.inference.scheduler import (
    connected,
    quiet,
    require_dask,
    workers_here,
)
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.segmentation.engine import EngineSpec
from qpnuclei.system.files import temporary_prefix, write_atomically

if TYPE_CHECKING:
    from distributed import Client, Future, KilledWorker

#: Units submitted per slot of the workers: they keep computing while images are joined here.
_AHEAD = 3

#: Dask resource. A worker that offers it gets as many units at once as it offers.
_GPU = "GPU"

#: Longest wait for a new file to appear on a network drive, in seconds.
_VISIBLE_AFTER_S = 90.0

#: How often to check for finished units and for workers, in seconds.
_DONE_EVERY_S, _WORKERS_EVERY_S = 0.05, 5.0

#: How often to check, while there is no worker yet, whether to stop, in seconds.
_STOP_EVERY_S = 1.0

#: Time without a worker until the first warning, and between warnings, in seconds.
_FIRST_WARNING_S, _NEXT_WARNING_S = 60.0, 1800.0

_log = logging.getLogger(__name__)


def compute_on_cluster(
    tasks: Iterable[Task],
    advance: Advance,
    client: Client,
    specs: Mapping[str, EngineSpec],
    options: RunOptions,
    slides_from: Path | None = None,
    limit_s: float | None = None,
    check_stop: Callable[[], object] = lambda: None,
) -> Iterator[Outcome]:
    """Compute units on a cluster; if a worker dies, others compute its units.

    Parameters
    ----------
    client : distributed.Client
    limit_s : float, optional
        Time limit per unit, in seconds. A worker that needs longer ends itself.
    check_stop : callable
        Called again and again while there are no workers; may raise to end the run.

    Raises
    ------
    WorkerError
        If the connection to the scheduler is lost.
    ModelError, DeviceError, UsageError
        If the model, the device or the version of qpnuclei is wrong on the workers.
    """
    from distributed import KilledWorker, as_completed

    remaining = iter(tasks)
    to_retry: deque[Job] = deque()
    #: Units whose workers died. Another unit may have caused it, so each is tried alone.
    suspects: deque[Job] = deque()
    running: dict[Future[Delivery], Job] = {}
    alone: Job | None = None
    completed = as_completed()
    run_tag, number = uuid4().hex[:8], count()
    tokens: dict[Path, str] = {}

    def submit(job: Job) -> None:
        task = job.task
        if task.folder.path not in tokens:
            tokens[task.folder.path] = stack.enter_context(_token(task.folder))
        order = job.order(specs, options, slides_from, tokens[task.folder.path], limit_s)
        future = client.submit(
            compute_unit,
            order,
            # Shown on Dask's dashboard.
            key=f"{task.image.folder} unit {task.unit.name.partition('-')[0]}"
            f"-{run_tag}{next(number):08x}",
            pure=False,
            resources=resources,
        )
        running[future] = job
        completed.add(future)

    def next_job() -> Job | None:
        nonlocal alone
        if to_retry:
            return to_retry.popleft()
        task = next(remaining, None)
        if task is not None:
            return Job(task)
        if suspects and not running:
            alone = suspects.popleft()
            return alone
        return None

    def submit_more() -> None:
        slots = _slots(client, bool(resources))
        while len(running) < slots * _AHEAD and (job := next_job()) is not None:
            submit(job)

    with ExitStack() as stack:
        stack.callback(lambda: client.cancel(list(running)))
        resources = {_GPU: 1} if _offers_gpus(client) else None
        watch = _WorkerWatch(client, bool(resources), check_stop)
        submit_more()
        while running:
            while not completed.has_ready():
                watch.check(len(running))
                time.sleep(_DONE_EVERY_S)
            future = next(completed)
            job = running.pop(future)
            try:
                delivery, tries = future.result(), 1
            except KilledWorker as error:
                delivery, tries = Delivery(error=_death_of_workers(error, limit_s)), TRIES
                if job is not alone:
                    suspects.append(job)
                    submit_more()
                    continue
            except Exception as error:
                if client.status != "running":
                    raise _scheduler_gone() from error
                delivery, tries = Delivery(error=_unexpected(error), is_unit_error=False), 1
            outcome = job.outcome(delivery, tries)
            if outcome is None:
                to_retry.append(job)
            elif outcome.error is None:
                if outcome.shard is None:
                    _wait_for_shard(job.task)
                advance(job.task.image, len(job.task.unit.tiles), delivery.nuclei)
            future.release()
            submit_more()
            if outcome is not None:
                yield outcome


class _WorkerWatch:
    """Warns when no worker is left, and reports when there is one again."""

    def __init__(self, client: Client, gpus: bool, check_stop: Callable[[], object]) -> None:
        self._client = client
        self._gpus = gpus
        self._check_stop = check_stop
        self._seen = self._checked = time.monotonic()
        self._warned: float | None = None

    def check(self, waiting: int) -> None:
        """Check for workers, at most every few seconds.

        Parameters
        ----------
        waiting : int
            Number of units that wait for a worker, for the warning.
        """
        now = time.monotonic()
        if now < self._checked + _WORKERS_EVERY_S:
            return
        self._checked = now
        try:
            has_workers = _slot_count(self._client, self._gpus) > 0
        except OSError:  # the scheduler is gone: every unit ends with an error
            return
        if has_workers:
            if self._warned is not None:
                _log.info("the Dask scheduler has workers again: the run continues")
            self._seen, self._warned = now, None
            return
        self._check_stop()  # no unit is in progress that could be finished first
        if now >= (
            self._seen + _FIRST_WARNING_S
            if self._warned is None
            else self._warned + _NEXT_WARNING_S
        ):
            _log.warning(
                "the Dask scheduler has had no workers%s for %d s, and %s to compute; "
                "Ctrl-C ends the run and keeps finished units",
                f" with {_GPU}" if self._gpus else "",
                now - self._seen,
                number_of(waiting, "unit"),
            )
            self._warned = now


@contextmanager
def cluster_of(address: str, check_stop: Callable[[], object] = lambda: None) -> Iterator[Client]:
    """Connect to a scheduler, or start workers on this machine.

    Parameters
    ----------
    address : str
        Address of the scheduler (``tcp://host:8786``), its scheduler file, or ``local:N``.
    check_stop : callable
        Called again and again while there are no workers; may raise to end the run.

    Raises
    ------
    UsageError, WorkerError
        As `qpnuclei.pipeline.inference.scheduler.connected`.
    """
    number = workers_here(address)
    with connected(address) if number is None else _local_workers(number) as client:
        if not _workers(client):
            _log.info("the Dask scheduler has no workers yet: waiting for the first")
            _wait_for_worker(client, check_stop)
        _log.info("Dask workers: %d; progress: %s", len(_workers(client)), client.dashboard_link)
        yield client


def _wait_for_worker(client: Client, check_stop: Callable[[], object]) -> None:
    while True:
        check_stop()
        try:
            return client.wait_for_workers(1, timeout=_STOP_EVERY_S)
        except TimeoutError:
            pass
        except OSError as error:
            raise _scheduler_gone() from error


def _scheduler_gone() -> WorkerError:
    return WorkerError(
        "the Dask scheduler is gone; finished units are kept",
        "start it again, then run the same command again to continue",
    )


@contextmanager
def _local_workers(number: int) -> Iterator[Client]:
    require_dask()
    import dask
    from distributed import Client, LocalCluster

    with (
        quiet(),
        dask.config.set({"distributed.scheduler.allowed-failures": TRIES - 1}),
        LocalCluster(n_workers=number, threads_per_worker=1, dashboard_address=":0") as own,
        Client(own) as client,
    ):
        yield client


def cores_of_worker(address: str, cores: int) -> int:
    """Return the processor cores per worker: the workers of ``local:N`` share them."""
    return max(cores // (workers_here(address) or 1), 1)


@contextmanager
def _token(folder: RunFolder) -> Iterator[str]:
    """Put a file into a run's folder: a worker that finds it sees the same folder."""
    name = f"{temporary_prefix()}{uuid4().hex}"
    write_atomically(folder.path / name, b"")
    try:
        yield name
    finally:
        (folder.path / name).unlink(missing_ok=True)


def _offers_gpus(client: Client) -> bool:
    return any(_GPU in worker["resources"] for worker in _workers(client))


def _slots(client: Client, gpus: bool) -> int:
    """Return how many units the workers can compute at once; at least 1."""
    return max(_slot_count(client, gpus), 1)


def _slot_count(client: Client, gpus: bool) -> int:
    slots = [w["resources"].get(_GPU, 0) if gpus else w["nthreads"] for w in _workers(client)]
    return int(sum(slots))


def _workers(client: Client) -> list[dict[str, Any]]:
    workers: dict[str, dict[str, Any]] = client.scheduler_info(n_workers=-1)["workers"]
    return list(workers.values())


def _wait_for_shard(task: Task) -> None:
    """Wait until a shard that a worker has written is visible on this machine."""
    path = task.folder.shard(task.image, task.unit.name)
    end = time.monotonic() + _VISIBLE_AFTER_S
    while not path.exists():
        if time.monotonic() > end:
            raise SaveError(
                f"a worker has written {path}, but this machine does not see it",
                "put the run's folder on a drive that all machines share (--run-dir)",
            )
        time.sleep(0.2)
        with suppress(OSError):
            list(path.parent.iterdir())  # makes a network drive refresh its listing


def _death_of_workers(error: KilledWorker, limit_s: float | None) -> WorkerError:
    limit = "" if limit_s is None else f", or a unit that took more than {limit_s / 60:g} minutes"
    return WorkerError(
        f"all {error.allowed_failures + 1} workers that computed it died; the last was "
        f"{error.last_worker.address}",
        f"see the logs of the workers; the likely cause is too little memory{limit}",
    )


def _unexpected(error: Exception) -> WorkerError:
    return WorkerError(
        f"a worker failed: {type(error).__name__}: {short_reason(error)}",
        "check that all workers have the same qpnuclei installed",
    )
