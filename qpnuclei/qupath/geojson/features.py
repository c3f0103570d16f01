"""Convert the features of a GeoJSON file to objects, in the dialects of QuPath 0.2 to 0.7."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from uuid import UUID

import numpy as np
import shapely
import shapely.geometry

from qpnuclei.errors import quoted
from qpnuclei.qupath.geojson.objects import GeoJsonObject
from qpnuclei.qupath.geojson.problems import GeoJsonError, Reporter
from qpnuclei.qupath.model import PathClass

#: Kind of object by the names of its type in all QuPath versions.
_KINDS = {
    name: kind
    for kind, names in {
        "annotation": ("annotation", "PathAnnotationObject", "unknown"),
        "detection": ("detection", "PathDetectionObject"),
        "cell": ("cell", "PathCellObject"),
        "tile": ("tile", "PathTileObject"),
        "tmaCore": ("tmaCore", "tma_core", "TMACoreObject"),
        "root": ("root", "PathRootObject"),
    }.items()
    for name in names
}


def objects_of(value: Any, reporter: Reporter) -> Iterator[GeoJsonObject]:
    """Yield the objects of a feature or geometry: itself, then its children."""
    pending = [value]
    while pending:
        feature = pending.pop()
        try:
            found = _object(feature, reporter)
        except GeoJsonError as error:
            reporter.report_feature(str(error))
        else:
            if found is not None:
                yield found
        properties = feature.get("properties") if isinstance(feature, dict) else None
        if isinstance(properties, dict):
            children = properties.get("childObjects", properties.get("children"))
            if isinstance(children, list):
                pending.extend(reversed(children))


def _object(feature: Any, reporter: Reporter) -> GeoJsonObject | None:
    """Return the object of a feature; None for the root, which represents the image."""
    if not isinstance(feature, dict):
        raise GeoJsonError(f"expected a feature, found {quoted(str(feature)[:40])}")
    if feature.get("type") != "Feature":
        geometry, z, t = _geometry(feature)
        return GeoJsonObject("annotation", geometry, z=z, t=t)
    properties = feature.get("properties") or {}
    if not isinstance(properties, dict):
        raise GeoJsonError(f"properties must be an object, not {quoted(str(properties)[:40])}")
    kind = _kind(feature, properties)
    if kind == "root":
        return None
    geometry, z, t = _geometry(feature.get("geometry"))
    nucleus = None
    if kind == "cell" and feature.get("nucleusGeometry") is not None:
        try:
            nucleus, _, _ = _geometry(feature["nucleusGeometry"])
        except GeoJsonError as error:
            reporter.report_value(f"the outline of its nucleus cannot be read: {error}")
    return GeoJsonObject(
        kind=kind,
        nucleus=nucleus,
        geometry=geometry,
        id=_uuid(feature.get("id")),
        name=None if properties.get("name") is None else str(properties["name"]),
        path_class=_path_class(properties.get("classification"), reporter),
        locked=properties.get("isLocked") is True,
        measurements=_measurements(properties.get("measurements"), reporter),
        z=z,
        t=t,
        color=_color(properties, "it", reporter),
        metadata=_metadata(properties.get("metadata"), reporter),
        image=_image(properties),
    )


def _kind(feature: dict[str, Any], properties: dict[str, Any]) -> str:
    # QuPath 0.2 stores the type as ID. QuPath reads unknown types as annotations.
    legacy = str(feature.get("id"))
    if legacy.endswith("Object") and legacy in _KINDS:
        return _KINDS[legacy]
    for key in ("objectType", "object_type", "type"):
        if key in properties:
            return _KINDS.get(str(properties[key]), "annotation")
    return "annotation"


def _uuid(value: Any) -> UUID | None:
    try:
        return UUID(value)
    except (ValueError, TypeError, AttributeError):
        return None


def _image(properties: dict[str, Any]) -> tuple[str, str] | None:
    """Read which image an object belongs to, if qpnuclei wrote it; others may use only `image`."""
    name, own_id = properties.get("image"), properties.get("image_id")
    return (name, own_id) if isinstance(name, str) and isinstance(own_id, str) else None


def _geometry(value: Any) -> tuple[shapely.Geometry, int, int]:
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        raise GeoJsonError("it has no geometry")
    try:
        with np.errstate(invalid="ignore"):  # NaN is refused below
            geometry = shapely.force_2d(shapely.geometry.shape(value))
        plane = value.get("plane") or {}
        z, t = int(plane.get("z", 0)), int(plane.get("t", 0))
        if not (0 <= z < 2**31 and 0 <= t < 2**31):
            raise ValueError(f"plane z={z}, t={t}")
    except (
        shapely.errors.ShapelyError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        OverflowError,
    ) as error:
        raise GeoJsonError(f"its {value['type']} is not a geometry ({error})") from error
    if shapely.is_empty(geometry):
        raise GeoJsonError(f"its {value['type']} is empty")
    if not np.isfinite(shapely.get_coordinates(geometry)).all():
        raise GeoJsonError(f"its {value['type']} has a coordinate that is not a number")
    return geometry, z, t


def _path_class(value: Any, reporter: Reporter) -> PathClass | None:
    """Read a class in the form of any version: text, name(s) with colour, or a parent class."""
    if value is None or value == {}:
        return None
    if isinstance(value, str):
        return PathClass(value)
    if not isinstance(value, dict):
        reporter.report_value(f"classification must be a name or an object, not {quoted(value)}")
        return None
    names = value.get("names")
    name = ": ".join(map(str, names)) if isinstance(names, list) else value.get("name")
    if name is None:
        return None
    parent = _path_class(value.get("parentClass"), reporter)
    color = _color(value, "its class", reporter)
    return PathClass(f"{parent.name}: {name}" if parent else str(name), color)


def _color(value: Mapping[str, Any], whose: str, reporter: Reporter) -> int | None:
    """Read a colour: packed (signed or not), or red, green, blue and optional alpha in 0..255."""
    packed, rgb = value.get("colorRGB"), value.get("color")
    given = rgb if packed is None else packed
    if given is None:
        return None
    try:
        if isinstance(given, list):
            parts = [_whole_number(part) for part in given]
            if len(parts) not in (3, 4):
                raise ValueError
            alpha = parts[3] if len(parts) == 4 else 255
            return int.from_bytes(bytes([alpha, *parts[:3]]), "big", signed=True)
        color = _whole_number(given)
        if not -(2**31) <= color < 2**32:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        reporter.report_value(f"{whose} has an invalid colour {quoted(given)}")
        return None
    return color - 2**32 if color >= 2**31 else color


def _whole_number(value: Any) -> int:
    number = int(value)
    if number != value:
        raise ValueError
    return number


def _measurements(value: Any, reporter: Reporter) -> dict[str, float]:
    """Read measurements in the form of any version: a map, or a list of names and values."""
    entries: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        entries = list(value.items())
    elif isinstance(value, list):
        for entry in value:
            if isinstance(entry, dict) and "name" in entry:
                entries.append((entry["name"], entry.get("value")))
            else:
                reporter.report_value(f"its measurements are not numbers ({quoted(entry)})")
    measurements = {}
    for name, number in entries:
        try:
            measurements[str(name)] = float(number)
        except (TypeError, ValueError, OverflowError):
            reporter.report_value(
                f"its measurements are not numbers ({quoted(str(name))} is {quoted(number)})"
            )
    return measurements


def _metadata(value: Any, reporter: Reporter) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        reporter.report_value(f"its metadata is {quoted(value)}, not names and texts")
        return {}
    metadata = {}
    for name, text in value.items():
        if isinstance(text, str | int | float):
            metadata[name] = str(text)
        else:
            reporter.report_value(f"its metadata {quoted(name)} is {quoted(text)}, not a text")
    return metadata
