from __future__ import annotations

import numpy as np
import pytest

from qpnuclei.qupath.qpdata.kernels import copy_pieces, match_records


def octets(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


def test_pieces_go_to_their_records() -> None:
    out = np.zeros(9, np.uint8)
    at = np.array([5, 0])
    copy_pieces(out, at, octets(b"abcdef"), np.array([0, 2]), np.array([2, 6]))
    copy_pieces(out, at, octets(b"!"), np.array([0, 0]), np.array([1, 1]))
    assert out.tobytes() == b"cdef!ab!\0"
    assert at.tolist() == [8, 5]


# A record: "<", a 2-byte count of pairs, the pairs, "-", three bytes, ">".
LITERALS, LITERAL_ENDS = octets(b"<->"), np.array([1, 2, 3])
PREFIXES, UNITS = np.array([2, 0]), np.array([2, 3])
SHORT, LONG = b"<\0\0-xyz>", b"<\0\2abcd-xyz>"


def match(data: bytes, start: int = 0, capacity: int = 5) -> tuple[list[int], int]:
    starts = np.zeros(capacity, np.int64)
    count, end = match_records(octets(data), start, LITERALS, LITERAL_ENDS, PREFIXES, UNITS, starts)
    return starts[:count].tolist(), end


def test_consecutive_records_are_found() -> None:
    data = b"??" + SHORT + LONG + SHORT + b"<\0"
    assert match(data, 2) == ([2, 10, 22], 30)
    assert match(data, 2, capacity=2) == ([2, 10], 22)
    assert match(data, 0) == ([], 0)
    assert match(data, 30) == ([], 30)
    assert match(data, len(data)) == ([], len(data))


@pytest.mark.parametrize("cut", range(1, len(LONG)))
def test_a_record_that_is_cut_is_none(cut: int) -> None:
    assert match(SHORT + LONG[:cut]) == ([0], len(SHORT))


@pytest.mark.parametrize(
    "data", [b"<\0\0+xyz>", b"<\0\0-xyz!", b"<\xff\xff-xyz>", b"<\0\1-xyz>", b"-\0\0-xyz>"]
)
def test_what_differs_is_no_record(data: bytes) -> None:
    assert match(SHORT + data) == ([0], len(SHORT))
