from __future__ import annotations

import uuid

from qpnuclei.nuclei.ids import ID_PREFIX


def nucleus_id(digest: bytes) -> uuid.UUID:
    """Return the UUID of one of our detections, from the first 10 bytes."""
    value = int.from_bytes(ID_PREFIX + digest[:10], "big")
    value &= ~(0xF << 76 | 0x3 << 62)
    return uuid.UUID(int=value | 0x8 << 76 | 0x2 << 62)  # version 8, variant of the RFC
