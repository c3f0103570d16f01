"""Cells: an outline around each nucleus of an image, with the measurements that QuPath makes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import shapely

from qpnuclei.measure.shape import Measurements, shape_measurements
from qpnuclei.nuclei.cells import cell_outlines, reach_um
from qpnuclei.nuclei.outlines import bounds
from qpnuclei.nuclei.pixels import Pixels, pixels_of_polygons
from qpnuclei.nuclei.store import Shards
from qpnuclei.nuclei.table import NucleiTable, NucleiTables, concatenate
from qpnuclei.pipeline.inference.infer import intensities, measured_at_level_0
from qpnuclei.qupath.regions import Region, region_of
from qpnuclei.slides.calibration import PixelCalibration
from qpnuclei.slides.pixels import RGB
from qpnuclei.slides.slide import PixelSource
from qpnuclei.slides.stains import Stains


def set_aside(found: Shards, regions: Sequence[Region], around: NucleiTables) -> None:
    """Move the outlines of the nuclei outside all regions from `found` to `around`.

    The tiles also find nuclei around the regions (`qpnuclei.pipeline.planning.tiles.plan_tiles`),
    which limit the cells of the nuclei inside, and get none themselves.
    """
    for number in range(len(found)):
        nuclei = found[number]
        is_outside = region_of(nuclei.centroids(), regions) < 0
        if is_outside.any():
            around.append(_outlines(nuclei.take(is_outside)))
            found[number] = nuclei.take(~is_outside)


def add_cells(
    found: Shards,
    around: NucleiTables,
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
    around : NucleiTables
        Further nuclei, which only limit the cells.
    distance_um : float
        Largest distance of a cell outline from its nucleus.
    """
    boxes, boxes_around = (
        [bounds(tables[number]) for number in range(len(tables))] for tables in (found, around)
    )
    reach = reach_um(distance_um) / np.array([*mpp, *mpp]) * (-1, -1, 1, 1)
    size = pixels.width, pixels.height
    for number in range(len(found)):
        nuclei = found[number]
        grown = shapely.STRtree(shapely.box(*(boxes[number] + reach).T))
        others = concatenate(
            [*_near(found, boxes, grown, number), *_near(around, boxes_around, grown)]
        )
        cells = cell_outlines(nuclei, others, distance_um, mpp, size)
        found[number] = measured_cells(nuclei, cells, pixels, PixelCalibration(*mpp), stains)


def _near(
    tables: NucleiTables,
    boxes: Sequence[npt.NDArray[np.floating]],
    grown: shapely.STRtree,
    but: int | None = None,
) -> Iterator[NucleiTable]:
    """Yield the outlines of all tables but one that meet a box of a tree."""
    for number, of_table in enumerate(boxes):
        if number != but:
            near = np.unique(grown.query(shapely.box(*of_table.T))[0])
            if len(near):
                yield _outlines(tables[number].take(near))


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
