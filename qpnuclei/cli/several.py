"""A run of several projects: an error in one does not stop the others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qpnuclei.cli.running import checked_arguments, run_project
from qpnuclei.errors import QpnucleiError, TerminatedError, UsageError, standing_alone


def run_each(projects: Sequence[Path], given: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Run projects one after the other.

    Parameters
    ----------
    projects : sequence of Path
    given : dict
        The arguments of `qpnuclei.cli.run.run`.

    Returns
    -------
    (dict, bool)
        The results as JSON types, and whether a project or an image failed.

    Raises
    ------
    UsageError
        If an option is given that is for one project only.
    QpnucleiError
        As `checked_arguments`; with ``--fail-fast``, the first error.
    """
    from qpnuclei.cli.console import print_error, stderr

    for name in ("run_dir", "geojson", "parquet"):
        if given[name] is not None:
            raise UsageError(
                f"--{name.replace('_', '-')} names a folder for one project, and {len(projects)} "
                "projects were given",
                "leave the option out, or run the projects one by one",
            )
    given = checked_arguments(given)
    contents: dict[Path, dict[str, Any]] = {}
    failed: list[str] = []
    # Missing projects are reported first, before hours of work on the others.
    for path in sorted(projects, key=Path.exists):

        def fail(error: QpnucleiError, path: Path = path) -> None:
            if given["fail_fast"] or isinstance(error, TerminatedError):
                raise error
            failed.append(str(path))
            contents[path] = {"project": str(path), "error": error.what, "hint": error.hint}
            print_error(error, error.naming("", str(path)))

        with standing_alone(f"project {path}", fail):
            content, has_failures = run_project(path, given)
            contents[path] = {"project": str(path), **content}
            if has_failures:
                failed.append(str(path))
    if failed:
        stderr.print(
            f"failed, wholly or in part, for the reasons above: {len(failed)} of {len(projects)} "
            f"projects: {', '.join(failed)}",
            style="bold red",
        )
    return {"projects": [contents[path] for path in projects]}, bool(failed)
