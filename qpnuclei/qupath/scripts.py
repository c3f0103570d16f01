"""The scripts for QuPath: find them, and install them in QuPath's user folder.

QuPath (0.4 to 0.7) shows every script below ``scripts`` of its user folder in the menu
*Automate > User scripts*. The scripts of qpnuclei get their own folder there, with a list of the
installed files and their hashes. A file that is not on the list, or has another hash, belongs to
the user.
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

#: Folder of the scripts in QuPath's user folder; it is also the name of the menu.
FOLDER = "qpnuclei"

#: The list, in the format of ``sha256sum``. QuPath does not show such files in its menu.
LISTING = "installed.sha256"

#: Settings of the scripts on this computer: a file of Java properties.
SETTINGS = "settings.conf"

_LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")


def scripts_folder() -> Path:
    """Return the folder of the scripts: in the package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "scripts_for_qupath"
    return inside if inside.is_dir() else package.parents[1] / "qupath_scripts"


def script_files() -> dict[str, bytes]:
    """Return the content of all scripts by name; the name of a script in a folder has a ``/``.

    Raises
    ------
    NotFoundError
        If the installation has no scripts.
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
    """Return the existing user folders of QuPath 0.4 and later, one per version.

    Parameters
    ----------
    home : Path, optional
        Home folder; by default that of the user.
    """
    found = {}
    for path in ((home or Path.home()) / "QuPath").glob("v*"):
        match = re.fullmatch(r"v(\d+)\.(\d+)", path.name)
        if match and path.is_dir():
            found[int(match[1]), int(match[2])] = path
    return [path for version, path in sorted(found.items()) if version >= (0, 4)]


def program_here() -> Path | None:
    """Return the program ``qpnuclei`` of the running Python; None if it has none."""
    name = "qpnuclei.exe" if sys.platform == "win32" else "qpnuclei"
    program = Path(sys.executable).parent / name
    return program if program.is_file() else None


def first_settings(program: Path | None) -> bytes:
    """Return the initial settings with the path of the program, as a Java properties file."""
    path = str(program or "").replace("\\", "\\\\")
    text = f"#Settings of the scripts of qpnuclei for QuPath\nprogram={path}\noptions=\n"
    return text.encode()


@dataclass(frozen=True)
class Change:
    """The changes in one folder of scripts, made or planned.

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
    """Put the scripts into a user folder of QuPath, and replace those of an earlier version.

    Existing settings are kept.

    Parameters
    ----------
    force : bool
        Whether to replace scripts that are not ours, or were changed.
    write : bool
        Whether to make the changes, or only to return them.

    Raises
    ------
    NotFoundError
        If there is no such folder.
    ConflictError
        If a file in it is not ours, or was changed; nothing was done.
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
    outdated = _existing(folder, [name for name in listed if name not in scripts])
    if not force:
        _check_ours(folder, [*changed, *outdated], listed)
    if not (folder / SETTINGS).exists():
        changed[SETTINGS] = first_settings(program_here())
    if write:
        for name, content in changed.items():
            make_folder_below(user_folder, (folder / name).parent)
            write_atomically(folder / name, content)
        _remove(folder, outdated)
        # Written last: if this is interrupted, files with the right content still count as ours.
        lines = [f"{sha256(content).hexdigest()}  {name}\n" for name, content in scripts.items()]
        write_atomically(folder / LISTING, "".join(lines).encode())
    return Change(folder, tuple(sorted(changed)), tuple(outdated))


def uninstall(user_folder: Path, *, force: bool = False, write: bool = True) -> Change:
    """Remove the scripts and their settings from a user folder of QuPath.

    Parameters
    ----------
    force : bool
        Whether to remove also scripts that were changed.
    write : bool
        Whether to make the changes, or only to return them.

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
    scripts = _existing(folder, list(listed))
    if not force:
        _check_ours(folder, scripts, listed)
    removed = [*scripts, *(_existing(folder, [SETTINGS, LISTING]) if listed else ())]
    if write:
        _remove(folder, removed)
    return Change(folder, (), tuple(removed))


def _folder_in(user_folder: Path) -> Path:
    if not user_folder.is_dir():
        raise NotFoundError(
            f"{user_folder} is not a folder",
            "name QuPath's user folder: see Edit > Preferences > QuPath user directory",
        )
    return user_folder / "scripts" / FOLDER


def _listed(folder: Path) -> dict[str, str]:
    """Return the hashes of the listed files, by name, without names that leave the folder."""
    try:
        text = read_regular(folder / LISTING).decode(errors="replace")
    except OSError:
        return {}
    found = [_LINE.fullmatch(line) for line in text.splitlines()]
    return {m[2]: m[1] for m in found if m and ".." not in m[2].split("/") and m[2][0] != "/"}


def _existing(folder: Path, names: Sequence[str]) -> list[str]:
    return [name for name in names if (folder / name).exists()]


def _hash_of(path: Path) -> str | None:
    """Return the hash of a file; None if there is no such file."""
    try:
        return sha256(read_regular(path)).hexdigest()
    except OSError:
        return None


def _check_ours(folder: Path, names: Sequence[str], listed: Mapping[str, str]) -> None:
    foreign = [
        name for name in _existing(folder, names) if _hash_of(folder / name) != listed.get(name)
    ]
    if foreign:
        raise ConflictError(
            "not a script of qpnuclei, or changed: "
            f"{', '.join(str(folder / name) for name in foreign)}",
            "copy it elsewhere if you need it, and give --force",
        )


def _remove(folder: Path, names: Sequence[str]) -> None:
    """Remove files, and then empty folders."""
    for name in names:
        path = folder / name
        try:
            path.unlink()
        except OSError as error:
            raise SaveError(
                f"{path} cannot be removed: {error.strerror}",
                "close the program that uses it, or make its folder writable",
            ) from error
        for parent in path.relative_to(folder).parents:
            with suppress(OSError):  # it is not empty
                (folder / parent).rmdir()
