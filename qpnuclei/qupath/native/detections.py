"""Detections of a data file, read into columns and written from columns."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import shapely

from qpnuclei.errors import FormatError
from qpnuclei.nuclei import NucleiTable
from qpnuclei.qupath.model import DetectionGroup, Detections, PathClass
from qpnuclei.qupath.native import java_classes as jc
from qpnuclei.qupath.native.java_stream import (
    Content,
    JavaArray,
    JavaObject,
    JavaString,
    StreamWriter,
    run,
)
from qpnuclei.qupath.native.path_objects import OBJECT_ID, PathObject, parse_uuid
from qpnuclei.qupath.native.records import Column, IntArray, NewRecords, Packed, Shape
from qpnuclei.qupath.native.rois import Plane, geometry_roi, read_rois, vertices_roi
from qpnuclei.qupath.native.sources import Many, NotConstantError, Single, Source, text

logger = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float64]

_UUID_LENGTH = 36


def read_detections(items: Sequence[tuple[PathObject | Packed, int]]) -> Detections:
    """Read detections into columns.

    Parameters
    ----------
    items : sequence of (PathObject or Packed, int)
        Detections, single or packed, and the handle of the annotation above them (-1 for none).

    Raises
    ------
    qpnuclei.errors.FormatError
        If one of them contradicts itself.
    """
    counts = [len(item) if isinstance(item, Packed) else 1 for item, _ in items]
    columns = _Columns(sum(counts))
    first = 0
    for (item, parent), count in zip(items, counts, strict=True):
        columns.parents[first : first + count] = parent
        if isinstance(item, Packed):
            columns.read_packed(item, first)
        else:
            columns.read(item, Single(), np.array([first]))
        first += count
    return columns.detections()


def packed_ids(packed: Packed) -> list[str]:
    """Return the texts of the UUIDs of N packed detections; empty where there is none."""
    ids = [""] * len(packed)
    for known, indices in packed.groups():
        for source, rows, view in _uniform(packed, Many(packed, known, indices), indices):
            if view.id_string is not None:
                for row, own_id in zip(
                    rows.tolist(), _texts(source.column(view.id_string)), strict=True
                ):
                    ids[row] = own_id
    return ids


def new_detections(catalog: jc.Catalog, group: DetectionGroup, plane: Plane) -> list[Content]:
    """Return a group of detections, in the plane of their parent, as children for it.

    The nuclei without holes come first (PolygonROI), those with holes after them (GeometryROI),
    each in the order of the table.

    Raises
    ------
    ValueError
        If a ring is not closed or encloses nothing, or a vertex is not finite.
    """
    nuclei = group.nuclei
    if len(group.ids) != len(nuclei):
        raise ValueError(f"{len(nuclei)} nuclei, but {len(group.ids)} UUIDs")
    first, last = nuclei.ring_offsets[:-1], nuclei.ring_offsets[1:] - 1
    if np.any(last - first < 3) or not np.array_equal(
        nuclei.vertices[first], nuclei.vertices[last]
    ):
        raise ValueError("every ring must be closed and have at least three vertices")
    if not np.all(np.isfinite(nuclei.vertices)):
        raise ValueError("every vertex must be finite")
    rings = np.diff(nuclei.polygon_offsets)
    items: list[Content] = []
    for has_hole in (False, True):
        indices = np.flatnonzero((rings > 1) == has_hole)
        if len(indices):
            chosen = nuclei.take(indices)
            ids = [group.ids[i] for i in indices.tolist()]
            items += _uniform_detections(catalog, chosen, ids, group.path_class, plane)
    return items


def _uniform_detections(
    catalog: jc.Catalog,
    nuclei: NucleiTable,
    ids: Sequence[uuid.UUID],
    own_class: PathClass | None,
    plane: Plane,
) -> list[Content]:
    """Return one detection as nodes, which defines what they share, and the others as records."""
    has_hole = nuclei.polygon_offsets[1] > 1
    values = np.stack([*nuclei.measurements.values()], axis=1) if nuclei.measurements else None
    value_bytes = b"" if values is None else values.astype(">f4").tobytes()
    value_size = 4 * len(nuclei.measurements)
    names, index_map = catalog.measurement_names(tuple(nuclei.measurements))
    path_class = None
    if own_class is not None:
        path_class = catalog.path_class(own_class.name, own_class.color)
    geometry = [_wkb_column(nuclei)] if has_hole else _vertex_columns(nuclei)
    id_bytes = "".join(map(str, ids)).encode()
    columns = [
        Column(id_bytes, _UUID_LENGTH * np.arange(len(ids) + 1)),
        Column(value_bytes, value_size * np.arange(len(ids) + 1)),
        *geometry,
    ]

    def detection(index: int) -> tuple[JavaObject, list[JavaString | JavaArray]]:
        own = [c.data[c.offsets[index] : c.offsets[index + 1]] for c in columns]
        id_string = JavaString(own[0])
        floats = catalog.desc(jc.FLOAT_ARRAY)
        array = JavaArray(floats, own[1], None)
        measurements = catalog.make(
            jc.FLOAT_LIST, {"isClosed": True, "map": index_map, "names": names, "values": array}
        )
        arrays = [JavaArray(floats, data, None) for data in own[2:]]
        if has_hole:
            arrays = [JavaArray(catalog.desc(jc.BYTE_ARRAY), own[2], None)]
            roi = geometry_roi(catalog, arrays[0], plane)
        else:
            roi = vertices_roi(catalog, jc.POLYGON, plane, *arrays)
        node = catalog.path_object(
            jc.DETECTION,
            metadata=catalog.metadata([(catalog.string(OBJECT_ID), id_string)]),
            measurements=measurements,
            path_class=path_class,
            roi=roi,
        )
        return node, [id_string, array, *arrays]

    first, _ = detection(0)
    if len(ids) == 1:
        return [first]
    defined = StreamWriter(lambda _: None)
    run(defined.value(first))
    example, owners = detection(1)
    shape = Shape(example, defined.handles)
    rest = {
        shape.slot_of(owner): Column(column.data, column.offsets[1:])
        for owner, column in zip(owners, columns, strict=True)
    }
    return [first, NewRecords(shape, rest, len(ids) - 1)]


def _vertex_columns(nuclei: NucleiTable) -> list[Column]:
    """Return x and y of the exterior rings as float32 bytes, the closing vertex left out."""
    keep = np.ones(len(nuclei.vertices), bool)
    keep[nuclei.ring_offsets[1:] - 1] = False
    offsets = 4 * (nuclei.ring_offsets - np.arange(len(nuclei.ring_offsets)))
    open_rings = nuclei.vertices[keep].astype(">f4")
    return [Column(np.ascontiguousarray(open_rings[:, k]).tobytes(), offsets) for k in (0, 1)]


def _wkb_column(nuclei: NucleiTable) -> Column:
    pieces = shapely.to_wkb(nuclei.polygons(), byte_order=0, output_dimension=2)
    return Column(b"".join(pieces), np.cumsum([0, *map(len, pieces)]))


class _Columns:
    """The columns of N detections, filled batch by batch."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.ids: list[uuid.UUID | None] = [None] * count
        self.kinds = [""] * count
        self.class_names: list[str | None] = [None] * count
        self.geometries = np.empty(count, dtype=object)
        self.centroids = np.empty((count, 2), np.float64)
        self.parents = np.empty(count, np.int64)
        self.measurements: dict[str, FloatArray] = {}

    def read_packed(self, packed: Packed, first: int) -> None:
        for known, indices in packed.groups():
            for source, rows, view in _uniform(packed, Many(packed, known, indices), indices):
                self.read(view, source, first + rows)

    def read(self, view: PathObject, source: Source, rows: IntArray) -> None:
        """Read the objects of a source into the given rows."""
        string = view.id_string
        ids = [None] * len(rows) if string is None else _uuids(source.column(string))
        class_name = None if view.path_class is None else _class_name(view.path_class, source)
        for row, own_id in zip(rows.tolist(), ids, strict=True):
            self.ids[row] = own_id
            self.kinds[row] = view.kind
            self.class_names[row] = class_name
        if view.roi is None:
            raise FormatError("a detection has no ROI")
        rois = read_rois(view.roi, source)
        self.geometries[rows] = rois.geometries
        # QuPath locates a cell by its nucleus, where it has one.
        located = rois if view.nucleus is None else read_rois(view.nucleus, source)
        self.centroids[rows] = located.centroids
        for name, values in _measurements(view.measurements, source):
            if name not in self.measurements:
                self.measurements[name] = np.full(self.count, np.nan)
            self.measurements[name][rows] = values

    def detections(self) -> Detections:
        return Detections(
            self.ids,
            self.kinds,
            self.class_names,
            self.geometries,
            self.centroids,
            self.parents,
            self.measurements,
        )


def _uniform(
    packed: Packed, source: Many, indices: IntArray
) -> Iterator[tuple[Source, IntArray, PathObject]]:
    """Yield the records of one shape as one batch, or each alone if they must be read differently.

    What decides how to read a record (class, metadata keys, names of measurements) is nearly
    always shared or equal; the numbers of children must all be 0.
    """
    view = PathObject.of(packed.node(int(indices[0])) if len(indices) == 1 else source.example)
    if len(indices) == 1:
        yield Single(), indices, view
        return
    try:
        _structure(view, source)
    except NotConstantError:
        for index in indices:
            yield Single(), np.array([index]), PathObject.of(packed.node(int(index)))
    else:
        yield source, indices, view


def _structure(view: PathObject, source: Source) -> None:
    """Raise `NotConstantError` unless the view of the example is that of every object."""
    source.constant(view.child_count)
    for key, _ in view.metadata:
        source.constant(key)
    if view.path_class is not None:
        _class_name(view.path_class, source)
    for name in _measurement_names(view.measurements):
        source.constant(name)


def _class_name(node: JavaObject, source: Source) -> str:
    names = (jc.string_field(part, "name") for part in jc.path_class_chain(node))
    return ": ".join("" if name is None else text(name, source) for name in names)


def _texts(column: Column) -> list[str]:
    data, edges = column.data.decode("latin-1"), column.offsets.tolist()
    return [data[a:b] for a, b in pairwise(edges)]


def _uuids(column: Column) -> list[uuid.UUID | None]:
    return [parse_uuid(item) for item in _texts(column)]


def _measurement_names(node: JavaObject | None) -> list[JavaString]:
    if node is None:
        return []
    if node.class_name in (jc.FLOAT_LIST, jc.DOUBLE_LIST):
        names = jc.list_items(jc.reference(node, "names"))
    elif node.class_name == jc.DEFAULT_LIST:
        items = jc.list_items(jc.reference(node, "list"))
        names = [jc.string_field(m, "name") for m in items if isinstance(m, JavaObject)]
    else:
        logger.warning("measurements of unknown class %s are not read", node.class_name)
        return []
    if not all(isinstance(name, JavaString) for name in names):
        raise FormatError("a measurement has no name")
    return [name for name in names if isinstance(name, JavaString)]


def _measurements(node: JavaObject | None, source: Source) -> Iterator[tuple[str, FloatArray]]:
    """Yield every measurement's name and its value in each object (NaN where it has none)."""
    names = [text(name, source) for name in _measurement_names(node)]
    if node is None or not names:
        return
    if node.class_name == jc.DEFAULT_LIST:
        items = jc.list_items(jc.reference(node, "list"))
        for name, item in zip(names, items, strict=True):
            if isinstance(item, JavaObject):
                part = jc.part_with(item, "value")
                values = jc.primitive_column(part, "value", source.column(part).data)
                yield name, values.astype(np.float64)
        return
    class_name = jc.FLOAT_ARRAY if node.class_name == jc.FLOAT_LIST else jc.DOUBLE_ARRAY
    column = source.column(jc.array_field(node, "values", class_name))
    values = np.frombuffer(column.data, ">f4" if class_name == jc.FLOAT_ARRAY else ">f8")
    edges = column.offsets // values.itemsize
    for index, name in enumerate(names):
        # An open list may be longer than its names (spare room), and never is shorter.
        result = np.full(len(edges) - 1, np.nan)
        present = np.diff(edges) > index
        with np.errstate(invalid="ignore"):  # a signalling NaN of the file
            result[present] = values[edges[:-1][present] + index]
        yield name, result
