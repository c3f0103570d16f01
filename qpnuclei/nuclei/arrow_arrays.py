"""Convert NumPy arrays to Arrow arrays, and back.

If pandas is installed, pyarrow's own conversions import it even when they do not need it. That
takes longer than all reading and writing of a small run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pyarrow as pa


def from_numbers(values: npt.NDArray[Any]) -> pa.Array:
    """Return (N,) numbers as an array without nulls."""
    import pyarrow as pa

    values = np.ascontiguousarray(values)
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)], 0)


def from_flags(flags: npt.NDArray[np.bool_]) -> pa.Array:
    """Return (N,) truth values as an array without nulls."""
    import pyarrow as pa

    bits = pa.py_buffer(np.packbits(flags, bitorder="little"))
    return pa.Array.from_buffers(pa.bool_(), len(flags), [None, bits], 0)


def from_spans(data: bytes | npt.NDArray[Any], edges: npt.NDArray[np.int64]) -> pa.Array:
    """Return binary values: value i is the bytes ``edges[i]`` to ``edges[i + 1] - 1`` of `data`."""
    import pyarrow as pa

    buffers = [None, pa.py_buffer(edges.astype(np.int32)), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.binary(), len(edges) - 1, buffers, 0)


def to_numbers(column: pa.Array | pa.ChunkedArray) -> npt.NDArray[Any]:
    """Return an array of numbers; a single chunk is not copied.

    Raises
    ------
    ValueError
        If a value is missing.
    """
    values = _whole(column)
    dtype = np.dtype(values.type.to_pandas_dtype())
    if not len(values):
        return np.empty(0, dtype)
    return np.frombuffer(values.buffers()[1], dtype)[values.offset : values.offset + len(values)]


def to_flags(column: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    """Return an array of truth values.

    Raises
    ------
    ValueError
        If a value is missing.
    """
    values = _whole(column)
    if not len(values):
        return np.empty(0, bool)
    bits = np.frombuffer(values.buffers()[1], np.uint8)
    stop = values.offset + len(values)
    return np.unpackbits(bits, count=stop, bitorder="little")[values.offset :].astype(bool)


def _whole(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    import pyarrow as pa

    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if column.null_count:
        raise ValueError("a value is missing")
    return column
