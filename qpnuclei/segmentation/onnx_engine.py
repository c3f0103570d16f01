"""The engine of ONNX models: ``--model onnx:FILE``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qpnuclei.errors import ModelError, UsageError
from qpnuclei.segmentation.engine import EngineOptions, EngineSpec
from qpnuclei.segmentation.foreign_engine import ForeignEngine
from qpnuclei.segmentation.sidecar import read_sidecar, spec_of, with_options

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


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
        inputs = session.get_inputs()
        if len(inputs) != 1:
            raise ModelError(f"{path} has {len(inputs)} inputs; it must have one, the image")

        def run(pixels: npt.NDArray[np.float32]) -> Sequence[npt.NDArray[Any]]:
            try:
                return run_session(session, pixels)
            except MemoryError:
                raise
            except Exception as error:  # as above
                raise ModelError(
                    f"{path} failed on {pixels.shape}: {str(error).splitlines()[0]}",
                    "check stride and channels in its sidecar",
                ) from error

        device = session.get_providers()[0].removesuffix("ExecutionProvider").lower()
        return ForeignEngine(run, sidecar, spec, options, f"{device}, ONNX Runtime")


def _providers(available: Sequence[str], device: str) -> list[str]:
    """Return ONNX Runtime's names for a device, in the order in which they are tried."""
    wanted = device.partition(":")[0]
    if wanted == "auto":
        return [p for p in (_PROVIDERS["cuda"], _PROVIDERS["cpu"]) if p in available]
    provider = _PROVIDERS.get(wanted)
    if provider is None or provider not in available:
        raise UsageError(
            f"--device {device}: this ONNX Runtime does not support it",
            f"it supports {', '.join(available)}",
        )
    return [provider]
