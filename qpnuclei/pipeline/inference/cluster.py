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
from qpnuclei.pipeline.inference.remote import Delivery, Job, Order, compute_unit
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

    def order_of(job: Job, token: str) -> Order:
        return job.order(specs, options, slides_from, token, limit_s)

    with ExitStack() as stack:
        dispatch = _Dispatch(tasks, client, order_of, limit_s, stack)
        yield from dispatch.outcomes(advance, check_stop)


class _Dispatch:
    """Sends units to the workers, and receives the results.

    Parameters
    ----------
    tasks : iterable of Task
    client : distributed.Client
    order_of : callable
        Returns what is sent to a worker for a job, given the token of its run's folder.
    limit_s : float or None
        Time limit per unit, in seconds, for messages.
    stack : ExitStack
        At its end, tokens are removed and units that still run are cancelled.
    """

    def __init__(
        self,
        tasks: Iterable[Task],
        client: Client,
        order_of: Callable[[Job, str], Order],
        limit_s: float | None,
        stack: ExitStack,
    ) -> None:
        from distributed import as_completed

        self._client = client
        self._order_of = order_of
        self._limit_s = limit_s
        self._stack = stack
        self._remaining = iter(tasks)
        self._to_retry: deque[Job] = deque()
        #: Units whose workers died. Another unit may have caused it, so each is tried alone.
        self._suspects: deque[Job] = deque()
        self._alone: Job | None = None
        self._running: dict[Future[Delivery], Job] = {}
        self._completed = as_completed()
        self._run_tag, self._number = uuid4().hex[:8], count()
        self._tokens: dict[Path, str] = {}
        stack.callback(lambda: client.cancel(list(self._running)))
        self._gpus = _offers_gpus(client)

    def outcomes(self, advance: Advance, check_stop: Callable[[], object]) -> Iterator[Outcome]:
        """Compute the units; see `compute_on_cluster`."""
        watch = _WorkerWatch(self._client, self._gpus, check_stop)
        self._submit_more()
        while self._running:
            future = self._next_completed(watch)
            job = self._running.pop(future)
            received = self._received(future, job)
            if received is None:
                self._suspects.append(job)
                self._submit_more()
                continue
            delivery, tries = received
            outcome = job.outcome(delivery, tries)
            if outcome is None:
                self._to_retry.append(job)
            elif outcome.error is None:
                if outcome.shard is None:
                    _wait_for_shard(job.task)
                advance(job.task.image, len(job.task.unit.tiles), delivery.nuclei)
            future.release()
            self._submit_more()
            if outcome is not None:
                yield outcome

    def _next_completed(self, watch: _WorkerWatch) -> Future[Delivery]:
        """Wait for a unit that has ended, in whatever way."""
        while not self._completed.has_ready():
            watch.check(len(self._running))
            time.sleep(_DONE_EVERY_S)
        future: Future[Delivery] = next(self._completed)
        return future

    def _received(self, future: Future[Delivery], job: Job) -> tuple[Delivery, int] | None:
        """Return the result of a unit, and how many tries it counts for.

        None if its workers died while other units were computed.
        """
        from distributed import KilledWorker

        try:
            return future.result(), 1
        except KilledWorker as error:
            if job is not self._alone:
                return None
            return Delivery(error=_death_of_workers(error, self._limit_s)), TRIES
        except Exception as error:
            if self._client.status != "running":
                raise _scheduler_gone() from error
            return Delivery(error=_unexpected(error), is_unit_error=False), 1

    def _submit_more(self) -> None:
        slots = _slots(self._client, self._gpus)
        while len(self._running) < slots * _AHEAD and (job := self._next_job()) is not None:
            self._submit(job)

    def _next_job(self) -> Job | None:
        if self._to_retry:
            return self._to_retry.popleft()
        task = next(self._remaining, None)
        if task is not None:
            return Job(task)
        if self._suspects and not self._running:
            self._alone = self._suspects.popleft()
            return self._alone
        return None

    def _submit(self, job: Job) -> None:
        task = job.task
        number = f"{self._run_tag}{next(self._number):08x}"
        future = self._client.submit(
            compute_unit,
            self._order_of(job, self._token_of(task.folder)),
            # Shown on Dask's dashboard.
            key=f"{task.image.folder} unit {task.unit.name.partition('-')[0]}-{number}",
            pure=False,
            resources={_GPU: 1} if self._gpus else None,
        )
        self._running[future] = job
        self._completed.add(future)

    def _token_of(self, folder: RunFolder) -> str:
        if folder.path not in self._tokens:
            self._tokens[folder.path] = self._stack.enter_context(_token(folder))
        return self._tokens[folder.path]


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
    limit = "" if limit_s is None else f", or a unit that took more than {limit_s / 60:g} min"
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
