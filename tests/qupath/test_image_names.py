"""Which images of a project a name, a pattern or an entry ID means."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from qpnuclei.errors import UsageError
from qpnuclei.qupath.image_names import images_called, one_image, unique_name


def images(*names: str) -> Any:
    return [SimpleNamespace(id=str(number), name=name) for number, name in enumerate(names, 1)]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ((), "1 2 3 4 5"),
        (("slide[1].svs",), "1"),
        (("slide1.svs",), "2"),
        (("slide[1]*",), "1"),
        (("slide*.svs",), "1 2 4"),
        # The name of an image is neither a pattern nor an ID.
        (("slide?.svs",), "4"),
        (("1",), "3"),
        (("2", "5"), "2 5"),
        (("slide[12].svs",), ""),
    ],
)
def test_what_images_are_called(patterns: tuple[str, ...], expected: str) -> None:
    project = images("slide[1].svs", "slide1.svs", "1", "slide?.svs", "other.png")
    assert " ".join(entry.id for entry in images_called(project, patterns)) == expected


def test_one_image_is_called_by_its_name_before_an_id() -> None:
    project = images("2", "1", "twin", "twin")
    assert [one_image(project, name).id for name in ("1", "2", "3")] == ["2", "1", "3"]
    with pytest.raises(UsageError, match="2 images are called 'twin'") as caught:
        one_image(project, "twin")
    assert "3, 4" in caught.value.hint


def test_a_unique_name_selects_its_image_alone() -> None:
    project = images("slide?.svs", "slide1.svs", "twin", "twin", "na\u00efve", "nai\u0308ve", "9")
    names = [unique_name(project, entry) for entry in project]
    assert names == ["slide?.svs", "slide1.svs", "3", "4", "5", "6", "9"]
    for name, entry in zip(names, project, strict=True):
        assert images_called(project, [name]) == [entry]
        assert one_image(project, name) == entry


def test_no_unique_name_is_that_of_another_image() -> None:
    project = images("twin", "twin", "1")
    assert [unique_name(project, entry) for entry in project] == ["twin", "2", "1"]
