from __future__ import annotations

import subprocess
import sys
from itertools import accumulate

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qpnuclei.nuclei.arrow_arrays import (
    from_flags,
    from_numbers,
    from_spans,
    to_flags,
    to_numbers,
)

SLICES = st.slices(40).filter(lambda s: s.step is None or s.step == 1)
DTYPES = st.sampled_from([np.float32, np.float64, np.int32, np.int64])


@given(DTYPES.flatmap(lambda dtype: arrays(dtype, st.integers(0, 40))), SLICES)
def test_numbers_become_those_of_pyarrow_and_come_back(values: np.ndarray, part: slice) -> None:
    made = from_numbers(values[::-1])
    made.validate(full=True)
    expected = pa.array(values[::-1])
    assert made.type == expected.type
    assert made.null_count == 0
    for one in (made, pa.chunked_array([made, made])):
        back = to_numbers(one[part])
        assert back.dtype == values.dtype
        np.testing.assert_array_equal(back, one[part].to_numpy())


@given(arrays(bool, st.integers(0, 40)), SLICES)
def test_flags_become_those_of_pyarrow_and_come_back(flags: np.ndarray, part: slice) -> None:
    made = from_flags(flags)
    made.validate(full=True)
    assert made.equals(pa.array(flags))
    for one, all_flags in ((made, flags), (pa.chunked_array([made, made]), np.tile(flags, 2))):
        np.testing.assert_array_equal(to_flags(one[part]), all_flags[part])


@given(st.lists(st.binary(max_size=9)))
def test_spans_are_the_bytes_between_edges(values: list[bytes]) -> None:
    edges = np.array([*accumulate(map(len, values), initial=0)], np.int64)
    made = from_spans(b"".join(values), edges)
    made.validate(full=True)
    assert made.equals(pa.array(values, pa.binary()))


def test_a_missing_value_is_refused() -> None:
    with pytest.raises(ValueError, match="missing"):
        to_numbers(pa.array([1.0, None]))
    with pytest.raises(ValueError, match="missing"):
        to_flags(pa.array([True, None]))


def test_shards_need_no_pandas() -> None:
    code = """
import sys
import numpy as np
from pathlib import Path
from qpnuclei.nuclei.store import temporary_shards
from qpnuclei.nuclei.table import NucleiTable
offsets, columns = np.array([0, 4, 8]), {"a": np.ones(2, "f4")}
nuclei = NucleiTable(np.zeros((8, 2), "f4"), offsets, np.arange(3), columns)
with temporary_shards(Path(), 1) as shards:
    shards.append(nuclei)
    print(len(shards[0]), {"pandas", "pyarrow.dataset", "pyarrow.compute"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "2 set()\n"
