"""A stricter choice of the nuclei that a run found, without another run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qpnuclei._version import __version__
from qpnuclei.choices import CERTAINTY
from qpnuclei.nuclei.ids import is_ours
from qpnuclei.qupath.analysed import Record
from qpnuclei.qupath.model import Edit, ImageEntry
from qpnuclei.qupath.regions import Region, rows_inside

#: Values for which ``--dry-run`` counts.
STEPS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


@dataclass(frozen=True, eq=False)
class OwnNuclei:
    """The N detections of an image that qpnuclei wrote.

    Parameters
    ----------
    entry : ImageEntry
    ids : (N,) object ndarray of UUID
    certainty : (N,) float64 ndarray
        `qpnuclei.choices.CERTAINTY`; NaN where one has no such measurement.
    locked : (N,) bool ndarray
        Those that a user has locked, and so accepted.
    record : Record
        Of earlier runs on the image.
    fingerprint : str
        Of the objects as read.
    """

    entry: ImageEntry
    ids: npt.NDArray[Any]
    certainty: npt.NDArray[np.float64]
    locked: npt.NDArray[np.bool_]
    record: Record
    fingerprint: str

    @classmethod
    def of(cls, entry: ImageEntry, roi_classes: Sequence[str] = ()) -> OwnNuclei:
        """Read them; only those in annotations of some classes if there are any.

        Raises
        ------
        qpnuclei.errors.FormatError
            If the image's objects cannot be read.
        """
        objects = entry.read()
        found = objects.detections
        rows = np.flatnonzero([is_ours(own) for own in found.ids])
        if roi_classes and len(rows):
            regions = [Region.of(a) for a in objects.annotations if a.class_name in roi_classes]
            held = rows_inside(regions, found.centroids[rows], found.planes[rows])
            rows = rows[np.unique(np.concatenate([np.empty(0, np.int64), *held]))]
        ids = np.empty(len(rows), dtype=object)
        ids[:] = [found.ids[row] for row in rows.tolist()]
        known = found.measurements.get(CERTAINTY)
        certainty = np.full(len(rows), np.nan) if known is None else known[rows]
        locked = found.locked[rows]
        record = Record.of(objects.properties, f"image {entry.name}")
        return cls(entry, ids, certainty.astype(np.float64), locked, record, objects.fingerprint)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def unknown(self) -> int:
        """How many have no certainty: they always stay."""
        return int(np.count_nonzero(np.isnan(self.certainty)))

    def below(self, least: float) -> npt.NDArray[np.bool_]:
        """(N,) Which of them are less certain than `least`, and not locked."""
        # Compared as the file stores them, so that a value that a user reads there is not below.
        below: npt.NDArray[np.bool_] = self.certainty.astype(np.float32) < np.float32(least)
        return below & ~self.locked

    def remove_below(self, least: float) -> int:
        """Remove these from the project, keeping a backup; return how many.

        Raises
        ------
        qpnuclei.errors.ConflictError, qpnuclei.errors.SaveError
            If the image cannot be saved; it is as it was.
        """
        removed = frozenset(self.ids[self.below(least)].tolist())
        if removed:
            said = (
                f"// qpnuclei {__version__}: removed {len(removed)} of {len(self)} detections by "
                f"qpnuclei, whose {CERTAINTY!r} is below {least:g}"
            )
            # What a run doubted was said of the nuclei with these.
            filtered = self.record.filtered()
            edit = Edit(
                remove=removed,
                workflow_step=("qpnuclei filter", said),
                properties={} if filtered == self.record else filtered.to_properties(),
            )
            self.entry.write(edit, self.fingerprint)
        return len(removed)
