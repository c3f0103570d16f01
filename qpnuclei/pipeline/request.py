"""Checks of what a run is asked for, before its project is opened."""

from __future__ import annotations

from qpnuclei.errors import UsageError
from qpnuclei.models.device import takes_cpu
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.segmentation.engine import OWN_ENGINE, engine_specs, split_model


def check_request(
    options: RunOptions, dask: str | None = None, unit_gib: float | None = None
) -> None:
    """Check models and devices; no model is loaded, and no cluster is contacted.

    Parameters
    ----------
    options : RunOptions
    dask, unit_gib
        As for `qpnuclei.pipeline.inference.units.Conduct`.

    Raises
    ------
    QpnucleiError
        If a model or its device does not exist, or options exclude each other.
    """
    engine_specs(options.models)
    if dask is not None:
        refuse_with_dask(options.device, unit_gib)
        return
    # Other engines have their own devices, and check them when they load.
    if any(split_model(model)[0] == OWN_ENGINE for model in options.models):
        for device in options.device.split(","):
            takes_cpu(device)  # raises if it is not there


def refuse_with_dask(device: str, unit_gib: float | None) -> None:
    """Refuse options that a cluster sets itself: several devices, and the memory of a worker.

    Raises
    ------
    UsageError
        If one is given.
    """
    if "," in device:
        raise UsageError(
            f"--device {device} and --dask exclude each other",
            "start a Dask worker for each device, with its CUDA_VISIBLE_DEVICES",
        )
    if unit_gib is not None:
        raise UsageError(
            "--unit-gib and --dask exclude each other",
            "Dask ends workers that need too much memory: dask worker --memory-limit",
        )
