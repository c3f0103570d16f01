"""Columns of bytes: what N records hold at one place, copied from and to them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Column:
    """The contents of one slot in N records: record i has ``data[offsets[i]:offsets[i + 1]]``."""

    data: bytes
    offsets: IntArray


def gather(data: bytes, begins: IntArray, ends: IntArray) -> Column:
    """Return ``data[begins[i]:ends[i]]`` for every i."""
    offsets = np.concatenate([[0], np.cumsum(ends - begins)])
    out = np.empty(offsets[-1], np.uint8)
    write_pieces(out, offsets[:-1], [Spans(np.frombuffer(data, np.uint8), begins, ends)])
    return Column(out.tobytes(), offsets)


@dataclass(frozen=True, eq=False)
class Spans:
    """A part of N records: record i has ``data[begins[i]:ends[i]]``."""

    data: npt.NDArray[np.uint8]
    begins: IntArray
    ends: IntArray


#: A part of N records: the same bytes in all of them, or bytes of each.
Piece = bytes | Spans


def write_pieces(out: npt.NDArray[np.uint8], begins: IntArray, pieces: Iterable[Piece]) -> None:
    """Write N records, pieces one after the other, to `out` from `begins` on."""
    from qpnuclei.qupath.qpdata.kernels import copy_pieces

    at, zeros = begins.copy(), np.zeros_like(begins)
    for piece in pieces:
        if isinstance(piece, bytes):
            piece = Spans(np.frombuffer(piece, np.uint8), zeros, zeros + len(piece))
        copy_pieces(out, at, piece.data, piece.begins, piece.ends)
