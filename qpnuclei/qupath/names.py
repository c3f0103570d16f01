"""What new files and classes are called."""

from __future__ import annotations

from qpnuclei.qupath.model import ImageEntry, PathClass, Project

#: Colour of a class that the project does not have yet: packed ARGB, green.
NEW_CLASS_COLOR = -16732080
#: File systems allow names of 255 bytes; suffixes are added to this.
_MAX_BYTES = 120


def file_stem(entry: ImageEntry) -> str:
    """Return a file name for an image: its entry ID and what of its name is safe in any file."""
    safe = "".join(c if c.isalnum() or c in "-_. " else "_" for c in entry.name)
    return f"{entry.id}-{safe}".encode()[:_MAX_BYTES].decode(errors="ignore").rstrip(". ")


def class_of(project: Project, name: str, color: int | None = None) -> PathClass:
    """Return the project's class of this name with its colour; a new one gets `color` or green."""
    known = {path_class.name: path_class for path_class in project.classes}
    found = known.get(name)
    if found is not None and found.color is not None:
        return found
    return PathClass(name, NEW_CLASS_COLOR if color is None else color)
