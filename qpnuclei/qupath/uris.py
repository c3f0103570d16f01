"""URIs of image files in QuPath projects, and the search for images of moved projects.

QuPath stores absolute URIs only, for the ``.qpproj`` and for every image. If a project was moved
together with its images, the relative path between them is still valid.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from urllib.parse import quote, unquote_to_bytes

from qpnuclei.errors import SlideError
from qpnuclei.system.unicode_forms import nfc, unicode_forms

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(?=:)")
_DRIVE = re.compile(r"/?[A-Za-z]:(?=/|$)")


def parse_file_uri(uri: str) -> PurePosixPath | PureWindowsPath:
    """Return the path of a ``file:`` URI, in the form of the system that wrote it.

    Parameters
    ----------
    uri : str
        ``file:/path`` or ``file:///path``; with a Windows drive ``file:/C:/path``; a Windows
        share ``file:////server/share/path`` or ``file://server/share/path``. Percent escapes are
        UTF-8; ``+`` stands for itself.

    Raises
    ------
    qpnuclei.errors.SlideError
        If it is not a ``file:`` URI (``https:``, ``omero:``), or broken.

    Examples
    --------
    >>> parse_file_uri("file:/C:/slides/a%20b.svs")
    PureWindowsPath('C:/slides/a b.svs')
    """
    scheme = _SCHEME.match(uri)
    if scheme is None or scheme.group().lower() != "file":
        raise SlideError(
            f"{uri!r} is not a file: only images in files can be read",
            "export the image to a file and use that",
        )
    rest = re.split("[?#]", uri[scheme.end() + 1 :], maxsplit=1)[0]
    try:
        text = unquote_to_bytes(rest).decode("utf-8")
    except UnicodeError:
        raise SlideError(f"{uri!r}: its percent escapes are not UTF-8") from None
    if "\0" in text or not text.startswith("/"):
        raise SlideError(f"{uri!r} names no file")
    host = None
    if text.startswith("//"):
        host, slash, text = text[2:].partition("/")
        text = slash + text
        if host == "" and text.startswith("//"):  # file:////server/share
            return PureWindowsPath(text)
    if host and host != "localhost":
        return PureWindowsPath(f"//{host}{text}")
    if _DRIVE.match(text):
        return PureWindowsPath(text.lstrip("/"))
    return PurePosixPath("/" + text.lstrip("/"))


def file_uri(path: Path) -> str:
    """Return the URI of a file as QuPath writes it, ``file:/path`` with UTF-8 escapes."""
    text = path.absolute().as_posix()
    if not text.startswith("/"):
        text = "/" + text
    # java.io.File.toURI keeps the characters that RFC 2396 allows in a path, and non-ASCII ones.
    return "file:" + "".join(
        c if ord(c) > 127 else quote(c, safe="/:@&=+$,-_.!~*'();") for c in text
    )


def candidates(
    uri: str, project_uri: str | None, project_dir: Path, image_root: Path | None = None
) -> Iterator[Path]:
    """Yield the paths where an image may be, in search order.

    Parameters
    ----------
    uri : str
        The image's URI in the project.
    project_uri : str or None
        The project's own URI when it was last saved.
    project_dir : Path
        The project's folder now.
    image_root : Path, optional
        A folder of images, given by the user.

    Yields
    ------
    Path
        The stored path, then the same path relative to the project, then paths below `image_root`.
        Each of these has one folder less than the one before; the last is only the file name. Each
        path is given as it is stored, with composed letters and with decomposed ones.

    Raises
    ------
    qpnuclei.errors.SlideError
        If `uri` is not a ``file:`` URI, or broken.
    """
    image = parse_file_uri(uri)
    if isinstance(image, PureWindowsPath if os.name == "nt" else PurePosixPath):
        for parts in _in_all_forms(image.parts):
            yield Path(*parts)
    if project_uri is not None:
        try:
            old_dir = parse_file_uri(project_uri).parent
        except SlideError:
            old_dir = None
        relative = None if old_dir is None else _relative(image, old_dir)
        if relative is not None:
            for parts in _in_all_forms(relative):
                yield Path(os.path.normpath(project_dir.joinpath(*parts)))
    if image_root is not None:
        names = [part for part in image.parts[1:] if part not in ("..", ".")]
        for start in range(len(names)):
            for parts in _in_all_forms(names[start:]):
                yield image_root.joinpath(*parts)


def find_image(
    uri: str, project_uri: str | None, project_dir: Path, image_root: Path | None = None
) -> Path | None:
    """Return the first candidate that exists; None if none does or `uri` is not a file.

    If none does, names of folders and files may each be composed or decomposed.
    """
    try:
        paths = list(candidates(uri, project_uri, project_dir, image_root))
    except SlideError:
        return None
    for path in paths:
        try:
            if path.exists():
                return path
        except OSError:  # a name that this system does not allow, or a missing share
            continue
    # Folders are listed only now, because that may take long.
    for path in {nfc(str(path)): path for path in paths if not str(path).isascii()}.values():
        found = next(_in_mixed_forms(Path(path.anchor), path.parts[bool(path.anchor) :]), None)
        if found is not None:
            return found
    return None


def _in_mixed_forms(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    """Yield the existing paths in a folder whose parts are the same names in any Unicode form."""
    if not parts:
        yield folder
        return
    name, *rest = parts
    try:
        there = [name] if (folder / name).exists() else []
        if not name.isascii():
            others = sorted(path.name for path in folder.iterdir())
            there += [other for other in others if nfc(other) == nfc(name)]
    except OSError:
        return
    for other in dict.fromkeys(there):
        yield from _in_mixed_forms(folder / other, rest)


def _in_all_forms(parts: Sequence[str]) -> Iterator[list[str]]:
    for text in unicode_forms("\0".join(parts)):
        yield text.split("\0")


def _relative(path: PurePath, start: PurePath) -> tuple[str, ...] | None:
    """Return `path` relative to folder `start`; None across drives or systems."""
    if type(path) is not type(start) or path.anchor.lower() != start.anchor.lower():
        return None
    common = 0
    for a, b in zip(path.parts, start.parts, strict=False):
        if type(path)(nfc(a)) != type(path)(nfc(b)):  # Windows compares without case
            break
        common += 1
    return ("..",) * (len(start.parts) - common) + path.parts[common:]
