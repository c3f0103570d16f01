"""Tell which DICOM files belong together."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from qpnuclei.errors import SlideError
from qpnuclei.slides.readers.reader import needing_packages
from qpnuclei.system.files import open_regular

_SERIES = "SeriesInstanceUID"


def series_of(path: Path) -> str | None:
    """Return the SeriesInstanceUID of a file; None if it is not DICOM or cannot be read.

    Without pydicom, no file can be read here: opening one of them raises this error.
    """
    try:
        return needed_series_of(path)
    except SlideError:
        return None


def needed_series_of(path: Path) -> str | None:
    """Return the same as `series_of`.

    Raises
    ------
    qpnuclei.errors.SlideError
        If it is DICOM, and pydicom is missing.
    """
    try:
        status = path.stat()
    except OSError:
        return None
    return _series_of(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=100_000)
def _series_of(path: Path, _size: int, _modified_ns: int) -> str | None:
    # Every slide of a folder asks for the series of all files in it; each is read once.
    try:
        with open_regular(path) as stream:
            if stream.read(132)[128:] != b"DICM":
                return None
            with needing_packages(path):
                from pydicom import dcmread  # only for DICOM: loading it takes a while

            stream.seek(0)
            header = dcmread(stream, stop_before_pixels=True, specific_tags=[_SERIES])
    except SlideError:
        raise
    except Exception:  # noqa: BLE001 - a damaged file raises almost anything
        return None
    return str(header[_SERIES].value) if _SERIES in header else None
