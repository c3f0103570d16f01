"""The models that a student learns from, and what their metadata state of labels and licences.

Whoever learns from a model that learned from drawn nuclei has learned from them, too. The licence
of a model's training data also holds for those who learn from that model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from qpnuclei.models.metadata import NO_LABELS, NOT_STATED, ModelMetadata, read_metadata
from qpnuclei.models.registry import resolve_model
from qpnuclei.training.student.recipe import StudentRecipe


def ancestors_of(recipe: StudentRecipe) -> list[ModelMetadata]:
    """Return the metadata of a recipe's teacher, start and labellers, each model once.

    Raises
    ------
    qpnuclei.errors.NotFoundError, qpnuclei.errors.ModelError
        If there is no such model, or it cannot be read.
    """
    names = (recipe.teacher, recipe.start, *recipe.labellers)
    files = dict.fromkeys(resolve_model(name) for name in names if name is not None)
    return [read_metadata(file) for file in files]


def labels_of(models: Iterable[ModelMetadata]) -> list[str]:
    """Return what labels models learned from, each once; empty if all learned without labels."""
    stated = (str(model.data.get("labels", NOT_STATED)) for model in models)
    return _each_once(labels for labels in stated if labels != NO_LABELS)


def licences_of(models: Iterable[ModelMetadata]) -> list[str]:
    """Return the licences of the data that models learned from, each once."""
    return _each_once(str(model.data.get("licence") or NOT_STATED) for model in models)


def statement(own: str, inherited: Sequence[str]) -> str:
    """Return the entry of a model's metadata: what holds for itself, and what it inherits.

    Parameters
    ----------
    own : str
        Empty if there is nothing to state.
    inherited : sequence of str

    Examples
    --------
    >>> statement("CC0 1.0", ["CC BY 4.0", "CC0 1.0"])
    'CC0 1.0; CC BY 4.0'
    >>> statement("CC0 1.0", ["CC BY 4.0; CC0 1.0"])
    'CC BY 4.0; CC0 1.0'
    >>> statement("", [])
    ''
    """
    return "; ".join(_each_once([own, *inherited] if own else inherited))


def _each_once(entries: Iterable[str]) -> list[str]:
    """Return the entries that no other one names, each once.

    An entry may be a statement of several. It is not split, because a licence may contain "; ".
    """
    different = list(dict.fromkeys(entries))
    return [
        entry
        for entry in different
        if not any(f"; {entry}; " in f"; {other}; " for other in different if other != entry)
    ]
