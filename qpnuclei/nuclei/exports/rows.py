"""The nuclei of an image as a table with all their properties, one row per nucleus."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import shapely

from qpnuclei.errors import UsageError, number_of

if TYPE_CHECKING:
    import geopandas
    import pandas
    from matplotlib.axes import Axes

#: Text columns with many equal values: they are dictionary-encoded.
SHARED_TEXTS = (
    "image",
    "image_id",
    "type",
    "class",
    "annotation",
    "annotation_class",
    "annotation_uuid",
    "parents",
    "parent_uuids",
    "tma_core",
    "status",
    "check",
)
#: All columns that are not measurements, in order.
FIELDS = pa.schema(
    [
        *((name, pa.dictionary(pa.int32(), pa.string())) for name in SHARED_TEXTS[:2]),
        ("label", pa.uint32()),
        ("uuid", pa.string()),
        *((name, pa.dictionary(pa.int32(), pa.string())) for name in SHARED_TEXTS[2:4]),
        ("by_qpnuclei", pa.bool_()),
        *((name, pa.dictionary(pa.int32(), pa.string())) for name in SHARED_TEXTS[4:10]),
        ("centroid_x_px", pa.float64()),
        ("centroid_y_px", pa.float64()),
        ("centroid_x_um", pa.float64()),
        ("centroid_y_um", pa.float64()),
        ("z", pa.int32()),
        ("t", pa.int32()),
        *((name, pa.dictionary(pa.int32(), pa.string())) for name in SHARED_TEXTS[10:]),
    ]
)
#: The columns of outlines of nuclei and of cells, as WKB in level-0 px, after all others.
GEOMETRY, CELL_GEOMETRY = "geometry", "cell_geometry"

#: Largest number of rows of a batch.
BATCH = 20_000

_SHOWN = 5


@dataclass(frozen=True, eq=False)
class NucleusRows:
    """N nuclei (detections and cells) of one image.

    Parameters
    ----------
    table : pyarrow.Table
        N rows with the columns `FIELDS`, then the measurements as float64, with QuPath's names. A
        missing value is null or NaN. ``label`` counts from 1 and is the value in a label image.
    geometries : (N,) object ndarray of shapely geometries
        Outlines in level-0 px; for a cell with a nucleus, that of the nucleus.
    cells : (N,) object ndarray of shapely geometries or None, or None
        Outlines of whole cells; None for other detections, or if no row is a cell.
    size : (width, height) of int, or None
        Size of the image in level-0 px.
    mpp : (x, y) of float, or None
        µm per level-0 px.
    """

    table: pa.Table
    geometries: npt.NDArray[Any]
    cells: npt.NDArray[Any] | None = None
    size: tuple[int, int] | None = None
    mpp: tuple[float, float] | None = None

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __repr__(self) -> str:
        names = self.measurements
        shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
        measurements = number_of(len(names), "measurement")
        return f"NucleusRows of {number_of(len(self), 'nucleus')}, {measurements} ({shown})"

    @property
    def measurements(self) -> list[str]:
        """Names of the columns of measurements."""
        return [name for name in self.table.column_names if name not in FIELDS.names]

    @property
    def outlines(self) -> dict[str, npt.NDArray[Any]]:
        """The outlines of nuclei, and those of cells if there are any, by column."""
        return {GEOMETRY: self.geometries} | (
            {} if self.cells is None else {CELL_GEOMETRY: self.cells}
        )

    def batches(self, *, outlines: bool) -> Iterator[pa.RecordBatch]:
        """Yield the rows in batches, with their `outlines` as WKB if wanted."""
        columns = self.outlines if outlines else {}
        for start in range(0, len(self), BATCH):
            part = self.table.slice(start, BATCH)
            for name, shapes in columns.items():
                wkb = shapely.to_wkb(shapes[start : start + BATCH])
                part = part.append_column(name, pa.array(wkb, pa.binary()))
            yield part.combine_chunks().to_batches()[0]

    def to_pandas(self) -> pandas.DataFrame:
        """Return the table without outlines; columns with many equal texts are categories.

        Raises
        ------
        UsageError
            If pandas is not installed.
        """
        optional("pandas", "export")
        return self.table.to_pandas()

    def to_geopandas(self) -> geopandas.GeoDataFrame:
        """Return the table with outlines, in level-0 px (y goes down), without a CRS.

        The geometry is that of the nuclei. If there are cells, their outlines are in the column
        ``cell_geometry``.

        Raises
        ------
        UsageError
            If geopandas is not installed.
        """
        frames = optional("geopandas", "export")
        frame = frames.GeoDataFrame(self.to_pandas(), geometry=self.geometries)
        if self.cells is not None:
            frame[CELL_GEOMETRY] = frames.GeoSeries(self.cells)
        return frame

    def plot(self, column: str | None = None, ax: Axes | None = None, **style: Any) -> Axes:
        """Draw the outlines, in the coordinates of the image.

        Parameters
        ----------
        column : str, optional
            Measurement that determines the colours.
        ax : matplotlib Axes, optional
            Axes to draw into; new ones by default.
        **style
            Options of `matplotlib.collections.PolyCollection`.

        Returns
        -------
        matplotlib Axes

        Raises
        ------
        UsageError
            If matplotlib is not installed, or there is no such measurement.
        """
        if column is not None and column not in self.measurements:
            names = ", ".join(self.measurements) or "none"
            raise UsageError(f"no measurement is called {column!r}", f"measurements: {names}")
        collections = optional("matplotlib.collections", "export")
        pyplot = optional("matplotlib.pyplot", "export")
        if ax is None:
            _, ax = pyplot.subplots()
        polygons, owners = shapely.get_parts(self.geometries, return_index=True)
        is_area = shapely.get_type_id(polygons) == shapely.GeometryType.POLYGON
        polygons, owners = polygons[is_area], owners[is_area]
        rings = [shapely.get_coordinates(ring) for ring in shapely.get_exterior_ring(polygons)]
        filled = {} if column is None else {"array": self.table[column].to_numpy()[owners]}
        default = {"facecolor": "none", "linewidth": 0.5} if column is None else {}
        default |= {} if column is not None else {"edgecolor": "tab:blue"}
        drawn = ax.add_collection(
            collections.PolyCollection(rings, **{**default, **filled, **style})
        )
        if column is not None:
            ax.figure.colorbar(drawn, ax=ax, label=column)
        ax.autoscale_view()
        ax.set_aspect("equal")
        if not ax.yaxis_inverted():
            ax.invert_yaxis()
        ax.set(xlabel="x (px)", ylabel="y (px)")
        return ax


def shared_texts(values: Sequence[str | None], codes: npt.NDArray[np.int64]) -> pa.DictionaryArray:
    """Return ``values[codes]`` as a column that stores each text once."""
    kept = list(dict.fromkeys(value for value in values if value is not None))
    place = {value: index for index, value in enumerate(kept)}
    index = np.array([place.get(value, -1) if value is not None else -1 for value in values])
    chosen = index[codes] if len(index) else np.full(len(codes), -1)
    return pa.DictionaryArray.from_arrays(
        pa.array(chosen.astype(np.int32), mask=chosen < 0), pa.array(kept, pa.string())
    )


def optional(module: str, extra: str) -> ModuleType:
    """Import an optional package.

    Raises
    ------
    UsageError
        If it is not installed; the error names the extra that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UsageError(
            f"{package} is not installed", f"pip install 'qpnuclei[{extra}]'"
        ) from error
