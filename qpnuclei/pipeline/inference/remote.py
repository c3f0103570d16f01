"""Compute a unit in another process, on this machine or on another one.

An `Order` is sent to the process, and a `Delivery` comes back. The process writes the shard itself
if it sees the run's folder; otherwise the delivery contains the shard.
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
from qpnuclei.segmentation.engine import (
    Engine,
    EngineOptions,
    EngineSpec,
    absolute_model,
    load_engine,
)
from qpnuclei.slides.slide import Slide
from qpnuclei.system.threads import available_cores
from qpnuclei.system.timing import Stopwatch
from qpnuclei.tiling.plan import TilePlan

#: Held while a shard is written: the process exits only after that.
storing = threading.Lock()

#: Dask may give a process several units at once; network and memory suffice for one.
_one_at_a_time = threading.Lock()

#: Errors that would stop every unit: they end the run.
_FATAL = (ModelError, DeviceError, UsageError)


@dataclass(frozen=True)
class Order:
    """Everything that another process needs to compute a unit. It can be pickled.

    Parameters
    ----------
    spec : EngineSpec
        Specification of the model in the plan; a worker with another model refuses the order.
    options : RunOptions
        Options of the run, with the model, the device and the cores of that process.
    folder : Path
        The run's folder, as a path of the machine that gives the order.
    token : str
        Name of a file in the run's folder. A worker that finds it sees the same folder. Empty on
        one machine.
    limit_s : float, optional
        The process ends itself after so many seconds. None if its parent limits the time.
    """

    image: PlannedImage
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
    """The result of an order.

    Parameters
    ----------
    nuclei : int
        Number of nuclei that the unit's tiles own.
    shard : bytes, optional
        The shard, if the process does not see the run's folder; otherwise the process has written
        it there.
    error : QpnucleiError, optional
        Why there is no shard.
    is_unit_error : bool
        Whether computing the unit failed; False if the slide could not be opened, the shard could
        not be saved, or the worker was lost.
    """

    nuclei: int = 0
    shard: bytes | None = None
    error: QpnucleiError | None = None
    is_unit_error: bool = True


@dataclass(eq=False)
class Job:
    """A unit to compute in another process, and how often that was tried."""

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
        """Return what is sent to the other process."""
        task = self.task
        folder = task.folder.path.absolute()
        model = options.model_for(task.image.mpp)
        # The other process may have another working folder.
        exact = replace(options, model=absolute_model(model), speed="auto")
        slides = None if slides_from is None else slides_from.absolute()
        return Order(task.image, task.unit, specs[model], exact, slides, folder, token, limit_s)

    def outcome(self, delivery: Delivery, tries: int = 1) -> Outcome | None:
        """Return the outcome of the unit; None if it should be tried again.

        Raises
        ------
        ModelError, DeviceError, UsageError
            If the process cannot use the model or the device.
        """
        if delivery.error is None:
            return Outcome(self.task, delivery.shard)
        self.tries += tries
        if self.tries < TRIES:
            return None
        if isinstance(delivery.error, _FATAL):
            raise delivery.error
        return Outcome(self.task, None, delivery.error, self.tries if delivery.is_unit_error else 1)


def compute_unit(order: Order) -> Delivery:
    """Compute one unit; an error becomes part of the delivery.

    Engines and the last slide stay open for the next unit.
    """
    errors: list[QpnucleiError] = []
    delivery = None
    with _one_at_a_time, standing_alone(f"unit {order.unit.name}", errors.append):
        delivery = _compute(order)
    return delivery or Delivery(error=errors[0])


@lru_cache(2)
def cached_engine(model: str, options: EngineOptions) -> Engine:
    """Load the engine of a model, and cache it."""
    return load_engine(model, options)


def _compute(order: Order) -> Delivery:
    if order.version != __version__:
        raise UsageError(
            f"a worker has qpnuclei {__version__}, but the run was started with {order.version}",
            "install the same version everywhere",
        )
    options = replace(order.options, workers=min(order.options.workers, available_cores()))
    try:
        engine = cached_engine(options.model, options.engine)
    except NotFoundError as error:
        raise ModelError(error.what, error.hint) from error
    check_same_model(engine.spec, order.spec)
    try:
        image, tiles, slide = _opened(order)
    except QpnucleiError as error:
        return Delivery(error=error, is_unit_error=False)
    clock = Stopwatch()
    with _ending_after(order.limit_s):
        measured = list(
            measure_tiles(
                slide,
                tiles,
                engine,
                image.scale,
                image.stains,
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
        return Delivery(error=error, is_unit_error=False)
    return Delivery(nuclei)


#: The last result of `_opened`: only one slide is open at a time.
_last: list[tuple[tuple[PlannedImage, Path | None], tuple[PlannedImage, TilePlan, Slide]]] = []


def _opened(order: Order) -> tuple[PlannedImage, TilePlan, Slide]:
    """Open the slide of an image, unless it is open already."""
    wanted = order.image, order.slides_from
    if _last and _last[0][0] == wanted:
        return _last[0][1]
    for _, (_, _, slide) in _last:
        slide.close()
    _last.clear()
    opened = (
        order.image,
        order.image.tile_plan(order.spec, order.options),
        order.image.slide.open(order.slides_from),
    )
    _last.append((wanted, opened))
    return opened


@contextmanager
def _ending_after(seconds: float | None) -> Iterator[None]:
    """End this process if the block takes longer, even while it holds the GIL."""
    if seconds is None:
        yield
        return
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
