"""Load and run ONNX graphs in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

#: What ONNX Runtime's errors say if memory is short; it has no exception of its own for that.
_NO_MEMORY = ("Failed to allocate memory", "bad allocation", "bad_alloc")

#: Its own lines on stderr: none, as every failure is also an exception.
_FATAL_ONLY = 4


def open_session(
    graph: str | bytes, threads: int, providers: Sequence[str] = ("CPUExecutionProvider",)
) -> onnxruntime.InferenceSession:
    """Load a graph.

    Parameters
    ----------
    graph : str or bytes
        Path of an ONNX file, or its content.
    threads : int
        With which one call computes.
    providers : sequence of str
        ONNX Runtime's names of devices, in the order in which they are tried.

    Raises
    ------
    Exception
        Of many classes, if the graph cannot be run.
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
        Of many classes, if the graph cannot take these pixels.
    """
    (taken,) = session.get_inputs()
    try:
        return list(session.run(None, {taken.name: pixels}))
    except Exception as error:
        if any(words in str(error) for words in _NO_MEMORY):
            raise MemoryError(f"ONNX Runtime: not enough memory for {pixels.shape}") from error
        raise
