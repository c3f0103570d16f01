"""Nuclei at the borders of regions and of the image."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
import numpy.typing as npt
import pytest
import shapely
from scipy import ndimage as ndi

from qpnuclei.measure.shape import AREA
from qpnuclei.nuclei.cells import cell_outlines
from qpnuclei.nuclei.outlines import polygonise
from qpnuclei.nuclei.smoothing import junctions, smooth
from qpnuclei.nuclei.table import NucleiTable, concatenate
from qpnuclei.pipeline.inference.infer import find_nuclei
from qpnuclei.pipeline.planning.tiles import plan_tiles
from qpnuclei.qupath.regions import Region, rows_inside
from qpnuclei.segmentation.engine import EngineSpec, ReadPixels, TileInstances
from qpnuclei.segmentation.labels import clean_labels
from qpnuclei.slides.reinhard import ReinhardStatistics
from qpnuclei.slides.resolution import Scale
from qpnuclei.slides.slide import ImageInMemory
from qpnuclei.slides.stains import DEFAULT_HE
from qpnuclei.system.timing import Stopwatch
from qpnuclei.tiling.plan import TilePlan

SIMPLIFY_UM = 0.06
Labels = npt.NDArray[np.int32]


class Drawn:
    """An engine that knows the nuclei of the whole image: a seeded label map."""

    execution = "drawn"

    def __init__(self, labels: Labels, mpp: float) -> None:
        self._labels = labels
        self.spec = EngineSpec("drawn", "", mpp, 0, 1, 2)

    def segment(
        self,
        read: ReadPixels,
        tiles: TilePlan,
        colour: ReinhardStatistics | None,  # noqa: ARG002 - labels have no colours
        clock: Stopwatch,  # noqa: ARG002
    ) -> Generator[TileInstances, None, None]:
        for tile in tiles:
            x0, y0, x1, y1 = tile.view
            yield TileInstances(tile, read(tile.view), clean_labels(self._labels[y0:y1, x0:x1]), {})


def drawn_labels(width: int, height: int, grain: float) -> Labels:
    noise = ndi.gaussian_filter(np.random.default_rng(0).standard_normal((height, width)), grain)
    return np.asarray(clean_labels(ndi.label(noise > noise.std())[0]), np.int32)


def found(
    labels: Labels,
    size: tuple[int, int],
    downsample: float,
    roi: shapely.Geometry,
    tile_px: int,
    simplify_um: float = SIMPLIFY_UM,
    max_nucleus_px: float = 40,
) -> NucleiTable:
    rgb = np.random.default_rng(1).integers(100, 255, (size[1], size[0], 3), dtype=np.uint8)
    scale = Scale((0.25, 0.25), (downsample, downsample))
    engine = Drawn(labels, 0.25 * downsample)
    max_nucleus_um = max_nucleus_px * engine.spec.mpp
    tiles = plan_tiles(roi, size, scale, engine.spec, tile_px, max_nucleus_um)
    tables: list[NucleiTable] = []
    image = ImageInMemory(rgb, (0.25, 0.25))
    find_nuclei(image, tiles, engine, scale, DEFAULT_HE, tables, simplify_um=simplify_um)
    return concatenate(tables)


def in_region(nuclei: NucleiTable, roi: shapely.Geometry) -> set[bytes]:
    """Return the outlines that count for a region."""
    (rows,) = rows_inside([Region(None, roi)], nuclei.centroids())
    return {polygon.wkb for polygon in nuclei.polygons()[rows]}


def test_a_region_has_its_nuclei_for_any_tiles_if_smoothing_moves_centroids_over_its_border():
    side = 900
    labels = drawn_labels(side, side, 3.5)

    def of(roi: shapely.Geometry, tile_px: int) -> set[bytes]:
        return in_region(found(labels, (side, side), 1.0, roi, tile_px), roi)

    everything = found(labels, (side, side), 1.0, shapely.box(0, 0, side, side), 1024)
    pixels, _ = polygonise(labels)
    of_pixels = pixels.centroids()
    corners = junctions(pixels, labels, (0, 0))
    moved = smooth(pixels, corners, SIMPLIFY_UM / 0.25, (0, 0, side, side)).centroids()
    crossing = np.floor(of_pixels) != np.floor(moved)
    inner = ((of_pixels > 150) & (of_pixels < side - 200)).all(axis=1)
    for axis in (0, 1):
        rows = np.flatnonzero(crossing[:, axis] & inner)
        # A nucleus that smoothing moves over the border to lower coordinates, and one to higher.
        signs = np.sign((moved - of_pixels)[rows, axis])
        chosen = [rows[signs < 0][0], rows[signs > 0][0]]
        for row in chosen:
            border = np.floor(max(of_pixels[row, axis], moved[row, axis]))
            other = np.floor(of_pixels[row, 1 - axis])

            def box(
                low: float, high: float, from_: float, to: float, axis=axis, at=border, across=other
            ) -> shapely.Polygon:
                ends = np.array([[at + low, across + from_], [at + high, across + to]])
                return shapely.box(*ends[:, :: 1 if axis == 0 else -1].ravel())

            before, behind = box(-70, 0, -50, 50), box(0, 70, -50, 50)
            # Below them, the first also reaches to the other side: squares of the grid are empty.
            bent = shapely.union(before, box(-70, 80, 50, 110))
            for roi in (before, behind, bent):
                expected = in_region(everything, roi)
                for tile_px in (32, 64, 1024):
                    assert of(roi, tile_px) == expected
            # Two regions that touch, each run on its own, lose nothing between them.
            both = of(before, 1024) | of(behind, 1024)
            assert both == in_region(everything, shapely.union(before, behind))


@pytest.mark.parametrize(
    ("size", "downsample"), [((301, 301), 2.0), ((300, 299), 1.6), ((301, 300), 2.9)]
)
@pytest.mark.parametrize("simplify_um", [SIMPLIFY_UM, 0.0])
def test_nuclei_and_cells_end_at_the_border_of_an_image_of_no_whole_number_of_working_px(
    size: tuple[int, int], downsample: float, simplify_um: float
) -> None:
    width, height = (-(-v // downsample) for v in size)
    labels = drawn_labels(int(width), int(height), 2.5)
    image = shapely.box(0, 0, *size)
    nuclei = found(labels, size, downsample, image, 1024, simplify_um)
    outlines = nuclei.polygons()
    assert shapely.covers(image, outlines).all()
    assert shapely.is_valid(outlines).all()
    # They are what the image contains of the outlines of the label map.
    pixels, _ = polygonise(labels)
    if simplify_um > 0:
        border = (0.0, 0.0, size[0] / downsample, size[1] / downsample)
        corners = junctions(pixels, labels, (0, 0))
        pixels = smooth(pixels, corners, simplify_um / (0.25 * downsample), border)
    whole = shapely.transform(pixels.polygons(), lambda xy: xy * downsample)
    inside = shapely.area(shapely.intersection(whole, image))
    assert (inside < shapely.area(whole) - 1).sum() > 4
    expected = np.sort(inside[inside > 0]) * 0.25**2
    np.testing.assert_allclose(np.sort(nuclei.measurements[AREA]), expected, rtol=1e-4)
    tiled = found(labels, size, downsample, image, 32, simplify_um)
    assert in_region(tiled, image) == in_region(nuclei, image)
    # Nuclei that no tile contains completely end there, too.
    joined = found(labels, size, downsample, image, 32, simplify_um, max_nucleus_px=3).polygons()
    assert len(joined) == len(nuclei)
    assert shapely.covers(image, joined).all()
    assert shapely.is_valid(joined).all()
    cells = cell_outlines(nuclei, NucleiTable.empty(), 5.0, (0.25, 0.25), size).polygons()
    assert shapely.covers(image, cells).all()
    np.testing.assert_allclose(shapely.area(shapely.difference(outlines, cells)), 0, atol=0.05)
