"""Problems found in a GeoJSON file, feature by feature."""

from __future__ import annotations

from dataclasses import dataclass, field

#: Longest quotation of the file in an error message.
_LONGEST_REASON = 300


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
    """Raised with what is wrong with the current feature."""


@dataclass(frozen=True)
class Reporter:
    """Record a problem of a feature, or raise it as an error.

    Parameters
    ----------
    problems : Problems or None
        Where they are recorded; None raises them.
    index : int
        Number of the feature.
    """

    problems: Problems | None
    index: int

    def report_value(self, what: str) -> None:
        """Say what is wrong with a value that is left out; raise GeoJsonError or record it."""
        if self.problems is None:
            raise GeoJsonError(what)
        self.problems.values.append(f"feature {self.index}: {short(what)}")

    def report_feature(self, what: str) -> None:
        """Say why a feature is left out; raise GeoJsonError or record it."""
        if self.problems is None:
            raise GeoJsonError(what)
        self.problems.features.append(f"feature {self.index}: {short(what)}")


def short(reason: object) -> str:
    """Return a reason in one line of bounded length."""
    return " ".join(str(reason).split())[:_LONGEST_REASON]
