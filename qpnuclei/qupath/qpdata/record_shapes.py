"""The common structure of millions of similar objects.

The detections of an image are similar: they have the same classes, the same references to shared
objects (a PathClass, the names of the measurements), and between these, values that differ. A
`Shape`, learned from one example, is their common structure. It consists of literal bytes, which
include the references, and of slots, the bytes that vary.

While a file is parsed, `record_packer` recognises consecutive objects of known shapes and keeps
them as byte ranges (`packed_records`). When these are written, only the handle numbers in their
literals change. New objects are written from columns in the same way (`new_records`).
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np

from qpnuclei.qupath.qpdata.java_nodes import (
    BLOCK_DATA,
    PRIMITIVE_SIZE,
    REFERENCE,
    STRING,
    AnyClassDesc,
    BlockData,
    Bulk,
    Content,
    JavaArray,
    JavaObject,
    JavaString,
    Node,
    Part,
    Step,
    run,
)
from qpnuclei.qupath.qpdata.java_writer import StreamWriter, handle_bytes
from qpnuclei.qupath.qpdata.record_columns import IntArray

#: A node with bytes that vary.
SlotOwner = JavaString | JavaArray | Part | BlockData


class NotUniformError(Exception):
    """An object refers to itself or defines a class, so its shape cannot be reused."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Bytes that vary between records of one shape.

    Parameters
    ----------
    prefix : int
        Number of bytes of the length before the content; 0 if `size` is fixed.
    unit : int
        Number of bytes per unit of that length.
    size : int
        Number of bytes of the content in the example, and in all records if `prefix` is 0.
    """

    prefix: int
    unit: int
    size: int


@dataclass(slots=True)
class _Literal:
    """Bytes that all records of a shape share, except for the handle numbers of references."""

    data: bytearray = field(default_factory=bytearray)
    targets: list[tuple[int, Node]] = field(default_factory=list)

    def render(self, handles: Mapping[Node, int]) -> bytes:
        data = self.data.copy()
        for offset, node in self.targets:
            data[offset : offset + 4] = handle_bytes(handles[node])
        return bytes(data)


class _Recorder(StreamWriter):
    """Writes an object as literals and slots instead of bytes."""

    def __init__(self, external: Container[Node]) -> None:
        literals = self.literals = [_Literal()]
        self.slots: list[Slot] = []
        self.slot_of: dict[SlotOwner, int] = {}
        self.external = external
        # A free function: a bound method would be a reference cycle that keeps the nodes alive.
        super().__init__(lambda data: literals[-1].data.extend(data))

    def _slot(self, owner: SlotOwner, slot: Slot) -> None:
        self.slot_of[owner] = len(self.slots)
        self.slots.append(slot)
        self.literals.append(_Literal())

    def contents(self, items: Iterable[Content]) -> Step:
        items = list(items)
        if any(isinstance(item, Bulk) for item in items):
            raise NotUniformError
        yield super().contents(items)

    def class_desc(self, desc: AnyClassDesc) -> NoReturn:  # noqa: ARG002
        raise NotUniformError

    def is_defined(self, node: Node) -> bool:
        return node in self.external or node in self.handles

    def reference(self, node: Node) -> None:
        if node in self.handles:
            raise NotUniformError
        literal = self.literals[-1]
        literal.data.append(REFERENCE)
        literal.targets.append((len(literal.data), node))
        literal.data += bytes(4)

    def string(self, node: JavaString) -> None:
        if node.is_long:
            raise NotUniformError
        self.emit(bytes([STRING]))
        self._slot(node, Slot(2, 1, len(node.data)))

    def primitive_array(self, node: JavaArray) -> None:
        self._slot(node, Slot(4, PRIMITIVE_SIZE[node.desc.name[1]], len(node.data or b"")))

    def primitives(self, part: Part) -> None:
        self._slot(part, Slot(0, 1, len(part.primitives)))

    def block_data(self, block: BlockData) -> None:
        if block.is_long:
            raise NotUniformError
        self.emit(bytes([BLOCK_DATA, len(block.data)]))
        self._slot(block, Slot(0, 1, len(block.data)))


class Shape:
    """The common structure of similar objects.

    Parameters
    ----------
    example : JavaObject
        One of the objects.
    external : container of nodes
        The nodes that are defined outside the example.

    Attributes
    ----------
    targets : set of nodes
        Nodes that every record of this shape refers to.
    handle_count : int
        Number of handles that a record uses.

    Raises
    ------
    NotUniformError
        If no other object can have this shape.
    """

    def __init__(self, example: JavaObject, external: Container[Node]) -> None:
        recorder = _Recorder(external)
        run(recorder.value(example))
        self.example = example
        self.slots = recorder.slots
        self.handle_count = recorder.next_handle
        self._literals = recorder.literals
        self._slot_of = recorder.slot_of
        self.targets = {node for literal in self._literals for _, node in literal.targets}

    def has_slot(self, owner: SlotOwner) -> bool:
        """Tell whether `owner` is a part of the example, rather than of a shared node."""
        return owner in self._slot_of

    def slot_of(self, owner: SlotOwner) -> int:
        """Return the index of the slot with the value of `owner`."""
        return self._slot_of[owner]

    def example_slots(self) -> list[bytes]:
        """Return the slot contents of the example, each with its length before it."""
        return [
            _with_length((owner.primitives if isinstance(owner, Part) else owner.data) or b"", slot)
            for owner, slot in zip(self._slot_of, self.slots, strict=True)
        ]

    def literals(self, handles: Mapping[Node, int]) -> list[bytes]:
        """Return the bytes before each slot and after the last one, with these handle numbers."""
        return [literal.render(handles) for literal in self._literals]


class KnownShape:
    """A shape with the handle numbers of the file that is being parsed."""

    def __init__(self, shape: Shape, handles: Mapping[Node, int]) -> None:
        self.shape = shape
        self.literals = shape.literals(handles)
        self.nodes = {handles[node]: node for node in shape.targets}
        self.useful = False
        slots = shape.slots
        self._literals = np.frombuffer(b"".join(self.literals), np.uint8)
        self._literal_ends = np.cumsum([len(literal) for literal in self.literals])
        self._prefixes = np.array([slot.prefix for slot in slots], np.int64)
        self._units = np.array([s.unit if s.prefix else s.size for s in slots], np.int64)

    def is_at(self, data: bytes, start: int) -> bool:
        """Tell whether a record of this shape begins at `start`, in less time than `match`."""
        for literal, slot in zip(self.literals, self.shape.slots, strict=False):
            if not data.startswith(literal, start):
                return False
            start += len(literal)
            size = slot.size
            if slot.prefix:
                size = slot.unit * int.from_bytes(data[start : start + slot.prefix], "big")
            start += slot.prefix + size
        return data.startswith(self.literals[-1], start)

    def match(self, data: bytes, start: int, starts: IntArray) -> tuple[int, int]:
        """Find the consecutive records of this shape from `start`.

        Returns
        -------
        (int, int)
            Number of records found, at most the length of `starts`, and the end of the last record.
            The starts of the records are written into `starts`.
        """
        from qpnuclei.qupath.qpdata.kernels import match_records

        octets = np.frombuffer(data, np.uint8)
        return match_records(
            octets, start, self._literals, self._literal_ends, self._prefixes, self._units, starts
        )


def _with_length(content: bytes, slot: Slot) -> bytes:
    if slot.prefix == 0:
        return content
    return (len(content) // slot.unit).to_bytes(slot.prefix, "big") + content
