"""Check that annotations have the classes that a user names."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from qpnuclei.errors import QpnucleiError, UsageError, standing_alone
from qpnuclei.qupath.model import ImageEntry, Project
from qpnuclei.qupath.names import place_searched


def require_classes(wanted: Iterable[str], present: Collection[str | None], where: str) -> None:
    """Refuse a class that no annotation has.

    Parameters
    ----------
    present : collection of str or None
        Classes of the annotations; None for those without a class.
    where : str
        Where the annotations are, for the message.

    Raises
    ------
    UsageError
        If one of `wanted` is not in `present`; the error lists these.
    """
    for name in wanted:
        if name not in present:
            raise no_annotation_of([name], present, where)


def no_annotation_of(
    wanted: Sequence[str],
    present: Collection[str | None],
    where: str,
    *,
    kind: str = "",
    hint: str = "",
) -> UsageError:
    """Return the error that no annotation has one of the `wanted` classes.

    Parameters
    ----------
    kind : str
        What else the annotations must be, for example ``" with an area"``.
    hint : str
        Follows the list of the classes that are present.
    """
    known = ", ".join(sorted(filter(None, present)))
    classes = " or ".join(map(repr, wanted))
    there = f"classes there: {known}" if known else "no annotation has a class"
    return UsageError(f"no annotation of class {classes}{kind} in {where}", there + hint)


def check_classes(project: Project, entries: Sequence[ImageEntry], classes: Sequence[str]) -> None:
    """Check that each class is the class of some annotation of the images.

    If an image cannot be read, nothing is checked, because it may have any class.

    Raises
    ------
    UsageError
        If a class has no annotation; the error lists the classes that have.
    """
    if not classes:
        return
    present: set[str | None] = set()
    unreadable: list[QpnucleiError] = []
    for entry in entries:
        with standing_alone(f"image {entry.name}", unreadable.append):
            present.update(a.class_name for a in entry.read().annotations)
    if not unreadable:
        require_classes(classes, present, place_searched(project, entries))
