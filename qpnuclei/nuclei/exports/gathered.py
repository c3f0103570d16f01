"""Nuclei of many images in one table; only one batch of it is in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import shapely

from qpnuclei.nuclei.exports.geoparquet import OutlineColumn, geo_metadata
from qpnuclei.nuclei.exports.rows import CELL_GEOMETRY, FIELDS, GEOMETRY, NucleusRows
from qpnuclei.nuclei.exports.spreadsheet import BOM, no_formula, rounded
from qpnuclei.system.files import atomic_file, nameless_file, saving


class GatheredRows:
    """Rows of several images, kept on disk until the measurements of all images are known.

    Parameters
    ----------
    path : Path
        The file that will be written; the temporary one is on its disk.
    outlines : bool
        Whether outlines are kept.

    Raises
    ------
    qpnuclei.errors.SaveError
        If the temporary file cannot be created.
    """

    def __init__(self, path: Path, *, outlines: bool) -> None:
        with saving(path):
            self._file, _ = nameless_file(path.parent)
        self._path = path
        self._outlines = outlines
        self._starts: list[int] = []
        self._names: dict[str, None] = {}
        self._kept = {GEOMETRY: OutlineColumn(frozenset())} if outlines else {}
        self._count = 0

    def __enter__(self) -> GatheredRows:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return self._count

    def append(self, rows: NucleusRows) -> None:
        """Add the nuclei of an image after all others.

        Raises
        ------
        qpnuclei.errors.SaveError
            If they cannot be stored.
        """
        self._names |= dict.fromkeys(rows.measurements)
        if len(rows) == 0:
            return
        self._count += len(rows)
        for name, shapes in rows.outlines.items() if self._outlines else ():
            self._kept[name] = _with(self._kept.get(name), shapes[~shapely.is_missing(shapes)])
        self._starts.append(self._file.tell())
        batches = rows.batches(outlines=self._outlines)
        first = next(batches)
        with saving(self._path), pa.ipc.new_stream(self._file, first.schema) as writer:
            writer.write_batch(first)
            for batch in batches:
                writer.write_batch(batch)

    @property
    def schema(self) -> pa.Schema:
        """The columns: `FIELDS`, every measurement of any image, and the outlines."""
        measured = [pa.field(name, pa.float64()) for name in self._names]
        names = [name for name in (GEOMETRY, CELL_GEOMETRY) if name in self._kept]
        outlines = [pa.field(name, pa.binary()) for name in names]
        return pa.schema([*FIELDS, *measured, *outlines])

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield all rows with the columns of `schema`; a missing value is NaN, or null."""
        schema = self.schema
        for start in self._starts:
            self._file.seek(start)
            for batch in pa.ipc.open_stream(self._file):
                present = set(batch.schema.names)
                columns = [
                    batch.column(field.name)
                    if field.name in present
                    else pa.nulls(len(batch), field.type)
                    if field.name == CELL_GEOMETRY
                    else pa.array(np.full(len(batch), np.nan))
                    for field in schema
                ]
                yield pa.RecordBatch.from_arrays(columns, schema=schema)

    def write_parquet(self) -> None:
        """Write GeoParquet, in one step.

        Raises
        ------
        qpnuclei.errors.SaveError
            If it cannot be written.
        """
        schema = self.schema.with_metadata(geo_metadata(self._kept))
        with atomic_file(self._path) as stream, pq.ParquetWriter(stream, schema) as writer:
            for batch in self.batches():
                writer.write_batch(batch.replace_schema_metadata(schema.metadata))

    def write_separated(self, separator: str) -> None:
        """Write .csv or .tsv as `qpnuclei.qupath.count_table` does, in one step.

        Raises
        ------
        qpnuclei.errors.SaveError
            If it cannot be written.
        """
        schema = self.schema
        texts = [
            pa.field(
                no_formula(field.name),
                pa.string() if pa.types.is_dictionary(field.type) else field.type,
            )
            for field in schema
        ]
        options = pa.csv.WriteOptions(delimiter=separator)
        with atomic_file(self._path) as stream:
            stream.write(BOM if separator == "," else b"")
            with pa.csv.CSVWriter(stream, pa.schema(texts), write_options=options) as writer:
                for batch in self.batches():
                    columns = [_printed(column) for column in batch.columns]
                    writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=pa.schema(texts)))


def _with(known: OutlineColumn | None, shapes: npt.NDArray[Any]) -> OutlineColumn:
    """Return what is known of a column to which outlines are added."""
    types = frozenset(shape.geom_type for shape in shapes)
    bounds = shapely.total_bounds(shapes)
    if known is not None:
        types |= frozenset(known.types)
        if known.bounds is not None:
            low, high = np.fmin(bounds, known.bounds), np.fmax(bounds, known.bounds)
            bounds = np.concatenate([low[:2], high[2:]])
    x0, y0, x1, y1 = bounds.tolist()
    return OutlineColumn(types, (x0, y0, x1, y1) if math.isfinite(x0) else None)


def _printed(column: pa.Array) -> pa.Array:
    """Return a column as it is written to a .csv: safe text, rounded numbers."""
    if pa.types.is_dictionary(column.type):
        safe = [no_formula(text) for text in column.dictionary.to_pylist()]
        return pa.DictionaryArray.from_arrays(column.indices, pa.array(safe, pa.string())).cast(
            pa.string()
        )
    if pa.types.is_floating(column.type):
        numbers = rounded(column.to_numpy(zero_copy_only=False))
        return pa.array(numbers, mask=~np.isfinite(numbers))
    return column
