"""Write counts to a file: .csv, .tsv, .json or .parquet."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from qpnuclei.errors import UsageError
from qpnuclei.nuclei.exports.spreadsheet import BOM, no_formula, rounded
from qpnuclei.qupath.names import column_names, table_text
from qpnuclei.system.files import Save, check_file_target, write_atomically
from qpnuclei.system.json_text import json_bytes

if TYPE_CHECKING:
    import pyarrow as pa

_Table: TypeAlias = Mapping[str, list[Any]]

#: Columns of every table of counts: first those for people, last those for programs.
FIRST_COLUMNS = (
    "image",
    "annotation",
    "type",
    "class",
    "nuclei",
    "nuclei_per_mm2",
    "area_mm2",
    "analysed_mm2",
    "status",
    "check",
)
LAST_COLUMNS = ("uuid", "image_id", "project")

_NUMBERS = ("nuclei_per_mm2", "area_mm2", "analysed_mm2")
#: Columns of text.
TEXT_COLUMNS = frozenset((*FIRST_COLUMNS, *LAST_COLUMNS)) - {"nuclei", *_NUMBERS}
_CLASS_COUNT = "Num "
#: Endings of the names of columns that are computed from counts of classes.
CLASS_SHARES = ("Positive %", "H-score")


def write_counts(
    rows: Sequence[Mapping[str, Any]], path: Path, save: Save = write_atomically
) -> None:
    """Write rows of `qpnuclei.qupath.counts`, in one step.

    The columns are `FIRST_COLUMNS`, the counts, percentages and H-scores of classes, the
    measurements, and `LAST_COLUMNS`. A table without rows has only the first and the last columns.
    The formats are those of `write_table`.

    Raises
    ------
    UsageError, SaveError
        As `write_table`.
    """
    found = dict.fromkeys(name for row in rows for name in row)
    between = [name for name in found if name not in (*FIRST_COLUMNS, *LAST_COLUMNS)]
    classes = [name for name in between if name.startswith(_CLASS_COUNT)]
    rest = [name for name in between if name not in classes]
    rest.sort(key=lambda name: not name.endswith(CLASS_SHARES))  # these first
    write_table(rows, path, [*FIRST_COLUMNS, *classes, *rest, *LAST_COLUMNS], save)


def write_table(
    rows: Sequence[Mapping[str, Any]],
    path: Path,
    columns: Sequence[str] | None = None,
    save: Save = write_atomically,
) -> None:
    """Write rows as .csv, .tsv, .json or .parquet, in one step.

    Parameters
    ----------
    rows : sequence of mapping of str to str, int, float, UUID or None
        Rows may have different columns. NaN and None become empty cells (null in JSON and Parquet).
        In .csv and .tsv, numbers have 6 significant digits, and text that a spreadsheet program
        would read as a formula gets a leading apostrophe. A .csv starts with a byte order mark, so
        that Excel reads it as UTF-8.
    path : Path
        The suffix determines the format.
    columns : sequence of str, optional
        Names of the columns, in order; by default in the order of first appearance.
    save : callable
        Writes the content to the path.

    Raises
    ------
    UsageError
        If the suffix is not one of these.
    SaveError
        If the file cannot be written.
    """
    path = Path(path)
    write = _writer_of(path)
    if columns is None:
        columns = list(dict.fromkeys(name for row in rows for name in row))
    save(path, write({name: [_cell(row.get(name)) for row in rows] for name in columns}))


def check_table(path: Path) -> None:
    """Check, before anything is counted, that `write_table` can write a file.

    Raises
    ------
    UsageError
        If the suffix is not that of a table.
    qpnuclei.errors.SaveError
        As `check_file_target`.
    """
    _writer_of(path)
    check_file_target(path)


def _writer_of(path: Path) -> Callable[[_Table], bytes]:
    writers: dict[str, Callable[[_Table], bytes]] = {
        ".csv": lambda table: BOM + _separated(table, ","),
        ".tsv": lambda table: _separated(table, "\t"),
        ".json": _json,
        ".parquet": _parquet,
    }
    write = writers.get(path.suffix.lower())
    if write is None:
        raise UsageError(
            f"{str(path)!r}: unsupported table format",
            f"use one of {', '.join(writers)}",
        )
    return write


def _cell(value: Any) -> str | int | float | None:
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)


class _Lines(list[str]):
    """The rows of a CSV writer, each ended by a line feed alone."""

    def write(self, row: str) -> None:
        self.append(row.removesuffix("\r\n") + "\n")


def _separated(table: _Table, separator: str) -> bytes:
    lines = _Lines()
    # Before Python 3.13, only cells with a character of the line terminator are quoted.
    writer = csv.writer(lines, delimiter=separator, lineterminator="\r\n")
    writer.writerow(map(no_formula, table))
    writer.writerows(zip(*map(_printed, table.values()), strict=True))
    return "".join(lines).encode(errors="backslashreplace")


def _printed(column: list[Any]) -> list[Any]:
    near = rounded([cell if isinstance(cell, float) else math.nan for cell in column]).tolist()
    return [
        number if isinstance(cell, float) else no_formula(cell)
        for cell, number in zip(column, near, strict=True)
    ]


def _json(table: _Table) -> bytes:
    rows = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    return json_bytes(rows, indent=2) + b"\n"


def _type_of(column: str) -> pa.DataType:
    import pyarrow as pa

    if column in TEXT_COLUMNS:
        return pa.string()
    is_count = column == "nuclei" or column.startswith(_CLASS_COUNT)
    return pa.int64() if is_count else pa.float64()


def _parquet(table: _Table) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet

    arrays = [
        # Give empty columns a type as well, so that tables can be joined.
        pa.array(
            [table_text(value) if isinstance(value, str) else value for value in values],
            type=_type_of(name) if all(value is None for value in values) else None,
        )
        for name, values in table.items()
    ]
    names = column_names(table, " (other)")
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(pa.table(arrays, names), sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content
