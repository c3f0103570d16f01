"""Options that choose annotations, for `run` and `preview`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from qpnuclei.choices import DEFAULT_EXCLUDED
from qpnuclei.cli.options import class_option

if TYPE_CHECKING:
    from qpnuclei.pipeline.selection import Selection

Roi = Annotated[
    list[str] | None,
    class_option("--roi", help="Class of the annotations to analyse; may repeat."),
]
RoiDerived = Annotated[
    bool,
    typer.Option(
        "--roi-derived",
        help="Include derived classes: Tumor also selects 'Tumor: Positive' etc.",
    ),
]
RoiName = Annotated[
    list[str] | None,
    typer.Option("--roi-name", help="Name of an annotation to analyse; may repeat."),
]
RoiId = Annotated[
    list[UUID] | None,
    typer.Option("--roi-id", help="UUID of an annotation to analyse; may repeat."),
]
RoiAll = Annotated[bool, typer.Option("--roi-all", help="Analyse every annotation with an area.")]
Tissue = Annotated[
    bool,
    typer.Option("--tissue", help="Analyse the tissue, found automatically."),
]
Exclude = Annotated[
    list[str] | None,
    class_option(
        "--exclude",
        help="Class to leave out of areas and counts; may repeat; '' leaves out none.",
        show_default="'Ignore*'",
    ),
]


def selection_of(given: Mapping[str, Any]) -> Selection:
    """Return the selection that the options make; an empty ``--exclude`` excludes no class.

    Parameters
    ----------
    given : mapping
        The arguments of `run` or `preview`.
    """
    from qpnuclei.pipeline.selection import Selection

    exclude = given["exclude"]
    return Selection(
        classes=tuple(given["roi"] or ()),
        derived=given["roi_derived"],
        names=tuple(given["roi_name"] or ()),
        ids=tuple(given["roi_id"] or ()),
        everything=given["roi_all"],
        tissue=given["tissue"],
        excluded=DEFAULT_EXCLUDED if exclude is None else tuple(filter(None, exclude)),
    )


def arguments_of(selection: Selection) -> list[str]:
    """Return the options that make a selection, as a user types them."""
    words = [word for name in selection.classes for word in ("--roi", name)]
    words += [word for name in selection.names for word in ("--roi-name", name)]
    words += [word for identifier in selection.ids for word in ("--roi-id", str(identifier))]
    for wanted, option in (
        (selection.derived, "--roi-derived"),
        (selection.everything, "--roi-all"),
        (selection.tissue, "--tissue"),
    ):
        words += [option] if wanted else []
    if selection.excluded != DEFAULT_EXCLUDED:
        words += [word for name in selection.excluded or ("",) for word in ("--exclude", name)]
    return words
