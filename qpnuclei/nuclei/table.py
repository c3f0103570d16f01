"""The table of nuclei: ragged polygons with measurement columns.

All code passes nuclei as one columnar table, never as a million Python objects. The polygons use
the GeoArrow layout of `shapely.to_ragged_array`: vertices, offsets of the rings into the vertices,
offsets of the polygons into the rings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import shapely

from qpnuclei.errors import number_of

#: Measurements that the `repr` of a table shows.
_SHOWN = 6


@dataclass(frozen=True, eq=False)
class NucleiTable:
    """N nuclei of one image.

    Parameters
    ----------
    vertices : (V, 2) float32 ndarray
        x and y of all ring vertices in level-0 pixels of QuPath's frame. Every ring is closed
        (its first vertex is repeated at its end).
    ring_offsets : (R + 1,) int64 ndarray
        Ring ``r`` is ``vertices[ring_offsets[r]:ring_offsets[r + 1]]``.
    polygon_offsets : (N + 1,) int64 ndarray
        Polygon ``i`` has the rings ``polygon_offsets[i]`` to ``polygon_offsets[i + 1] - 1``: its
        exterior first, then its holes (a nucleus that qpnuclei finds has none).
    measurements : mapping of str to (N,) float32 ndarray
        Columns by QuPath's measurement name; NaN where a nucleus has no value.
    cells : NucleiTable or None
        The outline of the cell around each nucleus, without measurements; None if there are none.

    Raises
    ------
    ValueError
        If shapes or offsets contradict each other.

    Examples
    --------
    >>> squares = [shapely.box(0, 0, 4, 4), shapely.box(10, 20, 16, 26)]
    >>> NucleiTable.from_polygons(squares, {"Area µm^2": [1.0, 2.25]})
    NucleiTable of 2 nuclei, 1 measurement, x 0 to 16, y 0 to 26 px
      Area µm^2: median 1.625, 1 to 2.25
    """

    vertices: npt.NDArray[np.float32]
    ring_offsets: npt.NDArray[np.int64]
    polygon_offsets: npt.NDArray[np.int64]
    measurements: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    cells: NucleiTable | None = None

    def __post_init__(self) -> None:
        if self.vertices.ndim != 2 or self.vertices.shape[1] != 2:
            raise ValueError(f"vertices must be (V, 2), not {self.vertices.shape}")
        for name, offsets, end in (
            ("ring_offsets", self.ring_offsets, len(self.vertices)),
            ("polygon_offsets", self.polygon_offsets, len(self.ring_offsets) - 1),
        ):
            if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != end:
                raise ValueError(f"{name} must run from 0 to {end}")
            if np.any(np.diff(offsets) < 0):
                raise ValueError(f"{name} must not decrease")
        for name, column in self.measurements.items():
            if column.shape != (len(self),):
                raise ValueError(f"measurement {name!r} has shape {column.shape}, not {len(self)}")
        if self.cells is not None and len(self.cells) != len(self):
            raise ValueError(f"there are {len(self.cells)} cells, not {len(self)}")

    def __len__(self) -> int:
        return len(self.polygon_offsets) - 1

    def __repr__(self) -> str:
        lines = [self._title()]
        for name, *numbers in self._summary()[:_SHOWN]:
            median, low, high = (f"{number:.4g}" for number in numbers)
            lines.append(f"  {name}: median {median}, {low} to {high}")
        if len(self.measurements) > _SHOWN:
            lines.append(f"  and {len(self.measurements) - _SHOWN} more")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """Return the table that a notebook shows: a row for each measurement."""
        from html import escape

        rows = "".join(
            f"<tr><th>{escape(name)}</th>" + "".join(f"<td>{n:.4g}</td>" for n in numbers) + "</tr>"
            for name, *numbers in self._summary()
        )
        head = "<tr><th>measurement</th><th>median</th><th>least</th><th>most</th></tr>"
        return f"<p>{escape(self._title())}</p><table>{head}{rows}</table>"

    def _title(self) -> str:
        names = number_of(len(self.measurements), "measurement")
        title = f"NucleiTable of {number_of(len(self), 'nucleus')}, {names}"
        if len(self.vertices):
            (x0, y0), (x1, y1) = self.vertices.min(axis=0), self.vertices.max(axis=0)
            title += f", x {x0:g} to {x1:g}, y {y0:g} to {y1:g} px"
        return title

    def _summary(self) -> list[tuple[str, float, float, float]]:
        """Return name, median, minimum and maximum of the finite values of every measurement.

        NaN if there are none.
        """
        summary = []
        for name, column in self.measurements.items():
            known = column[np.isfinite(column)]
            if known.size == 0:
                summary.append((name, np.nan, np.nan, np.nan))
            else:
                summary.append(
                    (name, float(np.median(known)), float(known.min()), float(known.max()))
                )
        return summary

    @classmethod
    def empty(cls, measurement_names: Iterable[str] = ()) -> NucleiTable:
        """Return a table without nuclei, with the named measurement columns."""
        return cls(
            np.empty((0, 2), np.float32),
            np.zeros(1, np.int64),
            np.zeros(1, np.int64),
            {name: np.empty(0, np.float32) for name in measurement_names},
        )

    @classmethod
    def from_polygons(
        cls,
        polygons: Sequence[shapely.Polygon] | npt.NDArray[Any],
        measurements: Mapping[str, npt.ArrayLike] | None = None,
    ) -> NucleiTable:
        """Build a table from N Shapely polygons (level-0 px) and their measurement columns.

        Raises
        ------
        ValueError
            If a geometry is empty or not a Polygon.
        """
        geometries = np.asarray(polygons, dtype=object)
        if geometries.size == 0:
            return cls.empty((measurements or {}).keys())
        wrong = shapely.get_type_id(geometries) != shapely.GeometryType.POLYGON
        if np.any(wrong | shapely.is_empty(geometries)):
            raise ValueError("every nucleus must be a Polygon that is not empty")
        _, vertices, offsets = shapely.to_ragged_array(geometries, include_z=False)
        return cls(
            vertices.astype(np.float32),
            offsets[0].astype(np.int64),
            offsets[1].astype(np.int64),
            {k: np.asarray(v, np.float32) for k, v in (measurements or {}).items()},
        )

    def polygons(self) -> npt.NDArray[Any]:
        """Return the (N,) object array of Shapely polygons, in level-0 px."""
        if len(self) == 0:
            return np.empty(0, dtype=object)
        polygons: npt.NDArray[Any] = shapely.from_ragged_array(
            shapely.GeometryType.POLYGON,
            self.vertices.astype(np.float64),
            (self.ring_offsets, self.polygon_offsets),
        )
        return polygons

    def take(self, indices: npt.ArrayLike) -> NucleiTable:
        """Return the nuclei at `indices` (integers or a boolean mask), in that order."""
        rows = np.asarray(indices)
        chosen = np.arange(len(self))[rows if rows.size else rows.astype(np.int64)]
        rings = _ranges(self.polygon_offsets, chosen)
        return NucleiTable(
            np.take(self.vertices, _ranges(self.ring_offsets, rings), axis=0),
            _offsets(np.diff(self.ring_offsets)[rings]),
            _offsets(np.diff(self.polygon_offsets)[chosen]),
            {name: column[chosen] for name, column in self.measurements.items()},
            None if self.cells is None else self.cells.take(chosen),
        )

    def with_measurements(self, measurements: Mapping[str, npt.ArrayLike]) -> NucleiTable:
        """Return the same nuclei with more (or replaced) measurement columns."""
        columns = {k: np.asarray(v, np.float32) for k, v in measurements.items()}
        return NucleiTable(
            self.vertices,
            self.ring_offsets,
            self.polygon_offsets,
            {**self.measurements, **columns},
            self.cells,
        )

    def centroids(self) -> npt.NDArray[np.float64]:
        """Return the (N, 2) area centroids in level-0 px.

        Notes
        -----
        As in GEOS: the mean of the centroids of the triangles between each edge and the first
        vertex of its ring, weighted by their signed areas. Bit-identical for integer vertices.
        """
        if len(self) == 0:
            return np.empty((0, 2))
        starts = self.ring_offsets[:-1]
        first = self.vertices[starts].T.astype(np.float64)
        x, y = self.vertices.T - np.repeat(first, np.diff(self.ring_offsets), axis=1)
        twice = x[:-1] * y[1:] - x[1:] * y[:-1]  # 0 from the end of a ring to the next one
        area = np.add.reduceat(twice, starts)
        moments = [np.add.reduceat(twice * (u[:-1] + u[1:]), starts) for u in (x, y)]
        sums = np.stack([area, *(moments + 3 * first * area)])
        # Exteriors are added and holes subtracted, whatever their orientation.
        exteriors = self.polygon_offsets[:-1]
        sums *= -np.sign(sums[0])
        sums[:, exteriors] *= -1
        area, *moments = np.add.reduceat(sums, exteriors, axis=1)
        with np.errstate(invalid="ignore"):
            centroids: npt.NDArray[np.float64] = np.stack(moments, axis=1) / 3 / area[:, None]
        flat = np.flatnonzero(area == 0)
        points = shapely.centroid(self.take(flat).polygons())
        centroids[flat] = np.stack([shapely.get_x(points), shapely.get_y(points)], axis=1)
        return centroids


class NucleiTables(Protocol):
    """A sequence of tables of nuclei: a list, or `qpnuclei.nuclei.store.Shards`."""

    def append(self, nuclei: NucleiTable, /) -> None:
        """Add nuclei after all others."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> NucleiTable: ...

    def __setitem__(self, index: int, nuclei: NucleiTable, /) -> None: ...


def concatenate(tables: Sequence[NucleiTable]) -> NucleiTable:
    """Join tables one after the other; if a table lacks a column, its values are NaN.

    Raises
    ------
    ValueError
        If some tables have cells, and others do not.
    """
    tables = list(tables)
    if not tables:
        return NucleiTable.empty()
    names = list(dict.fromkeys(name for table in tables for name in table.measurements))

    def column(table: NucleiTable, name: str) -> npt.NDArray[np.float32]:
        values = table.measurements.get(name)
        return np.full(len(table), np.nan, np.float32) if values is None else values

    cells = [t.cells for t in tables if t.cells is not None]
    if cells and sum(map(len, cells)) < sum(map(len, tables)):
        raise ValueError("either all tables have cells, or none")
    return NucleiTable(
        np.concatenate([t.vertices for t in tables]),
        _offsets(np.concatenate([np.diff(t.ring_offsets) for t in tables])),
        _offsets(np.concatenate([np.diff(t.polygon_offsets) for t in tables])),
        {name: np.concatenate([column(t, name) for t in tables]) for name in names},
        concatenate(cells) if cells else None,
    )


def _offsets(lengths: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _ranges(
    offsets: npt.NDArray[np.int64], chosen: npt.NDArray[np.integer[Any]]
) -> npt.NDArray[np.int64]:
    """Concatenate ``range(offsets[i], offsets[i + 1])`` for every chosen i."""
    lengths = np.diff(offsets)[chosen]
    ends = np.cumsum(lengths)
    starts = np.repeat(offsets[:-1][chosen] - (ends - lengths), lengths)
    return np.arange(int(lengths.sum()), dtype=np.int64) + starts.astype(np.int64)
