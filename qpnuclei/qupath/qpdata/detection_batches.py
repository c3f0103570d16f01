"""Batches of similar detections or annotations, to read one property of all of them at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from qpnuclei.errors import FormatError
from qpnuclei.qupath.qpdata import detection_properties
from qpnuclei.qupath.qpdata.measurement_lists import measurement_names
from qpnuclei.qupath.qpdata.packed_records import CHUNK, Packed
from qpnuclei.qupath.qpdata.path_objects import PathObject, located
from qpnuclei.qupath.qpdata.record_columns import IntArray
from qpnuclei.qupath.qpdata.record_shapes import KnownShape
from qpnuclei.qupath.qpdata.values import Many, NotConstantError, Single, ValueSource

_T = TypeVar("_T")

#: Reads one property of all objects of a source, given the view of their example.
Reader = Callable[[PathObject, ValueSource], _T]


@dataclass(frozen=True, eq=False)
class Batch:
    """N detections that are read in the same way.

    Parameters
    ----------
    rows : (N,) int64 ndarray
        Their positions among all detections.
    view : PathObject
        The only detection, or the example of packed ones.
    packed : (Packed, KnownShape, (N,) int64 ndarray) or None
        For packed detections: the packed records, their shape, and their indices in the records.
    """

    rows: IntArray
    view: PathObject
    packed: tuple[Packed, KnownShape, IntArray] | None = None

    def read(self, reader: Reader[_T]) -> _T:
        """Read one property of all detections."""
        if self.packed is None:
            with located(self.view.node.offset):
                return reader(self.view, Single())
        try:
            return reader(self.view, Many(*self.packed))
        except FormatError:
            for single in self.singles():  # read singly, so that the error names the offset
                single.read(reader)
            raise

    def singles(self) -> Iterator[Batch]:
        """Yield a batch for each packed detection."""
        if self.packed is not None:
            packed, _, indices = self.packed
            for row, index in zip(self.rows, indices.tolist(), strict=True):
                node = packed.node(index)
                with located(node.offset):
                    view = PathObject.of(node)
                yield Batch(np.array([row]), view)


def divide(item: PathObject | Packed) -> Iterator[Batch]:
    """Divide detections into batches that are read in the same way.

    Class, metadata keys and names of measurements determine how a record is read. They are nearly
    always shared or equal.
    """
    if isinstance(item, PathObject):
        yield Batch(np.zeros(1, np.int64), item)
        return
    for begin in range(0, len(item), CHUNK):
        part = item.take(slice(begin, begin + CHUNK))
        for known, indices in part.groups():
            view = PathObject.of(known.shape.example)
            batch = Batch(begin + indices, view, (part, known, indices))
            try:
                with located(int(part.starts[indices[0]])):
                    _check_structure(view, Many(part, known, indices))
            except NotConstantError:
                yield from batch.singles()
            else:
                yield batch


def _check_structure(view: PathObject, source: ValueSource) -> None:
    """Raise `NotConstantError` unless every object has the structure of the example."""
    for key, _ in view.metadata:
        if source.constant(key) != key.data:
            raise NotConstantError
    if source.constant(view.child_count) != view.child_count.data:
        raise NotConstantError
    detection_properties.class_name(view, source)
    for name in measurement_names(view.measurements):
        source.constant(name)
