"""What an image tells of the filters by which nuclei of runs were removed from it.

A filter stores this as an image property, as a run stores which areas it analysed
(`qpnuclei.qupath.analysed`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from qpnuclei.qupath.analysed import Record

_log = logging.getLogger(__name__)

#: Name of the image's property.
FILTERS = "qpnuclei filters"


@dataclass(frozen=True)
class Filter:
    """A filter by the certainty of nuclei (`qpnuclei.choices.CERTAINTY`).

    Parameters
    ----------
    least : float
        Nuclei that are less certain were removed.
    classes : tuple of str
        Classes of the annotations in which they were; everywhere if empty.
    runs : tuple of str
        Identify the runs that had written into the image.
    """

    least: float
    classes: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()

    def includes(self, other: Filter) -> bool:
        """Return whether this filter removes all that another one has removed."""
        is_wider = not self.classes or (other.classes and {*other.classes} <= {*self.classes})
        return bool(self.least >= other.least and is_wider and {*other.runs} <= {*self.runs})


def filters_of(
    properties: Mapping[str, str], record: Record, name: str = "the image"
) -> tuple[Filter, ...]:
    """Return the filters of the nuclei that are in an image, oldest first.

    Left out are filters of nuclei that later runs have replaced, and those that a later filter
    includes.

    Parameters
    ----------
    properties : mapping of str to str
        Of the image.
    record : Record
        Of the same image.
    """
    try:
        found = list(_read(properties.get(FILTERS, "[]")))
    except (ValueError, TypeError, KeyError, RecursionError, AttributeError):
        _log.warning("%s: what is stored of earlier filters is damaged and was ignored", name)
        return ()
    valid = [one for one in found if not one.runs or any(map(record.has_run, one.runs))]
    return tuple(
        one
        for number, one in enumerate(valid, start=1)
        if not any(later.includes(one) for later in valid[number:])
    )


def with_filter(
    properties: Mapping[str, str], record: Record, least: float, classes: tuple[str, ...]
) -> dict[str, str]:
    """Return the property of an image after a further filter."""
    runs = (*record.earlier_runs, *([record.run] if record.run else []))
    new = Filter(least, classes, runs)
    content = [
        {
            "least": one.least,
            **({"classes": one.classes} if one.classes else {}),
            **({"runs": one.runs} if one.runs else {}),
        }
        for one in [*filters_of(properties, record), new]
    ]
    return {FILTERS: json.dumps(content, separators=(",", ":"))}


def _read(text: str) -> Iterator[Filter]:
    for one in json.loads(text):
        classes, runs = (tuple(map(str, one.get(name, ()))) for name in ("classes", "runs"))
        yield Filter(float(one["least"]), classes, runs)
