"""Where results must not be written: over the slides and the files of a project."""

from __future__ import annotations

from pathlib import Path

from qpnuclei.errors import UsageError
from qpnuclei.qupath.model import Project
from qpnuclei.system.files import is_same_file, resolved

#: Folders of a project that QuPath writes.
_OF_QUPATH = ("data", "classifiers")


def check_target(project: Project, target: Path) -> None:
    """Refuse to write a result over a slide or a file of a project.

    Raises
    ------
    UsageError
        If the target is a slide of the project, its file, or in a folder that QuPath writes.
    """
    place, folder = resolved(target), resolved(project.path.parent)
    is_own = any(place.is_relative_to(folder / name) for name in _OF_QUPATH)
    names = project.path.name, f"{project.path.name}.backup"
    if is_own or (place.parent == folder and place.name in names):
        raise UsageError(
            f"{target} is a file of the project {project.path}, and would be lost",
            "choose another name",
        )
    if not target.exists():
        return
    for entry in project.images:
        if entry.path is not None and is_same_file(entry.path, target):
            raise UsageError(
                f"{target} is the slide of image {entry.name}, and would be lost",
                "choose another name",
            )
