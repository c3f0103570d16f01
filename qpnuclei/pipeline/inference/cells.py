"""Cells: an outline around each nucleus of an image, with the measurements that QuPath makes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import shapely

from qpnuclei.measure.shape import Measurements, shape_measurements
from qpnuclei.nuclei.cells import cell_outlines
from qpnuclei.nuclei.outlines import bounds
from qpnuclei.nuclei.pixels import Pixels, pixels_of_polygons
from qpnuclei.nuclei.store import Shards
from qpnuclei.nuclei.table import NucleiTable, concatenate
from qpnuclei.pipeline.inference.infer import intensities, measured_at_level_0
from qpnuclei.slides.calibration import PixelCalibration
from qpnuclei.slides.pixels import RGB
from qpnuclei.slides.slide import PixelSource
from qpnuclei.slides.stains import Stains

FloatArray = npt.NDArray[np.floating]


def add_cells(
    found: Shards,
    pixels: PixelSource,
    mpp: tuple[float, float],
    stains: Stains,
    distance_um: float,
) -> None:
    """Add a cell to each nucleus of an image, and measure the cells, table by table.

    The measurements get the prefixes ``Nucleus: ``, ``Cytoplasm: `` (the cell without its nucleus)
    and ``Cell: ``. Names and order are as in QuPath.

    Parameters
    ----------
    found : Shards
        All measured nuclei of the image, in level-0 px.
    distance_um : float
        Largest distance of a cell outline from its nucleus.
    """
    boxes = [bounds(found[number]) for number in range(len(found))]
    reach = 2 * distance_um / np.array([*mpp, *mpp]) * (-1, -1, 1, 1)
    size = pixels.width, pixels.height
    for number in range(len(found)):
        nuclei = found[number]
        others = concatenate([*_near(found, boxes, number, reach)])
        cells = cell_outlines(nuclei, others, distance_um, mpp, size)
        found[number] = measured_cells(nuclei, cells, pixels, PixelCalibration(*mpp), stains)


def _near(
    found: Shards, boxes: Sequence[FloatArray], number: int, reach: FloatArray
) -> Iterator[NucleiTable]:
    """Yield the outlines from other tables that may be near those of this table."""
    if len(boxes[number]) == 0:
        return
    tree = shapely.STRtree(shapely.box(*(boxes[number] + reach).T))
    for other, of_other in enumerate(boxes):
        if other != number:
            near = np.unique(tree.query(shapely.box(*of_other.T))[0])
            if len(near):
                yield _outlines(found[other].take(near))


def _outlines(nuclei: NucleiTable) -> NucleiTable:
    return NucleiTable(nuclei.vertices, nuclei.ring_offsets, nuclei.polygon_offsets)


def measured_cells(
    nuclei: NucleiTable,
    cells: NucleiTable,
    pixels: PixelSource,
    calibration: PixelCalibration,
    stains: Stains,
) -> NucleiTable:
    """Return nuclei with their cells, with the measurements of both."""
    of_cells = shape_measurements(cells.polygons(), calibration)
    of_nuclei = {name: nuclei.measurements[name] for name in of_cells}
    area = next(name for name in of_cells if name.startswith("Area"))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.clip(of_nuclei[area] / of_cells[area], 0, 1)
    in_cells = _stained(nuclei, cells, pixels, stains)
    in_nuclei = {
        name: values for name, values in nuclei.measurements.items() if name in in_cells["Cell"]
    }
    others = nuclei.measurements.keys() - of_nuclei.keys() - in_nuclei.keys()
    return NucleiTable(
        nuclei.vertices,
        nuclei.ring_offsets,
        nuclei.polygon_offsets,
        {
            **_called("Nucleus", of_nuclei),
            **_called("Cell", of_cells),
            "Nucleus/Cell area ratio": ratio,
            **_called("Nucleus", in_nuclei),
            **_called("Cytoplasm", in_cells["Cytoplasm"]),
            **_called("Cell", in_cells["Cell"]),
            **{n: v for n, v in nuclei.measurements.items() if n in others},
        },
        cells,
    )


def _stained(
    nuclei: NucleiTable, cells: NucleiTable, pixels: PixelSource, stains: Stains
) -> dict[str, Measurements]:
    """Measure the stains in cells, and in cells without the pixels of nuclei."""

    def measure(rows: npt.NDArray[np.int64], rgb: RGB, origin: tuple[int, int]) -> Measurements:
        shape = rgb.shape[:2]
        whole = pixels_of_polygons(cells.take(rows).polygons(), shape, origin)
        inner = pixels_of_polygons(nuclei.take(rows).polygons(), shape, origin)
        is_nucleus = np.zeros(shape[0] * shape[1], bool)
        is_nucleus[inner.indices] = True
        outer = ~is_nucleus[whole.indices]
        counts = np.bincount(whole.regions[outer], minlength=len(rows))
        rest = Pixels(whole.indices[outer], counts)
        return {
            **_called("Cytoplasm", intensities(rgb, rest, stains)),
            **_called("Cell", intensities(rgb, whole, stains)),
        }

    measured = measured_at_level_0(cells, pixels, measure)
    parts: dict[str, Measurements] = {"Cytoplasm": {}, "Cell": {}}
    for called, values in measured.items():
        part, name = called.split(": ", 1)
        parts[part][name] = values
    return parts


def _called(part: str, measured: Measurements | dict[str, npt.NDArray[np.float32]]) -> Measurements:
    return {f"{part}: {name}": values for name, values in measured.items()}
