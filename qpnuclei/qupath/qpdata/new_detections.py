"""Count the detections that an edit adds, write them from tables, and compare them after saving.

An edit may contain millions of detections in lazy groups. So all functions here process the groups
one by one, and keep only one in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from qpnuclei.errors import FormatError, UsageError, number_of
from qpnuclei.nuclei.ids import UUID_LENGTH
from qpnuclei.nuclei.table import NucleiTable
from qpnuclei.qupath.model import DetectionGroup, Edit, PathClass
from qpnuclei.qupath.names import checked_class_name
from qpnuclei.qupath.qpdata import java_classes as jc
from qpnuclei.qupath.qpdata.detections import FileDetections
from qpnuclei.qupath.qpdata.java_instances import Catalog
from qpnuclei.qupath.qpdata.java_nodes import Bulk, JavaArray, JavaObject, JavaString, Step
from qpnuclei.qupath.qpdata.java_writer import StreamWriter
from qpnuclei.qupath.qpdata.new_records import NewRecords
from qpnuclei.qupath.qpdata.packed_records import CHUNK
from qpnuclei.qupath.qpdata.path_objects import OBJECT_ID
from qpnuclei.qupath.qpdata.record_columns import Column
from qpnuclei.qupath.qpdata.record_shapes import Shape
from qpnuclei.qupath.qpdata.rois import Plane, geometry_roi, vertices_roi


@dataclass(frozen=True, eq=False)
class Additions:
    """A summary of the additions of an edit, from one pass over its groups.

    Parameters
    ----------
    edit : Edit
    counts : mapping of (int or None) to (mapping of int to int)
        For each parent, the number of nuclei of each of its groups, by the group's index.
    path_classes : list of PathClass
        Distinct classes of the added detections.
    """

    edit: Edit
    counts: Mapping[int | None, Mapping[int, int]]
    path_classes: Sequence[PathClass]

    @classmethod
    def of(cls, edit: Edit) -> tuple[Additions, set[str]]:
        """Return a summary of an edit's additions, and the texts of the new UUIDs.

        Raises
        ------
        qpnuclei.errors.UsageError
            If two new objects have the same UUID, or the name of a class is not in QuPath's form.
        ValueError
            If the number of UUIDs of a group differs from that of nuclei.
        """
        counts: dict[int | None, dict[int, int]] = {}
        path_classes = {a.path_class: None for a in edit.annotations}
        ids = {str(annotation.id) for annotation in edit.annotations}
        total = len(edit.annotations)
        for index, group in enumerate(edit.add):
            count = len(group.nuclei)
            if len(group.ids) != count:
                given = number_of(len(group.ids), "UUID")
                raise ValueError(f"{number_of(count, 'nucleus')}, but {given}")
            counts.setdefault(group.parent, {})[index] = count
            ids.update(group.id_texts)
            total += count
            if count:
                path_classes[group.path_class] = None
        if len(ids) < total:
            raise UsageError("two new objects have the same UUID")
        used = [c for c in path_classes if c is not None]
        for name in (c.name for c in used):
            if name != checked_class_name(name):
                raise UsageError(
                    f"{name!r} is not QuPath's form of a class name",
                    f"give {checked_class_name(name)!r}",
                )
        return cls(edit, counts, used), ids

    def groups(self, parent: int | None) -> Iterator[DetectionGroup]:
        """Yield the groups of a parent one by one.

        Raises
        ------
        ValueError
            If the length of a group has changed.
        """
        for index, count in self.counts[parent].items():
            group = self.edit.add[index]
            if (len(group.nuclei), len(group.ids), group.parent) != (count, count, parent):
                raise ValueError(f"group {index} of the edit has changed")
            yield group


@dataclass(eq=False)
class NewDetections(Bulk):
    """The new detections of one parent, created while they are written."""

    catalog: Catalog
    additions: Additions
    parent: int | None
    plane: Plane

    def __len__(self) -> int:
        return sum(self.additions.counts[self.parent].values())

    def write(self, writer: StreamWriter) -> Step:
        """Write all detections.

        Raises
        ------
        ValueError
            If a ring is not closed or has no area, or a vertex is not finite.
        """
        for group in self.additions.groups(self.parent):
            for part in uniform_parts(group):
                yield NewPart(self.catalog, part, plane_of(part, self.plane)).write(writer)


@dataclass(eq=False)
class NewPart(Bulk):
    """New detections or cells with the same structure; see `uniform_parts`."""

    catalog: Catalog
    part: DetectionGroup
    plane: Plane

    def __len__(self) -> int:
        return len(self.part.nuclei)

    def write(self, writer: StreamWriter) -> Step:
        """Write the first object as nodes, which defines shared nodes, and the rest as records."""
        return _write(writer, self.catalog, self.part, self.plane)


def plane_of(part: DetectionGroup, parents: Plane) -> Plane:
    """Return the plane of new detections: their own, otherwise that of their parent."""
    return parents if part.plane is None else Plane(z=part.plane[0], t=part.plane[1])


def uniform_parts(group: DetectionGroup) -> Iterator[DetectionGroup]:
    """Divide a group into parts of bounded size, in the order in which they are written.

    Nuclei without holes (PolygonROI) come first, then those with holes (GeometryROI), each in the
    order of the table; no part has both. If there are cells, the same applies to their outlines.

    Raises
    ------
    ValueError
        If a ring is not closed or has no area, or a vertex is not finite.
    """
    nuclei = group.nuclei
    kinds = _has_hole(nuclei).astype(np.int64)
    if nuclei.cells is not None:
        kinds = 2 * kinds + _has_hole(nuclei.cells)
    for kind in range(4):
        indices = np.flatnonzero(kinds == kind)
        for start in range(0, len(indices), CHUNK):
            chosen = indices[start : start + CHUNK]
            if len(chosen) == len(nuclei):
                yield group
                return
            ids = [group.ids[row] for row in chosen.tolist()]
            yield DetectionGroup(
                group.parent, nuclei.take(chosen), ids, group.path_class, group.plane
            )


def _has_hole(outlines: NucleiTable) -> npt.NDArray[np.bool_]:
    """Check all outlines, and tell which of them have a hole."""
    rings = np.diff(outlines.polygon_offsets)
    if np.any(rings < 1):
        raise ValueError("every nucleus must have an outline")
    first, last = outlines.ring_offsets[:-1], outlines.ring_offsets[1:] - 1
    if np.any(last - first < 3) or not np.array_equal(
        outlines.vertices[first], outlines.vertices[last]
    ):
        raise ValueError("every ring must be closed and have at least three vertices")
    if not np.all(np.isfinite(outlines.vertices)):
        raise ValueError("every vertex must be finite")
    has_hole: npt.NDArray[np.bool_] = rings > 1
    return has_hole


def check_same(found: FileDetections, part: DetectionGroup, grid_px: float = 0.0) -> None:
    """Raise FormatError unless the found detections equal those of a part.

    Vertices of outlines with holes may be rounded to a grid.
    """
    nuclei = part.nuclei
    if found.id_texts != part.id_texts or set(found.kinds) != {part.kind}:
        raise FormatError("a new detection is missing, or in another place")
    # Nearly always all vertices are equal, so geometries are not needed.
    if not (
        _same_vertices(found.nucleus_outlines, nuclei)
        or _same_geometries(found.nucleus_geometries, nuclei, grid_px)
    ):
        raise FormatError("a new detection has another outline")
    if nuclei.cells is not None and not (
        _same_vertices(found.outlines, nuclei.cells)
        or _same_geometries(found.geometries, nuclei.cells, grid_px)
    ):
        raise FormatError("a new cell has another outline")
    if set(found.class_names) != {None if part.path_class is None else part.path_class.name}:
        raise FormatError("a new detection has another class")
    if part.plane is not None and np.any(found.planes != part.plane):
        raise FormatError("a new detection lies on another plane")
    if found.measurements.keys() != nuclei.measurements.keys():
        raise FormatError("a new detection has other measurements")
    for name, values in nuclei.measurements.items():
        if not np.array_equal(found.measurements[name].astype(np.float32), values, equal_nan=True):
            raise FormatError(f"{name!r} of a new detection has another value")


def _same_vertices(outlines: NucleiTable | None, nuclei: NucleiTable) -> bool:
    return (
        outlines is not None
        and np.array_equal(outlines.vertices, nuclei.vertices)
        and np.array_equal(outlines.ring_offsets, nuclei.ring_offsets)
        and np.array_equal(outlines.polygon_offsets, nuclei.polygon_offsets)
    )


def _same_geometries(geometries: npt.NDArray[Any], nuclei: NucleiTable, grid_px: float) -> bool:
    polygons = nuclei.polygons()
    differ = np.flatnonzero(~shapely.equals_exact(geometries, polygons))
    found, expected = geometries[differ], polygons[differ]
    # A ring that repeats its first vertex at the end is read back without the repetition.
    tidy = shapely.remove_repeated_points
    same = shapely.equals_exact(tidy(found), tidy(expected))
    if grid_px:
        has_holes = shapely.get_num_interior_rings(expected) > 0
        same |= has_holes & (shapely.hausdorff_distance(found, expected) <= grid_px)
    return bool(np.all(same))


def _write(writer: StreamWriter, catalog: Catalog, part: DetectionGroup, plane: Plane) -> Step:
    nuclei = part.nuclei
    count = len(nuclei)
    values = np.stack([*nuclei.measurements.values()], axis=1) if nuclei.measurements else None
    value_bytes = b"" if values is None else values.astype(">f4").tobytes()
    names, index_map = catalog.measurement_names(tuple(nuclei.measurements))
    path_class = None
    if part.path_class is not None:
        path_class = catalog.path_class(part.path_class.name, part.path_class.color)
    # QuPath writes the outline of a cell first, and that of its nucleus at the end.
    outlines = [nuclei] if nuclei.cells is None else [nuclei.cells, nuclei]
    roi_columns = [_roi_columns(table) for table in outlines]
    columns = [
        Column("".join(part.id_texts).encode(), UUID_LENGTH * np.arange(count + 1)),
        Column(value_bytes, 4 * len(nuclei.measurements) * np.arange(count + 1)),
        *chain.from_iterable(roi_columns),
    ]

    def detection(index: int) -> tuple[JavaObject, list[JavaString | JavaArray]]:
        own_id, floats = (_cut(column, index) for column in columns[:2])
        id_string = JavaString(own_id)
        array = JavaArray(catalog.desc(jc.FLOAT_ARRAY), floats, None)
        measurements = catalog.make(
            jc.FLOAT_LIST, {"isClosed": True, "map": index_map, "names": names, "values": array}
        )
        rois = [_roi(catalog, [_cut(c, index) for c in own], plane) for own in roi_columns]
        (roi, _), *nucleus = rois
        node = catalog.path_object(
            jc.CELL if nucleus else jc.DETECTION,
            metadata=catalog.metadata([(catalog.string(OBJECT_ID), id_string)]),
            measurements=measurements,
            path_class=path_class,
            roi=roi,
            nucleus=nucleus[0][0] if nucleus else None,
        )
        return node, [id_string, array, *chain.from_iterable(arrays for _, arrays in rois)]

    first, _ = detection(0)
    yield writer.value(first)
    if count == 1:
        return
    example, owners = detection(1)
    shape = Shape(example, writer.handles)
    rest = {
        shape.slot_of(owner): Column(column.data, column.offsets[1:])
        for owner, column in zip(owners, columns, strict=True)
    }
    yield NewRecords(shape, rest, count - 1).write(writer)


def _cut(column: Column, index: int) -> bytes:
    return column.data[column.offsets[index] : column.offsets[index + 1]]


def _roi(
    catalog: Catalog, data: Sequence[bytes], plane: Plane
) -> tuple[JavaObject, list[JavaArray]]:
    """Return a ROI from its values in `_roi_columns`, and the arrays with these values."""
    if len(data) == 1:
        arrays = [JavaArray(catalog.desc(jc.BYTE_ARRAY), data[0], None)]
        return geometry_roi(catalog, arrays[0], plane), arrays
    arrays = [JavaArray(catalog.desc(jc.FLOAT_ARRAY), part, None) for part in data]
    return vertices_roi(catalog, jc.POLYGON, plane, arrays[0], arrays[1]), arrays


def _roi_columns(outlines: NucleiTable) -> list[Column]:
    """Return the stored values of outlines: x and y, or well-known binary if they have holes."""
    has_hole = outlines.polygon_offsets[1] > 1
    return [_wkb_column(outlines)] if has_hole else _vertex_columns(outlines)


def _vertex_columns(nuclei: NucleiTable) -> list[Column]:
    """Return x and y of the exterior rings as float32 bytes, without the closing vertex."""
    keep = np.ones(len(nuclei.vertices), bool)
    keep[nuclei.ring_offsets[1:] - 1] = False
    offsets = 4 * (nuclei.ring_offsets - np.arange(len(nuclei.ring_offsets)))
    open_rings = nuclei.vertices[keep].astype(">f4")
    return [Column(np.ascontiguousarray(open_rings[:, k]).tobytes(), offsets) for k in (0, 1)]


def _wkb_column(nuclei: NucleiTable) -> Column:
    pieces = shapely.to_wkb(nuclei.polygons(), byte_order=0, output_dimension=2)
    return Column(b"".join(pieces), np.cumsum([0, *map(len, pieces)]))
