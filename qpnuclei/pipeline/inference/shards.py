"""Files with the nuclei of units: Parquet with a key and a digest.

The metadata of a file hold the key of its inputs and a digest of its content. The file is rejected
unless both are right.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from qpnuclei.errors import FormatError, short_reason
from qpnuclei.nuclei import arrow_arrays
from qpnuclei.nuclei.store import from_arrow, to_arrow
from qpnuclei.nuclei.table import NucleiTable, concatenate
from qpnuclei.pipeline.inference.infer import TileNuclei
from qpnuclei.system.files import atomic_file
from qpnuclei.system.sequences import MadeOnDemand
from qpnuclei.tiling.plan import TilePlan

if TYPE_CHECKING:
    from collections.abc import Callable

    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

#: Key in the metadata of a file; its value holds the fields of `About` and the digests.
_ABOUT = b"qpnuclei"
_COLUMNS_OF_TILES = ("tile", "cut", "pixel_outlines", "junctions")

T = TypeVar("T")


@dataclass(frozen=True)
class About:
    """The metadata of a file.

    Parameters
    ----------
    key : str
        Hash of everything that the content depends on.
    device : str
        Device and number format of the network.
    seconds, waited : mapping of str to float
        Working and waiting time of each stage.
    counts : mapping of str to int
        Counts at the seams of tiles.
    checks : sequence of str
        Lines of `qpnuclei.pipeline.inference.plausibility.Doubts`.
    """

    key: str
    device: str = ""
    seconds: Mapping[str, float] | None = None
    waited: Mapping[str, float] | None = None
    counts: Mapping[str, int] | None = None
    checks: Sequence[str] = ()


def pack_unit(tiles: Sequence[TileNuclei], about: About) -> bytes:
    """Return the nuclei in the tiles of a unit as the bytes of a Parquet file.

    Each row is a nucleus: either the tile owns it, or the border of its view cuts it.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    owned = concatenate([of_tile.owned for of_tile in tiles])
    cut = concatenate([of_tile.cut for of_tile in tiles])
    # A cut nucleus has neither a smooth outline nor measurements.
    nothing = NucleiTable(
        np.empty((0, 2), np.float32), np.zeros(1, np.int64), np.zeros(len(cut) + 1, np.int64)
    )
    results = concatenate([*(of_tile.result for of_tile in tiles), nothing])
    # The junctions of a tile are stored with its first cut nucleus.
    junctions = [b""] * len(owned)
    for of_tile in tiles:
        if len(of_tile.cut):
            junctions += [of_tile.junctions.astype("<i8").tobytes()]
            junctions += [b""] * (len(of_tile.cut) - 1)
    numbers = [of_tile.tile.index for of_tile in tiles]
    table = pa.table(
        {
            "tile": arrow_arrays.from_numbers(
                np.concatenate(
                    [
                        np.repeat(numbers, [len(of_tile.owned) for of_tile in tiles]),
                        np.repeat(numbers, [len(of_tile.cut) for of_tile in tiles]),
                    ]
                ).astype(np.int32)
            ),
            "cut": arrow_arrays.from_flags(np.arange(len(owned) + len(cut)) >= len(owned)),
            "pixel_outlines": to_arrow(concatenate([owned, cut]))["outline"],
            "junctions": arrow_arrays.from_spans(
                b"".join(junctions), np.cumsum([0, *map(len, junctions)])
            ),
            **dict(_columns(to_arrow(results))),
        }
    )
    sink = pa.BufferOutputStream()
    metadata = json.dumps({**asdict(about), "digests": [_digest(table)]})
    table = table.replace_schema_metadata({_ABOUT: metadata})
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


def read_unit(
    path: Path, key: str, plan: TilePlan, indices: Sequence[int]
) -> tuple[list[TileNuclei], About]:
    """Read tiles of a plan from a file by `pack_unit`.

    Raises
    ------
    FormatError
        If the file is missing, damaged or does not belong to this plan.
    """

    def read(file: ParquetFile, digests: list[str]) -> list[TileNuclei]:
        table = file.read(use_threads=False)
        _check(table, digests, 0)
        results = from_arrow(table.drop_columns(list(_COLUMNS_OF_TILES)))
        tile, cut = arrow_arrays.to_numbers(table["tile"]), arrow_arrays.to_flags(table["cut"])
        pixel_outlines = _rings(table["pixel_outlines"].combine_chunks())
        junctions = table["junctions"]
        if not set(np.unique(tile).tolist()) <= set(indices):
            raise ValueError("it has nuclei of other tiles")
        found = []
        for index in indices:
            own = np.flatnonzero((tile == index) & ~cut)
            others = np.flatnonzero((tile == index) & cut)
            corners = junctions[int(others[0])].as_py() if len(others) else b""
            found.append(
                TileNuclei(
                    plan[index],
                    pixel_outlines.take(own),
                    pixel_outlines.take(others),
                    results.take(own),
                    np.frombuffer(corners, "<i8").astype(np.int64).reshape(-1, 2),
                )
            )
        return found

    return _opened(path, key, read)


def write_image(path: Path, tables: Sequence[NucleiTable], about: About) -> None:
    """Write all nuclei of an image. Each table with nuclei becomes a row group.

    Parameters
    ----------
    tables : sequence of NucleiTable
        At least one, all with the same measurements.

    Raises
    ------
    SaveError
        If the file cannot be written.
    """
    import pyarrow.parquet as pq

    first = to_arrow(tables[0])
    digests = []
    with (
        atomic_file(path) as stream,
        pq.ParquetWriter(stream, first.schema, compression="zstd") as writer,
    ):
        for number in range(len(tables)):
            table = to_arrow(tables[number]).select(first.schema.names)
            if table.num_rows:
                writer.write_table(table, row_group_size=table.num_rows)
                digests.append(_digest(table))
        metadata = json.dumps({**asdict(about), "digests": digests})
        writer.add_key_value_metadata({_ABOUT: metadata})


class ImageNuclei(MadeOnDemand[NucleiTable]):
    """The nuclei of an image in a file by `write_image`: tables that are read on demand.

    Raises
    ------
    FormatError
        If the file is missing, damaged or from another plan. Also raised when a table is requested.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path, self._key = path, key
        self._groups, self.about = _opened(path, key, lambda file, *_: int(file.num_row_groups))

    def __len__(self) -> int:
        # An image without nuclei has one table without rows but with all columns.
        return max(self._groups, 1)

    def _item(self, index: int) -> NucleiTable:
        def read(file: ParquetFile, digests: list[str]) -> NucleiTable:
            if file.num_row_groups == 0:
                return from_arrow(file.schema_arrow.empty_table())
            table = file.read_row_group(index, use_threads=False)
            _check(table, digests, index)
            return from_arrow(table)

        return _opened(self._path, self._key, read)[0]


def _opened(path: Path, key: str, read: Callable[[ParquetFile, list[str]], T]) -> tuple[T, About]:
    """Open a file of this module, and read it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    hint = "delete it and run infer again"
    try:
        # Arrow itself opens only names in UTF-8.
        with path.open("rb") as stream, pq.ParquetFile(stream) as file:
            metadata = json.loads((file.metadata.metadata or {}).get(_ABOUT, b"{}"))
            if metadata.get("key") != key:
                raise FormatError(f"{path} does not belong to this plan", hint)
            digests = [str(digest) for digest in metadata.pop("digests")]
            about = About(**metadata)
            return read(file, digests), about
    except FileNotFoundError as error:
        raise FormatError(
            f"{path} is missing", "run infer again, or copy it from the machine that computed it"
        ) from error
    except (
        pa.ArrowException,
        OSError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        MemoryError,
        RecursionError,
    ) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{path} is damaged: {short_reason(error)}", hint) from error


def _check(table: pa.Table, digests: list[str], number: int) -> None:
    if _digest(table) != digests[number]:
        raise ValueError("its content has changed since it was written")


def _columns(table: pa.Table) -> Iterator[tuple[str, Any]]:
    return zip(table.column_names, table.columns, strict=True)


def _digest(table: pa.Table) -> str:
    """Return a digest of all values, independent of pages and buffers."""
    import pyarrow as pa

    digest = blake2b(digest_size=16)
    for name, column in _columns(table):
        values = column.combine_chunks()
        digest.update(f"{name}:{len(values)}:{values.null_count};".encode())
        if pa.types.is_list(values.type):
            ends = arrow_arrays.to_numbers(values.offsets)
            digest.update(np.diff(ends).astype("<i4").tobytes())
            values = values.values[ends[0] : ends[-1]]
        if pa.types.is_binary(values.type):
            ends = _ends(values)
            digest.update(np.diff(ends).astype("<i4").tobytes())
            digest.update(memoryview(values.buffers()[2] or b"")[ends[0] : ends[-1]])
        elif pa.types.is_boolean(values.type):
            digest.update(arrow_arrays.to_flags(values).tobytes())
        else:
            digest.update(arrow_arrays.to_numbers(values).tobytes())
    return digest.hexdigest()


def _ends(values: pa.BinaryArray) -> npt.NDArray[np.int32]:
    """Return the start of each value of a binary array in its buffer, and the end of the last."""
    if len(values) == 0:
        return np.zeros(1, np.int32)
    every = np.frombuffer(values.buffers()[1], np.int32)
    return every[values.offset : values.offset + len(values) + 1]


def _rings(values: pa.BinaryArray) -> NucleiTable:
    """Return nuclei that have one ring each."""
    ends = _ends(values)
    vertices = np.frombuffer(values.buffers()[2] or b"", "<f4").reshape(-1, 2)
    offsets = ends.astype(np.int64) // 8
    return NucleiTable(vertices[: offsets[-1]], offsets, np.arange(len(offsets)))
