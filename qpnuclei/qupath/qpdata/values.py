"""Values of one object, or of all packed records like it, through the same interface.

Readers of an object (its ROI, its measurements) work on nodes. Given an example node and a
source, it gets columns: of length 1 from the node itself (`Single`), of length N from N packed
records that have the example's shape (`Many`). So there is one reader for both.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from qpnuclei.qupath.qpdata.java_nodes import JavaString, Part
from qpnuclei.qupath.qpdata.packed_records import Packed
from qpnuclei.qupath.qpdata.record_columns import Column, IntArray, gather
from qpnuclei.qupath.qpdata.record_shapes import KnownShape, SlotOwner


class NotConstantError(Exception):
    """Records of one shape differ in a value that must be the same to read them together."""


class ValueSource(Protocol):
    """Where the values of an example's strings, arrays and fields come from."""

    @property
    def count(self) -> int:
        """N."""

    def column(self, owner: SlotOwner) -> Column:
        """Return the value of each of the N objects at the place of `owner` in the example."""

    def constant(self, owner: SlotOwner) -> bytes:
        """Return the common value of all N objects; raise `NotConstantError` if they differ."""


class Single:
    """The example itself."""

    count = 1

    def column(self, owner: SlotOwner) -> Column:
        """Return the value of `owner`."""
        data = self.constant(owner)
        return Column(data, np.array([0, len(data)]))

    def constant(self, owner: SlotOwner) -> bytes:
        """Return the value of `owner`."""
        return (owner.primitives if isinstance(owner, Part) else owner.data) or b""


class Many:
    """N packed records of one shape.

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
        """Return the bytes that each record holds in the slot of `owner`."""
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


def text(string: JavaString, source: ValueSource) -> str:
    """Return the text that a string has in all objects of a source."""
    return JavaString(source.constant(string)).text
