"""The properties of an image, a map of which only the texts are read and written."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from qpnuclei.errors import FormatError
from qpnuclei.qupath.qpdata import java_fields as jf
from qpnuclei.qupath.qpdata.java_nodes import BlockData, JavaObject, JavaString


def read_properties(hash_map: JavaObject) -> dict[str, str]:
    """Return the properties whose values are texts."""
    items = jf.contents(hash_map)[1:]
    return {
        name.text: value.text
        for name, value in zip(items[::2], items[1::2], strict=False)
        if isinstance(name, JavaString) and isinstance(value, JavaString)
    }


def set_properties(hash_map: JavaObject, values: Mapping[str, str]) -> None:
    """Set properties; the others stay as they are.

    Raises
    ------
    qpnuclei.errors.FormatError
        If the map is not written as Java writes it.
    """
    items = jf.contents(hash_map)  # sizes, then keys and values
    for name, value in values.items():
        for index in range(1, len(items) - 1, 2):
            key = items[index]
            if isinstance(key, JavaString) and key.text == name:
                items[index + 1] = JavaString.of(value)
                break
        else:
            items += [JavaString.of(name), JavaString.of(value)]
    block = items[0]
    if not isinstance(block, BlockData) or len(block.data) != 8:
        raise FormatError("the number of the image's properties is missing")
    # Java allocates by the number of entries and ignores the written capacity.
    size = struct.pack(">i", (len(items) - 1) // 2)
    items[0] = BlockData(block.data[:4] + size, block.is_long)
