"""Write QuPath's GeoJSON object by object, in constant memory."""

from __future__ import annotations

import gzip
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, compress, islice, pairwise
from pathlib import Path
from typing import Any, BinaryIO, cast
from uuid import UUID

import numpy as np
import numpy.typing as npt
import orjson
import shapely
import shapely.geometry

from qpnuclei.errors import UsageError, number_of
from qpnuclei.nuclei.table import NucleiTable
from qpnuclei.qupath.areas import polygons_in, valid_area
from qpnuclei.qupath.geojson.objects import GeoJsonObject
from qpnuclei.qupath.model import DetectionGroup, PathClass
from qpnuclei.qupath.names import replace_lone_surrogates
from qpnuclei.system.files import atomic_file

_log = logging.getLogger(__name__)

#: Decimals of coordinates, as in QuPath.
_DECIMALS = 2
#: Significant digits of measurements, as in float32.
_SIGNIFICANT = 7
#: Grey: colour of a class without a colour, because QuPath 0.4 and later need one.
_NO_COLOR = (128, 128, 128)
_CHUNK = 4096
#: Ten times as fast as the default level; the file is a quarter larger.
_GZIP_LEVEL = 1


def write_detections(
    path: Path, nuclei: NucleiTable, ids: Sequence[UUID], path_class: PathClass
) -> None:
    """Write nuclei as QuPath detections.

    Parameters
    ----------
    path : Path
        ``.geojson`` or ``.geojson.gz`` (or ``.json``, ``.json.gz``). The file is replaced in one
        step.
    nuclei : NucleiTable
        In level-0 px. Coordinates are rounded to 0.01 px; a ring that becomes invalid is repaired
        on that grid. Measurements that are not finite are left out.
    ids : (N,) sequence of UUID
    path_class : PathClass

    Raises
    ------
    UsageError
        If the suffix is not one of these.
    SaveError
        If the file cannot be written.
    ValueError
        If the number of `ids` differs from that of nuclei, or a nucleus has no area on a grid of
        0.01 px.
    """
    if len(ids) != len(nuclei):
        raise ValueError(f"{number_of(len(nuclei), 'nucleus')}, but {number_of(len(ids), 'id')}")
    _write(path, _detections(nuclei, ids, path_class))


def write_groups(path: Path, groups: Iterable[DetectionGroup]) -> None:
    """Write groups of detections with one group in memory at a time; see `write_detections`."""
    features = (_detections(group.nuclei, group.ids, group.path_class) for group in groups)
    _write(path, chain.from_iterable(features))


def write_objects(path: Path, objects: Iterable[GeoJsonObject]) -> list[str]:
    """Write objects of any kind; file and errors are as for `write_detections`.

    Returns
    -------
    list of str
        Messages on objects that were left out because no QuPath version reads them: their geometry
        is empty, not finite, or has no area on the grid of 0.01 px. Each one is also logged.
    """
    left_out: list[str] = []
    _write(path, _features(objects, left_out))
    return left_out


def _write(path: Path, features: Iterable[bytes]) -> None:
    path = Path(path)
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    zipped = suffixes[-1:] == [".gz"]
    if suffixes[len(suffixes) - 1 - zipped :][:1] not in ([".geojson"], [".json"]):
        raise UsageError(f"{str(path)!r} has no GeoJSON suffix", "use .geojson or .geojson.gz")
    with atomic_file(path) as stream:
        if zipped:
            # No time or name in the header, so that equal content gives equal files.
            with gzip.GzipFile("", "wb", _GZIP_LEVEL, stream, mtime=0) as packed:
                _write_collection(cast(BinaryIO, packed), features)
        else:
            _write_collection(stream, features)


def _write_collection(stream: BinaryIO, features: Iterable[bytes]) -> None:
    stream.write(b'{"type":"FeatureCollection","features":[')
    separator = b"\n"
    for feature in features:
        stream.write(separator)
        stream.write(feature)
        separator = b",\n"
    stream.write(b"\n]}\n")


def _detections(
    nuclei: NucleiTable, ids: Sequence[UUID], path_class: PathClass | None
) -> Iterator[bytes]:
    """Yield encoded features, many per chunk; they are cells if the nuclei have cells."""
    properties = _object_type("detection" if nuclei.cells is None else "cell")
    if path_class is not None:
        properties["classification"] = _classification(path_class)
    names = list(nuclei.measurements)
    for start in range(0, len(nuclei), _CHUNK):
        part = nuclei.take(np.arange(start, min(start + _CHUNK, len(nuclei))))
        nucleus_outlines = _polygon_json(part)
        geometries, nucleus = nucleus_outlines, [None] * len(part)
        if part.cells is not None:
            geometries, nucleus = _polygon_json(part.cells), nucleus_outlines
        columns = [_digits(part.measurements[name]).tolist() for name in names]
        rows = zip(*columns, strict=True) if columns else [()] * len(part)
        features = (
            _feature(
                identifier,
                geometry,
                {
                    **properties,
                    "measurements": [
                        {"name": name, "value": value}
                        for name, value in zip(names, row, strict=True)
                        if math.isfinite(value)
                    ],
                },
                inner,
            )
            for identifier, geometry, inner, row in zip(
                ids[start : start + len(part)], geometries, nucleus, rows, strict=True
            )
        )
        yield b",\n".join(features)


def _features(objects: Iterable[GeoJsonObject], left_out: list[str]) -> Iterator[bytes]:
    """Yield encoded features, many per chunk, and record objects that are left out."""
    iterator = iter(objects)
    while chunk := list(islice(iterator, _CHUNK)):
        geometries = np.empty(len(chunk), dtype=object)
        geometries[:] = [o.geometry for o in chunk]
        # Coordinates of a damaged file may overflow.
        with np.errstate(over="ignore", invalid="ignore"):
            geometries, texts = _on_grid(geometries)
            nuclei = np.empty(len(chunk), dtype=object)
            nuclei[:] = [shapely.Point() if o.nucleus is None else o.nucleus for o in chunk]
            _, inner = _on_grid(nuclei)
        features = [
            _feature(
                o.id,
                _geometry_json(text, o.z, o.t),
                _properties(o),
                None if within is None else _geometry_json(within, o.z, o.t),
            )
            for o, text, within in zip(chunk, texts, inner, strict=True)
            if text is not None
        ]
        for o in compress(chunk, shapely.is_empty(geometries)):
            left_out.append(f"{o.kind} {o.label}: its outline cannot be written")
            _log.warning("%s %s is left out: its outline cannot be written", o.kind, o.label)
        if features:
            yield b",\n".join(features)


def _properties(written: GeoJsonObject) -> dict[str, Any]:
    properties: dict[str, Any] = _object_type(written.kind)
    if written.name is not None:  # 0.3 cannot read a name that is null
        properties["name"] = replace_lone_surrogates(written.name)
    if written.path_class is not None:
        properties["classification"] = _classification(written.path_class)
    if written.color is not None:
        properties["color"] = _rgb(written.color)
    if written.kind == "annotation" or written.locked:
        properties["isLocked"] = written.locked
    if written.metadata:
        properties["metadata"] = {
            replace_lone_surrogates(key): replace_lone_surrogates(value)
            for key, value in written.metadata.items()
        }
    measurements = [
        {"name": replace_lone_surrogates(name), "value": value}
        for name, value in written.measurements.items()
        if math.isfinite(value)
    ]
    if measurements:
        properties["measurements"] = measurements
    if written.image is not None:
        properties["image"], properties["image_id"] = written.image
    return {**written.more, **properties}


def _on_grid(geometries: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], list[str | None]]:
    """Return rounded and valid geometries, and their GeoJSON.

    A geometry that cannot be written is empty, and its GeoJSON is None.
    """
    finite = np.isfinite(shapely.bounds(geometries)).all(axis=1)  # NaN for an empty geometry
    rounded: npt.NDArray[Any] = np.full(len(geometries), shapely.Point(), dtype=object)
    rounded[finite] = shapely.transform(geometries[finite], lambda xy: np.round(xy, _DECIMALS))
    for i in np.flatnonzero(~shapely.is_valid(rounded)).tolist():
        rounded[i] = _valid_on_grid(rounded[i])
    present = ~shapely.is_empty(rounded)
    texts = np.full(len(rounded), None, dtype=object)
    texts[present] = shapely.to_geojson(rounded[present])
    return rounded, texts.tolist()


def _geometry_json(text: str, z: int, t: int) -> orjson.Fragment:
    plane = f',"plane":{{"c":-1,"z":{z},"t":{t}}}}}' if z or t else "}"
    return orjson.Fragment(text.removesuffix("}") + plane)


def _feature(
    identifier: UUID | None, geometry: Any, properties: dict[str, Any], nucleus: Any = None
) -> bytes:
    own_id = {} if identifier is None else {"id": str(identifier)}
    outlines = {"geometry": geometry, **({} if nucleus is None else {"nucleusGeometry": nucleus})}
    return orjson.dumps(
        {"type": "Feature", **own_id, **outlines, "properties": properties},
        option=orjson.OPT_SERIALIZE_NUMPY,
    )


def _object_type(kind: str) -> dict[str, Any]:
    # QuPath 0.4 and later read the first key, 0.3 reads the second.
    return {"objectType": kind, "object_type": kind}


def _classification(path_class: PathClass) -> dict[str, Any]:
    rgb = _NO_COLOR if path_class.color is None else _rgb(path_class.color)
    return {"name": replace_lone_surrogates(path_class.name), "color": rgb}


def _rgb(color: int) -> tuple[int, int, int]:
    return color >> 16 & 255, color >> 8 & 255, color & 255


def _polygon_json(nuclei: NucleiTable) -> list[Any]:
    return [{"type": "Polygon", "coordinates": rings} for rings in _coordinates(nuclei)]


def _coordinates(nuclei: NucleiTable) -> list[list[npt.NDArray[np.float64]]]:
    """Return the rounded rings of each nucleus, repaired if rounding made them invalid."""
    vertices: npt.NDArray[np.float64] = nuclei.vertices.astype(np.float64).round(_DECIMALS)
    polygons = shapely.from_ragged_array(
        shapely.GeometryType.POLYGON, vertices, (nuclei.ring_offsets, nuclei.polygon_offsets)
    )
    rings = [vertices[a:b] for a, b in pairwise(nuclei.ring_offsets.tolist())]
    coordinates = [rings[a:b] for a, b in pairwise(nuclei.polygon_offsets.tolist())]
    for i in np.flatnonzero(~shapely.is_valid(polygons)).tolist():
        parts = shapely.get_parts(_valid_on_grid(polygons[i]))
        if len(parts) == 0:
            at = coordinates[i][0][0].tolist()
            raise ValueError(f"a nucleus at {at} has no area on a grid of 0.01 px")
        largest = parts[np.argmax(shapely.area(parts))]
        coordinates[i] = [
            np.round(shapely.get_coordinates(ring), _DECIMALS)
            for ring in shapely.get_rings(largest)
        ]
    return coordinates


def _valid_on_grid(geometry: shapely.Geometry) -> shapely.Geometry:
    """Repair an area that rounding made invalid; empty if it has no area any more.

    Invalid lines and points (with a single position) are returned unchanged.
    """
    if shapely.get_dimensions(geometry) < 2:
        return geometry
    # Parts that overlap must be merged as in all counts; `make_valid` alone would cut them out.
    repaired = shapely.set_precision(valid_area(geometry), 10.0**-_DECIMALS)
    rounded = shapely.transform(repaired, lambda points: np.round(points, _DECIMALS))
    parts = polygons_in(rounded)
    areas = parts[shapely.area(parts) > 0]
    return areas[0] if len(areas) == 1 else shapely.multipolygons(areas)


def _digits(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Round values to the digits of float32, so that their text is short."""
    exact = values.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        exponent = np.floor(np.log10(np.abs(exact)))
        scale = 10.0 ** np.clip(_SIGNIFICANT - 1 - exponent, -300, 300)
        rounded = np.round(exact * scale) / scale
    return np.where(np.isfinite(rounded), rounded, exact)
