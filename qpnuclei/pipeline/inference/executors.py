"""Executors compute the units of a run: functions that take units and yield their outcomes.

`compute_here` computes in this process. Other executors are in `processes` (several devices of this
machine) and `cluster` (Dask); `computing` chooses one.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from qpnuclei.errors import QpnucleiError, standing_alone
from qpnuclei.pipeline.folder import TRIES, RunFolder
from qpnuclei.pipeline.inference.infer import TileNuclei, measure_tiles
from qpnuclei.pipeline.inference.shards import About, pack_unit
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.planning.layout import Layout, WorkUnit
from qpnuclei.pipeline.planning.plan_file import PlannedImage
from qpnuclei.segmentation.engine import Engine
from qpnuclei.system.timing import Stopwatch

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Task:
    """A unit to compute, with its image, its layout and the run's folder."""

    image: PlannedImage
    layout: Layout
    unit: WorkUnit
    folder: RunFolder


@dataclass(frozen=True, eq=False)
class Outcome:
    """The outcome of a unit: its shard, or an error after a number of tries.

    Parameters
    ----------
    shard : bytes or None
        None without an error if the process that computed it has written it into the folder.
    """

    task: Task
    shard: bytes | None
    error: QpnucleiError | None = None
    tries: int = 1


#: Called as ``advance(image, tiles, nuclei)`` with the work done since the last call.
Advance = Callable[[PlannedImage, int, int], None]

#: Takes the units, sorted in the best order to compute them. Yields each once, in any order.
Executor = Callable[[Iterable[Task], Advance], Iterator[Outcome]]


def compute_here(
    tasks: Iterable[Task],
    advance: Advance,
    engine: Callable[[str], Engine],
    options: RunOptions,
    slides_from: Path | None = None,
) -> Iterator[Outcome]:
    """Compute units in this process, image by image.

    The network runs over all units of an image in one sweep, so that units cost no additional
    pixels. If a sweep fails, the remaining units are tried one by one.
    """
    for _, of_image in groupby(tasks, key=lambda task: task.image.entry):
        image_tasks = list(of_image)
        loaded = engine(options.model_for(image_tasks[0].image.mpp))
        yield from _compute_image(image_tasks, advance, loaded, options, slides_from)


def _compute_image(
    tasks: Sequence[Task],
    advance: Advance,
    engine: Engine,
    options: RunOptions,
    slides_from: Path | None,
) -> Iterator[Outcome]:
    image, layout = tasks[0].image, tasks[0].layout
    where = f"image {image.name}"
    errors: list[QpnucleiError] = []
    waiting = deque(tasks)
    alone = False
    with standing_alone(where, errors.append), image.slide.open(slides_from) as slide:
        while waiting:
            chosen = [waiting[0]] if alone else list(waiting)
            clock = Stopwatch()
            measured = measure_tiles(
                slide,
                layout.tiles,
                engine,
                image.scale,
                image.stains,
                chosen=[index for task in chosen for index in task.unit.tiles],
                simplify_um=options.simplify_um,
                workers=options.workers,
                clock=clock,
            )
            failed: list[QpnucleiError] = []
            with standing_alone(where, failed.append):
                for outcome in _collected(chosen, measured, advance, engine, clock):
                    errors.clear()
                    waiting.popleft()
                    yield outcome
            if not failed:
                continue
            if not alone:
                # Tiles are computed ahead, so the unit that failed is unknown.
                alone = True
                _log.debug("%s: %s; the remaining units are tried one by one", where, failed[0])
                continue
            errors += failed
            if len(errors) == TRIES:
                yield Outcome(waiting.popleft(), None, failed[0], TRIES)
                errors.clear()
    # The remaining units could not even be started.
    for task in waiting:
        yield Outcome(task, None, errors[0])


def _collected(
    tasks: Iterable[Task],
    measured: Generator[TileNuclei, None, None],
    advance: Advance,
    engine: Engine,
    clock: Stopwatch,
) -> Iterator[Outcome]:
    """Group tiles into units; both come in order."""
    with closing(measured):
        for task in tasks:
            tiles: list[TileNuclei] = []
            worked, waited = dict(clock.seconds), dict(clock.waited)
            try:
                for _ in task.unit.tiles:
                    tiles.append(next(measured))
                    advance(task.image, 1, len(tiles[-1].owned))
            except BaseException:
                advance(task.image, -len(tiles), -sum(len(tile.owned) for tile in tiles))
                raise
            about = About(
                task.unit.key,
                engine.execution,
                _since(worked, clock.seconds),
                _since(waited, clock.waited),
            )
            yield Outcome(task, pack_unit(tiles, about))


def _since(before: dict[str, float], now: dict[str, float]) -> dict[str, float]:
    return {stage: seconds - before.get(stage, 0.0) for stage, seconds in dict(now).items()}
