"""Read the detections of a data file into columns."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from qpnuclei.errors import number_of
from qpnuclei.nuclei.table import NucleiTable, concatenate
from qpnuclei.qupath.model import Detections
from qpnuclei.qupath.qpdata import detection_properties
from qpnuclei.qupath.qpdata.detection_batches import Batch, Reader, divide
from qpnuclei.qupath.qpdata.measurement_lists import measurement_values
from qpnuclei.qupath.qpdata.packed_records import Packed
from qpnuclei.qupath.qpdata.path_objects import KINDS, OBJECT_ID, PathObject, count_of
from qpnuclei.qupath.qpdata.record_columns import IntArray

FloatArray = npt.NDArray[np.float64]
_T = TypeVar("_T")


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
        counts = np.array([count_of(item) for item, _ in items], np.int64)
        vars(self).update(_items=items, _counts=counts, _errors=errors)

    def __len__(self) -> int:
        return int(self._counts.sum())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({number_of(len(self), 'detection')})"

    @cached_property
    def ids(self) -> list[uuid.UUID | None]:
        """UUIDs; None for detections without a UUID."""
        return self._list(detection_properties.ids)

    @cached_property
    def id_texts(self) -> list[str | None]:
        """UUIDs as text; None for detections without a UUID."""
        return self._list(detection_properties.id_texts)

    @cached_property
    def kinds(self) -> list[str]:
        """``"detection"``, ``"cell"`` or ``"tile"``."""
        return self._list(lambda view, source: [view.kind] * source.count)

    @cached_property
    def class_names(self) -> list[str | None]:
        """Names of the classes; None for detections without a class."""
        return self._list(
            lambda view, source: [detection_properties.class_name(view, source)] * source.count
        )

    @cached_property
    def geometries(self) -> npt.NDArray[Any]:
        """Shapely geometries, level-0 px."""
        return self._array(detection_properties.geometries, np.empty(len(self), dtype=object))

    @cached_property
    def nucleus_geometries(self) -> npt.NDArray[Any]:
        """Outline of the nucleus of each cell; the detection's own outline if it has none."""
        if "cell" not in self.kinds:
            return self.geometries
        reader = detection_properties.nucleus_geometries
        return self._array(reader, np.empty(len(self), dtype=object))

    @cached_property
    def outlines(self) -> NucleiTable | None:
        """Outlines as stored; None if one is not a polygon, or has a hole."""
        return self._vertices(detection_properties.outlines)

    @cached_property
    def nucleus_outlines(self) -> NucleiTable | None:
        """Outlines of `nucleus_geometries` as stored; None as for `outlines`."""
        return self._vertices(detection_properties.nucleus_outlines)

    def _vertices(self, reader: Reader[NucleiTable | None]) -> NucleiTable | None:
        rows, tables = [], []
        for batch_rows, table in self._read(reader):
            if table is None:
                return None
            rows.append(batch_rows)
            tables.append(table)
        if len(self) == 0:
            return NucleiTable.empty()
        order = np.argsort(np.concatenate(rows), kind="stable")
        return concatenate(tables).take(order)

    @cached_property
    def centroids(self) -> FloatArray:
        """Centroids as QuPath computes them, level-0 px."""
        return self._array(detection_properties.centroids, np.empty((len(self), 2)))

    @cached_property
    def planes(self) -> npt.NDArray[np.int64]:
        """z-slices and time points."""
        return self._array(detection_properties.planes, np.zeros((len(self), 2), np.int64))

    @cached_property
    def parents(self) -> npt.NDArray[np.int64]:
        """Handles of the nearest enclosing annotations; -1 for detections outside all."""
        return np.repeat(np.array([parent for _, parent in self._items], np.int64), self._counts)

    @cached_property
    def measurements(self) -> dict[str, FloatArray]:
        """Values by name; NaN where a detection has none."""
        columns: dict[str, FloatArray] = {}
        for rows, measured in self._read(measurement_values):
            for name, values in measured:
                if name not in columns:
                    columns[name] = np.full(len(self), np.nan)
                columns[name][rows] = values
        return columns

    @cached_property
    def locked(self) -> npt.NDArray[np.bool_]:
        """Whether each is locked in QuPath."""
        return self._array(detection_properties.locked, np.zeros(len(self), bool))

    @cached_property
    def ours(self) -> npt.NDArray[np.bool_]:
        """Whether qpnuclei wrote each; this takes less time than reading UUIDs."""
        return self._array(detection_properties.ours, np.zeros(len(self), bool))

    def unread(self) -> Counter[str]:
        """Return properties that no column contains, and how many detections have them."""
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

    def _list(self, reader: Reader[list[_T]]) -> list[_T]:
        values: list[_T] = self._array(reader, np.empty(len(self), dtype=object)).tolist()
        return values

    def _array(self, reader: Reader[Any], into: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Write what a reader returns for each detection into its row of an array; return it."""
        for rows, values in self._read(reader):
            into[rows] = values
        return into

    def _read(self, reader: Reader[_T]) -> Iterator[tuple[IntArray, _T]]:
        """Yield rows, batch by batch, and the values that a reader returns for them."""
        for batch in self._batches:
            with self._errors():
                value = batch.read(reader)
            yield batch.rows, value

    @cached_property
    def _batches(self) -> list[Batch]:
        firsts = np.cumsum(self._counts) - self._counts
        with self._errors():
            return [
                replace(batch, rows=first + batch.rows)
                for (item, _), first in zip(self._items, firsts.tolist(), strict=True)
                for batch in divide(item)
            ]


def packed_ids(packed: Packed) -> Iterator[tuple[IntArray, list[str]]]:
    """Yield, batch by batch, the indices of packed detections with a UUID, and their UUIDs.

    Raises
    ------
    qpnuclei.errors.FormatError
        If a detection is inconsistent.
    """
    for batch in divide(packed):
        texts = [text for text in batch.read(detection_properties.id_texts) if text is not None]
        if texts:
            yield batch.rows, texts
