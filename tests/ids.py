from __future__ import annotations

import uuid
from collections.abc import Iterable

from qpnuclei.nuclei.ids import ID_PREFIX, is_ours
from qpnuclei.qupath.model import Edit, ImageEntry


def nucleus_id(digest: bytes) -> uuid.UUID:
    """Return the UUID of one of our detections, from the first 10 bytes."""
    value = int.from_bytes(ID_PREFIX + digest[:10], "big")
    value &= ~(0xF << 76 | 0x3 << 62)
    return uuid.UUID(int=value | 0x8 << 76 | 0x2 << 62)  # version 8, variant of the RFC


def own_ids(image: ImageEntry) -> list[uuid.UUID]:
    """Return the UUIDs of our detections in an image, in their order."""
    return [own_id for own_id in image.read().detections.ids if own_id and is_ours(own_id)]


def removal(image: ImageEntry, ids: Iterable[uuid.UUID | None]) -> Edit:
    """Return the edit that removes the objects with these UUIDs from an image as it is."""
    wanted, objects = set(ids), image.read()
    return Edit(
        remove=frozenset(
            row for row, own_id in enumerate(objects.detections.ids) if own_id in wanted
        ),
        remove_annotations=frozenset(a.handle for a in objects.annotations if a.id in wanted),
    )
