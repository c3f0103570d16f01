"""The tables of a report: which columns of an export people read, and what they are called."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from qpnuclei.choices import CERTAINTY
from qpnuclei.qupath.count_table import CLASS_SHARES
from qpnuclei.qupath.counts import Row
from qpnuclei.report.rendering import is_number

#: Rows of the tables of a page; and rows with all columns.
MOST_ROWS, _MOST_FULL_ROWS = 200, 40

#: Columns of the tables that people read, of those of an export, and how they are called there.
_COLUMNS = (
    ("annotation", "annotation"),
    ("type", "type"),
    ("class", "class"),
    ("status", "status"),
    ("area_mm2", "mm²"),
    ("analysed_mm2", "analysed mm²"),
    ("nuclei", "nuclei"),
    ("nuclei_per_mm2", "per mm²"),
    ("Area µm^2 (median)", "median µm²"),
    ("Hematoxylin: Mean (mean)", "haematoxylin"),
    (f"{CERTAINTY} (mean)", "certainty"),
    ("check", "check"),
)
#: How they are called where the nuclei are those of cells.
_OF_CELLS = {
    name: f"Nucleus: {name}" for name in ("Area µm^2 (median)", "Hematoxylin: Mean (mean)")
}


def _columns(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Return the columns of a table that people read, and how they are called there."""
    # Most projects have annotations and nothing else.
    one_type = all(row["type"] == "annotation" for row in rows)
    shares = dict.fromkeys(name for row in rows for name in row if name.endswith(CLASS_SHARES))
    columns = [part for part in _COLUMNS if not (part[0] == "type" and one_type)]
    return [*columns[:-1], *((name, name) for name in shares), columns[-1]]


def readable(rows: Iterable[Row]) -> list[Row]:
    """Return rows where the nuclei of cells and other nuclei have the same columns.

    Where a row has both, each summary is of a part of its nuclei: it gets none.
    """
    made = []
    for row in rows:
        of_cells = {name: row.get(of_cell) for name, of_cell in _OF_CELLS.items()}
        if any(map(is_number, of_cells.values())):
            is_mixed = any(is_number(row.get(name)) for name in of_cells)
            row = {**row, **(dict.fromkeys(of_cells) if is_mixed else of_cells)}
        made.append(row)
    return made


def table_values() -> dict[str, Any]:
    """Return what the templates need to draw tables."""
    return {
        "columns": _columns,
        "readable": readable,
        "all_columns": lambda rows: [
            (column, column)
            for column in dict.fromkeys(name for row in rows for name in row)
            if column not in ("project", "image", "image_id")
        ],
        "most_rows": MOST_ROWS,
        "most_full_rows": _MOST_FULL_ROWS,
    }
