"""Compute the units of a run that are not done yet, and record those that fail."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from qpnuclei.choices import UNIT_GIB, UNIT_MINUTES
from qpnuclei.errors import (
    FormatError,
    QpnucleiError,
    TerminatedError,
    UsageError,
    number_of,
    standing_alone,
)
from qpnuclei.pipeline.folder import RunFolder
from qpnuclei.pipeline.inference.executors import Executor, Task
from qpnuclei.pipeline.inference.join import DamagedUnitError, join_image
from qpnuclei.pipeline.inference.shards import ImageNuclei
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.planning.layout import Layout, layout_of
from qpnuclei.pipeline.planning.plan_file import PlannedImage, RunPlan
from qpnuclei.segmentation.engine import Engine

_log = logging.getLogger(__name__)

#: Called as ``progress(image name, tiles done, number of tiles, nuclei so far)``.
Progress = Callable[[str, int, int, int], None]

#: Called with an image that fails, and why.
Report = Callable[[PlannedImage, QpnucleiError], object]


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
        If a limit is out of its range.
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
        for value, (low, high), unit in (
            (self.unit_minutes, UNIT_MINUTES, "minutes"),
            (self.unit_gib, UNIT_GIB, "GiB"),
        ):
            if value is not None and not low <= value <= high:
                raise UsageError(
                    f"{value:g} {unit} are no limit for a unit", f"give {low:g} to {high:g} {unit}"
                )

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
) -> Iterator[tuple[PlannedImage, Layout]]:
    """Compute the missing units; yield each image as soon as all its units are there."""
    plan.check_models(options)
    if conduct.retry_failed:
        folder.forget_failures()
    failed = folder.failed()
    total = sum(len(image.units) for image in plan.images)
    mine = range(total * (share[0] - 1) // share[1], total * share[0] // share[1])
    first = {}
    number = 0
    for image in plan.images:
        first[image.entry] = number
        number += len(image.units)
    counted: dict[str, list[int]] = {}
    waiting: dict[str, int] = {}
    ready: list[tuple[PlannedImage, Layout]] = []
    bad: dict[str, list[QpnucleiError]] = {}

    def advance(image: PlannedImage, tiles: int, nuclei: int) -> None:
        so_far = counted[image.entry]
        so_far[0] += tiles
        so_far[1] += nuclei
        if tiles > 0:
            progress(image.name, so_far[0], image.tiles, so_far[1])

    def tasks() -> Iterator[Task]:
        for image in images:
            start = first[image.entry]
            units_are_mine = [number in mine for number in range(start, start + len(image.units))]
            if not any(units_are_mine):
                continue
            with standing_alone(f"image {image.name}", partial(report, image)):
                layout = layout_of(image, plan.spec(image), options)
                pending = []
                tiles = 0
                errors = bad.setdefault(image.entry, [])
                is_done = _is_joined(folder, image, layout)
                for unit, unit_is_mine in zip(layout.units, units_are_mine, strict=True):
                    if is_done or folder.shard(image, unit.name).exists():
                        tiles += len(unit.tiles)
                    elif unit_is_mine and unit.key in failed:
                        known = failed[unit.key]
                        errors.append(
                            FormatError(
                                f"unit {unit.name} failed before: {known.get('error')}",
                                "try it again with --retry-failed",
                            )
                        )
                    elif unit_is_mine:
                        pending.append(Task(image, layout, unit, folder))
                counted[image.entry] = [tiles, 0]
                waiting[image.entry] = len(pending)
                if not pending:
                    ready.append((image, layout))
                yield from pending

    def finished() -> Iterator[tuple[PlannedImage, Layout]]:
        while ready:
            image, layout = ready.pop(0)
            errors = bad[image.entry]
            with standing_alone(f"image {image.name}", partial(report, image)):
                if errors:
                    raise _failed(errors, layout)
                if folder.shard(image, layout.name).exists():
                    yield image, layout
                elif all(folder.shard(image, unit.name).exists() for unit in layout.units):
                    _join(image, layout)
                    yield image, layout
                elif share == (1, 1):
                    check_complete(folder, image, layout, failed)
                # Otherwise other machines compute the rest, and the last one joins the units.

    def _join(image: PlannedImage, layout: Layout) -> None:
        load = partial(engine, options.model_for(image.mpp))
        for _ in layout.units:
            try:
                return join_image(folder, image, layout, load, options, slides_from)
            except DamagedUnitError as error:
                _log.warning("%s; it is computed again", error.what)
                folder.shard(image, error.unit.name).unlink(missing_ok=True)
                task = Task(image, layout, error.unit, folder)
                for outcome in executor([task], lambda image, tiles, nuclei: None):
                    if outcome.error is not None:
                        raise outcome.error from error
                    if outcome.shard is not None:
                        folder.store(image, error.unit, outcome.shard)
        return join_image(folder, image, layout, load, options, slides_from)

    for outcome in executor(tasks(), advance):
        image, layout, unit = outcome.task.image, outcome.task.layout, outcome.task.unit
        waiting[image.entry] -= 1
        errors = bad[image.entry]
        with standing_alone(f"image {image.name}", errors.append):
            if outcome.error is not None:
                errors.append(outcome.error)
                folder.add_failure(image, unit, outcome.tries, outcome.error)
            else:
                if outcome.shard is not None:
                    folder.store(image, unit, outcome.shard)
                folder.note("image %s: unit %s is done", image.name, unit.name)
        if waiting[image.entry] == 0:
            ready.append((image, layout))
        yield from finished()
        conduct.check_stop()
    yield from finished()


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


def check_complete(
    folder: RunFolder, image: PlannedImage, layout: Layout, failed: dict[str, dict[str, object]]
) -> None:
    """Raise an error that names the shards of an image that are missing."""
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
        f"missing: {len(missing)} of {number_of(len(layout.units), 'shard')}, the first is {path}",
        "compute them with qpnuclei infer, or copy them from where they were computed",
    )
