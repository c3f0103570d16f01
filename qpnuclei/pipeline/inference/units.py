"""Compute the units of a run that are not done yet, and record those that fail."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from qpnuclei.choices import UNIT_GIB, UNIT_MINUTES
from qpnuclei.errors import (
    FormatError,
    QpnucleiError,
    TerminatedError,
    number_of,
    standing_alone,
)
from qpnuclei.pipeline.folder import RunFolder
from qpnuclei.pipeline.inference.executors import Executor, Outcome, Task
from qpnuclei.pipeline.inference.join import DamagedUnitError, join_image
from qpnuclei.pipeline.inference.shards import ImageNuclei
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.planning.layout import Layout, layout_of
from qpnuclei.pipeline.planning.plan_file import PlannedImage, RunPlan
from qpnuclei.segmentation.engine import Engine
from qpnuclei.system.arguments import check_fields, checked_flag, checked_number, checked_text

_log = logging.getLogger(__name__)

#: Called as ``progress(image name, tiles done, tiles in all, nuclei so far)``. The numbers are of
#: the tiles that this call computes: those that were there before do not count.
Progress = Callable[[str, int, int, int], object]

#: Called with an image that fails, and why.
Report = Callable[[PlannedImage, QpnucleiError], object]


def no_progress(image: str, done: int, tiles: int, nuclei: int) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class Limits:
    """Time and memory that a process may need for a unit; None means no limit."""

    seconds: float | None = None
    bytes: float | None = None


NO_LIMITS = Limits()


@dataclass(frozen=True)
class Conduct:
    """How a run proceeds; its results do not depend on it.

    Parameters
    ----------
    resume : bool
        Continue an unfinished run of the same request.
    extend : bool
        Continue a finished run, too: analyse only new images, and images with a changed slide,
        annotations or pixel size.
    retry_failed : bool
        Try units again that failed before.
    fail_fast : bool
        End at the first error, instead of continuing with the other images.
    stop : callable
        Called after each unit; returns whether the run should end.
    dask : str, optional
        Compute on a cluster; see `qpnuclei.pipeline.inference.cluster.cluster_of`.
    unit_minutes : float, optional
        A unit that takes longer fails. From 0.01 to 10,000.
    unit_gib : float, optional
        A unit fails if its process needs more GiB of memory. From 0.1 to 10,000.

    Raises
    ------
    UsageError
        If a flag is neither true nor false, or a limit is not a number, or out of its range.
    """

    resume: bool = True
    extend: bool = False
    retry_failed: bool = False
    fail_fast: bool = False
    stop: Callable[[], bool] = lambda: False
    dask: str | None = None
    unit_minutes: float | None = None
    unit_gib: float | None = None

    def __post_init__(self) -> None:
        checks: dict[str, Callable[[str, Any], object]] = {
            "resume": checked_flag,
            "extend": checked_flag,
            "retry_failed": checked_flag,
            "fail_fast": checked_flag,
            "dask": checked_text,
            "unit_minutes": partial(checked_number, limits=UNIT_MINUTES),
            "unit_gib": partial(checked_number, limits=UNIT_GIB),
        }
        check_fields(self, checks, may_be_none=["dask", "unit_minutes", "unit_gib"])

    @property
    def limits(self) -> Limits:
        """The limits of a unit."""
        return Limits(
            None if self.unit_minutes is None else 60 * self.unit_minutes,
            None if self.unit_gib is None else 2**30 * self.unit_gib,
        )

    def check_stop(self) -> None:
        """Check whether the run should end.

        Raises
        ------
        TerminatedError
            If `stop` returns True.
        """
        if self.stop():
            raise TerminatedError(
                "terminated: finished work is kept", "run the same command again to continue"
            )


def infer_images(
    folder: RunFolder,
    plan: RunPlan,
    images: Iterable[PlannedImage],
    executor: Executor,
    engine: Callable[[str], Engine],
    report: Report,
    conduct: Conduct,
    options: RunOptions,
    *,
    share: tuple[int, int] = (1, 1),
    slides_from: Path | None = None,
    progress: Progress,
) -> Iterator[PlannedImage]:
    """Compute the missing units; yield each image as soon as all its units are there."""
    plan.check_models(options)
    if conduct.retry_failed:
        folder.forget_failures()
    inference = _Inference(
        folder, plan, executor, engine, report, options, share, slides_from, progress
    )
    for outcome in executor(inference.tasks(images), inference.advance):
        inference.record(outcome)
        yield from inference.finished()
        conduct.check_stop()
    yield from inference.finished()


@dataclass(eq=False)
class _ImageProgress:
    """What is known of an image while its units are computed.

    Parameters
    ----------
    waiting : int
        Number of units that this process still has to compute.
    todo : int
        Number of tiles of the units that this process computes.
    tiles, nuclei : int
        Those of them that are done, and the nuclei in them.
    errors : list of QpnucleiError
        Errors of its units.
    """

    image: PlannedImage
    layout: Layout
    waiting: int = 0
    todo: int = 0
    tiles: int = 0
    nuclei: int = 0
    errors: list[QpnucleiError] = field(default_factory=list)


@dataclass(eq=False)
class _Inference:
    """The state of `infer_images`; its arguments are the fields."""

    folder: RunFolder
    plan: RunPlan
    executor: Executor
    engine: Callable[[str], Engine]
    report: Report
    options: RunOptions
    share: tuple[int, int]
    slides_from: Path | None
    progress: Progress

    def __post_init__(self) -> None:
        self._failed = self.folder.failed()
        self._images: dict[str, _ImageProgress] = {}
        #: Images that wait for no unit.
        self._ready: list[_ImageProgress] = []

    def tasks(self, images: Iterable[PlannedImage]) -> Iterator[Task]:
        """Yield the missing units of the share."""
        shared = self._shared_units()
        for image in images:
            # An image without units has only nuclei to remove.
            if any(shared[image.entry]) or not image.units:
                with standing_alone(f"image {image.name}", partial(self.report, image)):
                    yield from self._tasks_of(image, shared[image.entry])

    def _shared_units(self) -> dict[str, list[bool]]:
        """Return by image whether each of its units belongs to the share."""
        part, parts = self.share
        total = sum(len(image.units) for image in self.plan.images)
        mine = range(total * (part - 1) // parts, total * part // parts)
        number = count()
        return {
            image.entry: [next(number) in mine for _ in image.units] for image in self.plan.images
        }

    def _tasks_of(self, image: PlannedImage, shared: Sequence[bool]) -> list[Task]:
        """Return the missing units of an image, and start to keep its progress."""
        layout = layout_of(image, self.plan.spec(image), self.options)
        state = _ImageProgress(image, layout)
        is_done = _is_joined(self.folder, image, layout)
        pending = []
        for unit, is_shared in zip(layout.units, shared, strict=True):
            if is_done or not is_shared or self.folder.shard(image, unit.name).exists():
                continue
            if unit.key in self._failed:
                known = self._failed[unit.key]
                state.errors.append(
                    FormatError(
                        f"unit {unit.name} failed before: {known.get('error')}",
                        "try it again with --retry-failed",
                    )
                )
            else:
                pending.append(Task(image, layout, unit, self.folder))
                state.todo += len(unit.tiles)
        state.waiting = len(pending)
        self._images[image.entry] = state
        if not pending:
            self._ready.append(state)
        return pending

    def advance(self, image: PlannedImage, tiles: int, nuclei: int) -> None:
        """Add work that an executor has done."""
        state = self._images[image.entry]
        state.tiles += tiles
        state.nuclei += nuclei
        if tiles > 0:
            self.progress(image.name, state.tiles, state.todo, state.nuclei)

    def record(self, outcome: Outcome) -> None:
        """Store the shard of a unit, or note its error."""
        image, unit = outcome.task.image, outcome.task.unit
        state = self._images[image.entry]
        state.waiting -= 1
        with standing_alone(f"image {image.name}", state.errors.append):
            if outcome.error is not None:
                state.errors.append(outcome.error)
                self.folder.add_failure(image, unit, outcome.tries, outcome.error)
            else:
                if outcome.shard is not None:
                    self.folder.store(image, unit, outcome.shard)
                self.folder.log("image %s: unit %s is done", image.name, unit.name)
        if state.waiting == 0:
            self._ready.append(state)

    def finished(self) -> Iterator[PlannedImage]:
        """Yield the images whose units have all been computed; report those that fail."""
        while self._ready:
            state = self._ready.pop(0)
            image, layout = state.image, state.layout
            with standing_alone(f"image {image.name}", partial(self.report, image)):
                if state.errors:
                    raise _failed(state.errors, layout)
                if self.folder.shard(image, layout.name).exists():
                    yield image
                elif all(self.folder.shard(image, unit.name).exists() for unit in layout.units):
                    self._join(image, layout)
                    yield image
                elif self.share == (1, 1):
                    check_complete(self.folder, image, layout, self._failed)
                # Otherwise other machines compute the rest, and the last one joins the units.

    def _join(self, image: PlannedImage, layout: Layout) -> None:
        """Join the units of an image; compute those again that are damaged."""
        load = partial(self.engine, self.options.model_for(image.mpp))
        join = partial(join_image, self.folder, image, layout, load, self.options, self.slides_from)
        for _ in layout.units:
            try:
                return join()
            except DamagedUnitError as error:
                _log.warning("%s; it is computed again", error.what)
                self.folder.shard(image, error.unit.name).unlink(missing_ok=True)
                task = Task(image, layout, error.unit, self.folder)
                for outcome in self.executor([task], lambda image, tiles, nuclei: None):
                    if outcome.error is not None:
                        raise outcome.error from error
                    if outcome.shard is not None:
                        self.folder.store(image, error.unit, outcome.shard)
        return join()


def _is_joined(folder: RunFolder, image: PlannedImage, layout: Layout) -> bool:
    """Return whether all units of an image are joined; remove the file if it is damaged."""
    path = folder.shard(image, layout.name)
    if not path.exists():
        return False
    try:
        nuclei = ImageNuclei(path, layout.key)
        for number in range(len(nuclei)):
            nuclei[number]
    except FormatError as error:
        _log.warning("%s; it is joined again from its units", error.what)
        path.unlink(missing_ok=True)
        return False
    return True


def _failed(errors: Sequence[QpnucleiError], layout: Layout) -> QpnucleiError:
    """Return the first error of an image, and add how many of its units failed."""
    first = errors[0]
    if len(layout.units) == 1 or len(errors) == 1:
        return first
    what = f"{first.what} (and {len(errors) - 1} more of {len(layout.units)} units)"
    return type(first)(what, first.hint)


def count_missing(folder: RunFolder, plan: RunPlan, options: RunOptions) -> int:
    """Return the number of units of a plan that are not computed yet, on any machine."""
    missing = 0
    for image in plan.images:
        try:
            layout = layout_of(image, plan.spec(image), options)
            if not folder.shard(image, layout.name).exists():
                missing += sum(not folder.shard(image, name).exists() for name in image.units)
        except FormatError:  # the image fails, so none of its units can be used
            missing += len(image.units)
    return missing


def check_complete(
    folder: RunFolder, image: PlannedImage, layout: Layout, failed: dict[str, dict[str, object]]
) -> None:
    """Raise an error that names the units of an image that are missing."""
    missing = [unit for unit in layout.units if not folder.shard(image, unit.name).exists()]
    if not missing:
        return
    known = next((failed[unit.key] for unit in missing if unit.key in failed), None)
    if known is not None:
        raise FormatError(
            f"unit {known.get('unit')} failed: {known.get('error')}",
            "try it again with qpnuclei infer --retry-failed",
        )
    path = folder.shard(image, missing[0].name)
    raise FormatError(
        f"image {image.name}: missing: {len(missing)} of {number_of(len(layout.units), 'unit')}, "
        f"the first is {path}",
        "compute them with qpnuclei infer, or copy them from where they were computed",
    )
