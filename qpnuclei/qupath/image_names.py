"""Select images of a project by name, pattern or entry ID."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TypeVar

from qpnuclei.errors import UsageError
from qpnuclei.qupath.model import ImageEntry, Project
from qpnuclei.system.commands import as_typed
from qpnuclei.system.patterns import matches
from qpnuclei.system.unicode_forms import nfc

Entry = TypeVar("Entry", bound=ImageEntry)


def match_images(project: Project, patterns: Sequence[str]) -> list[ImageEntry]:
    """Return the images that match names, patterns (``*``, ``?``) or entry IDs.

    Without patterns, return all images. What is the name of an image means only this image; it is
    neither a pattern nor an entry ID.

    Raises
    ------
    UsageError
        If there is no such image.
    """
    entries = images_called(project.images, patterns)
    if not entries:
        existing = ", ".join(f"{entry.name} (ID {entry.id})" for entry in project.images)
        raise UsageError(
            f"no image of {project.path} matches {' or '.join(map(repr, patterns))}"
            if existing
            else f"{project.path} has no images",
            f"images of the project: {existing}" if existing else "add slides in QuPath",
        )
    return entries


def images_called(images: Sequence[Entry], patterns: Sequence[str]) -> list[Entry]:
    """Return the images that `match_images` selects; the list may be empty."""
    known = [entry.name for entry in images]
    names = names_called(known, patterns)
    ids = {wanted for wanted in patterns if not _equal_to(wanted, known)}
    return [entry for entry in images if entry.name in names or entry.id in ids]


def names_called(names: Collection[str], patterns: Sequence[str]) -> set[str]:
    """Return the names that patterns select; without patterns, all.

    A pattern that equals a name selects only this name.
    """
    if not patterns:
        return set(names)
    selected: set[str] = set()
    for pattern in patterns:
        matching = {name for name in names if matches(nfc(name), nfc(pattern))}
        selected |= _equal_to(pattern, names) or matching
    return selected


def _equal_to(wanted: str, names: Collection[str]) -> set[str]:
    return {name for name in names if nfc(name) == nfc(wanted)}


def images_named(images: Sequence[Entry], name: str) -> list[Entry]:
    """Return the images with a name or, if there are none, the one with this entry ID."""
    names = _equal_to(name, [entry.name for entry in images])
    named = [entry for entry in images if entry.name in names]
    return named or [entry for entry in images if entry.id == name]


def one_image(images: Sequence[Entry], name: str) -> Entry:
    """Return the image with a name or entry ID.

    Raises
    ------
    UsageError
        If there is no such image, or several have that name.
    """
    found = images_named(images, name)
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(
            f"{len(found)} images are called {name!r}",
            f"name one by its ID: {', '.join(entry.id for entry in found)}",
        )
    names = ", ".join(entry.name for entry in images) or "none"
    raise UsageError(f"no image is called {name!r}", f"images of the project: {names}")


def unique_name(images: Sequence[Entry], entry: Entry) -> str:
    """Return what selects an image alone: its name or, if that selects others too, its entry ID."""
    names = (entry.name, entry.id)
    return next((name for name in names if images_called(images, [name]) == [entry]), entry.name)


def image_option(entry: ImageEntry) -> str:
    """Return the option that selects an image alone, as part of a command for a shell."""
    return as_typed(["--image", entry.unique_name])
