"""Files that belong to one slide are one image."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from qpnuclei.errors import QpnucleiError
from qpnuclei.slides.readers import check_regular_file, open_source

_log = logging.getLogger(__name__)

_DICOM = ".dcm"
#: Indexes of Hamamatsu slides: lines ``Key=file`` that name the JPEGs beside them.
_INDEXES = (".vms", ".vmu")


def one_per_slide(paths: Sequence[Path]) -> list[Path]:
    """Return the files without those that are parts of a slide another of them stands for.

    Of the DICOM files of one series (levels, label, overview) the first is kept; of a Hamamatsu
    slide its index. Files that cannot be read are kept: opening them says why.

    Parameters
    ----------
    paths : sequence of Path

    Returns
    -------
    list of Path
        In the order given.
    """
    parts = {part for path in paths for part in _named_in_index(path)}
    kept: list[Path] = []
    series: dict[str, Path] = {}
    for path in paths:
        slide_id = _series_of_dicom(path)
        stands_for = path if slide_id is None else series.setdefault(slide_id, path)
        if path.absolute() in parts:
            _log.info("%s: a part of a slide that is given as well", path)
        elif stands_for != path:
            _log.info("%s: a part of the same slide as %s", path, stands_for)
        else:
            kept.append(path)
    return kept


def _series_of_dicom(path: Path) -> str | None:
    if path.suffix.lower() != _DICOM:
        return None
    try:
        source = open_source(path)
    except QpnucleiError:
        return None
    slide_id = source.slide_id
    source.close()
    return slide_id


def _named_in_index(path: Path) -> Iterator[Path]:
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
