"""Nuclei as a label image: an OME-TIFF pyramid, written tile by tile."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from qpnuclei.errors import FormatError
from qpnuclei.nuclei.exports.rows import NucleusRows
from qpnuclei.nuclei.pixels import pixels_of_polygons
from qpnuclei.system.files import atomic_path

TILE = 512
#: Largest width and height of the smallest pyramid level, in px.
_SMALLEST = 1024
#: Compression level: fast, and labels are mostly 0.
_LEVEL = 1


def write_label_image(rows: NucleusRows, path: Path) -> int:
    """Write an image of uint32 labels with the size of level 0, in one step.

    The value of a pixel is the ``label`` of the nucleus that contains its centre, or 0. If several
    nuclei contain it, the first one counts. Each further level has half the size; its pixels have
    the label at their centre. Only nuclei on the first plane are written.

    Parameters
    ----------
    rows : NucleusRows
    path : Path
        ``.ome.tif``, with the pixel size in µm if it is known.

    Returns
    -------
    int
        Number of nuclei that are not in the image, because they lie on other planes.

    Raises
    ------
    FormatError
        If the size of the image is not known.
    qpnuclei.errors.SaveError
        If it cannot be written.
    """
    import tifffile

    name = rows.table["image"][0].as_py() if len(rows) else path.name
    if rows.size is None:
        raise FormatError(
            f"image {name}: the project does not contain its size",
            "open and save the image in QuPath",
        )
    on_first = (rows.table["z"].to_numpy() == 0) & (rows.table["t"].to_numpy() == 0)
    labels = rows.table["label"].to_numpy()[on_first]
    polygons, owners = shapely.get_parts(rows.geometries[on_first], return_index=True)
    is_area = shapely.get_type_id(polygons) == shapely.GeometryType.POLYGON
    polygons, labels = polygons[is_area], labels[owners[is_area]]
    width, height = rows.size
    metadata: dict[str, Any] = {"axes": "YX", "Name": name}
    if rows.mpp is not None:
        x, y = rows.mpp
        metadata |= {"PhysicalSizeX": x, "PhysicalSizeY": y}
        metadata |= {"PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm"}
    factors = [1]
    while max(width, height) > _SMALLEST * factors[-1]:
        factors.append(2 * factors[-1])
    common: dict[str, Any] = {
        "dtype": np.uint32,
        "tile": (TILE, TILE),
        "compression": "zlib",
        "photometric": "minisblack",
    }
    with atomic_path(path) as partial, tifffile.TiffWriter(partial, bigtiff=True, ome=True) as tiff:
        for factor in factors:
            shape = (-(-height // factor), -(-width // factor))
            scaled = shapely.transform(polygons, lambda xy, f=factor: xy / f)
            more: dict[str, Any] = {"subifds": len(factors) - 1, "metadata": metadata}
            if factor > 1:
                more = {"subfiletype": 1, "metadata": None}
            tiff.write(_tiles(scaled, labels, shape), shape=shape, **common, **more)
    return int(np.count_nonzero(~on_first))


def _tiles(
    polygons: npt.NDArray[Any], labels: npt.NDArray[np.uint32], shape: tuple[int, int]
) -> Iterator[bytes]:
    """Yield the compressed tiles of a level, row by row."""
    height, width = shape
    tree = shapely.STRtree(polygons)
    empty = zlib.compress(bytes(4 * TILE * TILE), _LEVEL)
    for y in range(0, height, TILE):
        for x in range(0, width, TILE):
            # Draw later ones first, so that the first one wins.
            near = np.sort(tree.query(shapely.box(x, y, x + TILE, y + TILE)))[::-1]
            if len(near) == 0:
                yield empty
                continue
            tile = np.zeros((TILE, TILE), "<u4")
            pixels = pixels_of_polygons(polygons[near], tile.shape, (x, y))
            tile.ravel()[pixels.indices] = np.repeat(labels[near], pixels.counts)
            # Clear the part of the tile beyond the image.
            tile[max(height - y, 0) :], tile[:, max(width - x, 0) :] = 0, 0
            yield zlib.compress(tile.tobytes(), _LEVEL)
