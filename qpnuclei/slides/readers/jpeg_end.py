"""Find JPEG images whose end is missing: decoders fill the rest with grey, without an error."""

from __future__ import annotations

import os
from pathlib import Path

from qpnuclei.system.files import open_regular, read_regular

#: How JPEG and JPEG 2000 codestreams begin, and how both end.
_BEGINS, _END = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51"), b"\xff\xd9"
#: More zeros at the end than any padding.
_LEAST_ZEROS = 64


def lacks_end(data: bytes) -> bool:
    """Tell whether zeros are in the place of the end of a JPEG or JPEG 2000 codestream.

    An interrupted copy has them if its space was reserved before.

    Examples
    --------
    >>> whole = bytes.fromhex("ffd8ff") + b"1" * 200 + bytes.fromhex("ffd9")
    >>> lacks_end(whole), lacks_end(whole + bytes(100)), lacks_end(whole[:100] + bytes(100))
    (False, False, True)
    """
    if not data.startswith(_BEGINS) or any(data[-_LEAST_ZEROS:]):
        return False
    return not data.rstrip(b"\0").endswith(_END)


def file_lacks_end(path: Path) -> bool:
    """Tell the same of a file; it is read whole only if it ends in zeros.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    with open_regular(path) as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(size - _LEAST_ZEROS, 0))
        if any(stream.read()):
            return False
    return lacks_end(read_regular(path))
