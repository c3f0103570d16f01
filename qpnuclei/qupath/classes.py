"""Counts of detections by class, and QuPath's percentages and H-scores of positive ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from qpnuclei.choices import NUCLEUS_CLASS
from qpnuclei.qupath.model import Detections

#: Last part of the class names that QuPath treats as staining intensities.
_GRADES = ("1+", "2+", "3+")
_INTENSITIES = ("Positive", "Negative", *_GRADES)
_ALL_DETECTIONS = "Num Detections"


def is_positive(class_name: str | None) -> bool:
    """Tell whether detections of a class count as positive in QuPath."""
    last = (class_name or "").rpartition(": ")[2]
    return last in _INTENSITIES and last != "Negative"


@dataclass(frozen=True, eq=False)
class Classes:
    """The classes of N detections.

    Parameters
    ----------
    names : list of str
        Sorted; ``""`` for detections without a class.
    codes : (N,) int64 ndarray
        Class of each detection, as an index into `names`.
    nuclei : (N,) bool ndarray
        Whether each detection counts as a nucleus.
    ours : (N,) bool ndarray
        Whether qpnuclei wrote it, whatever its class is now.
    """

    names: list[str]
    codes: npt.NDArray[np.int64]
    nuclei: npt.NDArray[np.bool_]
    ours: npt.NDArray[np.bool_]

    @cached_property
    def columns(self) -> dict[str, list[int]]:
        """QuPath's columns for the classes, in its order, with the codes that each one counts.

        ``(base)`` marks a class with positive, negative or graded subclasses; it counts them all.
        """
        columns = {
            f"Num {base} (base)": self._derived(base)
            for base in sorted(self._bases(_INTENSITIES) - {""})
        }
        for code, name in enumerate(self.names):
            # A class may have the name of another column; keep both columns.
            column = f"Num {name}"
            if name:
                is_taken = column in columns or column == _ALL_DETECTIONS
                columns[f"{column} (class)" if is_taken else column] = [code]
        return columns

    def numbers(self, rows: npt.NDArray[np.int64]) -> dict[str, int | float]:
        """Return QuPath's columns for some detections: counts, percentages and H-scores."""
        counts = np.bincount(self.codes[rows], minlength=len(self.names))
        of_classes = {column: int(counts[codes].sum()) for column, codes in self.columns.items()}
        return {_ALL_DETECTIONS: len(rows), **of_classes, **self._shares(counts)}

    def _shares(self, counts: npt.NDArray[np.int64]) -> dict[str, float]:
        """Return QuPath's percentages of positive detections, and H-scores from 0 to 300.

        There is one of each per base class with such subclasses, and one for all of them together.
        A value is NaN if there are no such detections.

        Parameters
        ----------
        counts : (C,) int64 ndarray
            Number of detections of each class.
        """
        found: dict[str, float] = {}
        for column, intensities, weights in (
            ("Positive %", _INTENSITIES, {**dict.fromkeys(_INTENSITIES, 100), "Negative": 0}),
            ("H-score", _GRADES, {"Negative": 0, "1+": 100, "2+": 200, "3+": 300}),
        ):
            bases = sorted(self._bases(intensities))
            for members in [*([base] for base in bases), *([bases] if len(bases) > 1 else [])]:
                weighted = total = 0
                for code in (code for base in members for code in self._derived(base)):
                    last = self.names[code].rpartition(": ")[2]
                    if last in weights:
                        total += int(counts[code])
                        weighted += int(counts[code]) * weights[last]
                name = _qupath_name(column, members)
                if name in found:  # QuPath gives two columns the same name
                    name = f"{' + '.join(members)}: {column}"
                found[name] = weighted / total if total else math.nan
        return found

    def _bases(self, intensities: Sequence[str]) -> set[str]:
        """Return the names of the classes that have such subclasses; empty for no class."""
        parts = [name.rpartition(": ") for name in self.names]
        return {parent for parent, _, last in parts if last in intensities}

    def _derived(self, base: str) -> list[int]:
        """Return the codes of a class and its subclasses; without a name, of all base classes."""
        if not base:
            return [code for code, name in enumerate(self.names) if ": " not in name]
        return [code for code, name in enumerate(self.names) if f"{name}: ".startswith(f"{base}: ")]

    @classmethod
    def of(cls, detections: Detections, nucleus_classes: Sequence[str] | None) -> Classes:
        """Return the classes of detections; see `qpnuclei.qupath.counts.count_objects`."""
        names = sorted({name or "" for name in detections.class_names})
        code = {name: i for i, name in enumerate(names)}
        codes = np.array([code[name or ""] for name in detections.class_names], np.int64)
        chosen = (NUCLEUS_CLASS,) if nucleus_classes is None else nucleus_classes
        nuclei = np.array([name in chosen for name in names], bool)[codes]
        if nucleus_classes is None:
            nuclei |= detections.ours
        return cls(names, codes, nuclei, detections.ours)


def _qupath_name(column: str, bases: Sequence[str]) -> str:
    """Return QuPath's column name for a value of one or more base classes."""
    if len(bases) > 1:
        return f"{' + '.join(sorted(base.rpartition(': ')[2] for base in bases))}: {column}"
    return f"{bases[0].partition(': ')[0]}: {column}" if bases[0] else column
