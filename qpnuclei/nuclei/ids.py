"""UUIDs that mark the detections and tissue annotations of qpnuclei."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from qpnuclei.system.sequences import MadeOnDemand

#: First six bytes of the UUID of every detection that qpnuclei writes ("qpnucl" in ASCII). They
#: distinguish our own detections from others. The UUID survives QuPath 0.2 to 0.7, GeoJSON, copies
#: of the project and a change of class; a duplicate made by hand in QuPath gets a new UUID.
ID_PREFIX = b"qpnucl"

#: The fixed bits of our UUIDs: the prefix, version 8 and the RFC's variant.
_MARK_BITS = 0xFFFFFFFFFFFF << 80 | 0xF << 76 | 0b11 << 62
_MARK = int.from_bytes(ID_PREFIX, "big") << 80 | 8 << 76 | 0b10 << 62


def is_ours(detection_id: uuid.UUID | None) -> bool:
    """Tell whether an object with this UUID was written by qpnuclei."""
    return detection_id is not None and detection_id.int & _MARK_BITS == _MARK


#: Length of a UUID as text with hyphens.
UUID_LENGTH = 36
_HYPHENS = np.isin(np.arange(UUID_LENGTH), (8, 13, 18, 23))
#: The fixed digits of our UUIDs before the variant.
_MARK_TEXT = b"71706e75-636c-8"
#: Value of each character as a hexadecimal digit; 16 for all others.
_DIGITS = np.full(256, 16, np.uint8)
_DIGITS[list(b"0123456789abcdef")] = _DIGITS[list(b"0123456789ABCDEF")] = np.arange(16)


def are_ours(texts: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Tell which UUIDs were written by qpnuclei, without making `uuid.UUID` objects.

    Parameters
    ----------
    texts : (N, 36) uint8 ndarray
        Characters of each. A text in another form than with hyphens is not ours.
    """
    digits = _DIGITS[texts]
    is_uuid = np.where(_HYPHENS, texts == ord("-"), digits < 16).all(axis=1)
    mark = _DIGITS[np.frombuffer(_MARK_TEXT, np.uint8)]
    marked = (digits[:, : len(mark)] == mark).all(axis=1)
    ours: npt.NDArray[np.bool_] = is_uuid & marked & (digits[:, 19] >> 2 == 0b10)
    return ours


def hashed_id(seed: bytes) -> uuid.UUID:
    """Return one of our UUIDs, always the same for the same seed."""
    return hashed_ids([seed])[0]


def free_id(seed: bytes, taken: Collection[uuid.UUID | None]) -> uuid.UUID:
    """Return the first of 256 UUIDs of a seed that is not taken."""
    made = (hashed_id(seed + bytes([number])) for number in range(256))
    return next(own_id for own_id in made if own_id not in taken)


def hashed_ids(seeds: Iterable[bytes]) -> NucleusIds:
    """Return the `hashed_id` of each seed.

    Examples
    --------
    >>> hashed_ids([b"an outline", b"another"])[1] == hashed_id(b"another")
    True
    """
    digests = b"".join(blake2b(seed, digest_size=10).digest() for seed in seeds)
    return NucleusIds(np.frombuffer(digests, np.uint8).reshape(-1, 10))


class NucleusIds(MadeOnDemand[uuid.UUID]):
    """UUIDs of version 8 (RFC 9562) that mark N detections as ours.

    They are stored as bytes; a `uuid.UUID` object is made on access.

    Parameters
    ----------
    digests : (N, 10) uint8 ndarray
        Bytes that are unique to each nucleus, for example a hash of its image and vertices. Equal
        digests give equal UUIDs.

    Raises
    ------
    ValueError
        If a digest does not have 10 bytes.
    """

    def __init__(self, digests: npt.NDArray[np.uint8]) -> None:
        if digests.shape[1:] != (10,):
            raise ValueError(f"digests must have 10 bytes each, but their shape is {digests.shape}")
        prefix = np.broadcast_to(np.frombuffer(ID_PREFIX, np.uint8), (len(digests), 6))
        self._octets = np.concatenate([prefix, digests], axis=1)
        self._octets[:, 6] = self._octets[:, 6] & 0x0F | 0x80  # version 8
        self._octets[:, 8] = self._octets[:, 8] & 0x3F | 0x80  # variant of the RFC

    def __len__(self) -> int:
        return len(self._octets)

    def _item(self, index: int) -> uuid.UUID:
        return uuid.UUID(bytes=self._octets[index].tobytes())

    def take(self, indices: npt.ArrayLike) -> NucleusIds:
        """Return the UUIDs at `indices`, in that order."""
        return NucleusIds(self._octets[np.asarray(indices, np.int64), 6:])

    def texts(self) -> list[str]:
        """Return all UUIDs as text, with hyphens."""
        digits = np.frombuffer(self._octets.tobytes().hex().encode(), np.uint8).reshape(-1, 32)
        text = np.insert(digits, (8, 12, 16, 20), ord("-"), axis=1).tobytes().decode()
        return [text[i : i + 36] for i in range(0, len(text), 36)]
