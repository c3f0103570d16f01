"""New objects of one shape, written from columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from qpnuclei.qupath.qpdata.java_nodes import Bulk, Step
from qpnuclei.qupath.qpdata.java_writer import StreamWriter
from qpnuclei.qupath.qpdata.record_columns import Column, Piece, Spans, write_pieces
from qpnuclei.qupath.qpdata.record_shapes import Shape, Slot


@dataclass(eq=False)
class NewRecords(Bulk):
    """N objects of one shape, written from columns at once.

    All nodes that the shape refers to must be defined in the stream before.

    Parameters
    ----------
    shape : Shape
    columns : mapping of slot index to Column
        Slots without a column have the content of the example.
    count : int
        N.
    """

    shape: Shape
    columns: Mapping[int, Column]
    count: int

    def __len__(self) -> int:
        return self.count

    def write(self, writer: StreamWriter) -> Step:
        """Write all records."""
        yield from ()  # makes this a generator, as a step must be
        literals = self.shape.literals(writer.handles)
        pieces: list[Piece] = [literals[0]]
        for index, (slot, fixed, literal) in enumerate(
            zip(self.shape.slots, self.shape.example_slots(), literals[1:], strict=True)
        ):
            column = self.columns.get(index)
            pieces += [fixed] if column is None else _with_lengths(column, slot)
            pieces.append(literal)
        sizes = np.zeros(self.count, np.int64)
        for piece in pieces:
            sizes += len(piece) if isinstance(piece, bytes) else piece.ends - piece.begins
        edges = np.concatenate([[0], np.cumsum(sizes)])
        out = np.empty(edges[-1], np.uint8)
        write_pieces(out, edges[:-1], pieces)
        writer.emit(out.tobytes())
        writer.next_handle += self.count * self.shape.handle_count


def _with_lengths(column: Column, slot: Slot) -> list[Piece]:
    """Return the slot content of each record, with its length before it."""
    begins, ends = column.offsets[:-1], column.offsets[1:]
    contents = Spans(np.frombuffer(column.data, np.uint8), begins, ends)
    if slot.prefix == 0:
        return [contents]
    lengths = ((ends - begins) // slot.unit).astype(f">u{slot.prefix}").tobytes()
    at = slot.prefix * np.arange(len(begins))
    return [Spans(np.frombuffer(lengths, np.uint8), at, at + slot.prefix), contents]
