"""The scripts for QuPath: where they are, and how they come into QuPath's folder of scripts.

QuPath (0.4 to 0.7) shows every script below ``scripts`` of its user folder in the menu
*Automate > User scripts*. Ours get a folder of their own there, with a list of what was put into
it: a file that is not on the list, or has another content than the list says, is somebody else's.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from qpnuclei.errors import ConflictError, NotFoundError, SaveError
from qpnuclei.system.files import make_folder_below, read_regular, write_atomically

#: Name of our folder among QuPath's scripts, and so of the menu.
FOLDER = "qpnuclei"

#: The list, as ``sha256sum`` writes it. QuPath shows no files of this kind in its menu.
LISTING = "installed.sha256"

#: What the scripts know of this computer: a file of Java properties.
SETTINGS = "settings.conf"

_LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")


def scripts_folder() -> Path:
    """Return the folder of the scripts: in the package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "scripts_for_qupath"
    return inside if inside.is_dir() else package.parents[1] / "qupath_scripts"


def script_files() -> dict[str, bytes]:
    """Return the content of all scripts by name; those in folders have a ``/`` in it.

    Raises
    ------
    NotFoundError
        If the installation has none.
    """
    folder = scripts_folder()
    found = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*.groovy"))
    }
    if not found:
        raise NotFoundError(
            f"this installation of qpnuclei has no scripts for QuPath in {folder}",
            "install qpnuclei again",
        )
    return found


def user_folders(home: Path | None = None) -> list[Path]:
    """Return the user folders of QuPath 0.4 and later that are there, each of a version.

    Parameters
    ----------
    home : Path, optional
        That of the user by default.
    """
    found = {}
    for path in ((home or Path.home()) / "QuPath").glob("v*"):
        match = re.fullmatch(r"v(\d+)\.(\d+)", path.name)
        if match and path.is_dir():
            found[int(match[1]), int(match[2])] = path
    return [path for version, path in sorted(found.items()) if version >= (0, 4)]


def program_here() -> Path | None:
    """Return the program ``qpnuclei`` of the Python that runs; none if it has none."""
    name = "qpnuclei.exe" if sys.platform == "win32" else "qpnuclei"
    program = Path(sys.executable).parent / name
    return program if program.is_file() else None


def first_settings(program: Path | None) -> bytes:
    """Return the settings with the path of the program, as Java reads properties."""
    path = str(program or "").replace("\\", "\\\\")
    text = f"#Settings of the scripts of qpnuclei for QuPath\nprogram={path}\noptions=\n"
    return text.encode()


@dataclass(frozen=True)
class Change:
    """What is done, or would be, in one folder of scripts.

    Parameters
    ----------
    folder : Path
        ``scripts/qpnuclei`` of a user folder.
    written, removed : tuple of str
        Names of files, with ``/``.
    """

    folder: Path
    written: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


def install(user_folder: Path, *, force: bool = False, write: bool = True) -> Change:
    """Put the scripts into a user folder of QuPath; those of an earlier version are replaced.

    Settings that are there stay.

    Parameters
    ----------
    force : bool
        Whether to replace scripts that are not ours, or were changed.
    write : bool
        Whether to do it, or only to say what would be done.

    Raises
    ------
    NotFoundError
        If there is no such folder.
    ConflictError
        If a file there is not ours, or was changed; nothing was done.
    SaveError
        If a file cannot be written.
    """
    folder = _folder_in(user_folder)
    scripts = script_files()
    listed = _listed(folder)
    changed = {
        name: content
        for name, content in scripts.items()
        if _hash_of(folder / name) != sha256(content).hexdigest()
    }
    outdated = _there(folder, [name for name in listed if name not in scripts])
    if not force:
        _check_ours(folder, [*changed, *outdated], listed)
    if not (folder / SETTINGS).exists():
        changed[SETTINGS] = first_settings(program_here())
    if write:
        for name, content in changed.items():
            make_folder_below(user_folder, (folder / name).parent)
            write_atomically(folder / name, content)
        _remove(folder, outdated)
        # Last: what is there already, and has the content that it gets, is ours in any case.
        lines = [f"{sha256(content).hexdigest()}  {name}\n" for name, content in scripts.items()]
        write_atomically(folder / LISTING, "".join(lines).encode())
    return Change(folder, tuple(sorted(changed)), tuple(outdated))


def uninstall(user_folder: Path, *, force: bool = False, write: bool = True) -> Change:
    """Remove from a user folder of QuPath what `install` put there, with the settings.

    Parameters
    ----------
    force : bool
        Whether to remove scripts that were changed, too.
    write : bool
        Whether to do it, or only to say what would be done.

    Raises
    ------
    NotFoundError
        If there is no such folder.
    ConflictError
        If a script was changed; nothing was done.
    SaveError
        If a file cannot be removed.
    """
    folder = _folder_in(user_folder)
    listed = _listed(folder)
    scripts = _there(folder, list(listed))
    if not force:
        _check_ours(folder, scripts, listed)
    removed = [*scripts, *(_there(folder, [SETTINGS, LISTING]) if listed else ())]
    if write:
        _remove(folder, removed)
    return Change(folder, (), tuple(removed))


def _folder_in(user_folder: Path) -> Path:
    if not user_folder.is_dir():
        raise NotFoundError(
            f"{user_folder} is no folder",
            "name QuPath's user folder: see Edit > Preferences > QuPath user directory",
        )
    return user_folder / "scripts" / FOLDER


def _listed(folder: Path) -> dict[str, str]:
    """Return the hashes of what is on the list, by name; names that lead elsewhere are left out."""
    try:
        text = read_regular(folder / LISTING).decode(errors="replace")
    except OSError:
        return {}
    found = [_LINE.fullmatch(line) for line in text.splitlines()]
    return {m[2]: m[1] for m in found if m and ".." not in m[2].split("/") and m[2][0] != "/"}


def _there(folder: Path, names: Sequence[str]) -> list[str]:
    return [name for name in names if (folder / name).exists()]


def _hash_of(path: Path) -> str | None:
    """Return the hash of a file; none if there is no such file."""
    try:
        return sha256(read_regular(path)).hexdigest()
    except OSError:
        return None


def _check_ours(folder: Path, names: Sequence[str], listed: Mapping[str, str]) -> None:
    foreign = [
        name for name in _there(folder, names) if _hash_of(folder / name) != listed.get(name)
    ]
    if foreign:
        raise ConflictError(
            f"not as qpnuclei put it there: {', '.join(str(folder / name) for name in foreign)}",
            "keep what you need of it elsewhere, and give --force",
        )


def _remove(folder: Path, names: Sequence[str]) -> None:
    """Remove files, and the folders that are empty then."""
    for name in names:
        path = folder / name
        try:
            path.unlink()
        except OSError as error:
            raise SaveError(
                f"{path} cannot be removed: {error.strerror}", "close what uses it"
            ) from error
        for parent in path.relative_to(folder).parents:
            with suppress(OSError):  # it is not empty
                (folder / parent).rmdir()
