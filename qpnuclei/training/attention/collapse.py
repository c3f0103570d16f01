"""Stop a run whose attention shows that the model has stopped learning."""

from __future__ import annotations

from collections.abc import Mapping

#: After so many batches, G must be right more often than by chance, by this margin.
_GUESSING_AFTER_BATCHES = 500
_GUESSING_MARGIN = 0.05

#: Shares of the pixels that the attention of a working model cannot have.
_HOLDS_NOTHING, _HOLDS_EVERYTHING = 0.001, 0.95


def collapse(metrics: Mapping[str, float], n_scales: int, batches: int) -> str:
    """Return why an epoch's mean metrics show that the model does not learn; empty if it learns.

    Parameters
    ----------
    metrics : mapping of str to float
    n_scales : int
    batches : int
        Number since the start of the run; G needs some to learn.
    """
    fraction = metrics["attention fraction"]
    if fraction < _HOLDS_NOTHING or fraction > _HOLDS_EVERYTHING:
        return f"the attention has collapsed: it holds {fraction:.2%} of the pixels"
    accuracy = metrics["scale accuracy"]
    if batches >= _GUESSING_AFTER_BATCHES and accuracy < 1 / n_scales + _GUESSING_MARGIN:
        return (
            f"after {batches} batches the magnification is guessed right in {accuracy:.0%} of "
            f"cases, by chance it would be {1 / n_scales:.0%}"
        )
    return ""
