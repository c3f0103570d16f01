"""Files that someone broke, or made to do harm: read, or refused with one clear line."""

from __future__ import annotations

import gzip
import json
import math
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from qpnuclei.errors import FormatError, QpnucleiError, SlideError
from qpnuclei.qupath.geojson import json_stream
from qpnuclei.qupath.geojson.exporting import export_image
from qpnuclei.qupath.geojson.importing import import_file
from qpnuclei.qupath.geojson.reading import read_objects
from qpnuclei.qupath.inventory import describe_project
from qpnuclei.qupath.model import (
    Detections,
    Edit,
    NewAnnotation,
    PathClass,
)
from qpnuclei.qupath.names import file_stem
from qpnuclei.qupath.native import open_project
from qpnuclei.qupath.uris import candidates, find_image
from tests.ids import nucleus_id
from tests.paths import MEASUREMENTS, SAMPLES

PROJECT = SAMPLES / "0.5.1" / "project"
FEATURES = MEASUREMENTS / "objects.geojson"

ODD_VALUES = [
    None, True, -1, 0, 2**31, 2**63, 10**400, 1.5, math.nan, math.inf, "", "\0", "..", "../../x",
    "/etc/passwd", "C:\\x", "a\ud800", "\udc00", "two\nlines", "x" * 2000, "file:/%ff",
    "file://host/share", "µm", [], {}, [[]], [None], {"": None}, {"type": "Point"}, [1, 2, 3],
]  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn, value: Any) -> Any:
    """Draw JSON in which some values are odd, missing, doubled or wrapped."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 3))):
        parent, key, child = None, None, value
        while isinstance(child, dict | list) and child and draw(st.integers(0, 5)):
            keys = list(child) if isinstance(child, dict) else list(range(len(child)))
            parent, key = child, draw(st.sampled_from(keys))
            child = parent[key]
        if parent is None:
            continue
        match draw(st.integers(0, 5)):
            case 0:
                del parent[key]
            case 1:
                parent[key] = [child]
            case 2 if isinstance(parent, list):
                parent.append(child)
            case _:
                parent[key] = draw(st.sampled_from(ODD_VALUES))
    return value


def write_json(path: Path, value: Any) -> None:
    path.write_bytes(json.dumps(value).encode())


def attempt(action: Callable[[], object]) -> bool:
    """Do something; if it is refused, check that one line says what is wrong."""
    refused = None
    try:
        action()
    except QpnucleiError as error:
        refused = error
    if refused is not None:
        assert refused.what
        assert "\n" not in refused.what
        assert len(refused.what) < 1000
        assert "please report" not in refused.hint
    return refused is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of a project, alone in a folder; tests put back what they change."""
    return Path(shutil.copytree(PROJECT, tmp_path_factory.mktemp("hostile") / "only" / "project"))


def describe_detections(table: Detections) -> None:
    """Make every column, of which some may be made only now."""
    assert len(table.geometries) == len(table.centroids) == len(table.ids) == len(table)
    assert all(len(values) == len(table) for values in table.measurements.values())


def use_everything(folder: Path) -> None:
    project = open_project(folder)
    describe_project(project)
    for number, image in enumerate(project.images):
        assert image.data_path.parent.parent == folder / "data"
        assert "/" not in file_stem(image)
        image.name.encode()
        objects = image.read()
        describe_detections(objects.detections)
        path_class = project.classes[0] if project.classes else PathClass("New", -1)
        new = NewAnnotation(
            shapely.box(1, 1, 3, 3), nucleus_id(b"%010d" % number), None, path_class
        )
        taken = {a.id for a in objects.annotations}
        if new.id not in taken:
            image.write(Edit(annotations=[new]), objects.fingerprint)


@settings(max_examples=30)
@given(mutated(json.loads((PROJECT / "project.qpproj").read_text("utf-8"))))
def test_projects(folder: Path, content: Any) -> None:
    write_json(folder / "project.qpproj", content)
    attempt(lambda: use_everything(folder))
    assert [p.name for p in folder.parent.iterdir()] == ["project"]  # nothing is written outside
    shutil.copy(PROJECT / "project.qpproj", folder)


@settings(max_examples=30)
@given(mutated(json.loads((PROJECT / "classifiers" / "classes.json").read_text("utf-8"))))
def test_class_lists(folder: Path, content: Any) -> None:
    write_json(folder / "classifiers" / "classes.json", content)
    attempt(lambda: use_everything(folder))
    shutil.copy(PROJECT / "classifiers" / "classes.json", folder / "classifiers")


@settings(max_examples=15)
@given(mutated(json.loads((PROJECT / "data" / "1" / "summary.json").read_text("utf-8"))))
def test_summaries(folder: Path, content: Any) -> None:
    for number in "123":  # as if it were never edited
        shutil.copy(PROJECT / "data" / number / "data.qpdata", folder / "data" / number)
    write_json(folder / "data" / "1" / "summary.json", content)
    use_everything(folder)  # QuPath never reads it, and nor do we
    assert json.loads((folder / "data" / "1" / "summary.json").read_text())["hierarchy"]


@settings(max_examples=40)
@given(st.data())
def test_geojson(folder: Path, data: st.DataObject) -> None:
    features = json.loads(FEATURES.read_text("utf-8"))["features"]
    chosen = data.draw(st.lists(st.sampled_from(features), min_size=1, max_size=3))
    content = data.draw(mutated({"type": "FeatureCollection", "features": chosen}))
    path = folder / "import.geojson"
    write_json(path, content)
    project = open_project(folder)
    image = project.images[2]
    if attempt(lambda: import_file(project, image, path)):
        export_image(project, image, folder / "exported")
    image.read()


SAMPLE = (PROJECT / "data" / "1" / "data.qpdata").read_bytes()


@settings(max_examples=40)
@given(st.data())
def test_damaged_data_is_edited_or_refused(folder: Path, data: st.DataObject) -> None:
    """A damaged file that can still be read can also be edited, and read again."""
    content = bytearray(SAMPLE)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(4, len(content) - 1))
        patch = data.draw(
            st.sampled_from([b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff", bytes(4), b"\x7f\xc0\0\0"])
            | st.binary(min_size=1, max_size=3)
        )
        content[start : start + len(patch)] = patch
    image = open_project(folder).images[0]
    image.data_path.write_bytes(content)
    attempt(lambda: use_everything(folder))
    image.data_path.write_bytes(SAMPLE)


URI_PIECES = [
    "file:", "/", "//", "////", "\\", "C:", "c:/", "..", "%2e%2e", "%00", "%2F", "%zz", "%C3%BC",
    "ü", "组", "\ud800", "server", "x.svs", " ", "+", "#", "?", "//?/C:/", "localhost", "[::1]",
    ":", "~", "\n", "https:",
]  # fmt: skip


@settings(max_examples=300)
@given(*[st.lists(st.sampled_from(URI_PIECES), max_size=8).map("".join)] * 2)
def test_uris(uri: str, project_uri: str) -> None:
    root = Path("/the/root")
    find_image(uri, project_uri, Path("/new/project"), root)
    places = []
    with suppress(SlideError):
        places = list(candidates(uri, None, Path("/new/project"), root))
    for place in places[1:]:  # the first may be the URI itself
        assert place.is_relative_to(root)
        assert ".." not in place.parts


@pytest.mark.parametrize("depth", [100, 900, 100_000])
def test_deeply_nested_json(tmp_path: Path, depth: int) -> None:
    nested = '{"builder":' * depth + "{}" + "}" * depth
    text = '{"version":"0.5.1","images":[{"entryID":1,"serverBuilder":' + nested + "}]}"
    path = tmp_path / "project.qpproj"
    path.write_text(text)
    with pytest.raises(FormatError, match="is broken: nested too deeply"):
        open_project(path)


@pytest.mark.parametrize("depth", [102, 500, 100_000])
def test_deeply_nested_geojson(tmp_path: Path, depth: int) -> None:
    feature = '{"type":"Feature","geometry":{"type":"Point","coordinates":[1,2]},"properties":'
    children = (feature + '{"childObjects":[') * depth + "]}}" * depth
    for name, text in (("children", children), ("array", "[" * depth + "]" * depth)):
        path = tmp_path / f"{name}.geojson"
        path.write_text(text)
        with pytest.raises(FormatError, match="feature 0: nested too deeply"):
            list(read_objects(path))


def test_small_files_that_unpack_to_large_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gzip makes a thousandth of repeated text: memory is bounded by what a feature may take."""
    monkeypatch.setattr(json_stream, "_LONGEST_VALUE", 1 << 19)
    monkeypatch.setattr(json_stream, "_LONGEST_STRING", 1 << 19)
    path = tmp_path / "bomb.geojson.gz"
    for bomb in (
        b'{"type":"LineString","coordinates":[' + b"[0,0]," * (1 << 18),
        b'"' + b"a" * (1 << 22),
    ):
        path.write_bytes(gzip.compress(b'{"features":[' + bomb))
        with pytest.raises(FormatError, match="feature 0: "):
            list(read_objects(path))
