"""Compiled loops over the bytes of many records; imported only when they are needed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qpnuclei.system.compiled import compiled

IntArray = npt.NDArray[np.int64]
Octets = npt.NDArray[np.uint8]


@compiled
def copy_pieces(out: Octets, at: IntArray, data: Octets, begins: IntArray, ends: IntArray) -> None:
    """Copy ``data[begins[i]:ends[i]]`` to ``out[at[i]:]`` for every i, and move ``at[i]`` past it.

    Parameters
    ----------
    out : (M,) uint8 ndarray
    at : (N,) int64 ndarray
    data : (K,) uint8 ndarray
    begins, ends : (N,) int64 ndarray
        Ranges within `data`; the copies must fit into `out`.
    """
    for i in range(len(at)):
        position = at[i]
        for k in range(begins[i], ends[i]):
            out[position] = data[k]
            position += 1
        at[i] = position


@compiled
def match_records(
    data: Octets,
    start: int,
    literals: Octets,
    literal_ends: IntArray,
    prefixes: IntArray,
    units: IntArray,
    starts: IntArray,
) -> tuple[int, int]:
    """Find consecutive records: each consists of literals, with contents of any length between.

    Parameters
    ----------
    data : (K,) uint8 ndarray
    start : int
        Start of the first record.
    literals : (L,) uint8 ndarray
        The S + 1 literals of a record, one after the other.
    literal_ends : (S + 1,) int64 ndarray
        End of each literal.
    prefixes : (S,) int64 ndarray
        Number of bytes of the big-endian length before each content; 0 if the length is fixed.
    units : (S,) int64 ndarray
        Number of bytes per unit of that length; if it is fixed, the size of the content.
    starts : (C,) int64 ndarray
        The starts of the records are written into it.

    Returns
    -------
    count : int
        Number of records found, at most C.
    end : int
        End of the last record.
    """
    for count in range(len(starts)):
        position = start
        literal = 0
        for slot in range(len(literal_ends)):
            if position + literal_ends[slot] - literal > len(data):
                return count, start
            while literal < literal_ends[slot]:
                if data[position] != literals[literal]:
                    return count, start
                position += 1
                literal += 1
            if slot == len(prefixes):
                break
            size = 1
            if prefixes[slot]:
                if position + prefixes[slot] > len(data):
                    return count, start
                size = 0
                for _ in range(prefixes[slot]):
                    size = size << 8 | data[position]
                    position += 1
            position += size * units[slot]
        starts[count] = start
        start = position
    return len(starts), start
