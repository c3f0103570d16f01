"""Load and run ONNX graphs in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime

#: ONNX Runtime's name of a kind of device, alone or with the options that select one.
Provider: TypeAlias = str | tuple[str, dict[str, Any]]

#: Text in ONNX Runtime's errors if memory is short; it has no separate exception for that.
_NO_MEMORY = ("Failed to allocate memory", "bad allocation", "bad_alloc")

#: ONNX Runtime prints nothing to stderr, because every failure is also an exception.
_FATAL_ONLY = 4


def open_session(
    graph: str | bytes, threads: int, providers: Sequence[Provider] = ("CPUExecutionProvider",)
) -> onnxruntime.InferenceSession:
    """Load a graph.

    Parameters
    ----------
    graph : str or bytes
        Path of an ONNX file, or its content.
    threads : int
        Number of threads that compute one call.
    providers : sequence of Provider
        In the order in which they are tried.

    Raises
    ------
    Exception
        An exception of one of many classes, if the graph cannot be run.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL_ONLY
    return onnxruntime.InferenceSession(graph, options, providers=list(providers))


def run_session(
    session: onnxruntime.InferenceSession, pixels: npt.NDArray[np.float32]
) -> list[npt.NDArray[Any]]:
    """Return all outputs of a graph with one input. Threads may call it at the same time.

    Raises
    ------
    MemoryError
        If memory is short.
    Exception
        An exception of one of many classes, if the graph cannot take these pixels.
    """
    (image,) = session.get_inputs()
    try:
        return list(session.run(None, {image.name: pixels}))
    except Exception as error:
        if any(words in str(error) for words in _NO_MEMORY):
            raise MemoryError(f"ONNX Runtime: not enough memory for {pixels.shape}") from error
        raise
