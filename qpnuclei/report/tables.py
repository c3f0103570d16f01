"""The tables of a report: which columns of an export they show, and their headings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from qpnuclei.choices import CERTAINTY
from qpnuclei.qupath.count_table import CLASS_SHARES
from qpnuclei.qupath.counts import Row
from qpnuclei.report.rendering import is_number

#: Largest numbers of rows in a table of the page, and in a table with all columns.
MOST_ROWS, _MOST_FULL_ROWS = 200, 40

#: Columns of the export that the tables show, with their headings.
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
#: Names of these columns for the nuclei of cells.
_OF_CELLS = {
    name: f"Nucleus: {name}" for name in ("Area µm^2 (median)", "Hematoxylin: Mean (mean)")
}


def _columns(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Return the columns of a table for readers, with their headings."""
    # Most projects have only annotations.
    one_type = all(row["type"] == "annotation" for row in rows)
    shares = dict.fromkeys(name for row in rows for name in row if name.endswith(CLASS_SHARES))
    columns = [part for part in _COLUMNS if not (part[0] == "type" and one_type)]
    return [*columns[:-1], *((name, name) for name in shares), columns[-1]]


def readable(rows: Iterable[Row]) -> list[Row]:
    """Return rows in which the nuclei of cells and other nuclei share the same columns.

    If a row has both kinds, each summary covers only a part of its nuclei, and none is shown.
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
