"""The engine of TorchScript models: ``--model torchscript:FILE``.

A TorchScript file is a program. It cannot call Python, but it can run forever or fill the memory:
use only files that you trust.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qpnuclei.errors import ModelError
from qpnuclei.segmentation.engine import EngineOptions, EngineSpec
from qpnuclei.segmentation.foreign_engine import ForeignEngine
from qpnuclei.segmentation.outputs import as_arrays
from qpnuclei.segmentation.sidecar import read_sidecar, spec_of, with_options


class TorchScriptEngineFactory:
    """Finds and loads TorchScript files with their sidecars."""

    def spec(self, model: str) -> EngineSpec:
        """Return the spec of a model; see `qpnuclei.segmentation.engine.EngineFactory.spec`."""
        return spec_of(Path(model))

    def load(self, model: str, options: EngineOptions) -> ForeignEngine:
        """Load a model; see `qpnuclei.segmentation.engine.EngineFactory.load`."""
        import torch

        from qpnuclei.models.device import resolve_device

        path = Path(model)
        sidecar = with_options(read_sidecar(path), "torchscript", options)
        spec = spec_of(path, sidecar)
        device = resolve_device(options.device)
        try:
            with warnings.catch_warnings():
                # torch prefers a newer format, but TorchScript is what many published models use.
                warnings.filterwarnings("ignore", message=".*deprecated", category=FutureWarning)
                network = torch.jit.load(  # type: ignore[no-untyped-call]
                    str(path), map_location=device
                ).eval()
        except (RuntimeError, ValueError) as error:
            raise ModelError(
                f"{path} is not a TorchScript model: {str(error).splitlines()[0]}",
                "export it with torch.jit.save",
            ) from error

        def in_numpy(output: object) -> object:
            """Return a tensor as an ndarray; leave what NumPy cannot hold as it is."""
            if not isinstance(output, torch.Tensor) or output.is_quantized:
                return output
            if output.layout != torch.strided:
                return output
            if output.is_floating_point() and output.element_size() < 4:
                output = output.float()  # NumPy has no bfloat16
            return output.resolve_conj().resolve_neg().cpu().numpy()

        @torch.inference_mode()
        def run(pixels: npt.NDArray[np.float32]) -> Sequence[npt.NDArray[Any]]:
            try:
                found = network(torch.from_numpy(pixels).to(device))
            except RuntimeError as error:
                raise ModelError(
                    f"{path} failed on {pixels.shape}: {str(error).strip().splitlines()[-1]}"
                ) from error
            outputs = found if isinstance(found, (tuple, list)) else [found]
            return as_arrays([in_numpy(output) for output in outputs], path)

        return ForeignEngine(run, sidecar, spec, options, f"{device}, TorchScript")
