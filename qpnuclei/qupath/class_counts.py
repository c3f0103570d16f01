"""Counts of detections by class, and QuPath's percentages and H-scores of positive ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from qpnuclei.choices import NUCLEUS_CLASS
from qpnuclei.qupath.model import Detections

#: Last part of the class names that QuPath treats as staining intensities.
_GRADES = ("1+", "2+", "3+")
_INTENSITIES = ("Positive", "Negative", *_GRADES)
#: Columns of all detections, and of the grades of positive ones.
ALL_DETECTIONS = "Num Detections"
H_SCORE = "H-score"


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
    def _columns(self) -> dict[str, list[str]]:
        return columns_of(self.names)

    def numbers(self, rows: npt.NDArray[np.int64]) -> dict[str, int | float]:
        """Return QuPath's columns for some detections: counts, percentages and H-scores."""
        found = np.bincount(self.codes[rows], minlength=len(self.names)).tolist()
        counts = dict(zip(self.names, found, strict=True))
        of_classes = {
            column: sum(counts[name] for name in counted)
            for column, counted in self._columns.items()
        }
        return {ALL_DETECTIONS: len(rows), **of_classes, **shares_of(self.names, counts)}

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


def columns_of(names: Sequence[str]) -> dict[str, list[str]]:
    """Return QuPath's columns for classes, in its order, with the classes that each one counts.

    ``(base)`` marks a class with positive, negative or graded subclasses; it counts them all.
    """
    columns = {
        f"Num {base} (base)": _derived(names, base)
        for base in sorted(_bases(names, _INTENSITIES) - {""})
    }
    for name in filter(None, names):
        # A class may have the name of another column; keep both columns.
        column = f"Num {name}"
        is_taken = column in columns or column == ALL_DETECTIONS
        columns[f"{column} (class)" if is_taken else column] = [name]
    return columns


def classes_in(columns: Iterable[str]) -> list[str]:
    """Return the classes that have a column of their own among those of a table.

    Examples
    --------
    >>> classes_in(["nuclei", "Num Detections", "Num Tumor (base)", "Num Tumor: Positive"])
    ['Tumor: Positive']
    """
    return [
        column.removeprefix("Num ").removesuffix(" (class)")
        for column in columns
        if column.startswith("Num ") and column != ALL_DETECTIONS and not column.endswith(" (base)")
    ]


def shares_of(names: Sequence[str], counts: Mapping[str, int]) -> dict[str, float]:
    """Return QuPath's percentages of positive detections, and H-scores from 0 to 300.

    There is one of each per base class with such subclasses, and one for all of them together. A
    value is NaN if there are no such detections.

    Parameters
    ----------
    counts : mapping of str to int
        Number of detections of each class.
    """
    found: dict[str, float] = {}
    for column, intensities, weights in (
        ("Positive %", _INTENSITIES, {**dict.fromkeys(_INTENSITIES, 100), "Negative": 0}),
        (H_SCORE, _GRADES, {"Negative": 0, "1+": 100, "2+": 200, "3+": 300}),
    ):
        bases = sorted(_bases(names, intensities))
        for members in [*([base] for base in bases), *([bases] if len(bases) > 1 else [])]:
            weighted = total = 0
            for name in (name for base in members for name in _derived(names, base)):
                last = name.rpartition(": ")[2]
                if last in weights:
                    total += counts.get(name, 0)
                    weighted += counts.get(name, 0) * weights[last]
            title = _qupath_name(column, members)
            if title in found:  # QuPath gives two columns the same name
                title = f"{' + '.join(members)}: {column}"
            found[title] = weighted / total if total else math.nan
    return found


def _bases(names: Sequence[str], intensities: Sequence[str]) -> set[str]:
    """Return the names of the classes that have such subclasses; empty for no class."""
    parts = [name.rpartition(": ") for name in names]
    return {parent for parent, _, last in parts if last in intensities}


def _derived(names: Sequence[str], base: str) -> list[str]:
    """Return a class and its subclasses; without a name, all base classes."""
    if not base:
        return [name for name in names if ": " not in name]
    return [name for name in names if f"{name}: ".startswith(f"{base}: ")]


def _qupath_name(column: str, bases: Sequence[str]) -> str:
    """Return QuPath's column name for a value of one or more base classes."""
    if len(bases) > 1:
        return f"{' + '.join(sorted(base.rpartition(': ')[2] for base in bases))}: {column}"
    return f"{bases[0].partition(': ')[0]}: {column}" if bases[0] else column
