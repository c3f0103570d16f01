"""The metadata of a GeoParquet file."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

#: Version of the specification, https://geoparquet.org/releases/v1.1.0/
VERSION = "1.1.0"


def geo_metadata(
    geometry_types: Collection[str],
    bounds: tuple[float, float, float, float] | None = None,
    columns: Sequence[str] = ("geometry",),
) -> dict[bytes, bytes]:
    """Return the metadata of a file with outlines as WKB in level-0 px.

    Parameters
    ----------
    geometry_types : collection of str
        GeoJSON's names of the types; empty if not known.
    bounds : (x0, y0, x1, y1) of float, optional
        Bounding box of all outlines.
    columns : sequence of str
        Names of the columns with outlines, the most important first.

    Notes
    -----
    ``crs`` is null, which means unknown. Without the key, readers would take px for degrees.
    """
    described: dict[str, Any] = {
        "encoding": "WKB",
        "geometry_types": sorted(geometry_types),
        "crs": None,
        "edges": "planar",
    }
    if bounds is not None:
        described["bbox"] = list(bounds)
    geo = {
        "version": VERSION,
        "primary_column": columns[0],
        "columns": dict.fromkeys(columns, described),
    }
    return {b"geo": json.dumps(geo).encode()}
