"""The sample projects, and what real QuPath reads from them, in the form of expected-*.json."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from qpnuclei.qupath.qpdata import java_classes as jc
from qpnuclei.qupath.qpdata import java_fields as jf
from qpnuclei.qupath.qpdata import java_nodes, java_parser
from qpnuclei.qupath.qpdata.data_file import DataFile
from qpnuclei.qupath.qpdata.packed_records import Packed
from qpnuclei.qupath.qpdata.path_classes import path_class_names
from qpnuclei.qupath.qpdata.path_objects import OBJECT_ID, PathObject, packed_kind, walk
from qpnuclei.qupath.qpdata.record_packer import RecordPacker
from qpnuclei.qupath.qpdata.stains import stains_node
from qpnuclei.slides.stains import Stains
from tests.paths import SAMPLES, SHARED

VERSIONS = sorted(p.name for p in SAMPLES.iterdir())
DATA_FILES = sorted(SAMPLES.glob("*/project/data/*/data.qpdata"))
REAL_DATA_FILES = sorted(SHARED.glob("data/qupath-real/*/data/*/data.qpdata"))


def copy_project(version: str, folder: Path) -> Path:
    """Copy a sample project with its images; return the .qpproj file."""
    shutil.copytree(SAMPLES / version, folder / version)
    return folder / version / "project" / "project.qpproj"


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of the files of a folder by their names."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def set_stains(path: Path, stains: Stains) -> None:
    """Change the stain vectors in a data file, as a user does in QuPath's tab *Image*."""
    data_file = DataFile.parse(path.read_bytes(), str(path))
    data_file._items = [
        stains_node(data_file._catalog, stains)
        if getattr(item, "class_name", None) == jc.STAINS
        else item
        for item in data_file._items
    ]
    with path.open("wb") as stream:
        data_file.write(stream.write)


def dump(data: bytes) -> dict[str, Any]:
    """Return what a data file holds, in the form of expected-*.json."""
    stream = java_parser.parse(data, "test", RecordPacker(packed_kind))
    by_class = {getattr(item, "class_name", None): item for item in stream.items}
    image_type = next(i for i in stream.items if isinstance(i, java_nodes.JavaEnum))
    hierarchy = by_class[jc.HIERARCHY]
    return {
        "type": image_type.name.text,
        "stains": jf.contents(by_class[jc.STAINS])[1].text,
        "workflow": [_step(s) for s in jf.contents(by_class[jc.WORKFLOW])[1:]],
        "props": sorted(_properties(by_class[jc.HASH_MAP])),
        "tma": _tma(jf.reference(hierarchy, "tmaGrid")),
        "root": _tree(jf.reference(hierarchy, "rootObject")),
    }


def _step(node: java_nodes.JavaObject) -> list[str | None]:
    if node.class_name == jc.SCRIPT_STEP:
        return [jf.string_field(node, "name").text, jf.string_field(node, "script").text]
    _, name, plugin, argument, _, _ = jf.contents(node)
    return [name.text, f"runPlugin('{plugin.text}', '{argument.text}');"]


def _properties(node: java_nodes.JavaObject) -> list[list[str]]:
    _, *items = jf.contents(node)
    texts = [
        i.text if isinstance(i, java_nodes.JavaString) else str(jf.primitive(i, "value"))
        for i in items
    ]
    return [list(pair) for pair in zip(texts[::2], texts[1::2], strict=True)]


def _tma(grid: java_nodes.JavaObject | None) -> list[Any] | None:
    if grid is None:
        return None
    cores = [PathObject.of(c).name.text for c in jf.list_items(jf.reference(grid, "cores"))]
    return [jf.primitive(grid, "gridWidth"), jf.primitive(grid, "gridHeight"), cores]


def _tree(root: java_nodes.JavaObject) -> dict[str, Any]:
    made: dict[java_nodes.JavaObject | None, dict[str, Any]] = {}
    top: list[dict[str, Any]] = []
    for item, ancestors in walk(root):
        nodes = (
            [item.node(i) for i in range(len(item))] if isinstance(item, Packed) else [item.node]
        )
        siblings = made[ancestors[-1].node]["children"] if ancestors else top
        for node in nodes:
            made[node] = _object(PathObject.of(node), len(ancestors))
            siblings.append(made[node])
    return top[0]


def _object(view: PathObject, level: int) -> dict[str, Any]:
    metadata = {k.text: v.text for k, v in view.metadata}
    made: dict[str, Any] = {
        "cls": view.node.class_name.rpartition(".")[2],
        "name": None if view.name is None else view.name.text,
        "level": level,
        "color": None if view.color is None else jf.primitive(view.color, "value"),
        "class": _path_class(view.path_class),
        "prob": _number(view.class_probability),
        "locked": view.is_locked,
        "roi": _roi(view.roi),
        "meas": _measurements(view.measurements),
        "children": [],
    }
    if OBJECT_ID in metadata:
        made["id"] = metadata.pop(OBJECT_ID)
    made["md"] = metadata
    if view.kind == "cell":
        made["nuc"] = _roi(view.nucleus)
    if view.kind == "core":
        made["missing"] = view.is_missing
    if view.kind == "root":  # not stored: QuPath's constants
        made.update({"class": ["Image", -8355712], "locked": True})
    return made


def _path_class(node: java_nodes.JavaObject | None) -> list[Any] | None:
    if node is None:
        return None
    return [
        ": ".join(path_class_names(node)),
        jf.primitive(jf.reference(node, "colorRGB"), "value"),
    ]


def _number(value: float) -> float | str:
    return "nan" if np.isnan(value) else float(value)


def array_values(array: java_nodes.JavaArray) -> np.ndarray:
    """Return the values of an array of float or double."""
    return np.frombuffer(array.data, {"F": ">f4", "D": ">f8"}[array.desc.name[1]])


def _roi(node: java_nodes.JavaObject | None) -> list[Any] | None:
    if node is None:
        return None
    name = node.class_name.rpartition(".")[2].partition("$")[0]
    plane = [jf.primitive(node, k) for k in "czt"]
    if name in ("RectangleROI", "EllipseROI"):
        x, y, x2, y2 = (jf.primitive(node, k) for k in ("x", "y", "x2", "y2"))
        data: Any = [x, y, x2 - x, y2 - y]
    elif name == "LineROI":
        data = [[jf.primitive(node, k) for k in pair] for pair in (("x", "y"), ("x2", "y2"))]
    elif name == "GeometryROI":
        data = jf.array_field(node, "wkb", jc.BYTE_ARRAY).data.hex().upper()
    else:
        x, y = (array_values(jf.array_field(node, k, jc.FLOAT_ARRAY)) for k in "xy")
        data = np.stack([x, y], axis=1).astype(float).tolist()
    return [name, *plane, data]


def _measurements(node: java_nodes.JavaObject | None) -> list[list[Any]]:
    if node is None:
        return []
    if node.class_name == jc.DEFAULT_LIST:
        items = jf.list_items(jf.reference(node, "list"))
        return [[jf.string_field(m, "name").text, jf.primitive(m, "value")] for m in items]
    names = jf.list_items(jf.reference(node, "names"))
    values = array_values(jf.reference(node, "values"))
    return [[n.text, _number(v)] for n, v in zip(names, values, strict=False)]
