"""Tell which DICOM files belong together, without a DICOM library."""

from __future__ import annotations

from pathlib import Path

from qpnuclei.system.files import open_regular

_SERIES, _SYNTAX = 0x0020000E, 0x00020010
_ITEM_END, _SEQUENCE_END = 0xFFFEE00D, 0xFFFEE0DD
_META, _ITEMS = 0x0002, 0xFFFE
#: The transfer syntax in which elements do not state their type.
_IMPLICIT = b"1.2.840.10008.1.2"
#: Types whose length has four bytes, after two that are unused.
_LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_UNDEFINED = 0xFFFFFFFF
_LONGEST_UID = 64
#: Sequences within sequences: more are not read.
_DEEPEST = 100


def series_of(path: Path) -> str | None:
    """Return the SeriesInstanceUID of a file; None if it is not DICOM or cannot be read."""
    try:
        with open_regular(path) as stream:
            if stream.read(132)[128:] != b"DICM":
                return None
            states_type = [True]  # of the file, and of each sequence and item that is open
            while 0 < len(states_type) < _DEEPEST and len(head := stream.read(8)) == 8:
                group, element = (int.from_bytes(head[at : at + 2], "little") for at in (0, 2))
                tag, kind, length = group << 16 | element, head[4:6], head[4:]
                if group != _ITEMS and (states_type[-1] or group == _META):
                    length = stream.read(4) if kind in _LONG else head[6:]
                size = int.from_bytes(length, "little")
                if tag in (_ITEM_END, _SEQUENCE_END):
                    states_type.pop()
                elif size == _UNDEFINED:
                    states_type.append(states_type[-1] and kind != b"UN")
                elif len(states_type) > 1 or tag not in (_SYNTAX, _SERIES):
                    if len(states_type) == 1 and tag > _SERIES:
                        return None  # elements are in the order of their tags
                    stream.seek(size, 1)
                else:
                    value = stream.read(min(size, _LONGEST_UID)).rstrip(b" \0")
                    if tag == _SERIES:
                        return value.decode("ascii", "replace")
                    states_type[0] = value != _IMPLICIT
    except OSError:
        return None
    return None
