"""A unit computed in another process, of this machine or of another one.

What goes there is an `Order`, what comes back a `Delivery`. The shard itself is written by the
process that computed it, where that process sees the run's folder.
"""

from __future__ import annotations

import faulthandler
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from qpnuclei._version import __version__
from qpnuclei.errors import (
    DeviceError,
    ModelError,
    NotFoundError,
    QpnucleiError,
    SaveError,
    UsageError,
    standing_alone,
)
from qpnuclei.pipeline.folder import TRIES, RunFolder
from qpnuclei.pipeline.inference.executors import Outcome, Task
from qpnuclei.pipeline.inference.infer import measure_tiles
from qpnuclei.pipeline.inference.shards import About, pack_unit
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.planning.layout import WorkUnit
from qpnuclei.pipeline.planning.plan_file import PlannedImage, check_same_model
from qpnuclei.segmentation.engine import Engine, EngineOptions, EngineSpec, load_engine
from qpnuclei.slides.slide import Slide
from qpnuclei.system.threads import available_cores
from qpnuclei.system.timing import Stopwatch
from qpnuclei.tiling.plan import TilePlan

#: Held while a shard is written; ending this process waits for it.
storing = threading.Lock()

#: Dask may give a process several units at once; network and memory are for one.
_one_at_a_time = threading.Lock()

#: Errors that are those of every unit, so that a run ends with them.
_OF_ALL = (ModelError, DeviceError, UsageError)


@dataclass(frozen=True)
class Order:
    """All that another process must know to compute a unit. It can be pickled.

    Parameters
    ----------
    image : str
        The `PlannedImage` as JSON.
    spec : EngineSpec
        Of the model that was planned for.
    options : RunOptions
        With the model, the device and the cores of that process.
    folder : Path
        The run's folder, as it is called here.
    token : str
        Name of a file in it that proves that a folder there is the same; empty on one machine.
    limit_s : float, optional
        The process ends after so many seconds. None where whoever gave the order sees to that.
    """

    image: str
    unit: WorkUnit
    spec: EngineSpec
    options: RunOptions
    slides_from: Path | None
    folder: Path
    token: str = ""
    limit_s: float | None = None
    version: str = __version__


@dataclass(frozen=True)
class Delivery:
    """What came of an order.

    Parameters
    ----------
    nuclei : int
        That the unit's tiles own.
    shard : bytes, optional
        Where the process does not see the run's folder; otherwise it has written it there.
    error : QpnucleiError, optional
        Why there is no shard.
    is_begun : bool
        Whether the unit itself failed, and not what is needed to begin or to keep it.
    """

    nuclei: int = 0
    shard: bytes | None = None
    error: QpnucleiError | None = None
    is_begun: bool = True


@dataclass(eq=False)
class Job:
    """A unit that is to be computed elsewhere, and how often that was tried."""

    task: Task
    tries: int = 0

    def order(
        self,
        specs: Mapping[str, EngineSpec],
        options: RunOptions,
        slides_from: Path | None,
        token: str = "",
        limit_s: float | None = None,
    ) -> Order:
        """Return what another process must know."""
        task = self.task
        image = task.image.model_dump_json()
        folder = task.folder.path.absolute()
        model = options.model_for(task.image.mpp)
        exact = replace(options, model=model, speed="auto")
        return Order(image, task.unit, specs[model], exact, slides_from, folder, token, limit_s)

    def outcome(self, delivery: Delivery, tries: int = 1) -> Outcome | None:
        """Return what became of the unit; None if it is to be tried again.

        Raises
        ------
        ModelError, DeviceError, UsageError
            If the model or the device cannot be used there.
        """
        if delivery.error is None:
            return Outcome(self.task, delivery.shard)
        self.tries += tries
        if self.tries < TRIES:
            return None
        if isinstance(delivery.error, _OF_ALL):
            raise delivery.error
        return Outcome(self.task, None, delivery.error, self.tries if delivery.is_begun else 1)


def compute_unit(order: Order) -> Delivery:
    """Compute one unit; what goes wrong is part of what is delivered.

    Engines, and the slide worked on last, are kept for the next unit.
    """
    errors: list[QpnucleiError] = []
    delivery = None
    with _one_at_a_time, standing_alone(f"unit {order.unit.name}", errors.append):
        delivery = _computed(order)
    return delivery or Delivery(error=errors[0])


@lru_cache(2)
def engine_of(model: str, options: EngineOptions) -> Engine:
    """Load the engine, which is kept."""
    return load_engine(model, options)


def _computed(order: Order) -> Delivery:
    if order.version != __version__:
        raise UsageError(
            f"a worker has qpnuclei {__version__}, but the run was started with {order.version}",
            "install the same version everywhere",
        )
    options = replace(order.options, workers=min(order.options.workers, available_cores()))
    try:
        engine = engine_of(options.model, options.engine)
    except NotFoundError as error:
        raise ModelError(error.what, error.hint) from error
    check_same_model(engine.spec, order.spec)
    try:
        image, tiles, slide = _opened(order)
    except QpnucleiError as error:
        return Delivery(error=error, is_begun=False)
    clock = Stopwatch()
    with _ending_after(order.limit_s):
        measured = list(
            measure_tiles(
                slide,
                tiles,
                engine,
                image.scale,
                image.stain_vectors,
                chosen=order.unit.tiles,
                simplify_um=options.simplify_um,
                workers=options.workers,
                clock=clock,
            )
        )
    nuclei = sum(len(tile.owned) for tile in measured)
    about = About(order.unit.key, engine.execution, clock.seconds, clock.waited)
    shard = pack_unit(measured, about)
    if order.token and not (order.folder / order.token).exists():
        return Delivery(nuclei, shard)
    try:
        with storing:
            RunFolder(order.folder).store(image, order.unit, shard)
    except SaveError as error:
        return Delivery(error=error, is_begun=False)
    return Delivery(nuclei)


#: What `_opened` has opened last: one slide at a time is open.
_last: list[tuple[tuple[str, Path | None], tuple[PlannedImage, TilePlan, Slide]]] = []


def _opened(order: Order) -> tuple[PlannedImage, TilePlan, Slide]:
    """Open the slide of an image, unless it is the one that is open."""
    wanted = order.image, order.slides_from
    if _last and _last[0][0] == wanted:
        return _last[0][1]
    for _, (_, _, slide) in _last:
        slide.close()
    _last.clear()
    image = PlannedImage.model_validate_json(order.image)
    opened = (
        image,
        image.tile_plan(order.spec, order.options),
        image.slide.open(order.slides_from),
    )
    _last.append((wanted, opened))
    return opened


@contextmanager
def _ending_after(seconds: float | None) -> Iterator[None]:
    """End this process if the block takes longer, even where it holds Python's lock."""
    if seconds is None:
        yield
        return
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
