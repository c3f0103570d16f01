"""Tables of nuclei and their files."""

from __future__ import annotations

import os
from pathlib import Path

from qpnuclei.choices import NUCLEUS_CLASS
from qpnuclei.errors import FormatError, NotFoundError, UsageError
from qpnuclei.nuclei.ids import hashed_ids
from qpnuclei.nuclei.table import NucleiTable, concatenate
from qpnuclei.qupath.model import PathClass
from qpnuclei.qupath.names import NEW_CLASS_COLOR, checked_class_name
from qpnuclei.system.arguments import checked_text
from qpnuclei.system.files import atomic_file

_PARQUET = (".parquet", ".geoparquet")
#: The column of a Parquet table with outlines, as WKB.
_GEOMETRY = "geometry"
#: Columns of a Parquet table that are neither outlines nor measurements: where nuclei are.
_PLACE = ("image_id", "z", "t")
_CENTROIDS = tuple(f"centroid_{axis}_{unit}" for axis in "xy" for unit in ("px", "um"))


def write_nuclei(
    nuclei: NucleiTable, path: str | os.PathLike[str], class_name: str = NUCLEUS_CLASS
) -> None:
    """Write nuclei as GeoJSON that QuPath opens, or as GeoParquet.

    Parameters
    ----------
    nuclei : NucleiTable
    path : path-like
        File ``.geojson``, ``.geojson.gz`` or ``.parquet`` (``.geoparquet``), replaced atomically.
    class_name : str
        Class of the detections in QuPath; a Parquet table has none.

    Raises
    ------
    UsageError
        If the suffix is another one, the name of the class is empty or not UTF-8, or a Parquet
        table has another column with the name of a measurement.
    qpnuclei.errors.SaveError
        If the file cannot be written.

    Examples
    --------
    >>> import shapely
    >>> nuclei = NucleiTable.from_polygons([shapely.box(2, 3, 9, 11)], {"Area µm^2": [3.5]})
    >>> write_nuclei(nuclei, "nuclei.geojson")
    >>> read_nuclei("nuclei.geojson").measurements["Area µm^2"].tolist()
    [3.5]
    """
    from qpnuclei.qupath.geojson.writing import write_detections

    path = Path(path)
    path_class = PathClass(
        checked_class_name(checked_text("class_name", class_name)), NEW_CLASS_COLOR
    )
    if path.suffix.lower() in _PARQUET:
        _write_parquet(path, nuclei)
        return
    outlines = [polygon.wkb for polygon in nuclei.polygons()]
    write_detections(path, nuclei, hashed_ids(outlines), path_class)


def _write_parquet(path: Path, nuclei: NucleiTable) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from qpnuclei.nuclei.exports.geoparquet import OutlineColumn, geo_metadata
    from qpnuclei.nuclei.exports.rows import CELL_GEOMETRY

    for name in (_GEOMETRY, CELL_GEOMETRY, *_CENTROIDS):
        if name in nuclei.measurements:
            raise UsageError(
                f"{path}: a Parquet table has another column {name!r} than the measurement",
                "rename the measurement, or write GeoJSON",
            )
    shapes = {_GEOMETRY: nuclei}
    if nuclei.cells is not None:
        shapes[CELL_GEOMETRY] = nuclei.cells
    outlines = {
        name: pa.array([polygon.wkb for polygon in table.polygons()], pa.binary())
        for name, table in shapes.items()
    }
    column = OutlineColumn(["Polygon"] if len(nuclei) else [])
    metadata = geo_metadata(dict.fromkeys(shapes, column))
    table = pa.table({**outlines, **nuclei.measurements}).replace_schema_metadata(metadata)
    with atomic_file(path) as stream:
        pq.write_table(table, stream)


def read_nuclei(path: str | os.PathLike[str]) -> NucleiTable:
    """Read nuclei from a file by `write_nuclei`, a run or an export, or from GeoJSON by QuPath.

    Parameters
    ----------
    path : path-like
        File ``.geojson``, ``.geojson.gz`` or ``.parquet`` (``.geoparquet``). Detections are read,
        and the nuclei of cells (the outlines of cells without a nucleus).

    Raises
    ------
    NotFoundError
        If there is no such file.
    FormatError
        If the file cannot be read, a nucleus is not one polygon, or the nuclei are of several
        images or planes.

    Examples
    --------
    >>> import shapely
    >>> nuclei = NucleiTable.from_polygons([shapely.box(2, 3, 9, 11)], {"Area µm^2": [3.5]})
    >>> write_nuclei(nuclei, "nuclei.parquet")
    >>> read_nuclei("nuclei.parquet").polygons()[0].bounds
    (2.0, 3.0, 9.0, 11.0)
    """
    path = Path(path)
    if not path.is_file():
        raise NotFoundError(f"{path} does not exist")
    try:
        return _from_parquet(path) if path.suffix.lower() in _PARQUET else _from_geojson(path)
    except FormatError:  # is a ValueError, and names the file
        raise
    except ValueError as error:
        raise FormatError(f"{path}: {error}", "each detection must be one polygon") from error


def _from_geojson(path: Path) -> NucleiTable:
    from qpnuclei.qupath.geojson.reading import read_objects

    tables, places = [], set()
    for found in read_objects(path):
        if found.kind in ("detection", "cell"):
            columns = {name: [value] for name, value in found.measurements.items()}
            outline = found.geometry if found.nucleus is None else found.nucleus
            tables.append(NucleiTable.from_polygons([outline], columns))
            places.add((found.image, found.z, found.t))
    _check_one_place(path, len(places))
    return concatenate(tables)


def _from_parquet(path: Path) -> NucleiTable:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import shapely

    try:
        with path.open("rb") as stream:  # Arrow itself opens only names in UTF-8
            table = pq.read_table(stream)
    except (pa.ArrowException, OSError) as error:
        raise FormatError(f"{path} is not a Parquet table: {error}", "copy it again") from error
    if _GEOMETRY not in table.column_names:
        raise FormatError(
            f"{path} has no column {_GEOMETRY!r}; it has {', '.join(table.column_names)}",
            "give a table that qpnuclei wrote",
        )
    known = [
        field.name
        for field in table.schema
        if field.name in _PLACE and not pa.types.is_floating(field.type)  # a measurement
    ]
    _check_one_place(path, len({tuple(row.values()) for row in table.select(known).to_pylist()}))
    measurements = {
        field.name: table[field.name].to_numpy()
        for field in table.schema
        if pa.types.is_floating(field.type) and field.name not in _CENTROIDS
    }
    try:
        outlines = shapely.from_wkb(table[_GEOMETRY].to_pylist())
    except (TypeError, shapely.errors.ShapelyError) as error:
        raise FormatError(
            f"{path}: its column {_GEOMETRY!r} does not hold outlines as WKB: {error}",
            "give a table that qpnuclei wrote",
        ) from error
    return NucleiTable.from_polygons(outlines, measurements)


def _check_one_place(path: Path, number: int) -> None:
    if number > 1:
        raise FormatError(
            f"{path} holds nuclei of {number} images or planes, and a table those of one",
            "export one image by itself (--image NAME), or read the table with pandas",
        )
