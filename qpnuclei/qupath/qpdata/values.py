"""Values of one object, or of all packed records with its shape, through the same interface.

A reader of an object (its ROI, its measurements) works on nodes. It gets an example node and a
source, and reads columns from the source. Their length is 1 for the node itself (`Single`), and N
for N packed records with the shape of the example (`Many`) or N nodes of its class (`Nodes`). So
one reader suffices for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from qpnuclei.qupath.qpdata import java_fields as jf
from qpnuclei.qupath.qpdata.java_nodes import (
    JavaArray,
    JavaObject,
    JavaString,
    Part,
    decode_utf,
)
from qpnuclei.qupath.qpdata.packed_records import Packed
from qpnuclei.qupath.qpdata.record_columns import Column, IntArray, gather
from qpnuclei.qupath.qpdata.record_shapes import KnownShape, SlotOwner


class NotConstantError(Exception):
    """Similar objects cannot be read together, because a value differs between them."""


class ValueSource(Protocol):
    """The values of N objects, for the strings, arrays and fields of an example."""

    @property
    def count(self) -> int:
        """Number of objects, N."""

    def column(self, owner: SlotOwner) -> Column:
        """Return the value of each of the N objects in the position of `owner` in the example."""

    def constant(self, owner: SlotOwner) -> bytes:
        """Return the common value of all N objects; raise `NotConstantError` if they differ."""


class Single:
    """The values of the example itself."""

    count = 1

    def column(self, owner: SlotOwner) -> Column:
        """Return the value of `owner`."""
        data = self.constant(owner)
        return Column(data, np.array([0, len(data)]))

    def constant(self, owner: SlotOwner) -> bytes:
        """Return the value of `owner`."""
        return (owner.primitives if isinstance(owner, Part) else owner.data) or b""


class Many:
    """The values of N packed records of one shape.

    Parameters
    ----------
    packed : Packed
    known : KnownShape
        The shape; its example is the node to read.
    indices : (N,) int64 ndarray
        The records in `packed` that have this shape.
    """

    def __init__(self, packed: Packed, known: KnownShape, indices: IntArray) -> None:
        self.count = len(indices)
        self.example = known.shape.example
        self._data = packed.data
        self._shape = known.shape
        self._spans = packed.spans(known, indices)

    def column(self, owner: SlotOwner) -> Column:
        """Return the bytes of each record in the slot of `owner`."""
        if not self._shape.has_slot(owner):  # shared by all, outside the records
            data = Single().constant(owner)
            return Column(data * self.count, len(data) * np.arange(self.count + 1))
        return gather(self._data, *self._spans[self._shape.slot_of(owner)])

    def constant(self, owner: SlotOwner) -> bytes:
        """Return the common value of all records in the slot of `owner`."""
        if not self._shape.has_slot(owner):
            return Single().constant(owner)
        column = self.column(owner)
        first = column.data[: column.offsets[1]]
        if np.ptp(np.diff(column.offsets)) or column.data != first * self.count:
            raise NotConstantError
        return first


class Nodes:
    """The values of N nodes of one class, in their own fields: numbers, and arrays of numbers.

    Parameters
    ----------
    nodes : sequence of JavaObject
        The first one is the example.
    """

    def __init__(self, nodes: Sequence[JavaObject]) -> None:
        self.count = len(nodes)
        self._nodes = nodes

    def column(self, owner: SlotOwner) -> Column:
        """Return the value of each node in the field of `owner`."""
        values = self._values(owner)
        return Column(b"".join(values), np.cumsum([0, *map(len, values)]))

    def constant(self, owner: SlotOwner) -> bytes:
        """Return the common value of all nodes in the field of `owner`."""
        values = self._values(owner)
        if values.count(values[0]) < len(values):
            raise NotConstantError
        return values[0]

    def _values(self, owner: SlotOwner) -> list[bytes]:
        for index, part in enumerate(self._nodes[0].parts):
            parts = [node.parts[index] for node in self._nodes]
            if part is owner:
                return [own.primitives for own in parts]
            for place, value in enumerate(part.references):
                if value is owner and isinstance(owner, JavaArray):
                    arrays = [own.references[place] for own in parts]
                    values = [
                        array.data or b""
                        for array in arrays
                        if isinstance(array, JavaArray) and array.desc.name == owner.desc.name
                    ]
                    if len(values) == len(arrays):
                        return values
        raise NotConstantError


def text(string: JavaString, source: ValueSource) -> str:
    """Return the common text of a string in all objects of a source."""
    return JavaString(source.constant(string)).text


def texts(string: JavaString | None, source: ValueSource) -> list[str | None]:
    """Return the text of a string in each object of a source; None if they have none."""
    if string is None:
        return [None] * source.count
    column = source.column(string)
    edges = pairwise(column.offsets.tolist())
    if column.data.isascii():
        all_texts = column.data.decode("ascii")
        return [all_texts[a:b] for a, b in edges]
    return [decode_utf(column.data[a:b]) for a, b in edges]


def numbers(node: JavaObject, name: str, source: ValueSource) -> npt.NDArray[Any]:
    """Return a primitive field of a node in each object of a source."""
    part = jf.part_with(node, name)
    return jf.primitive_column(part, name, source.column(part).data)
