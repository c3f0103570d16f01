"""Nuclei on disk: what a run finds, in tables of bounded size that are read when asked for."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import overload

import numpy as np

from qpnuclei.errors import SaveError
from qpnuclei.nuclei import NucleiTable, concatenate

#: Nuclei of a shard at least: some 10 MB.
SHARD_NUCLEI = 20_000

_VERTEX_BYTES = 8


@contextmanager
def temporary_shards(parent: Path, size: int = SHARD_NUCLEI) -> Iterator[Shards]:
    """Keep nuclei in a temporary folder that is removed when the block ends, however it ends.

    Parameters
    ----------
    parent : Path
        Folder in which it is made.
    size : int
        See `Shards`.

    Raises
    ------
    SaveError
        If it cannot be made.
    """
    try:
        folder = tempfile.TemporaryDirectory(
            prefix=".nuclei-", dir=parent, ignore_cleanup_errors=True
        )
    except OSError as error:
        raise _unusable(parent, error) from error
    with folder as name:
        yield Shards(Path(name), size)


class Shards(Sequence[NucleiTable]):
    """A growing sequence of tables: Parquet files in a folder, and the last one in memory.

    Whatever is appended goes to the last table; when that is large enough it becomes a file. So
    what is in memory does not grow with the number of nuclei, and few nuclei touch no disk.

    Parameters
    ----------
    folder : Path
        Empty. Its files are not removed.
    size : int
        Nuclei from which on a table is written to disk.
    """

    def __init__(self, folder: Path, size: int = SHARD_NUCLEI) -> None:
        self._folder = folder
        self._size = size
        self._written = 0
        self._last: list[NucleiTable] = []

    def append(self, nuclei: NucleiTable) -> None:
        """Add nuclei after all others.

        Raises
        ------
        SaveError
            If they cannot be written.
        """
        self._last.append(nuclei)
        if sum(map(len, self._last)) >= self._size:
            self._write(self._written, concatenate(self._last))
            self._written += 1
            self._last = []

    def __len__(self) -> int:
        return self._written + bool(self._last)

    @overload
    def __getitem__(self, index: int) -> NucleiTable: ...
    @overload
    def __getitem__(self, index: slice) -> list[NucleiTable]: ...
    def __getitem__(self, index: int | slice) -> NucleiTable | list[NucleiTable]:
        """Return a table, read from disk unless it is the last one.

        Raises
        ------
        SaveError
            If it cannot be read again.
        """
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        return self._read(index) if index < self._written else concatenate(self._last)

    def __setitem__(self, index: int, nuclei: NucleiTable) -> None:
        """Put a table in the place of one that is there.

        Raises
        ------
        SaveError
            If it cannot be written.
        """
        index = range(len(self))[index]
        if index < self._written:
            self._write(index, nuclei)
        else:
            self._last = [nuclei]

    def _path(self, index: int) -> Path:
        return self._folder / f"{index:06}.parquet"

    def _write(self, index: int, nuclei: NucleiTable) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        # The outlines of a nucleus are one value, not lists of lists of numbers: they are copied.
        ends = _VERTEX_BYTES * nuclei.ring_offsets[nuclei.polygon_offsets]
        vertices = np.ascontiguousarray(nuclei.vertices)
        buffers = [None, pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(vertices)]
        columns = {
            "outline": pa.Array.from_buffers(pa.binary(), len(nuclei), buffers),
            "rings": pa.ListArray.from_arrays(
                nuclei.polygon_offsets.astype(np.int32),
                np.diff(nuclei.ring_offsets).astype(np.int32),
            ),
        }
        try:
            # Compressing half of it away would take three times as long as writing all.
            pq.write_table(
                pa.table({**columns, **nuclei.measurements}),
                self._path(index),
                use_dictionary=False,
                compression="none",
            )
        except OSError as error:
            raise _unusable(self._folder, error) from error

    def _read(self, index: int) -> NucleiTable:
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(self._path(index), use_threads=False, partitioning=None)
        except OSError as error:
            raise _unusable(self._folder, error) from error
        outlines, rings = (column.combine_chunks() for column in table.columns[:2])
        return NucleiTable(
            np.frombuffer(outlines.buffers()[2], np.float32).reshape(-1, 2),
            np.concatenate([[0], np.cumsum(rings.values.to_numpy(), dtype=np.int64)]),
            rings.offsets.to_numpy().astype(np.int64),
            {
                name: column.to_numpy()
                for name, column in zip(table.column_names[2:], table.columns[2:], strict=True)
            },
        )


def _unusable(folder: Path, error: OSError) -> SaveError:
    return SaveError(
        f"nuclei cannot be kept in {folder}: {error.strerror or error}",
        "free space there, or choose another folder with --run-dir",
    )
