"""Which image of a project a GeoJSON file belongs to, from the file's name."""

from __future__ import annotations

from pathlib import Path

from qpnuclei.errors import UsageError
from qpnuclei.qupath.model import ImageEntry, Project
from qpnuclei.qupath.names import file_stem, nfc


def image_of_file(project: Project, path: Path) -> ImageEntry:
    """Return the image that a file belongs to, from the file's name.

    Accepted are names given by `export_image` or a run, and the image's name with or without its
    suffix (for ``x.ome.tif`` also ``x``, as in QuPath's own exports). Composed and decomposed
    letters are equal.

    Raises
    ------
    UsageError
        If there is no such image, or more than one.
    """
    name = path.name
    for suffix in (".zip", ".gz", ".geojson", ".json", ".rescued"):
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
    stem = nfc(name)
    for called in (
        file_stem,
        lambda entry: entry.name,
        lambda entry: Path(entry.name).stem,
        lambda entry: _without_suffixes(entry.name),
    ):
        matching = [entry for entry in project.images if nfc(called(entry)) == stem]
        if len(matching) == 1:
            return matching[0]
        if matching:
            ids = ", ".join(f"{e.name} (ID {e.id})" for e in matching)
            raise UsageError(
                f"{path} may belong to several images: {ids}",
                f"rename it, for example to {file_stem(matching[0])}.geojson",
            )
    known = ", ".join(entry.name for entry in project.images) or "none"
    raise UsageError(
        f"{path}: no image of {project.path} is called {stem!r}",
        f"say which with --image; images there: {known}",
    )


def _without_suffixes(name: str) -> str:
    """Return an image's name without ``.ome.tif`` and the like."""
    stem = Path(name).stem
    return stem[:-4] if stem.lower().endswith(".ome") else stem
