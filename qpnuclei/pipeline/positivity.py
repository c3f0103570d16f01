"""Positive and negative nuclei by their DAB staining, with the classes that QuPath gives them.

Experimental, as everything for haematoxylin and DAB (docs/qupath.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qpnuclei.errors import QpnucleiError, UsageError, quoted
from qpnuclei.nuclei.table import NucleiTable
from qpnuclei.qupath.model import Detections, ImageEntry, PathClass, Project, packed_rgb
from qpnuclei.qupath.names import NEW_CLASS_COLOR, class_of
from qpnuclei.slides.hdab_as_he import DAB, has_dab
from qpnuclei.system.arguments import is_number

#: The largest threshold, in optical density: darker pixels are black.
_DARKEST = 5.0

#: QuPath's colours of these classes unless it shades the base class's colour.
_COLORS = {
    "Negative": packed_rgb(90, 90, 180),
    "Positive": packed_rgb(200, 50, 50),
    "1+": packed_rgb(255, 215, 0),
    "2+": packed_rgb(225, 150, 50),
    "3+": packed_rgb(200, 50, 50),
}
_NAMES = {0: (), 1: ("Negative", "Positive"), 3: ("Negative", "1+", "2+", "3+")}

#: Names of the measurement: of nuclei without cells, and of nuclei in cells.
_MEANS = (f"{DAB}: Mean", f"Nucleus: {DAB}: Mean")

_OPTION = "--positive-threshold"
_HINT = (
    "make the project with qpnuclei project create --hdab, or set type and stain vectors in "
    f"QuPath: Brightfield (H-DAB); or run without {_OPTION}"
)


@dataclass(frozen=True)
class NucleusClasses:
    """The classes of the nuclei of an image.

    Parameters
    ----------
    classes : sequence of PathClass
        The base class; with thresholds also negative, and positive or three grades of it.
    thresholds : sequence of float
        Optical densities of DAB, rising: none, one or three.
    """

    classes: Sequence[PathClass]
    thresholds: Sequence[float] = ()

    def __len__(self) -> int:
        return len(self.classes)

    def codes(self, nuclei: NucleiTable) -> npt.NDArray[np.int64]:
        """Return for each of N nuclei the index of its class.

        As in QuPath, a value equal to the threshold is positive. Without a value it keeps the base.
        """
        if not self.thresholds:
            return np.zeros(len(nuclei), np.int64)
        name = _MEANS[nuclei.cells is not None]
        return _codes(nuclei.measurements[name], self.thresholds)


def _codes(
    values: npt.NDArray[np.floating[Any]], thresholds: Sequence[float]
) -> npt.NDArray[np.int64]:
    # Compared as double, like QuPath does: as float32, 0.7 would be less than 0.7.
    values = values.astype(np.float64)
    grades = np.searchsorted(np.asarray(thresholds), values, side="right")
    return np.where(np.isnan(values), 0, 1 + grades)


def grades_of(detections: Detections, thresholds: Sequence[float]) -> npt.NDArray[Any]:
    """Return ``"Positive"``, ``"Negative"`` or a grade for each of N detections of qpnuclei.

    Parameters
    ----------
    thresholds : sequence of float
        As `checked_thresholds` returns them.

    Returns
    -------
    (N,) object ndarray of str
        Empty for those without a measurement of DAB, and for all without thresholds.
    """
    if not thresholds:
        return np.full(len(detections), "", dtype=object)
    values = np.full(len(detections), np.nan)
    for name in _MEANS:
        measured = detections.measurements.get(name, values)
        values = np.where(np.isnan(values), measured, values)
    names = np.array(["", *_NAMES[len(thresholds)]], dtype=object)
    return names[_codes(values, thresholds)]


def classes_of_nuclei(
    base: str, thresholds: Sequence[float], project: Project | None = None
) -> NucleusClasses:
    """Return the classes of nuclei, in the project's colours for classes that it already has.

    Parameters
    ----------
    base : str
        Name of the base class.
    thresholds : sequence of float
        As `checked_thresholds` returns them.
    """
    colors = {base: NEW_CLASS_COLOR}
    colors |= {f"{base}: {name}": _COLORS[name] for name in _NAMES[len(thresholds)]}
    classes = [
        PathClass(name, color) if project is None else class_of(project, name, color)
        for name, color in colors.items()
    ]
    return NucleusClasses(classes, thresholds)


def checked_thresholds(thresholds: Sequence[Any], base: str) -> tuple[float, ...]:
    """Return thresholds as numbers.

    Raises
    ------
    UsageError
        If they are not one or three rising optical densities, or QuPath would not derive positive
        and negative from the base class.
    """
    if not thresholds:
        return ()
    if not all(map(is_number, thresholds)):
        raise UsageError(f"{_OPTION} {quoted(thresholds)}: not numbers", "for example 0.2")
    if len(thresholds) not in _NAMES:
        raise UsageError(
            f"{_OPTION} was given {len(thresholds)} times",
            "give one value for positive and negative, or three for 1+, 2+ and 3+",
        )
    shown = ", ".join(f"{value:g}" for value in thresholds)
    if not all(0 < value <= _DARKEST for value in thresholds):
        raise UsageError(
            f"{_OPTION} {shown} is not in the range: above 0, at most {_DARKEST:g}",
            "for example 0.2",
        )
    if list(thresholds) != sorted(set(thresholds)):
        raise UsageError(
            f"{_OPTION} {shown}: the values must increase", "give the smallest one first"
        )
    if base.endswith("*") or base.rpartition(": ")[2] in _COLORS:
        raise UsageError(
            f"QuPath has no Positive and Negative classes of the class {base!r}",
            "name another class with --class",
        )
    return tuple(map(float, thresholds))


def require_dab(entry: ImageEntry, thresholds: Sequence[float]) -> None:
    """Refuse an image without DAB, if there are thresholds.

    Raises
    ------
    UsageError
        If its second stain is not DAB.
    FormatError
        If its data cannot be read.
    """
    if thresholds and not _has_dab(entry):
        stains = "no stain vectors" if entry.stains is None else entry.stains.name
        raise UsageError(
            f"image {entry.name} is not stained with haematoxylin and DAB: {stains}", _HINT
        )


def require_some_dab(entries: Sequence[ImageEntry], thresholds: Sequence[float]) -> None:
    """Refuse the images if there are thresholds and none of them has DAB.

    Raises
    ------
    UsageError
        If none has; an image that cannot be read may have it.
    """
    if not thresholds or not entries:
        return
    try:
        is_there = any(map(_has_dab, entries))
    except QpnucleiError:
        return
    if not is_there:
        raise without_dab()


def without_dab() -> UsageError:
    """Return the error for thresholds that were given though no image has DAB."""
    return UsageError(f"{_OPTION}: no chosen image is of haematoxylin and DAB", _HINT)


def _has_dab(entry: ImageEntry) -> bool:
    return entry.stains is not None and has_dab(entry.stains)
