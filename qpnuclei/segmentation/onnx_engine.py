"""The engine of ONNX models: ``--model onnx:FILE``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from qpnuclei.errors import DeviceError, ModelError, UsageError
from qpnuclei.segmentation.engine import EngineOptions, EngineSpec
from qpnuclei.segmentation.foreign_engine import ForeignEngine
from qpnuclei.segmentation.outputs import as_arrays
from qpnuclei.segmentation.sidecar import read_sidecar, spec_of, with_options

if TYPE_CHECKING:
    from qpnuclei.segmentation.onnx_session import Provider

_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"

#: ONNX Runtime's name for the type of `Network`'s input.
_FLOAT32 = "tensor(float)"


class OnnxEngineFactory:
    """Finds and loads ONNX files with their sidecars."""

    def spec(self, model: str) -> EngineSpec:
        """Return the spec of a model; see `qpnuclei.segmentation.engine.EngineFactory.spec`."""
        return spec_of(Path(model))

    def load(self, model: str, options: EngineOptions) -> ForeignEngine:
        """Load a model; see `qpnuclei.segmentation.engine.EngineFactory.load`."""
        import onnxruntime

        from qpnuclei.segmentation.onnx_session import open_session, run_session

        path = Path(model)
        sidecar = with_options(read_sidecar(path), "onnx", options)
        spec = spec_of(path, sidecar)
        providers = _providers(onnxruntime.get_available_providers(), options.device)
        try:
            # One thread: see qpnuclei.segmentation.threads.
            session = open_session(str(path), 1, providers)
        except Exception as error:  # ONNX Runtime raises a different exception for every failure
            raise ModelError(
                f"{path} is not an ONNX model that can be run: {str(error).splitlines()[0]}"
            ) from error
        device = _device_used(session.get_providers(), options.device)
        inputs = session.get_inputs()
        if len(inputs) != 1:
            raise ModelError(f"{path} has {len(inputs)} inputs; it must have one, the image")
        if inputs[0].type != _FLOAT32:
            raise ModelError(
                f"the input of {path} is {inputs[0].type}, but it must be {_FLOAT32}",
                "export the network with an input of float32",
            )

        def run(pixels: npt.NDArray[np.float32]) -> Sequence[npt.NDArray[Any]]:
            try:
                outputs = run_session(session, pixels)
            except MemoryError:
                raise
            except Exception as error:  # as above
                raise ModelError(
                    f"{path} failed on {pixels.shape}: {str(error).splitlines()[0]}",
                    "check stride and channels in its sidecar; a network must accept every "
                    "multiple of the stride as height and width",
                ) from error
            return as_arrays(outputs, path)

        return ForeignEngine(run, sidecar, spec, options, f"{device}, ONNX Runtime")


def _providers(available: Sequence[str], device: str) -> list[Provider]:
    """Return ONNX Runtime's names for a device, in the order in which they are tried."""
    if device == "auto":
        return [p for p in (_CUDA, _CPU) if p in available]
    if device == "cpu":
        return [_CPU]
    cuda = re.fullmatch(r"cuda(?::(\d+))?", device)
    if cuda is None:
        raise UsageError(
            f"no such device for an ONNX model: {device!r}", "use auto, cpu, cuda or cuda:N"
        )
    if _CUDA not in available:
        raise DeviceError(
            f"device {device!r} was requested, but this ONNX Runtime does not support CUDA",
            f"it supports {', '.join(available)}; use --device auto or cpu",
        )
    return [(_CUDA, {"device_id": int(cuda[1] or 0)})]


def _device_used(providers: Sequence[str], device: str) -> str:
    """Return the device on which a session with these providers runs.

    Raises
    ------
    DeviceError
        If it is not the one that was requested: without a GPU, ONNX Runtime takes the CPU.
    """
    on_cuda = _CUDA in providers
    if device == "auto":
        return "cuda" if on_cuda else "cpu"
    if device != "cpu" and not on_cuda:
        raise DeviceError(
            f"device {device!r} was requested, but ONNX Runtime cannot use it",
            "use --device auto or cpu; the first GPU is cuda:0",
        )
    return device
