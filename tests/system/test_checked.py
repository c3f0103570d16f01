from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from msgspec import Meta, Struct

from qpnuclei.system.checked import FieldError, as_json, checked, rechecked


class Part(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    share: Annotated[float, Meta(ge=0, le=1)] = 0.5
    sizes: tuple[int, ...] = ()
    kind: Literal["maps", "labels"] = "maps"
    grid: Literal[2, 4] | None = None

    def __post_init__(self) -> None:
        if self.kind == "labels" and self.grid:
            raise ValueError("labels have no grid")


class Whole(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: str
    part: Part = Part()
    parts: tuple[Part, ...] = ()
    more: dict[str, Any] = {}


@pytest.mark.parametrize(
    ("content", "field", "value", "text"),
    [
        ({}, "name", None, "'name': it is missing"),
        ([], "", [], "expected names with values, got a list"),
        ({"name": 3}, "name", 3, "'name' is 3: expected a text, got an integer"),
        ({"name": "a", "title": 1}, "title", 1, "'title' is 1: there is no such field"),
        (
            {"part": {"share": 7}, "name": "a"},
            "part.share",
            7,
            "is 7: expected a number <= 1.0",
        ),
        ({"part": {"share": math.nan}, "name": "a"}, "part.share", None, "'part.share' is nan: "),
        ({"part": {"share": "7"}, "name": "a"}, "part.share", "7", "expected a number, got a text"),
        ({"parts": [{}, {"sizes": [1, "x"]}], "name": "a"}, "parts.1.sizes.1", "x", "an integer, "),
        ({"part": {"kind": "map"}, "name": "a"}, "part.kind", "map", "expected 'maps' or 'labels'"),
        ({"part": {"kind": 1}, "name": "a"}, "part.kind", 1, "expected 'maps' or 'labels'"),
        ({"part": {"grid": 3}, "name": "a"}, "part.grid", 3, "is 3: expected 2 or 4"),
        ({"part": {"kind": "labels", "grid": 2}, "name": "a"}, "part", None, "labels have no grid"),
    ],
)
def test_an_error_says_which_field_what_it_is_and_what_it_may_be(
    content: object, field: str, value: object, text: str
) -> None:
    with pytest.raises(FieldError) as caught:
        checked(content, Whole)
    assert (caught.value.field, text in str(caught.value)) == (field, True), str(caught.value)
    assert value is None or caught.value.value == value
    assert caught.value.is_unknown == (field == "title")


@pytest.mark.parametrize("name", ["", "`", " - at `$.part.share`", "a\nb", "x" * 10**6, "[0]"])
def test_whatever_an_unknown_field_is_called_the_error_is_short(name: str) -> None:
    for content in ({"name": "a", name: 1}, {"name": "a", "part": {name: [1] * 1000}}):
        with pytest.raises(FieldError) as caught:
            checked(content, Whole)
        assert len(str(caught.value)) < 500


def test_text_that_is_a_number_counts_if_it_may() -> None:
    # YAML reads 1e-3 as a text.
    content = {"name": "a", "part": {"share": "1e-3"}}
    assert checked(content, Whole, strict=False).part.share == 1e-3
    with pytest.raises(FieldError, match="got a text"):
        checked(content, Whole)


@dataclass(frozen=True)
class Options:
    folder: Path | None = None


def test_paths_are_made_of_texts() -> None:
    assert checked({"folder": "a/b"}, Options).folder == Path("a/b")
    assert checked({"folder": None}, Options).folder is None
    with pytest.raises(FieldError, match="'folder' is 3"):
        checked({"folder": 3}, Options)


class Places(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    one: Options = Options()
    many: tuple[Options, ...] = ()
    named: dict[str, Options] = {}


@pytest.mark.parametrize(
    ("content", "kind", "field"),
    [
        ({"foldr": "a"}, Options, "foldr"),
        ({"one": {"folder": "a", "foldr": "b"}}, Places, "one.foldr"),
        ({"many": [{}, {"foldr": "b"}]}, Places, "many.1.foldr"),
        ({"named": {"x": {}, "y": {"foldr": "b"}}}, Places, "named.y.foldr"),
    ],
)
def test_a_data_class_has_no_unknown_fields_either(content: object, kind: type, field: str) -> None:
    with pytest.raises(FieldError, match="there is no such field") as caught:
        checked(content, kind)
    assert (caught.value.field, caught.value.is_unknown) == (field, True)


def test_what_python_made_becomes_what_a_file_would_hold() -> None:
    made = Whole(
        name="a", part=Part(share=np.float64(1), sizes=[1]), more={"x": (1, np.float64(2))}
    )
    again = rechecked(made)
    assert type(again.part.share) is float
    assert again == Whole(name="a", part=Part(share=1.0, sizes=(1,)), more={"x": [1, 2.0]})
    assert as_json(again) == as_json(made)
    with pytest.raises(FieldError, match=r"'part\.share' is 2"):
        rechecked(Whole(name="a", part=Part(share=2)))


@pytest.mark.parametrize(
    "content",
    [
        {"name": "a", "\ud800": 1},
        {"name": "a", "part": {"kind": "\ud800"}},
        {"name": "a", "part": {"grid": "\ud800"}},
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_a_surrogate_is_an_error_of_the_content(content: object, strict: bool) -> None:
    with pytest.raises(FieldError) as caught:
        checked(content, Whole, strict=strict)
    str(caught.value).encode()


@pytest.mark.parametrize("name", [f"a - at `$[{'9' * 5000}]`", "a - at `$.name`", "a`b", "a\nb"])
def test_the_name_of_an_unknown_field_may_be_anything(name: str) -> None:
    with pytest.raises(FieldError) as caught:
        checked({"name": "a", "part": {name: 1}}, Whole)
    assert (caught.value.field, caught.value.is_unknown) == (f"part.{name}", True)
    with pytest.raises(FieldError) as caught:
        checked({"name": "a", name: 1}, Whole)
    assert (caught.value.field, caught.value.is_unknown) == (name, True)


def test_numbers_of_numpy_keep_their_kind() -> None:
    read = as_json({"i": np.int64(2**62 + 1), "f": np.float32(0.5), "b": np.bool_(True)})
    assert read == {"i": 2**62 + 1, "f": 0.5, "b": True}
    assert [type(value) for value in read.values()] == [int, float, bool]
