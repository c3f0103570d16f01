"""An image for counting: its objects, its pixel size, and its analysed area."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import shapely

from qpnuclei.errors import FormatError, MppError
from qpnuclei.qupath.analysed import Record
from qpnuclei.qupath.analysed_area import AnalysedArea, Basis
from qpnuclei.qupath.areas import polygonal
from qpnuclei.qupath.class_counts import Classes
from qpnuclei.qupath.doubts import by_place, together
from qpnuclei.qupath.images import stains_of
from qpnuclei.qupath.model import ImageEntry, ImageObjects, Project
from qpnuclei.qupath.names import project_name
from qpnuclei.qupath.pixel_size import AskedMpp, pixel_size
from qpnuclei.qupath.regions import Region, rows_inside
from qpnuclei.slides.calibration import Mpp, PixelCalibration, area_mm2
from qpnuclei.slides.resolution import mpp_text
from qpnuclei.slides.stains import StainRows, stain_rows

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CountedImage:
    """An image with the data for counting its objects.

    Parameters
    ----------
    project : str
        Name or path of the project, for the table.
    name : str
        Name of the image.
    objects : ImageObjects
    calibration : PixelCalibration
        Pixel size, from `qpnuclei.qupath.pixel_size`.
    size : (width, height) of int, or None
        Size in level-0 px, for the area of the whole image.
    id : str or None
        ID of the image's entry in the project.
    stains : StainRows
        Its present stain vectors; empty if it has none.
    """

    project: str
    name: str
    objects: ImageObjects
    calibration: PixelCalibration
    size: tuple[int, int] | None = None
    id: str | None = None
    stains: StainRows = ()

    @cached_property
    def record(self) -> Record:
        """The record of earlier runs on the image."""
        return Record.of(self.objects.properties, self.name)

    @property
    def mpp(self) -> Mpp | None:
        """µm per level-0 px in x and y; None if unknown."""
        return self.calibration.mpp_xy

    def mm2(self, area_px2: float | None) -> float:
        """Return an area in mm²; NaN if it or the pixel size is unknown."""
        if area_px2 is None or self.mpp is None:
            return math.nan
        return area_mm2(area_px2, self.mpp)

    def doubts(self, *regions: Region, counts_all: bool = False) -> str:
        """Return why the count in regions is doubtful, in one line; empty if it is not.

        Parameters
        ----------
        *regions : Region
        counts_all : bool
            Whether all nuclei of chosen classes count, not those that runs have found: then it does
            not matter if these are gone.
        """
        notes: list[tuple[str, str]] = []
        own: dict[int, AnalysedArea] = {}
        for region in regions:
            others = self.record.other_bases(region, self._basis)
            name = region.label if len(regions) > 1 else ""
            notes += [(name, self.record.doubts_in(region)), ("", self._note_of(others))]
            if region.annotation is not None:
                own.update({id(area): area for area in self.record.areas_of(region.annotation)})
        if not counts_all:
            emptied = [area for area in self._emptied if id(area) in own]
            notes.append(("", _note_of_emptied(emptied)))
        return by_place(notes)

    def image_doubts(self, *, counts_all: bool = False) -> str:
        """Return why the count of the whole image is doubtful, in one line; empty if it is not."""
        others = self.record.image_other_bases(self._basis)
        names = {annotation.id: annotation.label for annotation in self.objects.annotations}
        notes = [self.record.image_doubts(names), self._note_of(others)]
        if not counts_all:
            # Nuclei that were deleted with their annotation are not missed.
            there = {None, *(annotation.id for annotation in self.objects.annotations)}
            notes.append(_note_of_emptied([area for area in self._emptied if area.id in there]))
        return together(notes)

    @cached_property
    def _emptied(self) -> list[AnalysedArea]:
        """Areas in which runs found nuclei and none is left."""
        detections = self.objects.detections
        nuclei = Classes.of(detections, None).nuclei
        return self.record.emptied(
            detections.centroids[nuclei], detections.planes[nuclei], detections.ours[nuclei]
        )

    @property
    def _basis(self) -> Basis:
        return Basis(self.mpp, self.stains)

    def _note_of(self, others: Sequence[Basis]) -> str:
        """Return what to say of nuclei with other pixel sizes or stains than the present."""
        notes = []
        sizes = dict.fromkeys(o.mpp for o in others if o.has_other_mpp(self._basis))
        if sizes and self.mpp is not None:
            found = " and ".join(mpp_text(size) for size in sizes if size is not None)
            notes.append(f"analysed at {found} µm/px, counted at {mpp_text(self.mpp)}: run again")
        if any(other.has_other_stains(self._basis) for other in others):
            notes.append("stains measured with other vectors than the image has now: run again")
        return together(notes)


def _note_of_emptied(areas: Sequence[AnalysedArea]) -> str:
    if not areas:
        return ""
    number = sum(area.nuclei for area in areas)
    return (
        f"all nuclei of an area are gone since the run ({number}): run again, unless they were "
        "removed on purpose"
    )


def counted_image(
    entry: ImageEntry, pixel_sizes: AskedMpp, project: Project, *, warns: bool = True
) -> CountedImage:
    """Read an image to count its objects.

    Parameters
    ----------
    warns : bool
        Whether to log a warning if the image has no pixel size.

    Raises
    ------
    qpnuclei.errors.FormatError
        If its objects cannot be read.
    """
    server = entry.server
    objects = entry.read()
    calibration = PixelCalibration()
    try:
        record = Record.of(objects.properties, entry.name)
        found, _ = pixel_size(entry, record, pixel_sizes)
        calibration = PixelCalibration(*found)
    except MppError as error:
        if warns:
            _log.warning("%s: its areas are left empty; %s", error.what, error.hint)
    stains: StainRows = ()
    # A run refuses vectors that cannot be used; the counts do not depend on them.
    with suppress(FormatError):
        if entry.stains is not None:
            stains = stain_rows(stains_of(entry))
    return CountedImage(
        project=project_name(project),
        name=entry.name,
        objects=objects,
        calibration=calibration,
        size=(server.width, server.height) if server.width and server.height else None,
        id=entry.id,
        stains=stains,
    )


def analysed_area(image: CountedImage) -> shapely.Geometry:
    """Return the area of an image that runs have analysed, in level-0 px."""
    area = image.record.union
    if image.size is not None:
        area = shapely.intersection(area, shapely.box(0, 0, *image.size))
    return polygonal(area)


def counted_nuclei(
    image: CountedImage, nucleus_classes: Sequence[str] | None = None
) -> npt.NDArray[np.bool_]:
    """Return which of an image's N detections count as nuclei, by the rules of `count_objects`."""
    detections = image.objects.detections
    nuclei = Classes.of(detections, nucleus_classes).nuclei
    if nucleus_classes is not None:
        return nuclei
    area = Region(None, analysed_area(image))
    (inside,) = rows_inside([area], detections.centroids, detections.planes)
    within = np.zeros(len(detections), bool)
    within[inside] = True
    return nuclei & within
