"""Detections of a data file, read into columns."""

from __future__ import annotations

import logging
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from qpnuclei.errors import FormatError
from qpnuclei.nuclei.table import NucleiTable, concatenate
from qpnuclei.qupath.model import Detections
from qpnuclei.qupath.qpdata import java_classes as jc
from qpnuclei.qupath.qpdata import java_fields as jf
from qpnuclei.qupath.qpdata.java_nodes import JavaObject, JavaString
from qpnuclei.qupath.qpdata.packed_records import CHUNK, Packed
from qpnuclei.qupath.qpdata.path_classes import path_class_chain
from qpnuclei.qupath.qpdata.path_objects import KINDS, OBJECT_ID, PathObject, located, parse_uuid
from qpnuclei.qupath.qpdata.record_columns import Column, IntArray
from qpnuclei.qupath.qpdata.record_shapes import KnownShape
from qpnuclei.qupath.qpdata.rois import read_outlines, read_rois
from qpnuclei.qupath.qpdata.values import Many, NotConstantError, Single, ValueSource, text

_log = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float64]
_T = TypeVar("_T")

#: Reads one property of all objects of a source, given the view of their example.
_Reader = Callable[[PathObject, ValueSource], _T]


class FileDetections(Detections):
    """Detections of a file; a column is read on first access.

    Unread columns cost nothing: for example, outlines are parsed only if needed.

    Parameters
    ----------
    items : sequence of (PathObject or Packed, int)
        Detections, single or packed, and the handle of the annotation above them (-1 for none).
    errors : callable
        Returns the context in which a column is read, for example to name the file in errors.

    Raises
    ------
    qpnuclei.errors.FormatError
        From a column, if a detection is inconsistent.
    """

    _items: Sequence[tuple[PathObject | Packed, int]]
    _counts: IntArray
    _errors: Callable[[], AbstractContextManager[None]]

    def __init__(
        self,
        items: Sequence[tuple[PathObject | Packed, int]],
        errors: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        # Not the dataclass's __init__, which would set the columns.
        counts = np.array([_count(item) for item, _ in items], np.int64)
        vars(self).update(_items=items, _counts=counts, _errors=errors)

    def __len__(self) -> int:
        return int(self._counts.sum())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} detections)"

    @cached_property
    def ids(self) -> list[uuid.UUID | None]:
        """UUIDs; None for those without."""
        return self._list(_ids)

    @cached_property
    def id_texts(self) -> list[str | None]:
        """UUIDs as text; None for those without."""
        return self._list(_id_texts)

    @cached_property
    def kinds(self) -> list[str]:
        """``"detection"``, ``"cell"`` or ``"tile"``."""
        return self._list(lambda view, source: [view.kind] * source.count)

    @cached_property
    def class_names(self) -> list[str | None]:
        """Names of the classes; None for those without."""
        return self._list(lambda view, source: [_class_name(view, source)] * source.count)

    @cached_property
    def geometries(self) -> npt.NDArray[Any]:
        """Shapely geometries, level-0 px."""
        geometries = np.empty(len(self), dtype=object)
        for rows, values in self._read(_geometries):
            geometries[rows] = values
        return geometries

    @cached_property
    def nucleus_geometries(self) -> npt.NDArray[Any]:
        """Outlines of the nuclei of cells; of all others, and of cells without one, their own."""
        if "cell" not in self.kinds:
            return self.geometries
        geometries = np.empty(len(self), dtype=object)
        for rows, values in self._read(_nucleus_geometries):
            geometries[rows] = values
        return geometries

    @cached_property
    def outlines(self) -> NucleiTable | None:
        """Their outlines as stored; None if one is not a polygon, or has a hole."""
        return self._vertices(_outlines)

    @cached_property
    def nucleus_outlines(self) -> NucleiTable | None:
        """The same of what `nucleus_geometries` has."""
        return self._vertices(_nucleus_outlines)

    def _vertices(self, reader: _Reader[NucleiTable | None]) -> NucleiTable | None:
        rows, tables = [], []
        for some, table in self._read(reader):
            if table is None:
                return None
            rows.append(some)
            tables.append(table)
        if len(self) == 0:
            return NucleiTable.empty()
        order = np.argsort(np.concatenate(rows), kind="stable")
        return concatenate(tables).take(order)

    @cached_property
    def centroids(self) -> FloatArray:
        """Centroids as QuPath computes them, level-0 px."""
        centroids = np.empty((len(self), 2), np.float64)
        for rows, values in self._read(_centroids):
            centroids[rows] = values
        return centroids

    @cached_property
    def planes(self) -> npt.NDArray[np.int64]:
        """z-slices and time points."""
        planes = np.zeros((len(self), 2), np.int64)
        for rows, values in self._read(_planes):
            planes[rows] = values
        return planes

    @cached_property
    def parents(self) -> npt.NDArray[np.int64]:
        """Handles of the nearest enclosing annotations, -1 for none."""
        return np.repeat(np.array([parent for _, parent in self._items], np.int64), self._counts)

    @cached_property
    def measurements(self) -> dict[str, FloatArray]:
        """Values by name; NaN where a detection has none."""
        columns: dict[str, FloatArray] = {}
        for rows, measured in self._read(_measurements):
            for name, values in measured:
                if name not in columns:
                    columns[name] = np.full(len(self), np.nan)
                columns[name][rows] = values
        return columns

    @cached_property
    def locked(self) -> npt.NDArray[np.bool_]:
        """Whether each is locked in QuPath."""
        locked = np.zeros(len(self), bool)
        for rows, values in self._read(_locked):
            locked[rows] = values
        return locked

    def unread(self) -> Counter[str]:
        """Return properties of detections that no column holds, with the number that have them."""
        counts = Counter[str]()
        for batch in self._batches:
            view = batch.view
            has = {
                "name": view.name is not None,
                "own colour": view.color is not None,
                "lock": view.is_locked,
                "metadata": any(key.text != OBJECT_ID for key, _ in view.metadata),
            }
            counts.update({what: len(batch.rows) for what, it_has in has.items() if it_has})
        return counts

    def kind_counts(self) -> Counter[str]:
        """Return the number of detections of each kind."""
        counts = Counter[str]()
        for item, _ in self._items:
            if isinstance(item, Packed):
                for known, indices in item.groups():
                    counts[KINDS[known.shape.example.class_name]] += len(indices)
            else:
                counts[item.kind] += 1
        return counts

    def _list(self, reader: _Reader[list[_T]]) -> list[_T]:
        column = np.empty(len(self), dtype=object)
        for rows, values in self._read(reader):
            column[rows] = values
        made: list[_T] = column.tolist()
        return made

    def _read(self, reader: _Reader[_T]) -> Iterator[tuple[IntArray, _T]]:
        """Yield rows, batch by batch, and what a reader makes of them."""
        for batch in self._batches:
            with self._errors():
                value = batch.read(reader)
            yield batch.rows, value

    @cached_property
    def _batches(self) -> list[_Batch]:
        firsts = np.cumsum(self._counts) - self._counts
        with self._errors():
            return [
                replace(batch, rows=first + batch.rows)
                for (item, _), first in zip(self._items, firsts.tolist(), strict=True)
                for batch in _divide(item)
            ]


def packed_ids(packed: Packed) -> Iterator[tuple[IntArray, list[str]]]:
    """Yield, batch by batch, the indices of packed detections that have a UUID, and its text.

    Raises
    ------
    qpnuclei.errors.FormatError
        If one of them is inconsistent.
    """
    for batch in _divide(packed):
        texts = [text for text in batch.read(_id_texts) if text is not None]
        if texts:
            yield batch.rows, texts


@dataclass(frozen=True, eq=False)
class _Batch:
    """N detections that are read in the same way.

    Parameters
    ----------
    rows : (N,) int64 ndarray
        Their positions among all detections.
    view : PathObject
        The only one, or the example of the packed ones.
    packed : (Packed, KnownShape, (N,) int64 ndarray) or None
        If they are packed: where, their shape, and their indices there.
    """

    rows: IntArray
    view: PathObject
    packed: tuple[Packed, KnownShape, IntArray] | None = None

    def read(self, reader: _Reader[_T]) -> _T:
        """Read one property of all of them."""
        if self.packed is None:
            with located(self.view.node.offset):
                return reader(self.view, Single())
        try:
            return reader(self.view, Many(*self.packed))
        except FormatError:
            for single in self.singles():  # read singly, so that the error names the offset
                single.read(reader)
            raise

    def singles(self) -> Iterator[_Batch]:
        """Yield a batch for each of the packed ones."""
        if self.packed is not None:
            packed, _, indices = self.packed
            for row, index in zip(self.rows, indices.tolist(), strict=True):
                node = packed.node(index)
                with located(node.offset):
                    view = PathObject.of(node)
                yield _Batch(np.array([row]), view)


def _divide(item: PathObject | Packed) -> Iterator[_Batch]:
    """Divide detections into batches that are read in the same way.

    Class, metadata keys and names of measurements decide how to read a record. They are nearly
    always shared or equal.
    """
    if isinstance(item, PathObject):
        yield _Batch(np.zeros(1, np.int64), item)
        return
    for begin in range(0, len(item), CHUNK):
        part = item.take(slice(begin, begin + CHUNK))
        for known, indices in part.groups():
            view = PathObject.of(known.shape.example)
            batch = _Batch(begin + indices, view, (part, known, indices))
            try:
                with located(int(part.starts[indices[0]])):
                    _check_structure(view, Many(part, known, indices))
            except NotConstantError:
                yield from batch.singles()
            else:
                yield batch


def _count(item: PathObject | Packed) -> int:
    return len(item) if isinstance(item, Packed) else 1


def _check_structure(view: PathObject, source: ValueSource) -> None:
    """Raise `NotConstantError` unless the view of the example is that of every object."""
    for key, _ in view.metadata:
        if source.constant(key) != key.data:
            raise NotConstantError
    if source.constant(view.child_count) != view.child_count.data:
        raise NotConstantError
    _class_name(view, source)
    for name in _measurement_names(view.measurements):
        source.constant(name)


def _class_name(view: PathObject, source: ValueSource) -> str | None:
    if view.path_class is None:
        return None
    names = (jf.string_field(part, "name") for part in path_class_chain(view.path_class))
    return ": ".join("" if name is None else text(name, source) for name in names)


def _id_texts(view: PathObject, source: ValueSource) -> list[str | None]:
    string = view.id_string
    return [None] * source.count if string is None else [*_texts(source.column(string))]


def _ids(view: PathObject, source: ValueSource) -> list[uuid.UUID | None]:
    return [None if text is None else parse_uuid(text) for text in _id_texts(view, source)]


def _geometries(view: PathObject, source: ValueSource) -> npt.NDArray[Any]:
    return read_rois(_roi(view), source).geometries


def _nucleus_geometries(view: PathObject, source: ValueSource) -> npt.NDArray[Any]:
    return read_rois(_nucleus(view), source).geometries


def _outlines(view: PathObject, source: ValueSource) -> NucleiTable | None:
    return read_outlines(_roi(view), source)


def _nucleus_outlines(view: PathObject, source: ValueSource) -> NucleiTable | None:
    return read_outlines(_nucleus(view), source)


def _centroids(view: PathObject, source: ValueSource) -> FloatArray:
    # QuPath locates a cell by its nucleus, where it has one.
    return read_rois(_nucleus(view), source).centroids()


def _planes(view: PathObject, source: ValueSource) -> npt.NDArray[np.int64]:
    roi = _roi(view)
    part = jf.part_with(roi, "z")
    numbers = source.column(part).data
    columns = [jf.primitive_column(part, axis, numbers) for axis in ("z", "t")]
    return np.stack(columns, axis=1).astype(np.int64)


def _locked(view: PathObject, source: ValueSource) -> npt.NDArray[np.bool_]:
    if view.lock is None:
        return np.zeros(source.count, bool)
    part = jf.part_with(view.lock, "value")
    return jf.primitive_column(part, "value", source.column(part).data).astype(bool)


def _roi(view: PathObject) -> JavaObject:
    if view.roi is None:
        raise FormatError("a detection has no ROI")
    return view.roi


def _nucleus(view: PathObject) -> JavaObject:
    return _roi(view) if view.nucleus is None else view.nucleus


def _texts(column: Column) -> list[str]:
    data, edges = column.data.decode("latin-1"), column.offsets.tolist()
    return [data[a:b] for a, b in pairwise(edges)]


def _measurement_names(node: JavaObject | None) -> list[JavaString]:
    if node is None:
        return []
    if node.class_name in (jc.FLOAT_LIST, jc.DOUBLE_LIST):
        names = jf.list_items(jf.reference(node, "names"))
    elif node.class_name == jc.DEFAULT_LIST:
        items = jf.list_items(jf.reference(node, "list"))
        names = [jf.string_field(m, "name") for m in items if isinstance(m, JavaObject)]
    else:
        _log.warning("measurements of unknown class %s are not read", node.class_name)
        return []
    if not all(isinstance(name, JavaString) for name in names):
        raise FormatError("a measurement has no name")
    return [name for name in names if isinstance(name, JavaString)]


def read_measurements(view: PathObject) -> dict[str, float]:
    """Return the measurements of a single object."""
    return {name: float(values[0]) for name, values in _measurements(view, Single())}


def _measurements(view: PathObject, source: ValueSource) -> list[tuple[str, FloatArray]]:
    """Return every measurement's name and its value in each object (NaN where it has none)."""
    node = view.measurements
    names = [text(name, source) for name in _measurement_names(node)]
    if node is None or not names:
        return []
    measured = []
    if node.class_name == jc.DEFAULT_LIST:
        items = jf.list_items(jf.reference(node, "list"))
        for name, item in zip(names, items, strict=True):
            if isinstance(item, JavaObject):
                part = jf.part_with(item, "value")
                values = jf.primitive_column(part, "value", source.column(part).data)
                measured.append((name, values.astype(np.float64)))
        return measured
    class_name = jc.FLOAT_ARRAY if node.class_name == jc.FLOAT_LIST else jc.DOUBLE_ARRAY
    column = source.column(jf.array_field(node, "values", class_name))
    values = np.frombuffer(column.data, ">f4" if class_name == jc.FLOAT_ARRAY else ">f8")
    edges = column.offsets // values.itemsize
    for index, name in enumerate(names):
        # An open list may be longer than its names (spare capacity), but never shorter.
        result = np.full(len(edges) - 1, np.nan)
        present = np.diff(edges) > index
        with np.errstate(invalid="ignore"):  # a signalling NaN of the file
            result[present] = values[edges[:-1][present] + index]
        measured.append((name, result))
    return measured
