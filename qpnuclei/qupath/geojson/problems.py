"""Problems found in a GeoJSON file, feature by feature."""

from __future__ import annotations

from dataclasses import dataclass, field

from qpnuclei.errors import short_reason


@dataclass
class Problems:
    """Problems found in a GeoJSON file, feature by feature.

    Parameters
    ----------
    features : list of str
        Messages on features that were left out, with the reason.
    values : list of str
        Messages on values that were left out of features that were read, with the reason.
    """

    features: list[str] = field(default_factory=list)
    values: list[str] = field(default_factory=list)


class GeoJsonError(Exception):
    """An error in the current feature."""


@dataclass(frozen=True)
class Reporter:
    """Record a problem of a feature, or raise it as an error.

    Parameters
    ----------
    problems : Problems or None
        Collects the problems; if None, they are raised as errors.
    index : int
        Number of the feature.
    """

    problems: Problems | None
    index: int

    def report_value(self, what: str) -> None:
        """Record a value that is left out, with the reason, or raise a GeoJsonError."""
        if self.problems is None:
            raise GeoJsonError(what)
        self.problems.values.append(f"feature {self.index}: {short_reason(what)}")

    def report_feature(self, what: str) -> None:
        """Record a feature that is left out, with the reason, or raise a GeoJsonError."""
        if self.problems is None:
            raise GeoJsonError(what)
        self.problems.features.append(f"feature {self.index}: {short_reason(what)}")
