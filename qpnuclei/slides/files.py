"""Find slide files, and keep one file per slide."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from qpnuclei.errors import NotFoundError, QpnucleiError, UsageError, number_of
from qpnuclei.slides.dicom import series_of
from qpnuclei.slides.pixels import is_picture
from qpnuclei.slides.readers import UNSUPPORTED, check_regular_file, is_zarr
from qpnuclei.system.files import one_spelling_each, resolved
from qpnuclei.system.patterns import files_matching, has_wildcards

_log = logging.getLogger(__name__)

_TIFF_SUFFIXES = (
    ".btf",
    ".gtif",
    ".ndpi",
    ".qptiff",
    ".scn",
    ".svs",
    ".tf2",
    ".tf8",
    ".tif",
    ".tiff",
)
_PLAIN_SUFFIXES = (".bmp", ".jfif", ".jpe", ".jpeg", ".jpg", ".png")
_OTHER_SUFFIXES = (".bif", ".czi", ".dcm", ".mrxs", ".svslide", ".vms", ".vmu")

#: Suffixes of slides: other files of a folder are ignored.
SLIDE_SUFFIXES = frozenset((*_TIFF_SUFFIXES, *_PLAIN_SUFFIXES, *_OTHER_SUFFIXES))

#: So many files that cannot be read are named.
_MOST_NAMED = 5

#: Indexes of Hamamatsu slides: lines ``Key=file`` that name the JPEGs beside them.
_INDEXES = (".vms", ".vmu")


def find_slides(paths: Sequence[Path]) -> list[Path]:
    """Return the slides that files, folders and patterns (``*``, ``?``, ``**``) name.

    Shells without globbing, such as those of Windows, do not expand patterns.

    Raises
    ------
    qpnuclei.errors.NotFoundError
        If there is no such file or folder, or a pattern matches no slide.
    qpnuclei.errors.UsageError
        If a folder contains no slide, or only pictures that qpnuclei made are named.
    """
    found: list[Path] = []
    without_pictures: set[Path] = set()
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
            without_pictures.update(inside)
        elif path.exists() or not has_wildcards(str(path)):
            found.append(path)
        else:
            matching = files_matching(path)
            if not matching:
                raise NotFoundError(f"no file matches {path}", "check the pattern")
            named = [match for match in matching if match.is_file() or is_zarr(match)]
            if not named:
                raise NotFoundError(
                    f"{path} matches only folders", f'name their slides: "{path / "*.svs"}"'
                )
            found += named
    slides = [path for path in found if path in without_pictures or not is_picture(path)]
    pictures = set(found) - set(slides)
    if pictures and not slides:
        raise UsageError(f"{found[0]} is a picture that qpnuclei made", "name a slide")
    for picture in sorted(pictures):
        _log.warning("%s: left out, as it is a picture that qpnuclei made, not a slide", picture)
    return one_spelling_each(slides)


def slides_in(folder: Path) -> list[Path]:
    """Return the files of a folder with the suffix of a slide, sorted.

    Hidden files are left out, because copying to and from a Mac leaves a hidden ``._name`` beside
    every file; and so are pictures that qpnuclei made, such as previews of the slides. Slides in
    formats that no reader knows are left out with a warning.
    """
    files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    unread = [path.name for path in files if path.suffix.lower() in UNSUPPORTED or is_zarr(path)]
    if unread:
        _log.warning(
            "%s: left out %s in formats that cannot be read: %s%s",
            folder,
            number_of(len(unread), "file"),
            ", ".join(unread[:_MOST_NAMED]),
            ", ..." if len(unread) > _MOST_NAMED else "",
        )
    return [
        path for path in files if path.suffix.lower() in SLIDE_SUFFIXES and not is_picture(path)
    ]


def one_per_slide(paths: Sequence[Path], known: Sequence[Path] = ()) -> list[Path]:
    """Return one file per slide, without further files and spellings of the same slide.

    Parameters
    ----------
    paths, known
        As for `slide_of_each`.

    Returns
    -------
    list of Path
        In the order in which `paths` first name the slides.
    """
    return list(dict.fromkeys(slide_of_each(paths, known)))


def slide_of_each(paths: Sequence[Path], known: Sequence[Path] = ()) -> list[Path]:
    """Return for each file the one that stands for its slide.

    This is the first of the DICOM files of a series (levels, label, overview), the index of a
    Hamamatsu slide, and the first spelling of a file. Files that cannot be read stand for
    themselves: opening them later raises the error.

    Parameters
    ----------
    paths : sequence of Path
    known : sequence of Path, optional
        Files that stand for their slides already, also if several are of the same DICOM series. If
        `paths` has another file of such a slide, the first known one is returned.

    Returns
    -------
    list of Path
        As many as `paths`.
    """
    indexes = {resolved(part): path for path in (*known, *paths) for part in named_in_index(path)}
    standing = {resolved(path): path for path in reversed(known)}
    first: dict[str, Path] | None = None
    kept: list[Path] = []
    for path in paths:
        whole, place = path, resolved(path)
        if place not in standing and place in indexes:
            whole = indexes[place]
            place = resolved(whole)
        if place not in standing:
            series = series_of(whole)
            if series is not None:
                if first is None:  # only now, because this opens the known files
                    first = _first_of_each_series(known)
                whole = first.setdefault(series, whole)
            standing[place] = whole
        kept.append(standing[place])
        if resolved(kept[-1]) != resolved(path):
            _log.info("%s: skipped, as it is part of the same slide as %s", path, kept[-1])
    return kept


def _first_of_each_series(paths: Sequence[Path]) -> dict[str, Path]:
    """Return the first file of each DICOM series."""
    return {series: path for path in reversed(paths) if (series := series_of(path)) is not None}


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
        if name and "\0" not in name:  # of a damaged index
            yield path.absolute().parent / name
