"""JSON with any path, and how deeply it may be nested."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpnuclei.system.json_text import MAX_DEPTH, NestingError, json_bytes, parse_json, refuse_deep

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@pytest.fixture(params=[400, 1000, 20_000])
def _recursion_limit(request: pytest.FixtureRequest) -> Iterator[None]:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(request.param)
    yield
    sys.setrecursionlimit(before)


@given(values)
def test_what_is_shallow_is_read_as_it_is(value: object) -> None:
    assert parse_json(json.dumps(value)) == value


@given(st.binary().map(os.fsdecode), st.integers(0, 2))
def test_a_path_of_any_bytes_is_read_as_it_was_written(path: str, indent: int) -> None:
    value = {"path": path, path: [path, "ü\n"]}
    assert json.loads(json_bytes(value, indent=indent)) == value
    assert parse_json(json_bytes(value, indent=indent).decode()) == value


@pytest.mark.usefixtures("_recursion_limit")
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), ('[0,{"a":', "}]")])
def test_the_limit_does_not_depend_on_the_interpreter(opening: str, closing: str) -> None:
    per_level = sum(c in "[{" for c in opening)

    def nested(levels: int) -> str:
        return opening * levels + "0" + closing * levels

    assert parse_json(nested(MAX_DEPTH // per_level))
    for levels in (MAX_DEPTH // per_level + 1, 200, 900, 100_000):
        with pytest.raises(NestingError, match="nested too deeply"):
            parse_json(nested(levels))


def test_values_that_the_caller_checks_are_not_checked() -> None:
    deep: list[object] = []
    for _ in range(MAX_DEPTH):
        deep = [deep]
    with pytest.raises(NestingError):
        refuse_deep(deep)
    refuse_deep([{"coordinates": deep}], unless_under="coordinates")
    with pytest.raises(NestingError):
        refuse_deep([{"other": deep}], unless_under="coordinates")
