"""Units on a cluster that Dask runs: one task for each.

The workers need the slides, the model and the same qpnuclei. Where they see the run's folder they
write the shards there; otherwise these come back through the scheduler.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from qpnuclei.errors import SaveError, WorkerError
from qpnuclei.pipeline.folder import TRIES, RunFolder
from qpnuclei.pipeline.inference.executors import Advance, Outcome, Task
from qpnuclei.pipeline.inference.remote import Delivery, Job, compute_unit
from qpnuclei.pipeline.inference.scheduler import (
    connected,
    quiet,
    require_dask,
    short_reason,
    workers_here,
)
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.segmentation.engine import EngineSpec
from qpnuclei.system.files import temporary_prefix, write_atomically

if TYPE_CHECKING:
    from distributed import Client, Future, KilledWorker

#: Units at once for each that the workers can compute: they go on while images are put together
#: here.
_AHEAD = 3

#: A worker that offers this resource is given as many units at once as it has of it.
_GPU = "GPU"

#: A folder on a network may show a new file late, in seconds.
_SEEN_AFTER_S = 90.0

#: How often to look whether a unit is done, and whether there are workers, in seconds.
_DONE_EVERY_S, _WORKERS_EVERY_S = 0.05, 5.0

#: After how long without a worker that is said, and how often again, in seconds.
_ALONE_AFTER_S, _ALONE_AGAIN_S = 60.0, 1800.0

_log = logging.getLogger(__name__)


def compute_on_cluster(
    tasks: Iterable[Task],
    advance: Advance,
    client: Client,
    specs: Mapping[str, EngineSpec],
    options: RunOptions,
    slides_from: Path | None = None,
    limit_s: float | None = None,
) -> Iterator[Outcome]:
    """Compute units on a cluster; those of a worker that dies are computed by others.

    Parameters
    ----------
    client : distributed.Client
    limit_s : float, optional
        A worker that takes longer for a unit ends itself, in seconds.

    Raises
    ------
    WorkerError
        If the scheduler is gone.
    ModelError, DeviceError, UsageError
        If the model, the device or the version of qpnuclei is wrong on the workers.
    """
    from distributed import KilledWorker, as_completed

    todo = iter(tasks)
    again: deque[Job] = deque()
    #: Units that workers died with. It may have been for another unit: each is tried alone.
    suspects: deque[Job] = deque()
    running: dict[Future[Delivery], Job] = {}
    alone: Job | None = None
    completed = as_completed()
    mark, number = uuid4().hex[:8], count()
    tokens: dict[Path, str] = {}

    def submit(job: Job) -> None:
        task = job.task
        if task.folder.path not in tokens:
            tokens[task.folder.path] = stack.enter_context(_token(task.folder))
        order = job.order(specs, options, slides_from, tokens[task.folder.path], limit_s)
        future = client.submit(
            compute_unit,
            order,
            # What Dask's pages show.
            key=f"{task.image.folder} unit {task.unit.name.partition('-')[0]}"
            f"-{mark}{next(number):08x}",
            pure=False,
            resources=resources,
        )
        running[future] = job
        completed.add(future)

    def next_job() -> Job | None:
        nonlocal alone
        if again:
            return again.popleft()
        task = next(todo, None)
        if task is not None:
            return Job(task)
        if suspects and not running:
            alone = suspects.popleft()
            return alone
        return None

    def give() -> None:
        slots = _slots(client, bool(resources))
        while len(running) < slots * _AHEAD and (job := next_job()) is not None:
            submit(job)

    with ExitStack() as stack:
        stack.callback(lambda: client.cancel(list(running)))
        resources = {_GPU: 1} if _offers_gpus(client) else None
        watch = _Watch(client, bool(resources))
        give()
        while running:
            while not completed.has_ready():
                watch.look(len(running))
                time.sleep(_DONE_EVERY_S)
            future = next(completed)
            job = running.pop(future)
            try:
                delivery, tries = future.result(), 1
            except KilledWorker as error:
                delivery, tries = Delivery(error=_killed(error, limit_s)), TRIES
                if job is not alone:
                    suspects.append(job)
                    give()
                    continue
            except Exception as error:
                if client.status != "running":
                    raise WorkerError(
                        "the Dask scheduler is gone; what is finished is kept",
                        "start it again, and then the same command, which goes on from here",
                    ) from error
                delivery, tries = Delivery(error=_unexpected(error), is_begun=False), 1
            outcome = job.outcome(delivery, tries)
            if outcome is None:
                again.append(job)
            elif outcome.error is None:
                if outcome.shard is None:
                    _wait_for(job.task)
                advance(job.task.image, len(job.task.unit.tiles), delivery.nuclei)
            future.release()
            give()
            if outcome is not None:
                yield outcome


class _Watch:
    """Says when no worker is left that could compute, and when there is one again."""

    def __init__(self, client: Client, gpus: bool) -> None:
        self._client = client
        self._gpus = gpus
        self._seen = self._looked = time.monotonic()
        self._said: float | None = None

    def look(self, waiting: int) -> None:
        """Look whether there are workers, but not too often; so many units wait for them."""
        now = time.monotonic()
        if now < self._looked + _WORKERS_EVERY_S:
            return
        self._looked = now
        try:
            is_alone = _count(self._client, self._gpus) == 0
        except OSError:  # without a scheduler, all units end
            return
        if not is_alone:
            if self._said is not None:
                _log.info("the Dask scheduler has workers again: the run goes on")
            self._seen, self._said = now, None
        elif now >= (
            self._seen + _ALONE_AFTER_S if self._said is None else self._said + _ALONE_AGAIN_S
        ):
            _log.warning(
                "the Dask scheduler has no workers%s for %d s: the run waits for one with %d "
                "units; Ctrl-C ends it, and what is finished is kept",
                f" with {_GPU}" if self._gpus else "",
                now - self._seen,
                waiting,
            )
            self._said = now


@contextmanager
def cluster_of(address: str) -> Iterator[Client]:
    """Connect to a scheduler, or begin workers on this machine.

    Parameters
    ----------
    address : str
        Of the scheduler (``tcp://host:8786``), the file that it wrote, or ``local:N``.

    Raises
    ------
    UsageError, WorkerError
        As `qpnuclei.pipeline.inference.scheduler.connected`.
    """
    number = workers_here(address)
    with connected(address) if number is None else _local_workers(number) as client:
        if not _workers(client):
            _log.info("the Dask scheduler has no workers yet: waiting for the first")
            client.wait_for_workers(1)
        _log.info("Dask: %d workers; progress: %s", len(_workers(client)), client.dashboard_link)
        yield client


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
    """Return the processor cores of a worker: N on this machine share them."""
    return max(cores // (workers_here(address) or 1), 1)


@contextmanager
def _token(folder: RunFolder) -> Iterator[str]:
    """Put a file into a run's folder by which a worker knows that it sees the same folder."""
    name = f"{temporary_prefix()}{uuid4().hex}"
    write_atomically(folder.path / name, b"")
    try:
        yield name
    finally:
        (folder.path / name).unlink(missing_ok=True)


def _offers_gpus(client: Client) -> bool:
    return any(_GPU in worker["resources"] for worker in _workers(client))


def _slots(client: Client, gpus: bool) -> int:
    """Return how many units the workers can compute at once, now; at least 1."""
    return max(_count(client, gpus), 1)


def _count(client: Client, gpus: bool) -> int:
    slots = [w["resources"].get(_GPU, 0) if gpus else w["nthreads"] for w in _workers(client)]
    return int(sum(slots))


def _workers(client: Client) -> list[dict[str, Any]]:
    workers: dict[str, dict[str, Any]] = client.scheduler_info(n_workers=-1)["workers"]
    return list(workers.values())


def _wait_for(task: Task) -> None:
    """Wait until a shard that a worker has written is seen here, too."""
    path = task.folder.shard(task.image, task.unit.name)
    end = time.monotonic() + _SEEN_AFTER_S
    while not path.exists():
        if time.monotonic() > end:
            raise SaveError(
                f"a worker has written {path}, but this machine does not see it",
                "put the run's folder on a drive that all machines share (--run-dir)",
            )
        time.sleep(0.2)
        with suppress(OSError):
            list(path.parent.iterdir())  # asks the drive again what is there


def _killed(error: KilledWorker, limit_s: float | None) -> WorkerError:
    limit = "" if limit_s is None else f", or units that take more than {limit_s / 60:g} minutes"
    return WorkerError(
        f"all of {error.allowed_failures + 1} workers that computed it have died; the last was "
        f"{error.last_worker.address}",
        f"see the logs of the workers; likely too little memory{limit}",
    )


def _unexpected(error: Exception) -> WorkerError:
    return WorkerError(
        f"a worker failed: {type(error).__name__}: {short_reason(error)}",
        "check that all workers have the same qpnuclei installed",
    )
