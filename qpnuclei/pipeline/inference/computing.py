"""Choose what computes the units of a run: this process, one process per device, or a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from qpnuclei.models.device import takes_cpu
from qpnuclei.pipeline.inference.executors import Executor, compute_here
from qpnuclei.pipeline.inference.units import NO_LIMITS, Conduct
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.request import refuse_with_dask
from qpnuclei.segmentation.engine import Engine, engine_specs, load_engine


@dataclass(frozen=True)
class Computing:
    """The executor of a run, and the engines for this process.

    Parameters
    ----------
    executor : Executor
    engine : callable
        Loads the engine of a model in this process, for example to join units.
    device : str
        Where units are computed, for the record of the run.
    """

    executor: Executor
    engine: Callable[[str], Engine]
    device: str


@contextmanager
def computing(
    options: RunOptions, conduct: Conduct, slides_from: Path | None = None
) -> Iterator[Computing]:
    """Choose the executor, by the devices, the cluster and the limits of a unit.

    Limits need a separate process: only that can be killed if a unit takes too long or too much
    memory.

    Raises
    ------
    QpnucleiError
        If the model, a device or the cluster cannot be used.
    """
    devices = options.device.split(",")
    limits = conduct.limits

    def engine_on(device: str) -> Callable[[str], Engine]:
        return cache(lambda model: load_engine(model, replace(options.engine, device=device)))

    if conduct.dask is not None:
        from qpnuclei.pipeline.inference.cluster import (
            cluster_of,
            compute_on_cluster,
            cores_of_worker,
        )

        refuse_with_dask(options.device, conduct.unit_gib)
        with cluster_of(conduct.dask, conduct.check_stop) as client:
            on_cluster = partial(
                compute_on_cluster,
                client=client,
                specs=engine_specs(options.models),
                options=replace(options, workers=cores_of_worker(conduct.dask, options.workers)),
                slides_from=slides_from,
                limit_s=limits.seconds,
                check_stop=conduct.check_stop,
            )
            # This machine need not have the device and libraries of the workers.
            yield Computing(on_cluster, engine_on("auto"), f"Dask, {conduct.dask}")
        return
    if len(devices) == 1 and limits == NO_LIMITS:
        engine = engine_on(options.device)
        # A model that cannot be loaded is an error before anything is planned.
        execution = " and ".join(dict.fromkeys(engine(m).execution for m in options.models))
        here = partial(compute_here, engine=engine, options=options, slides_from=slides_from)
        yield Computing(here, engine, execution)
        return
    from qpnuclei.pipeline.inference.processes import compute_in_processes

    for device in devices:
        takes_cpu(device)  # raises if it is not there
    in_processes = partial(
        compute_in_processes,
        devices=devices,
        specs=engine_specs(options.models),
        options=options,
        slides_from=slides_from,
        limits=limits,
    )
    yield Computing(in_processes, engine_on(devices[0]), options.device)
