"""The nuclei of an image that a report counts, and the measurements that it shows of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from qpnuclei.choices import CERTAINTY
from qpnuclei.measure.shape import AREA
from qpnuclei.qupath.areas import union
from qpnuclei.qupath.class_counts import is_positive
from qpnuclei.qupath.counted_image import CountedImage, analysed_area, counted_nuclei
from qpnuclei.segmentation.sidecar import PROBABILITY

Floats = npt.NDArray[np.float64]

#: Names of the measurements of certainty, size and haematoxylin: those of qpnuclei, and then those
#: of QuPath cells and of StarDist.
_CERTAINTY = (CERTAINTY, PROBABILITY, "Detection probability")
_SIZE = (AREA, "Nucleus: Area µm^2", "Nucleus: Area")
_HAEMATOXYLIN = (
    "Hematoxylin: Mean",
    "Nucleus: Hematoxylin: Mean",
    "Nucleus: Hematoxylin OD mean",
    "Hematoxylin: Nucleus: Mean",
)
_DAB = ("DAB: Mean", "Nucleus: DAB: Mean", "Nucleus: DAB OD mean", "DAB: Nucleus: Mean")


@dataclass(frozen=True, eq=False)
class MeasuredNuclei:
    """The counted nuclei, which of them are positive, and the area that was searched for them.

    `rows` are their indices among the detections of the image.
    """

    rows: npt.NDArray[np.int64]
    geometries: npt.NDArray[Any]
    centroids: Floats
    measurements: dict[str, Floats]
    positive: npt.NDArray[np.bool_]
    area: shapely.Geometry
    mpp: tuple[float, float] | None = field(default=None)

    @classmethod
    def of(cls, image: CountedImage, nucleus_classes: Sequence[str] | None) -> MeasuredNuclei:
        """Return the nuclei of an image, by the rules of `qpnuclei.qupath.counts.count_objects`."""
        rows = np.flatnonzero(counted_nuclei(image, nucleus_classes))
        detections = image.objects.detections
        area = analysed_area(image)
        if area.is_empty:
            area = union(a.area for a in image.objects.annotations if a.is_area)
        if area.is_empty and image.size is not None:
            area = shapely.box(0, 0, *image.size)
        wanted = {*_CERTAINTY, *_SIZE, *_HAEMATOXYLIN, *_DAB}
        return cls(
            rows,
            detections.nucleus_geometries[rows],
            detections.centroids[rows],
            {n: c[rows] for n, c in detections.measurements.items() if n in wanted},
            np.array([is_positive(detections.class_names[row]) for row in rows.tolist()], bool),
            area,
            image.mpp,
        )

    @property
    def certainty(self) -> Floats | None:
        """Certainty from 0 to 1 of each nucleus."""
        return self._first_of(_CERTAINTY)

    @property
    def haematoxylin(self) -> Floats | None:
        """Mean optical density of haematoxylin in each nucleus."""
        return self._first_of(_HAEMATOXYLIN)

    @property
    def dab(self) -> Floats | None:
        """Mean optical density of DAB in each nucleus."""
        return self._first_of(_DAB)

    @property
    def sizes(self) -> Floats | None:
        """Areas in µm² where they were measured, as in the tables; if none was, of the outlines."""
        measured = self._first_of(_SIZE)
        if measured is not None or self.mpp is None or not len(self.geometries):
            return measured
        computed: Floats = shapely.area(self.geometries) * self.mpp[0] * self.mpp[1]
        return computed

    def _first_of(self, names: Sequence[str]) -> Floats | None:
        """Return the first available of several measurements for each nucleus; None without any.

        Nuclei of cells have other names for the same measurement.
        """
        values = np.full(len(self.geometries), np.nan)
        for name in names:
            if name in self.measurements:
                values = np.where(np.isfinite(values), values, self.measurements[name])
        return values if np.isfinite(values).any() else None
