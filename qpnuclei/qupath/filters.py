"""What an image tells of the filters by which nuclei of runs were removed from it.

A filter stores this as an image property, as a run stores which areas it analysed
(`qpnuclei.qupath.analysed`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from qpnuclei.qupath.analysed import Record
from qpnuclei.qupath.regions import Region

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
        Identify the runs that had written into the image, the last one at the end.
    of : tuple of str
        Those whose nuclei were in annotations of `classes`; all of `runs` if empty.
    """

    least: float
    classes: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    of: tuple[str, ...] = ()

    def is_followed(self, record: Record) -> bool:
        """Return whether a run has written into the image since: it was not filtered."""
        return bool(self.runs) and record.run not in self.runs

    def _left(self, record: Record) -> set[str]:
        """Return the runs that were filtered and whose nuclei are still in the image."""
        return set(filter(record.has_run, self.of or self.runs))

    def holds(self, record: Record) -> bool:
        """Return whether filtered nuclei may still be in the image."""
        # Without runs, the nuclei were imported, or of versions that did not name their runs.
        return bool(self._left(record)) if self.runs else not record.run

    def includes(self, other: Filter, record: Record) -> bool:
        """Return whether this filter removes all that another one has removed."""
        is_wider = not self.classes or (other.classes and {*other.classes} <= {*self.classes})
        is_of_all = other._left(record) <= self._left(record)
        return bool(self.least >= other.least and is_wider and is_of_all)


def filters_of(properties: Mapping[str, str], record: Record, name: str) -> tuple[Filter, ...]:
    """Return the filters of the nuclei that are in an image, oldest first.

    Left out are filters of nuclei that later runs have replaced, and those that a later filter
    includes.

    Parameters
    ----------
    properties : mapping of str to str
        Of the image.
    record : Record
        Of the same image.
    name : str
        Of the same image, for a warning.
    """
    try:
        found = list(_read(properties.get(FILTERS, "[]")))
    except (ValueError, TypeError, KeyError, RecursionError, AttributeError):
        _log.warning("image %s: what is stored of earlier filters is damaged and was ignored", name)
        return ()
    valid = [one for one in found if one.holds(record)]
    return tuple(
        one
        for number, one in enumerate(valid, start=1)
        if not any(later.includes(one, record) for later in valid[number:])
    )


def with_filter(
    properties: Mapping[str, str],
    record: Record,
    name: str,
    least: float,
    classes: tuple[str, ...] = (),
    regions: Iterable[Region] = (),
) -> dict[str, str]:
    """Return the property of an image after a further filter.

    Parameters
    ----------
    properties, record, name
        As for `filters_of`.
    least, classes : float, tuple of str
        As in `Filter`.
    regions : iterable of Region
        The annotations of these classes.
    """
    runs = (*record.earlier_runs, *([record.run] if record.run else []))
    of = dict.fromkeys(run for one in regions for run in record.runs_in(one.geometry))
    new = Filter(least, classes, runs, tuple(of))
    content = [
        {
            "least": one.least,
            **({"classes": one.classes} if one.classes else {}),
            **({"runs": one.runs} if one.runs else {}),
            **({"of": one.of} if one.of else {}),
        }
        for one in [*filters_of(properties, record, name), new]
    ]
    return {FILTERS: json.dumps(content, separators=(",", ":"))}


def _read(text: str) -> Iterator[Filter]:
    for one in json.loads(text):
        named = (tuple(map(str, one.get(name, ()))) for name in ("classes", "runs", "of"))
        yield Filter(float(one["least"]), *named)
