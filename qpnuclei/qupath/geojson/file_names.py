"""Find the image of a project that a GeoJSON file belongs to, by the file's name."""

from __future__ import annotations

from pathlib import Path

from qpnuclei.errors import UsageError
from qpnuclei.qupath.model import ImageEntry, Project
from qpnuclei.qupath.names import file_stem
from qpnuclei.system.unicode_forms import nfc


def image_of_file(project: Project, path: Path) -> ImageEntry:
    """Return the image that a file belongs to, by the file's name.

    The name may be that of a file from `export_image` or a run, or the image's name with or without
    its suffix (for ``x.ome.tif`` also ``x``, as in QuPath's own exports). Composed and decomposed
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
    matching = [entry for entry in project.images if stem in map(nfc, _names_of_files(entry))]
    if len(matching) == 1:
        return matching[0]
    if matching:
        listed = ", ".join(f"{entry.name} (ID {entry.id})" for entry in matching)
        raise UsageError(
            f"{path} may belong to several images: {listed}",
            "import it alone and name the image with --image",
        )
    known = ", ".join(entry.name for entry in project.images) or "none"
    raise UsageError(
        f"{path}: no image of {project.path} is called {stem!r}",
        f"name the image with --image; images of the project: {known}",
    )


def _names_of_files(entry: ImageEntry) -> tuple[str, ...]:
    """Return the names that a file of this image may have, without the file's own suffixes."""
    name = entry.name
    return file_stem(entry), name, Path(name).stem, _without_suffixes(name)


def _without_suffixes(name: str) -> str:
    """Return an image's name without ``.ome.tif`` and the like."""
    stem = Path(name).stem
    return stem[:-4] if stem.lower().endswith(".ome") else stem
