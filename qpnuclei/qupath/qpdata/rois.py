"""Convert QuPath's ROIs in a data file to Shapely geometries, and back.

Every ROI class has a serialisation proxy with `c`, `z`, `t` and one of these: bounds (rectangle,
ellipse, line), vertices as float32 arrays (polygon, polyline, points, the legacy area), or
well-known binary (areas with holes or several parts).
"""

from __future__ import annotations

import logging
import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import shapely

from qpnuclei.errors import FormatError, number_of
from qpnuclei.nuclei.table import NucleiTable
from qpnuclei.qupath.qpdata import java_classes as jc
from qpnuclei.qupath.qpdata import java_fields as jf
from qpnuclei.qupath.qpdata.java_instances import Catalog
from qpnuclei.qupath.qpdata.java_nodes import JavaArray, JavaObject
from qpnuclei.qupath.qpdata.record_columns import Column, IntArray
from qpnuclei.qupath.qpdata.values import ValueSource

_log = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float64]
Scalar = TypeVar("Scalar", bound=np.floating[Any])

#: Number of vertices of the polygon that QuPath makes of an ellipse (the default of JTS).
ELLIPSE_VERTICES = 100
#: Grid to which QuPath rounds these vertices (its GeometryFactory has a PrecisionModel of 100).
ELLIPSE_GRID_PX = 0.01


@dataclass(frozen=True, eq=False)
class Rois:
    """N ROIs of one class.

    Parameters
    ----------
    roi_type : str
        QuPath's class without package: ``"PolygonROI"``.
    geometries : (N,) object ndarray
        Level-0 px.
    z, t : (N,) int ndarray
    bounds : (4, N) float64 ndarray or None
        x, y, x2, y2 of ROIs that are stored as two corners.
    """

    roi_type: str
    geometries: npt.NDArray[Any]
    z: npt.NDArray[np.integer[Any]]
    t: npt.NDArray[np.integer[Any]]
    bounds: FloatArray | None = None

    def one(self, index: int) -> Rois:
        """Return one of the ROIs."""
        own = slice(index, index + 1)
        bounds = None if self.bounds is None else self.bounds[:, own]
        return Rois(self.roi_type, self.geometries[own], self.z[own], self.t[own], bounds)

    def centroids(self) -> FloatArray:
        """Return the (N, 2) centroids as QuPath computes them, level-0 px."""
        with np.errstate(all="ignore"):  # a ROI in a file may contain NaN and infinity
            if self.bounds is not None:
                x, y, x2, y2 = self.bounds
                return np.stack([(x + x2) / 2, (y + y2) / 2], axis=1)
            points = shapely.centroid(self.geometries)
        centroids = np.full((len(points), 2), np.nan)
        centroids[~shapely.is_empty(points)] = shapely.get_coordinates(points)
        return centroids


_EMPTY = shapely.Polygon()

_EWKB_Z, _EWKB_M, _EWKB_SRID = 0x80000000, 0x40000000, 0x20000000
_EWKB_FLAGS = _EWKB_Z | _EWKB_M | _EWKB_SRID
_WKB_POINT, _WKB_LINE, _WKB_POLYGON = 1, 2, 3
#: Limit of nesting: a multipolygon in a collection has two levels; QuPath makes no deeper ones.
_MAX_WKB_LEVELS = 16


def read_rois(node: JavaObject, source: ValueSource) -> Rois:
    """Read the ROIs of all objects of a source; `node` is the ROI of its example.

    Raises
    ------
    qpnuclei.errors.FormatError
        If a ROI is inconsistent, for example if x and y have different lengths.
    """
    with np.errstate(all="ignore"):  # a ROI in a file may contain NaN and infinity
        return _read_rois(node, source)


def _read_rois(node: JavaObject, source: ValueSource) -> Rois:
    roi_type = node.class_name.removeprefix(jc.ROI).partition("$")[0]
    plane = jf.part_with(node, "z")
    numbers = source.column(plane).data
    bounds: FloatArray | None = None
    if roi_type in ("RectangleROI", "EllipseROI", "LineROI"):
        bounds = np.stack(
            [
                jf.primitive_column(plane, name, numbers).astype(float)
                for name in ("x", "y", "x2", "y2")
            ]
        )
        geometries = np.full(source.count, _EMPTY, dtype=object)
        finite = np.isfinite(bounds).all(axis=0)
        geometries[finite] = _BOUNDED[roi_type](*bounds[:, finite])
    elif roi_type in ("PolygonROI", "PolylineROI", "PointsROI"):
        xy, offsets = _vertices(node, source)
        if roi_type == "PolygonROI":
            geometries = polygons(xy, offsets)
        else:
            make = shapely.multipoints if roi_type == "PointsROI" else _polyline
            geometries = _each(make, xy, offsets)
    elif roi_type == "GeometryROI":
        geometries = _from_wkb(source.column(jf.array_field(node, "wkb", jc.BYTE_ARRAY)))
    elif roi_type == "AreaROI":
        geometries = _legacy_areas(node, source)
    else:
        _log.warning("ROI of unknown class %s: treated as empty", node.class_name)
        geometries = np.array([shapely.GeometryCollection()] * source.count, dtype=object)
    z, t = (jf.primitive_column(plane, name, numbers) for name in ("z", "t"))
    return Rois(roi_type, np.asarray(geometries, dtype=object), z, t, bounds)


def read_outlines(node: JavaObject, source: ValueSource) -> NucleiTable | None:
    """Read the vertices of PolygonROIs, without making geometries.

    Returns
    -------
    NucleiTable or None
        Closed rings, without measurements; None if the ROIs have another class, or one is empty.

    Raises
    ------
    qpnuclei.errors.FormatError
        If x and y of a ROI have different lengths.
    """
    if node.class_name != jc.POLYGON:
        return None
    xy, offsets = _vertices(node, source)
    counts = np.diff(offsets)
    if not (counts.all() and np.isfinite(xy).all()):
        return None
    vertices, rings = _closed(xy, offsets[:-1], counts)
    return NucleiTable(vertices, rings, np.arange(len(rings)))


def polygons(xy: npt.NDArray[np.floating[Any]], offsets: IntArray) -> npt.NDArray[Any]:
    """Return polygons without holes from vertices; the first may be repeated at the end.

    Parameters
    ----------
    xy : (V, 2) ndarray
    offsets : (N + 1,) int64 ndarray
        Polygon i has the vertices ``xy[offsets[i]:offsets[i + 1]]``. With fewer than three vertices
        it is invalid and has no area. It is empty without vertices, or if one is not finite.

    Returns
    -------
    (N,) object ndarray of shapely.Polygon
    """
    begins, counts = offsets[:-1], np.diff(offsets)
    usable = counts > 0
    wrong = np.flatnonzero(~np.isfinite(xy).all(axis=1))
    if len(wrong):
        usable[np.searchsorted(offsets, wrong, side="right") - 1] = False
        _log.warning(
            "not finite: %s; their polygons are read as empty",
            number_of(len(wrong), "vertex"),
        )
    filled = np.flatnonzero(usable)
    result = np.full(len(counts), _EMPTY, dtype=object)
    if len(filled) == 0:
        return result
    vertices, rings = _closed(xy, begins[filled], counts[filled])
    result[filled] = shapely.from_ragged_array(
        shapely.GeometryType.POLYGON,
        vertices.astype(np.float64),
        (rings, np.arange(len(filled) + 1)),
    )
    return result


def _closed(
    xy: npt.NDArray[Scalar], begins: IntArray, counts: IntArray
) -> tuple[npt.NDArray[Scalar], IntArray]:
    """Return the vertices of closed rings one after the other, and the offsets of the rings."""
    closed = (counts > 1) & np.all(xy[begins] == xy[begins + counts - 1], axis=1)
    counts = counts - closed
    # A ring needs four coordinates: the first one is appended as often as necessary.
    lengths = np.maximum(counts + 1, 4)
    rings = np.concatenate([[0], np.cumsum(lengths)])
    within = np.arange(rings[-1]) - np.repeat(rings[:-1], lengths)
    take = np.repeat(begins, lengths) + np.where(within < np.repeat(counts, lengths), within, 0)
    return np.take(xy, take, axis=0), rings


def ellipses(x: FloatArray, y: FloatArray, x2: FloatArray, y2: FloatArray) -> npt.NDArray[Any]:
    """Return the polygons that QuPath makes of ellipses with the given bounds.

    Notes
    -----
    As in ``GeometricShapeFactory.createEllipse`` of JTS, the angle increases in equal steps from 0.
    Vertices are rounded to QuPath's grid (halves up).
    """
    angle = np.arange(ELLIPSE_VERTICES) * (2 * np.pi / ELLIPSE_VERTICES)
    radius_x, radius_y = ((x2 - x) / 2)[:, None], ((y2 - y) / 2)[:, None]
    xs = radius_x * np.cos(angle) + (x[:, None] + radius_x)
    ys = radius_y * np.sin(angle) + (y[:, None] + radius_y)
    scale = 1 / ELLIPSE_GRID_PX
    rounded = np.floor(np.stack([xs, ys], axis=2) * scale + 0.5) / scale
    made: npt.NDArray[Any] = shapely.polygons(rounded)
    return made


@dataclass(frozen=True)
class Plane:
    """Position of a ROI in a stack: channel (-1 for all), z-slice, time point."""

    c: int = -1
    z: int = 0
    t: int = 0

    @classmethod
    def of(cls, roi: JavaObject) -> Plane:
        """Return the plane of a ROI."""
        return cls(*(int(jf.primitive(roi, name)) for name in ("c", "z", "t")))


def _lines(x: FloatArray, y: FloatArray, x2: FloatArray, y2: FloatArray) -> npt.NDArray[Any]:
    made: npt.NDArray[Any] = shapely.linestrings(
        np.stack([np.stack([x, y], axis=1), np.stack([x2, y2], axis=1)], axis=1)
    )
    return made


#: ROIs that are stored as two corners: functions from x, y, x2, y2 to geometries.
_BOUNDED = {"RectangleROI": shapely.box, "EllipseROI": ellipses, "LineROI": _lines}


def make_roi(catalog: Catalog, geometry: shapely.Geometry, plane: Plane = Plane()) -> JavaObject:
    """Return the ROI that QuPath would use for a geometry.

    A polygon without holes becomes a PolygonROI with float32 vertices, without the closing one.
    Other areas become a GeometryROI, lines a PolylineROI, points a PointsROI.

    Raises
    ------
    ValueError
        If the geometry is empty or of another type.
    """
    kind = geometry.geom_type
    if geometry.is_empty:
        raise ValueError("an empty geometry cannot be a ROI")
    if kind == "Polygon" and not geometry.interiors:
        return _of_vertices(catalog, jc.POLYGON, plane, shapely.get_coordinates(geometry)[:-1])
    if kind in ("Polygon", "MultiPolygon"):
        wkb = shapely.to_wkb(geometry, byte_order=0, output_dimension=2)
        return geometry_roi(catalog, JavaArray(catalog.desc(jc.BYTE_ARRAY), wkb, None), plane)
    if kind == "LineString":
        return _of_vertices(catalog, jc.POLYLINE, plane, shapely.get_coordinates(geometry))
    if kind in ("Point", "MultiPoint"):
        return _of_vertices(catalog, jc.POINTS, plane, shapely.get_coordinates(geometry))
    raise ValueError(f"a {kind} cannot be a ROI")


def geometry_roi(catalog: Catalog, wkb: JavaArray, plane: Plane) -> JavaObject:
    """Return a GeometryROI from big-endian two-dimensional well-known binary."""
    return catalog.make(jc.GEOMETRY, {**vars(plane), "wkb": wkb})


def vertices_roi(
    catalog: Catalog, name: str, plane: Plane, x: JavaArray, y: JavaArray
) -> JavaObject:
    """Return a ROI of class `name` from the coordinates of its vertices."""
    return catalog.make(name, {**vars(plane), "x": x, "y": y})


def _of_vertices(catalog: Catalog, name: str, plane: Plane, xy: FloatArray) -> JavaObject:
    x, y = catalog.floats(xy[:, 0]), catalog.floats(xy[:, 1])
    return vertices_roi(catalog, name, plane, x, y)


def _vertices(node: JavaObject, source: ValueSource) -> tuple[npt.NDArray[np.float32], IntArray]:
    x = source.column(jf.array_field(node, "x", jc.FLOAT_ARRAY))
    y = source.column(jf.array_field(node, "y", jc.FLOAT_ARRAY))
    if not np.array_equal(x.offsets, y.offsets):
        raise FormatError(f"{node.class_name}: x and y have different lengths")
    xy = np.empty((len(x.data) // 4, 2), np.float32)
    xy[:, 0] = np.frombuffer(x.data, ">f4")
    xy[:, 1] = np.frombuffer(y.data, ">f4")
    return xy, x.offsets // 4


def _each(make: Any, xy: npt.NDArray[np.float32], offsets: IntArray) -> npt.NDArray[Any]:
    result = np.empty(len(offsets) - 1, dtype=object)
    for i in range(len(result)):
        vertices = xy[offsets[i] : offsets[i + 1]].astype(float)
        result[i] = make(vertices[np.isfinite(vertices).all(axis=1)])
    return result


def _polyline(xy: FloatArray) -> shapely.Geometry:
    return shapely.LineString(xy if len(xy) != 1 else np.repeat(xy, 2, axis=0))


def _from_wkb(column: Column) -> npt.NDArray[Any]:
    pieces = [column.data[a:b] for a, b in pairwise(column.offsets.tolist())]
    for piece in pieces:
        _check_wkb(piece)
    try:
        geometries: npt.NDArray[Any] = shapely.from_wkb(pieces)
    except shapely.GEOSException as error:
        raise FormatError(f"GeometryROI with broken well-known binary: {error}") from None
    return geometries


def _check_wkb(data: bytes) -> None:
    """Raise FormatError if geometries are nested so deeply that GEOS would overflow the stack.

    GEOS reads well-known binary by recursion, so malicious data could crash the interpreter.
    """
    position = 0
    remaining = [1]  # number of remaining geometries at every level of nesting
    try:
        while remaining:
            if remaining[-1] == 0:
                remaining.pop()
                continue
            remaining[-1] -= 1
            order = "<" if data[position] else ">"
            (code,) = struct.unpack_from(order + "I", data, position + 1)
            position += 9 if code & _EWKB_SRID else 5
            iso, kind = divmod(code & ~_EWKB_FLAGS, 1000)
            ordinates = 2 + bool(code & _EWKB_Z or iso in (1, 3)) + bool(code & _EWKB_M or iso > 1)
            if kind == _WKB_POINT:
                position += 8 * ordinates
                continue
            (count,) = struct.unpack_from(order + "I", data, position)
            position += 4
            if kind == _WKB_LINE:
                position += 8 * ordinates * count
            elif kind == _WKB_POLYGON:
                for _ in range(count):
                    (vertices,) = struct.unpack_from(order + "I", data, position)
                    position += 4 + 8 * ordinates * vertices
            else:
                remaining.append(count)
                if len(remaining) > _MAX_WKB_LEVELS:
                    raise FormatError("GeometryROI with geometries that are nested too deeply")
    except (IndexError, struct.error):
        raise FormatError("GeometryROI with broken well-known binary: it ends early") from None


def _legacy_areas(node: JavaObject, source: ValueSource) -> npt.NDArray[Any]:
    """Read AreaROIs (before QuPath 0.2): rings of float32 vertices, filled by even-odd."""
    axes: list[list[Column]] = []
    for name in ("x", "y"):
        arrays = jf.list_items(jf.reference(node, name))
        if not all(isinstance(a, JavaArray) and a.desc.name == jc.FLOAT_ARRAY for a in arrays):
            raise FormatError(f"AreaROI: field {name!r} should be a float[][]")
        axes.append([source.column(a) for a in arrays if isinstance(a, JavaArray)])
    if len(axes[0]) != len(axes[1]):
        raise FormatError("AreaROI: x and y have different lengths")
    areas = np.full(source.count, _EMPTY, dtype=object)
    for x, y in zip(*axes, strict=True):
        if not np.array_equal(x.offsets, y.offsets):
            raise FormatError("AreaROI: x and y have different lengths")
        xy = np.stack([np.frombuffer(column.data, ">f4") for column in (x, y)], axis=1)
        for index, (a, b) in enumerate(pairwise((x.offsets // 4).tolist())):
            if b - a >= 3:
                areas[index] = _even_odd(areas[index], shapely.Polygon(xy[a:b].astype(float)))
    return areas


def _even_odd(area: shapely.Geometry, ring: shapely.Polygon) -> shapely.Geometry:
    try:
        return shapely.symmetric_difference(area, shapely.make_valid(ring))
    except shapely.GEOSException as error:
        raise FormatError(f"AreaROI: its rings make no area: {error}") from None
