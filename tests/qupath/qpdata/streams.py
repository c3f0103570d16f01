from __future__ import annotations

from collections.abc import Iterable

from qpnuclei.qupath.qpdata import java_nodes, java_writer


def stream_of(items: Iterable[java_nodes.Content]) -> bytes:
    """Return the stream with the top-level items `items`."""
    stream = bytearray()
    java_writer.write(items, stream.extend)
    return bytes(stream)
