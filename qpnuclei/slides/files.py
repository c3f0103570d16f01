"""Find slide files, and keep one file per slide."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from qpnuclei.errors import NotFoundError, QpnucleiError, UsageError
from qpnuclei.slides.readers import check_regular_file, open_reader
from qpnuclei.system.patterns import files_matching, has_wildcards

_log = logging.getLogger(__name__)

_TIFF_SUFFIXES = (".svs", ".tif", ".tiff", ".scn", ".ndpi")
_PLAIN_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png")
_OTHER_SUFFIXES = (".bif", ".czi", ".dcm", ".mrxs", ".svslide", ".vms", ".vmu")

#: Suffixes of slides: other files of a folder are ignored.
SLIDE_SUFFIXES = frozenset((*_TIFF_SUFFIXES, *_PLAIN_SUFFIXES, *_OTHER_SUFFIXES))

_DICOM = ".dcm"
#: Indexes of Hamamatsu slides: lines ``Key=file`` that name the JPEGs beside them.
_INDEXES = (".vms", ".vmu")


def find_slides(paths: Sequence[Path]) -> list[Path]:
    """Return the slides that files, folders and patterns (``*``, ``?``, ``**``) name.

    Shells without globbing, such as those of Windows, do not expand patterns.

    Raises
    ------
    qpnuclei.errors.NotFoundError
        If there is no such file or folder, or a pattern matches no file.
    qpnuclei.errors.UsageError
        If a folder contains no slide.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = slides_in(path)
            if not inside:
                raise UsageError(
                    f"folder {path} contains no slide",
                    f"slides end in {' '.join(sorted(SLIDE_SUFFIXES))}; slides in subfolders are "
                    f'named by a pattern: "{path / "**" / "*.svs"}"',
                )
            found += inside
        elif path.exists() or not has_wildcards(str(path)):
            found.append(path)
        else:
            matching = files_matching(path)
            if not matching:
                raise NotFoundError(f"no file matches {path}", "check the pattern")
            found += [match for match in matching if match.is_file()]
    return list(dict.fromkeys(found))


def slides_in(folder: Path) -> list[Path]:
    """Return the files of a folder with the suffix of a slide, sorted, without hidden ones.

    Copying to and from a Mac leaves a hidden ``._name`` beside every file.
    """
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SLIDE_SUFFIXES and not path.name.startswith(".")
    )


def one_per_slide(paths: Sequence[Path]) -> list[Path]:
    """Return one file per slide, without further files of the same slide.

    This is the first of the DICOM files of a series (levels, label, overview), and the index of a
    Hamamatsu slide. Files that cannot be read are kept: opening them later raises the error.

    Parameters
    ----------
    paths : sequence of Path

    Returns
    -------
    list of Path
        In the order given.
    """
    parts = {part for path in paths for part in named_in_index(path)}
    kept: list[Path] = []
    series: dict[str, Path] = {}
    for path in paths:
        slide_id = _series_of_dicom(path)
        first = path if slide_id is None else series.setdefault(slide_id, path)
        if path.absolute() in parts:
            _log.info("%s: skipped, as it is part of a slide that is given, too", path)
        elif first != path:
            _log.info("%s: skipped, as it is part of the same slide as %s", path, first)
        else:
            kept.append(path)
    return kept


def _series_of_dicom(path: Path) -> str | None:
    if path.suffix.lower() != _DICOM:
        return None
    try:
        reader = open_reader(path)
    except QpnucleiError:
        return None
    slide_id = reader.slide_id
    reader.close()
    return slide_id


def named_in_index(path: Path) -> Iterator[Path]:
    """Return the files that the index of a Hamamatsu slide names; none for other files."""
    if path.suffix.lower() not in _INDEXES:
        return
    try:
        check_regular_file(path)
        lines = path.read_text(encoding="latin-1").splitlines()
    except (QpnucleiError, OSError):
        return
    for line in lines:
        name = line.partition("=")[2].strip()
        if name:
            yield path.absolute().parent / name
