"""The inputs of a run: projects, or slides with a folder for their results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qpnuclei.errors import NotFoundError, UsageError
from qpnuclei.qupath.project_file import is_project, one_of_each_project
from qpnuclei.system.patterns import files_matching, has_wildcards


@dataclass(frozen=True)
class Inputs:
    """Either projects or slides.

    Parameters
    ----------
    projects : tuple of Path
        Files or folders.
    slides : tuple of Path
        Files, folders or patterns, as `qpnuclei.slides.files.find_slides` takes them.
    results : Path or None
        Folder for the results of slides.
    """

    projects: tuple[Path, ...]
    slides: tuple[Path, ...]
    results: Path | None

    @classmethod
    def of(cls, paths: Sequence[Path], results: Path | None) -> Inputs:
        """Sort the arguments of a command into projects and slides.

        Raises
        ------
        NotFoundError
            If there is no such file or folder, or a pattern matches nothing.
        UsageError
            If there are both projects and slides, slides without a folder for their results, or
            projects with such a folder.
        """
        found = [place for path in paths for place in _expanded(path)]
        projects: list[Path] = []
        slides: list[Path] = []
        for path in found:
            (projects if is_project(path) else slides).append(path)
        projects = one_of_each_project(projects)
        try:
            _check(projects, slides, results)
        except UsageError:
            _check_present(found)
            raise
        if len(found) == 1:
            _check_present(found)
        return cls(tuple(projects), tuple(slides), results)


def slides_named(paths: Sequence[Path]) -> list[Path]:
    """Return the slides that files, folders and patterns name, as `find_slides` does.

    Raises
    ------
    NotFoundError, UsageError
        As `qpnuclei.slides.files.find_slides` raises them.
    SlideError
        If a folder is itself an image (Zarr): there is no reader for it.
    """
    from qpnuclei.slides.files import find_slides
    from qpnuclei.slides.readers import check_no_zarr

    for path in paths:
        if path.is_dir():
            check_no_zarr(path)
    return find_slides(paths)


def _check(projects: Sequence[Path], slides: Sequence[Path], results: Path | None) -> None:
    if projects and slides:
        raise UsageError(
            f"{projects[0]} is a QuPath project, {slides[0]} is not",
            "run projects and slides one after the other; qpnuclei project add adds slides to a "
            "project",
        )
    if slides and results is None:
        raise UsageError(
            f"{slides[0]} is not a QuPath project (*.qpproj)",
            "name a file that ends in .qpproj, or its folder; for slides, add a folder for the "
            "results: -o results",
        )
    if projects and results is not None:
        raise UsageError(
            "--output is only for slides: results of a project are written into the project",
            "leave --output out; qpnuclei export writes tables",
        )


def _check_present(paths: Sequence[Path]) -> None:
    """Raise if one of the paths does not exist; called before their other errors are raised."""
    for path in paths:
        if path.exists():
            continue
        if not has_wildcards(str(path)):
            raise NotFoundError(
                f"{path}: no such file", "name a project.qpproj or its folder, or slides"
            )
        if not files_matching(path):
            raise NotFoundError(f"no file matches {path}", "check the pattern")


def _expanded(path: Path) -> list[Path]:
    """Expand a pattern that the shell did not expand, if it matches only projects.

    Patterns of slides are expanded later, by `qpnuclei.slides.files.find_slides`.
    """
    if path.exists() or not has_wildcards(str(path)):
        return [path]
    matching = files_matching(path)
    projects = [match for match in matching if is_project(match)]
    return projects if projects and len(projects) == len(matching) else [path]
