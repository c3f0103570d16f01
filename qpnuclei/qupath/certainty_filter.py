"""Remove the less certain nuclei of a run afterwards, without another run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qpnuclei._version import __version__
from qpnuclei.choices import CERTAINTY
from qpnuclei.errors import number_of
from qpnuclei.qupath.analysed import Record
from qpnuclei.qupath.filters import with_filter
from qpnuclei.qupath.model import Edit, ImageEntry
from qpnuclei.qupath.regions import Region, rows_in_any

#: Certainties for which ``--dry-run`` counts the nuclei.
STEPS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


@dataclass(frozen=True, eq=False)
class OwnNuclei:
    """The N detections of an image that qpnuclei wrote.

    Parameters
    ----------
    entry : ImageEntry
    rows : (N,) int64 ndarray
        Rows of the detections in the image.
    certainty : (N,) float64 ndarray
        `qpnuclei.choices.CERTAINTY`; NaN for detections without this measurement.
    locked : (N,) bool ndarray
        Whether a user has locked, and so accepted, the detection.
    record : Record
        Record of earlier runs on the image.
    fingerprint : str
        Fingerprint of the objects as read.
    roi_classes : tuple of str
        Classes of the annotations that contain them; empty if they are all of the image.
    regions : tuple of Region
        These annotations.
    properties : mapping of str to str
        Of the image.
    """

    entry: ImageEntry
    rows: npt.NDArray[np.int64]
    certainty: npt.NDArray[np.float64]
    locked: npt.NDArray[np.bool_]
    record: Record
    fingerprint: str
    roi_classes: tuple[str, ...]
    regions: tuple[Region, ...]
    properties: Mapping[str, str]

    @classmethod
    def of(cls, entry: ImageEntry, roi_classes: Sequence[str] = ()) -> OwnNuclei:
        """Read the detections; with `roi_classes`, only those in annotations of these classes.

        Raises
        ------
        qpnuclei.errors.FormatError
            If the image's objects cannot be read.
        """
        objects = entry.read()
        found = objects.detections
        rows = np.flatnonzero(found.ours)
        regions = tuple(Region.of(a) for a in objects.annotations if a.class_name in roi_classes)
        if roi_classes and len(rows):
            rows = rows[rows_in_any(regions, found.centroids[rows], found.planes[rows])]
        known = found.measurements.get(CERTAINTY)
        certainty = np.full(len(rows), np.nan) if known is None else known[rows]
        locked = found.locked[rows]
        record = Record.of(objects.properties, entry.name)
        return cls(
            entry,
            rows,
            certainty.astype(np.float64),
            locked,
            record,
            objects.fingerprint,
            tuple(roi_classes),
            regions,
            objects.properties,
        )

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def unknown(self) -> int:
        """Number of detections without a certainty: they always stay."""
        return int(np.count_nonzero(np.isnan(self.certainty)))

    def below(self, least: float) -> npt.NDArray[np.bool_]:
        """(N,) Whether each is less certain than `least`, and not locked."""
        # Compared as float32, as in the file: a value copied from there is never below itself.
        below: npt.NDArray[np.bool_] = self.certainty.astype(np.float32) < np.float32(least)
        return below & ~self.locked

    def staying(self, least: float) -> int:
        """Return how many are left if those `below` the value are removed."""
        return len(self) - int(self.below(least).sum())

    def remove_below(self, least: float) -> int:
        """Remove the detections below `least` from the project, with a backup; return how many.

        Raises
        ------
        qpnuclei.errors.ConflictError, qpnuclei.errors.SaveError
            If the image cannot be saved; it is unchanged.
        """
        removed = frozenset(self.rows[self.below(least)].tolist())
        if removed:
            comment = (
                f"// qpnuclei {__version__}: removed {len(removed)} of "
                f"{number_of(len(self), 'detection')} by qpnuclei, whose {CERTAINTY!r} is below "
                f"{least:g}"
            )
            # The doubts of runs are about the nuclei before the filter.
            filtered = self.record.filtered()
            edit = Edit(
                remove=removed,
                workflow_step=("qpnuclei filter", comment),
                properties={
                    **({} if filtered == self.record else filtered.to_properties()),
                    **with_filter(
                        self.properties,
                        self.record,
                        self.entry.name,
                        least,
                        self.roi_classes,
                        self.regions,
                    ),
                },
            )
            self.entry.write(edit, self.fingerprint)
        return len(removed)
