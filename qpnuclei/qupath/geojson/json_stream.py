"""Read the features of a GeoJSON file as JSON, one after the other, in constant memory."""

from __future__ import annotations

import gzip
import io
import json
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TextIO, cast

from qpnuclei.qupath.geojson.problems import GeoJsonError
from qpnuclei.qupath.names import replace_lone_surrogates_in_json
from qpnuclei.system.files import open_regular
from qpnuclei.system.json_text import refuse_deep, within_recursion

_READ_SIZE = 1 << 20
_LONGEST_STRING = 1 << 24
#: Longest feature in characters; a longer one is not a real outline and would fill the memory.
_LONGEST_VALUE = 1 << 28
#: Bytes that are not UTF-8, as Python's "surrogateescape" keeps them.
_NOT_UTF8 = re.compile("[\udc80-\udcff]")


class Scanner:
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
            raise GeoJsonError(f"expected {expected!r}, found {self._rest()}")
        self._at += 1

    def value(self) -> Any:
        """Take a whole JSON value."""
        self.peek()
        while True:
            try:
                value, end = within_recursion(self._decoder.raw_decode, self._text, self._at)
                refuse_deep(value, unless_under="coordinates")  # which `features` checks
            except json.JSONDecodeError as error:
                if len(self._text) - self._at > _LONGEST_VALUE:
                    raise GeoJsonError(f"is longer than {_LONGEST_VALUE} characters") from error
                # If the value is only incomplete so far, the error is at the end of the buffer, or
                # at the start of its last string.
                if len(self._text) - error.pos < _LONGEST_STRING and self._more():
                    continue
                found = self._text[error.pos : error.pos + 20]
                raise GeoJsonError(
                    f"not JSON at {found!r} ({error.msg})" if found else "the file ends within it"
                ) from error
            except ValueError as error:
                raise GeoJsonError(str(error)) from error
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
def open_texts(path: Path) -> Iterator[Iterator[TextIO]]:
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
                    raise GeoJsonError("the .zip holds no .geojson file")
                yield (text(archive.open(name)) for name in names)
        else:
            yield iter([text(file)])


def read_values(scanner: Scanner) -> Iterator[Any]:
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
        raise GeoJsonError("the file holds neither a JSON object nor an array")
    if scanner.peek():
        raise GeoJsonError("there is more text after the end of the JSON")


def _array(scanner: Scanner) -> Iterator[Any]:
    scanner.take("[")
    if scanner.peek() != "]":
        yield scanner.value()
        while scanner.peek() == ",":
            scanner.take(",")
            yield scanner.value()
    scanner.take("]")


def _keys(scanner: Scanner) -> Iterator[str]:
    """Yield the keys of an object; the caller takes each value."""
    scanner.take("{")
    if scanner.peek() != "}":
        while True:
            key = scanner.value()
            if not isinstance(key, str):
                raise GeoJsonError(f"expected a key, found {key!r}")
            scanner.take(":")
            yield key
            if scanner.peek() != ",":
                break
            scanner.take(",")
    scanner.take("}")
