"""The metadata of a GeoParquet file."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

#: Version of the specification, https://geoparquet.org/releases/v1.1.0/
VERSION = "1.1.0"


class OutlineColumn(NamedTuple):
    """What is known of a column of outlines.

    Parameters
    ----------
    types : collection of str
        GeoJSON's names of the types; empty if not known.
    bounds : (x0, y0, x1, y1) of float, optional
        Bounding box of all outlines.
    """

    types: Collection[str]
    bounds: tuple[float, float, float, float] | None = None


def geo_metadata(columns: Mapping[str, OutlineColumn]) -> dict[bytes, bytes]:
    """Return the metadata of a file with outlines as WKB in level-0 px.

    Parameters
    ----------
    columns : mapping of str to OutlineColumn
        By name, the most important column first.

    Notes
    -----
    ``crs`` is null, which means unknown. Without the key, readers would take px for degrees.
    """
    described: dict[str, dict[str, Any]] = {}
    for name, column in columns.items():
        described[name] = {
            "encoding": "WKB",
            "geometry_types": sorted(column.types),
            "crs": None,
            "edges": "planar",
        }
        if column.bounds is not None:
            described[name]["bbox"] = list(column.bounds)
    geo = {"version": VERSION, "primary_column": next(iter(columns)), "columns": described}
    return {b"geo": json.dumps(geo).encode()}
