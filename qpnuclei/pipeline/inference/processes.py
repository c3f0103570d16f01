"""Units on several devices of this machine: a process for each."""

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
    compute_unit,
    engine_of,
    storing,
)
from qpnuclei.pipeline.inference.units import NO_LIMITS, Limits
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.segmentation.engine import EngineSpec
from qpnuclei.system.memory import keep_freed_memory

#: Units that a process has: it goes on while what it found is put together here.
_AHEAD = 2

#: How often processes are asked for their memory, where that has a limit.
_LOOK_AT_MEMORY_S = 0.2

#: A connection of `multiprocessing`, whose class has another name on Windows.
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
    """Compute units on several devices, a process each; a process that dies is replaced.

    Parameters
    ----------
    devices : sequence of str
        Names as `qpnuclei.models.device.resolve_device` takes them; one may be there twice.
    limits : Limits
        A process that works longer on a unit, or needs more memory, is ended.

    Raises
    ------
    ModelError, DeviceError
        If the model or a device cannot be used.
    """
    cores = max(options.workers // len(devices), 1)
    todo = iter(tasks)
    again: deque[Job] = deque()
    with ExitStack() as stack:
        workers = [_Worker(replace(options, device=name, workers=cores)) for name in devices]
        for worker in workers:
            stack.callback(worker.end)

        def give() -> None:
            """Give units out: to each process one, and then each another one."""
            for many in range(1, _AHEAD + 1):
                for worker in workers:
                    if len(worker.jobs) < many:
                        job = again.popleft() if again else _job(next(todo, None))
                        if job is None:
                            return
                        worker.take(job, specs, slides_from)

        give()
        while busy := [worker for worker in workers if worker.jobs]:
            for worker in _ready(busy, limits):
                job, delivery = worker.delivered()
                outcome = None if job is None else job.outcome(delivery)
                if job is not None and outcome is None:
                    again.append(job)
                if not worker.is_running:
                    again.extend(worker.jobs)
                    worker.jobs.clear()
                give()
                if outcome is not None:
                    if outcome.error is None:
                        task = outcome.task
                        advance(task.image, len(task.unit.tiles), delivery.nuclei)
                    yield outcome


def _job(task: Task | None) -> Job | None:
    return None if task is None else Job(task)


def _ready(workers: Sequence[_Worker], limits: Limits) -> list[_Worker]:
    """Wait until some processes have something to say; end those that take too much."""
    left = math.inf
    if limits.seconds is not None:
        since = min(worker.since for worker in workers)
        left = max(since + limits.seconds - time.monotonic(), 0.05)
    if limits.bytes is not None:
        left = min(left, _LOOK_AT_MEMORY_S)
    by_pipe = {worker.pipe: worker for worker in workers}
    ready = wait(list(by_pipe), None if left == math.inf else left)
    for pipe, worker in by_pipe.items():
        if pipe not in ready:
            worker.end_beyond(limits)
    return [by_pipe[pipe] for pipe in by_pipe if pipe in ready]


class _Worker:
    """A process that computes units on a device. It is begun with its first unit.

    Parameters
    ----------
    options : RunOptions
        With its device and cores.
    """

    pipe: _Pipe

    def __init__(self, options: RunOptions) -> None:
        self._options = options
        #: Units that it has, in the order in which it computes them.
        self.jobs: deque[Job] = deque()
        self.is_running = False
        #: When it began with the first of them.
        self.since = math.inf
        #: Why it was ended from here.
        self._ended: WorkerError | None = None
        self._failed_starts = 0

    def take(self, job: Job, specs: Mapping[str, EngineSpec], slides_from: Path | None) -> None:
        """Give it another unit."""
        if not self.is_running:
            self._begin()
        elif not self.jobs and self.since < math.inf:
            self.since = time.monotonic()
        self.jobs.append(job)
        with suppress(OSError):  # it has died: that is seen when it is asked
            self.pipe.send(job.order(specs, self._options, slides_from))

    def _begin(self) -> None:
        # Forked, it would have threads and a GPU that are not its own.
        spawn = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_work, args=(theirs, self._options), daemon=True)
        with _deaf_to_ctrl_c():
            self._process.start()
        theirs.close()
        self.is_running, self._ended = True, None
        self.since = math.inf  # it loads the network first

    def delivered(self) -> tuple[Job | None, Delivery]:
        """Return the first of its units and what came of it; no unit if there is none.

        Raises
        ------
        QpnucleiError
            If it cannot be begun.
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
        error = self._ended or _death(self._options.device, self._process.exitcode)
        if self.since < math.inf:
            return self.jobs.popleft(), Delivery(error=error)
        # It had not begun with any.
        self._failed_starts += 1
        if self._failed_starts == TRIES:
            raise WorkerError(
                f"cannot start a process for the device {self._options.device}: {error.what}",
                self._ended.hint
                if self._ended
                else "a script that calls qpnuclei needs: if __name__ == '__main__':",
            )
        return None, Delivery()

    def end_beyond(self, limits: Limits) -> None:
        """End it if it works longer on a unit, or needs more memory."""
        if limits.seconds is not None and time.monotonic() - self.since > limits.seconds:
            self._ended = WorkerError(
                f"not done after {limits.seconds / 60:g} minutes: its process was ended",
                "allow more with --unit-minutes, or look at the slide",
            )
        elif limits.bytes is not None and self._memory() > limits.bytes:
            self._ended = WorkerError(
                f"its process needs more than {limits.bytes / 2**30:g} GiB and was ended",
                "allow more with --unit-gib, or use fewer --workers or a smaller --tile",
            )
        else:
            return
        self._process.kill()

    def _memory(self) -> int:
        """Return the bytes of memory that its process has now; 0 if there is none."""
        try:
            return int(psutil.Process(self._process.pid).memory_info().rss)
        except psutil.Error:
            return 0

    def end(self) -> None:
        """End it, whatever it does."""
        if self.is_running:
            self.is_running = False
            self.pipe.close()
            self._process.kill()
            self._process.join()


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Have a process that is begun within the block ignore Ctrl-C from its first moment."""
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
    """Say why a process has ended by itself."""
    ended = f"exit code {code}"
    if code is not None and code < 0:
        ended = f"signal {-code}"
    return WorkerError(
        f"the process on {device} ended unexpectedly ({ended})",
        "the system may have stopped it for lack of memory: use fewer --workers or a smaller "
        "--tile",
    )


def _work(pipe: _Pipe, options: RunOptions) -> None:
    """Compute what comes through a pipe, until it is closed."""
    # Ctrl-C and SIGTERM are for the process that began this one.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    _offer_to_killer()
    orders: SimpleQueue[Order] = SimpleQueue()
    threading.Thread(target=_receive, args=(pipe, orders), daemon=True).start()
    with keep_freed_memory():
        try:
            for model in options.models:
                engine_of(model, options.engine)
        except QpnucleiError as error:
            pipe.send(type(error)(error.what, error.hint))
            return
        pipe.send(None)
        while True:
            pipe.send(compute_unit(orders.get()))


def _receive(pipe: _Pipe, orders: SimpleQueue[Order]) -> None:
    """Receive while units are computed, and end with the process that began this one."""
    with suppress(EOFError, OSError):
        while True:
            orders.put(pipe.recv())
    with storing:
        os._exit(0)


def _offer_to_killer() -> None:
    """Have Linux, where memory is short, end this process before the one that began it."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")
