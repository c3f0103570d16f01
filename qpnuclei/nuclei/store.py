"""Nuclei on disk: tables of bounded size (shards) that are read on access."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from qpnuclei.errors import SaveError
from qpnuclei.nuclei import arrow_arrays
from qpnuclei.nuclei.table import NucleiTable, concatenate
from qpnuclei.system.files import nameless_file
from qpnuclei.system.sequences import MadeOnDemand

if TYPE_CHECKING:
    import pyarrow as pa

#: Smallest number of nuclei of a full shard: some 10 MB.
SHARD_NUCLEI = 20_000

_VERTEX_BYTES = 8

#: Columns for the outlines of nuclei, and for those of cells.
_OUTLINE = ("outline", "rings")
_CELL = ("cell outline", "cell rings")


@contextmanager
def temporary_shards(parent: Path, size: int = SHARD_NUCLEI) -> Iterator[Shards]:
    """Keep nuclei in a temporary file that is removed when the block or the process ends.

    Parameters
    ----------
    parent : Path
        Folder of the file: see `qpnuclei.system.files.nameless_file`.
    size : int
        See `Shards`.

    Raises
    ------
    SaveError
        If the file cannot be created.
    """
    try:
        file, folder = nameless_file(parent)
    except OSError as error:
        raise _unusable(parent, error) from error
    with file:
        yield Shards(file, folder, size)


class _Place(NamedTuple):
    """Position and size of a table in the file, in bytes; a replacement fits in `room` bytes."""

    start: int
    size: int
    room: int


_NOWHERE = _Place(0, 0, 0)


class Shards(MadeOnDemand[NucleiTable]):
    """A growing sequence of tables: the last one in memory, the others as Parquet in a file.

    Nuclei are appended to the last table, which is written to disk when it is large enough. So
    memory does not grow with the number of nuclei, and a few nuclei are never written to disk.

    Parameters
    ----------
    file : binary file
        Empty, unbuffered, open for reading and writing.
    folder : Path
        Folder of the file, for messages.
    size : int
        A table with at least this many nuclei is written to disk.
    """

    def __init__(self, file: BinaryIO, folder: Path, size: int = SHARD_NUCLEI) -> None:
        self._file = file
        self._folder = folder
        self._size = size
        self._places: list[_Place] = []
        self._last: list[NucleiTable] = []

    def append(self, nuclei: NucleiTable) -> None:
        """Add nuclei after all others.

        Raises
        ------
        SaveError
            If the nuclei cannot be written.
        """
        self._last.append(nuclei)
        if sum(map(len, self._last)) >= self._size:
            self._places.append(self._write(concatenate(self._last), _NOWHERE))
            self._last = []

    def __len__(self) -> int:
        return len(self._places) + bool(self._last)

    def _item(self, index: int) -> NucleiTable:
        """Return a table, read from disk unless it is the last one.

        Raises
        ------
        SaveError
            If it cannot be read.
        """
        if index < len(self._places):
            return self._read(self._places[index])
        return concatenate(self._last)

    def __setitem__(self, index: int, nuclei: NucleiTable) -> None:
        """Replace a table.

        Raises
        ------
        SaveError
            If it cannot be written.
        """
        index = range(len(self))[index]
        if index < len(self._places):
            self._places[index] = self._write(nuclei, self._places[index])
        else:
            self._last = [nuclei]

    def _write(self, nuclei: NucleiTable, before: _Place) -> _Place:
        """Write a table over an old one, or at the end of the file if it is too large for that."""
        rest = _to_parquet(nuclei)
        size = len(rest)
        fits = size <= before.room
        try:
            start = self._file.seek(before.start) if fits else self._file.seek(0, os.SEEK_END)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise _unusable(self._folder, error) from error
        return _Place(start, size, before.room if fits else size)

    def _read(self, place: _Place) -> NucleiTable:
        try:
            self._file.seek(place.start)
            content = self._file.read(place.size)
        except OSError as error:
            raise _unusable(self._folder, error) from error
        return _from_parquet(content)


def _to_parquet(nuclei: NucleiTable) -> memoryview:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    # Compression would halve the size, but take three times as long as the writing.
    pq.write_table(to_arrow(nuclei), sink, use_dictionary=False, compression="none")
    return memoryview(sink.getvalue())


def _from_parquet(content: bytes) -> NucleiTable:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(pa.BufferReader(content)) as file:
        return from_arrow(file.read(use_threads=False))


def to_arrow(nuclei: NucleiTable) -> pa.Table:
    """Return nuclei as an Arrow table of N rows.

    Column ``outline`` has the vertices of a nucleus (x, y, x, ... as little-endian float32), and
    ``rings`` the number of vertices of each ring. If the nuclei have cells, ``cell outline`` and
    ``cell rings`` contain the same for the cells. The other columns are the measurements.
    """
    import pyarrow as pa

    columns = dict(zip(_OUTLINE, _outlines_to_arrow(nuclei), strict=True))
    if nuclei.cells is not None:
        columns |= zip(_CELL, _outlines_to_arrow(nuclei.cells), strict=True)
    values = {n: arrow_arrays.from_numbers(v) for n, v in nuclei.measurements.items()}
    return pa.table({**columns, **values})


def _outlines_to_arrow(nuclei: NucleiTable) -> tuple[pa.Array, pa.Array]:
    import pyarrow as pa

    # The outline of a nucleus is one binary value: faster than lists of lists of numbers.
    ends = _VERTEX_BYTES * nuclei.ring_offsets[nuclei.polygon_offsets]
    vertices = np.ascontiguousarray(nuclei.vertices, "<f4")
    return (
        arrow_arrays.from_spans(vertices, ends),
        pa.ListArray.from_arrays(
            arrow_arrays.from_numbers(nuclei.polygon_offsets.astype(np.int32)),
            arrow_arrays.from_numbers(np.diff(nuclei.ring_offsets).astype(np.int32)),
        ),
    )


def from_arrow(table: pa.Table) -> NucleiTable:
    """Return the nuclei of a table that `to_arrow` made.

    Raises
    ------
    ValueError
        If the table has no outlines.
    """
    outlines = _outlines_from_arrow(table, _OUTLINE)
    measurements = {
        name: arrow_arrays.to_numbers(table[name])
        for name in table.column_names
        if name not in (*_OUTLINE, *_CELL)
    }
    cells = None
    if _CELL[0] in table.column_names:
        cells = NucleiTable(*_outlines_from_arrow(table, _CELL))
    return NucleiTable(*outlines, measurements, cells)


def _outlines_from_arrow(
    table: pa.Table, names: tuple[str, str]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return vertices, offsets of rings, and offsets of polygons."""
    outlines, rings = (table[name].combine_chunks() for name in names)
    if outlines.null_count or rings.null_count or outlines.offset or rings.offset:
        raise ValueError("an outline is missing")
    return (
        np.frombuffer(outlines.buffers()[2] or b"", "<f4").reshape(-1, 2),
        np.concatenate([[0], np.cumsum(arrow_arrays.to_numbers(rings.values), dtype=np.int64)]),
        arrow_arrays.to_numbers(rings.offsets).astype(np.int64),
    )


def _unusable(folder: Path, error: OSError) -> SaveError:
    return SaveError(
        f"nuclei cannot be stored in {folder}: {error.strerror or error}",
        "free space there, or choose another folder with --run-dir",
    )
