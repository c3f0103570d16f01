"""Compute units on several devices of this machine: one process per device."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeAlias

import psutil

from qpnuclei.errors import QpnucleiError, WorkerError
from qpnuclei.pipeline.folder import TRIES
from qpnuclei.pipeline.inference.executors import Advance, Outcome, Task
from qpnuclei.pipeline.inference.remote import (
    Delivery,
    Job,
    Order,
    cached_engine,
    compute_unit,
    storing,
)
from qpnuclei.pipeline.inference.units import NO_LIMITS, Limits
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.segmentation.engine import EngineSpec, absolute_model
from qpnuclei.system.memory import keep_freed_memory

#: Units per process: it computes the next one while its last result is handled here.
_AHEAD = 2

#: How often the memory of processes is checked, where it is limited, in seconds.
_CHECK_MEMORY_S = 0.2

#: A `multiprocessing` connection; its class has another name on Windows.
_Pipe: TypeAlias = Any


def compute_in_processes(
    tasks: Iterable[Task],
    advance: Advance,
    devices: Sequence[str],
    specs: Mapping[str, EngineSpec],
    options: RunOptions,
    slides_from: Path | None = None,
    limits: Limits = NO_LIMITS,
) -> Iterator[Outcome]:
    """Compute units on several devices, one process each; a process that dies is replaced.

    Parameters
    ----------
    devices : sequence of str
        Names as `qpnuclei.models.device.resolve_device` takes them; may contain duplicates.
    limits : Limits
        A process that takes longer for a unit, or needs more memory, is killed.

    Raises
    ------
    ModelError, DeviceError
        If the model or a device cannot be used.
    """
    cores = max(options.workers // len(devices), 1)
    remaining = iter(tasks)
    to_retry: deque[Job] = deque()
    with ExitStack() as stack:
        workers = [_Worker(replace(options, device=name, workers=cores)) for name in devices]
        for worker in workers:
            stack.callback(worker.end)

        def submit_more() -> None:
            """Hand out units: one to each process first, then a second one."""
            for jobs_each in range(1, _AHEAD + 1):
                for worker in workers:
                    if len(worker.jobs) < jobs_each:
                        job = to_retry.popleft() if to_retry else _job(next(remaining, None))
                        if job is None:
                            return
                        worker.submit(job, specs, slides_from)

        submit_more()
        while busy := [worker for worker in workers if worker.jobs]:
            for worker in _ready(busy, limits):
                job, delivery = worker.receive()
                outcome = None if job is None else job.outcome(delivery)
                if job is not None and outcome is None:
                    to_retry.append(job)
                if not worker.is_running:
                    to_retry.extend(worker.jobs)
                    worker.jobs.clear()
                submit_more()
                if outcome is not None:
                    if outcome.error is None:
                        task = outcome.task
                        advance(task.image, len(task.unit.tiles), delivery.nuclei)
                    yield outcome


def _job(task: Task | None) -> Job | None:
    return None if task is None else Job(task)


def _ready(workers: Sequence[_Worker], limits: Limits) -> list[_Worker]:
    """Wait until some processes have a message; kill those beyond the limits."""
    left = math.inf
    if limits.seconds is not None:
        since = min(worker.since for worker in workers)
        left = max(since + limits.seconds - time.monotonic(), 0.05)
    if limits.bytes is not None:
        left = min(left, _CHECK_MEMORY_S)
    by_pipe = {worker.pipe: worker for worker in workers}
    ready = wait(list(by_pipe), None if left == math.inf else left)
    for pipe, worker in by_pipe.items():
        if pipe not in ready:
            worker.kill_beyond(limits)
    return [by_pipe[pipe] for pipe in by_pipe if pipe in ready]


class _Worker:
    """A process that computes units on a device. It is started with its first unit.

    Parameters
    ----------
    options : RunOptions
        Options of the run, with the device and the cores of this process.
    """

    pipe: _Pipe

    def __init__(self, options: RunOptions) -> None:
        self._options = options
        #: Units of this process, in the order in which it computes them.
        self.jobs: deque[Job] = deque()
        self.is_running = False
        #: When it started to compute the first of them; infinity while it loads the network.
        self.since = math.inf
        #: Why this class killed it.
        self._kill_reason: WorkerError | None = None
        self._failed_starts = 0

    def submit(self, job: Job, specs: Mapping[str, EngineSpec], slides_from: Path | None) -> None:
        """Send another unit to the process; start the process if necessary."""
        if not self.is_running:
            self._start()
        elif not self.jobs and self.since < math.inf:
            self.since = time.monotonic()
        self.jobs.append(job)
        with suppress(OSError):  # it has died: `receive` notices that
            self.pipe.send(job.order(specs, self._options, slides_from))

    def _start(self) -> None:
        # A forked process would inherit threads and a GPU context that it cannot use.
        spawn = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_work, args=(theirs, self._options), daemon=True)
        with _ignoring_ctrl_c():
            self._process.start()
        theirs.close()
        self.is_running, self._kill_reason = True, None
        self.since = math.inf

    def receive(self) -> tuple[Job | None, Delivery]:
        """Return the first of its units and the result; no unit if no unit ended.

        Raises
        ------
        QpnucleiError
            If the process cannot be started.
        """
        try:
            message = self.pipe.recv()
        except (EOFError, OSError):
            return self._died()
        if isinstance(message, QpnucleiError):
            raise message
        self.since = time.monotonic()
        if isinstance(message, Delivery):
            return self.jobs.popleft(), message
        self._failed_starts = 0
        return None, Delivery()

    def _died(self) -> tuple[Job | None, Delivery]:
        self.end()
        error = self._kill_reason or _death(self._options.device, self._process.exitcode)
        if self.since < math.inf:
            return self.jobs.popleft(), Delivery(error=error)
        # It died before it was ready to compute.
        self._failed_starts += 1
        if self._failed_starts == TRIES:
            raise WorkerError(
                f"cannot start a process for the device {self._options.device}: {error.what}",
                self._kill_reason.hint
                if self._kill_reason
                else "a script that calls qpnuclei needs: if __name__ == '__main__':",
            )
        return None, Delivery()

    def kill_beyond(self, limits: Limits) -> None:
        """Kill the process if it takes longer for a unit, or needs more memory."""
        if limits.seconds is not None and time.monotonic() - self.since > limits.seconds:
            self._kill_reason = WorkerError(
                f"not done after {limits.seconds / 60:g} min: its process was ended",
                "allow more with --unit-minutes, or look at the slide",
            )
        elif limits.bytes is not None and self._memory() > limits.bytes:
            self._kill_reason = WorkerError(
                f"its process needs more than {limits.bytes / 2**30:g} GiB and was ended",
                "allow more with --unit-gib, or use fewer --workers or a smaller --tile",
            )
        else:
            return
        self._process.kill()

    def _memory(self) -> int:
        """Return the memory of the process now, in bytes; 0 if it has ended."""
        try:
            return int(psutil.Process(self._process.pid).memory_info().rss)
        except psutil.Error:
            return 0

    def end(self) -> None:
        """Kill the process if it is running."""
        if self.is_running:
            self.is_running = False
            self.pipe.close()
            self._process.kill()
            self._process.join()


@contextmanager
def _ignoring_ctrl_c() -> Iterator[None]:
    """Have processes that are started in the block ignore Ctrl-C from the start."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or (before := signal.getsignal(signal.SIGINT)) is None:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _death(device: str, code: int | None) -> WorkerError:
    """Return the error for a process that ended by itself."""
    reason = f"exit code {code}"
    if code is not None and code < 0:
        reason = f"signal {-code}"
    return WorkerError(
        f"the process on {device} ended unexpectedly ({reason})",
        "the system may have stopped it for lack of memory: use fewer --workers or a smaller "
        "--tile",
    )


def _work(pipe: _Pipe, options: RunOptions) -> None:
    """Compute the units that come through a pipe, until it is closed."""
    # The parent process handles Ctrl-C and SIGTERM.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _prefer_for_oom_killer()
    orders: SimpleQueue[Order] = SimpleQueue()
    threading.Thread(target=_receive, args=(pipe, orders), daemon=True).start()
    with keep_freed_memory():
        try:
            for model in options.models:
                cached_engine(absolute_model(model), options.engine)  # as in an order
        except QpnucleiError as error:
            pipe.send(type(error)(error.what, error.hint))
            return
        pipe.send(None)
        while True:
            pipe.send(compute_unit(orders.get()))


def _receive(pipe: _Pipe, orders: SimpleQueue[Order]) -> None:
    """Receive orders while units are computed; exit when the parent process ends."""
    with suppress(EOFError, OSError):
        while True:
            orders.put(pipe.recv())
    with storing:
        os._exit(0)


def _prefer_for_oom_killer() -> None:
    """Have Linux kill this process before its parent when memory runs out."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")
