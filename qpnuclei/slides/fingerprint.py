"""Identify slides by their content, whatever their path, without reading the whole file."""

from __future__ import annotations

from hashlib import blake2b
from pathlib import Path

from qpnuclei.errors import NotFoundError, SlideError
from qpnuclei.slides.dicom import needed_series_of, series_of
from qpnuclei.slides.files import named_in_index
from qpnuclei.system.files import open_regular, unreadable
from qpnuclei.system.unicode_forms import nfc

#: Bytes to read at the start and the end of a file, where headers and directories are.
_EDGE = 2**20
#: Number of samples between them, and bytes of each.
_SAMPLES, _SAMPLE = 64, 2**14


def slide_fingerprint(path: Path) -> str:
    """Return a digest of a slide: of its size, both ends and 64 samples between them.

    For a slide in several files (MIRAX, DICOM, VMS), the digest includes names and sizes of the
    other files. Files of other slides in the same folder make no difference.

    Raises
    ------
    NotFoundError
        If there is no such file.
    SlideError
        If it cannot be read.
    """
    digest = blake2b(digest_size=16)
    try:
        with open_regular(path) as stream:
            size = stream.seek(0, 2)
            digest.update(str(size).encode())
            step = max((size - 2 * _EDGE) // _SAMPLES, _SAMPLE)
            middle = range(_EDGE, max(size - _EDGE, _EDGE), step)
            for start, length in [(0, _EDGE), *((at, _SAMPLE) for at in middle)]:
                stream.seek(start)
                digest.update(stream.read(length))
            stream.seek(max(size - _EDGE, 0))
            digest.update(stream.read(_EDGE))
        for part in _parts(path):
            entry = f"{nfc(part.name)}:{part.stat().st_size};"
            digest.update(entry.encode(errors="surrogateescape"))
    except FileNotFoundError as error:
        raise NotFoundError(f"{path} does not exist", "is its drive still connected?") from error
    except OSError as error:
        raise unreadable(path, error, SlideError) from error
    return digest.hexdigest()


def _parts(path: Path) -> list[Path]:
    """Return the files of a slide in several files, in the order of their composed names."""
    if path.suffix.lower() == ".mrxs":
        parts = set(path.with_suffix("").glob("*"))
    elif series := needed_series_of(path):
        parts = {other for other in path.parent.iterdir() if series_of(other) == series}
    else:
        parts = set(named_in_index(path))
    return sorted((part for part in parts if part.is_file()), key=lambda part: Path(nfc(str(part))))
