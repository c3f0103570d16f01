"""Shape measurements of outlines, with QuPath's names and definitions.

The definitions are those of QuPath's ``ObjectMeasurements``. Values differ from QuPath's only by
its float32 vertices: by up to 1e-5 (relative) near the origin, 2e-3 far away from it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from qpnuclei.measure.hulls import measure_hulls
from qpnuclei.slides.calibration import PixelCalibration

Measurements = dict[str, npt.NDArray[np.float32]]

#: QuPath's name of the area of a nucleus if the pixel size is known.
AREA = "Area µm^2"


def shape_measurements(polygons: npt.NDArray[Any], calibration: PixelCalibration) -> Measurements:
    """Measure N outlines.

    Parameters
    ----------
    polygons : (N,) object ndarray of shapely.Polygon
        In level-0 px; holes are allowed.
    calibration : PixelCalibration
        Pixel size; vertices are scaled by it first. Without one, names and values are in px.

    Returns
    -------
    dict of str to (N,) float32 ndarray
        ``Area``, ``Length``, ``Circularity``, ``Solidity``, ``Max diameter``, ``Min diameter``,
        with QuPath's units in the names.

    Notes
    -----
    Length is the perimeter, including that of holes. Circularity is 4 pi area / length² of the
    outer ring alone. Solidity is the area divided by that of the convex hull. The maximum diameter
    is that of the smallest enclosing circle. The minimum diameter is the smallest distance between
    two parallel lines that enclose the outline.
    """
    unit = "px"
    mpp = calibration.mpp_xy
    if mpp is not None:
        unit = "µm"
        polygons = shapely.transform(polygons, lambda points: points * np.array(mpp))
    area = shapely.area(polygons)
    outer = shapely.polygons(shapely.get_exterior_ring(polygons))
    hulls = measure_hulls(shapely.get_coordinates(outer), shapely.get_num_coordinates(outer))
    with np.errstate(divide="ignore", invalid="ignore"):
        columns = {
            f"Area {unit}^2": area,
            f"Length {unit}": shapely.length(polygons),
            "Circularity": 4 * np.pi * shapely.area(outer) / np.square(shapely.length(outer)),
            "Solidity": area / hulls[:, 0],
            f"Max diameter {unit}": hulls[:, 1],
            f"Min diameter {unit}": hulls[:, 2],
        }
    return {name: values.astype(np.float32) for name, values in columns.items()}
