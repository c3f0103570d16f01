"""Read QuPath's GeoJSON object by object, in constant memory."""

from __future__ import annotations

import gzip
import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TextIO, cast
from uuid import UUID

import numpy as np
import shapely
import shapely.geometry

from qpnuclei.errors import FormatError, NotFoundError, quoted
from qpnuclei.qupath.geojson.objects import GeoJsonObject, Problems
from qpnuclei.qupath.model import PathClass
from qpnuclei.qupath.names import replace_lone_surrogates_in_json
from qpnuclei.system.files import open_regular
from qpnuclei.system.json_text import refuse_deep, within_recursion

_READ_SIZE = 1 << 20
_LONGEST_STRING = 1 << 24
#: Longest feature in characters; a longer one is not a real outline and would fill the memory.
_LONGEST_VALUE = 1 << 28
#: Bytes that are not UTF-8, as Python's "surrogateescape" keeps them.
_NOT_UTF8 = re.compile("[\udc80-\udcff]")
#: Longest quotation of the file in an error message.
_LONGEST_REASON = 300

#: Object types in all QuPath versions -> kind.
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


def read_objects(path: Path, problems: Problems | None = None) -> Iterator[GeoJsonObject]:
    """Read the objects of a GeoJSON file one after the other, children after their parent.

    Parameters
    ----------
    path : Path
        A FeatureCollection, a Feature, a bare geometry, or an array of features and geometries;
        plain, gzipped, or in a .zip (all its GeoJSON files are read). All dialects of QuPath 0.2 to
        0.7 are supported. A root object stands for the image: it is skipped, and its children are
        read. Bytes that are not UTF-8 are read as Windows-1252 (Latin-1).
    problems : Problems, optional
        Collects invalid features and values while the others are read. By default the first one
        raises an error.

    Raises
    ------
    NotFoundError
        If there is no such file.
    FormatError
        If it is truncated, not JSON, or has an invalid feature and `problems` is not given. Names
        the file and the number of the feature.
    """
    path = Path(path)
    index = 0
    try:
        with _open_texts(path) as streams:
            for stream in streams:
                scanner = _Scanner(stream)
                for value in _values(scanner):
                    reporter = _Reporter(problems, index)
                    if scanner.was_not_utf8:
                        reporter.report_value("text that is not UTF-8 was read as Windows-1252")
                    yield from _objects(value, reporter)
                    index += 1
    except FileNotFoundError as error:
        raise NotFoundError(f"{path}: no such file", "check the path") from error
    except _GeoJsonError as error:
        raise FormatError(
            f"{path}, feature {index}: {_short(error)}", "export it again from QuPath"
        ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile) as error:
        raise FormatError(
            f"{path}, feature {index}: {error}", "the file is damaged; export it again"
        ) from error
    except (OSError, RuntimeError, NotImplementedError) as error:  # the last two are from zipfile
        reason = getattr(error, "strerror", None) or error
        raise FormatError(f"{path}, feature {index}: cannot be read: {reason}") from error


class _GeoJsonError(Exception):
    """Raised with what is wrong with the current feature."""


@dataclass(frozen=True)
class _Reporter:
    """Record a problem of a feature, or raise it as an error."""

    problems: Problems | None
    index: int

    def report_value(self, what: str) -> None:
        if self.problems is None:
            raise _GeoJsonError(what)
        self.problems.values.append(f"feature {self.index}: {_short(what)}")

    def report_feature(self, what: str) -> None:
        if self.problems is None:
            raise _GeoJsonError(what)
        self.problems.features.append(f"feature {self.index}: {_short(what)}")


def _short(reason: object) -> str:
    return " ".join(str(reason).split())[:_LONGEST_REASON]


class _Scanner:
    """Reads JSON values from a stream one by one; holds little more than the current one."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._decoder = json.JSONDecoder()
        self._text = ""
        self._at = 0
        self._ended = False
        #: Whether the last value had bytes that are not UTF-8.
        self.was_not_utf8 = False

    def peek(self) -> str:
        """Return the next character that is not white space; empty at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n\ufeff":
                self._at += 1
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def take(self, expected: str) -> None:
        """Take one of the expected characters."""
        if self.peek() != expected:
            raise _GeoJsonError(f"expected {expected!r}, found {self._rest()}")
        self._at += 1

    def value(self) -> Any:
        """Take a whole JSON value."""
        self.peek()
        while True:
            try:
                value, end = within_recursion(self._decoder.raw_decode, self._text, self._at)
                refuse_deep(value, unless_under="coordinates")  # which `_geometry` checks
            except json.JSONDecodeError as error:
                if len(self._text) - self._at > _LONGEST_VALUE:
                    raise _GeoJsonError(f"is longer than {_LONGEST_VALUE} characters") from error
                # If the value is only incomplete so far, the error is at the end of the buffer, or
                # at the start of its last string.
                if len(self._text) - error.pos < _LONGEST_STRING and self._more():
                    continue
                found = self._text[error.pos : error.pos + 20]
                raise _GeoJsonError(
                    f"not JSON at {found!r} ({error.msg})" if found else "the file ends within it"
                ) from error
            except ValueError as error:
                raise _GeoJsonError(str(error)) from error
            # A number may continue beyond the buffer.
            if end < len(self._text) or not self._more():
                text = self._text[self._at : end]
                self._at = end
                self.was_not_utf8 = _NOT_UTF8.search(text) is not None
                if self.was_not_utf8:
                    text = _NOT_UTF8.sub(_of_windows, text)
                    value = json.loads(text)
                return replace_lone_surrogates_in_json(value, text)

    def _more(self) -> bool:
        """Read at least as much again as is buffered; False at the end of the file."""
        if self._ended:
            return False
        waiting = self._text[self._at :]
        read = self._stream.read(max(_READ_SIZE, len(waiting)))
        self._ended = not read
        self._text, self._at = waiting + read, 0
        return not self._ended

    def _rest(self) -> str:
        rest = self._text[self._at : self._at + 20]
        return repr(rest) if rest else "the end of the file"


def _of_windows(found: re.Match[str]) -> str:
    """Return the Windows-1252 character of a byte that is kept as a surrogate."""
    return found[0].encode("utf-8", "surrogateescape").decode("cp1252", "replace")


@contextmanager
def _open_texts(path: Path) -> Iterator[Iterator[TextIO]]:
    """Open the text of a file, or of the files in a .zip; other bytes become surrogates."""

    def text(stream: IO[bytes]) -> TextIO:
        return io.TextIOWrapper(stream, encoding="utf-8", errors="surrogateescape")

    with open_regular(path) as file:
        start = file.read(4)
        file.seek(0)
        if start[:2] == b"\x1f\x8b":
            yield iter([text(cast(IO[bytes], gzip.GzipFile(fileobj=file)))])
        elif start in (b"PK\3\4", b"PK\5\6"):
            with zipfile.ZipFile(file) as archive:
                names = [n for n in archive.namelist() if n.lower().endswith((".geojson", ".json"))]
                # macOS adds files of metadata to a .zip; skip them.
                names = [n for n in names if not n.startswith("__MACOSX/")]
                if not names:
                    raise _GeoJsonError("the .zip holds no .geojson file")
                yield (text(archive.open(name)) for name in names)
        else:
            yield iter([text(file)])


def _values(scanner: _Scanner) -> Iterator[Any]:
    """Yield the features or geometries of a file, as JSON."""
    first = scanner.peek()
    if first == "[":
        yield from _array(scanner)
    elif first == "{":
        others = {}
        streamed = False
        for key in _keys(scanner):
            if key == "features" and scanner.peek() == "[":
                streamed = True
                yield from _array(scanner)
            else:
                others[key] = scanner.value()
        if not streamed:
            yield others
    else:
        raise _GeoJsonError("the file holds neither a JSON object nor an array")
    if scanner.peek():
        raise _GeoJsonError("there is more text after the end of the JSON")


def _array(scanner: _Scanner) -> Iterator[Any]:
    scanner.take("[")
    if scanner.peek() != "]":
        yield scanner.value()
        while scanner.peek() == ",":
            scanner.take(",")
            yield scanner.value()
    scanner.take("]")


def _keys(scanner: _Scanner) -> Iterator[str]:
    """Yield the keys of an object; the caller takes each value."""
    scanner.take("{")
    if scanner.peek() != "}":
        while True:
            key = scanner.value()
            if not isinstance(key, str):
                raise _GeoJsonError(f"expected a key, found {key!r}")
            scanner.take(":")
            yield key
            if scanner.peek() != ",":
                break
            scanner.take(",")
    scanner.take("}")


def _objects(value: Any, reporter: _Reporter) -> Iterator[GeoJsonObject]:
    """Yield the objects of a feature or geometry: itself, then its children."""
    pending = [value]
    while pending:
        feature = pending.pop()
        try:
            found = _object(feature, reporter)
        except _GeoJsonError as error:
            reporter.report_feature(str(error))
        else:
            if found is not None:
                yield found
        properties = feature.get("properties") if isinstance(feature, dict) else None
        if isinstance(properties, dict):
            children = properties.get("childObjects", properties.get("children"))
            if isinstance(children, list):
                pending.extend(reversed(children))


def _object(feature: Any, reporter: _Reporter) -> GeoJsonObject | None:
    """Return the object of a feature; None for the root, which stands for the image."""
    if not isinstance(feature, dict):
        raise _GeoJsonError(f"expected a feature, found {quoted(str(feature)[:40])}")
    if feature.get("type") != "Feature":
        geometry, z, t = _geometry(feature)
        return GeoJsonObject("annotation", geometry, z=z, t=t)
    properties = feature.get("properties") or {}
    if not isinstance(properties, dict):
        raise _GeoJsonError(f"properties must be an object, not {quoted(str(properties)[:40])}")
    kind = _kind(feature, properties)
    if kind == "root":
        return None
    geometry, z, t = _geometry(feature.get("geometry"))
    nucleus = None
    if kind == "cell" and feature.get("nucleusGeometry") is not None:
        try:
            nucleus, _, _ = _geometry(feature["nucleusGeometry"])
        except _GeoJsonError as error:
            reporter.report_value(f"the outline of its nucleus is not read: {error}")
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
    )


def _kind(feature: dict[str, Any], properties: dict[str, Any]) -> str:
    # QuPath 0.2 stores the type in the id. QuPath reads unknown types as annotations.
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


def _geometry(value: Any) -> tuple[shapely.Geometry, int, int]:
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        raise _GeoJsonError("it has no geometry")
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
        raise _GeoJsonError(f"its {value['type']} is not a geometry ({error})") from error
    if shapely.is_empty(geometry):
        raise _GeoJsonError(f"its {value['type']} is empty")
    if not np.isfinite(shapely.get_coordinates(geometry)).all():
        raise _GeoJsonError(f"its {value['type']} has a coordinate that is not a number")
    return geometry, z, t


def _path_class(value: Any, reporter: _Reporter) -> PathClass | None:
    """Read a class in any version's form: text, name(s) with colour, or with a parent class."""
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


def _color(value: Mapping[str, Any], whose: str, reporter: _Reporter) -> int | None:
    """Read a colour: packed (signed or not), or red, green, blue and optional alpha, 0 to 255."""
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


def _measurements(value: Any, reporter: _Reporter) -> dict[str, float]:
    """Read measurements in any version's form: a map, or a list of names and values."""
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


def _metadata(value: Any, reporter: _Reporter) -> dict[str, str]:
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
