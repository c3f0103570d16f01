from __future__ import annotations

import hashlib
import uuid

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from qpnuclei.nuclei.ids import NucleusIds, are_ours, free_id, hashed_id, hashed_ids, is_ours


def test_ours_have_both_the_prefix_and_the_version() -> None:
    (own_id,) = NucleusIds(np.arange(10, dtype=np.uint8)[None])
    assert own_id.bytes[:6] == b"qpnucl"
    assert is_ours(own_id)
    assert not is_ours(None)
    # RFC 9562, A.7: somebody else's version 8.
    assert not is_ours(uuid.UUID("2489E9AD-2EE2-8E00-8EC9-32D5F69181C0"))
    assert not is_ours(uuid.UUID(bytes=own_id.bytes, version=4))


@settings(max_examples=30)
@given(
    st.lists(st.binary(min_size=10, max_size=10)),
    st.lists(st.uuids()),
    st.sampled_from("0g-A"),
    st.integers(0, 35),
)
def test_ours_are_told_by_their_text(
    digests: list[bytes], others: list[uuid.UUID], character: str, at: int
) -> None:
    octets = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 10)
    texts = [*NucleusIds(octets).texts(), *map(str, others)]
    texts += [text.upper() for text in texts]
    texts += [text[:at] + character + text[at + 1 :] for text in texts]

    def is_one_of_ours(text: str) -> bool:
        try:
            own_id = uuid.UUID(text)
        except ValueError:
            return False
        return str(own_id) == text.lower() and is_ours(own_id)

    rows = np.frombuffer("".join(texts).encode(), np.uint8).reshape(-1, 36)
    assert are_ours(rows).tolist() == [is_one_of_ours(text) for text in texts]


def test_hashed_uuids_are_the_digests_of_their_seeds() -> None:
    seeds = [b"", b"a", b"nucleus"]
    ids = [*hashed_ids(seeds)]
    assert ids == [hashed_id(seed) for seed in seeds]
    for own_id, seed in zip(ids, seeds, strict=True):
        octets = bytearray(b"qpnucl" + hashlib.blake2b(seed, digest_size=10).digest())
        octets[6] = 0x80 | octets[6] & 0x0F
        octets[8] = 0x80 | octets[8] & 0x3F
        assert own_id.bytes == octets
    assert len(hashed_ids([])) == 0


def test_a_free_uuid_is_the_first_that_is_not_taken() -> None:
    first, second, third = (hashed_id(b"seed" + bytes([number])) for number in range(3))
    assert free_id(b"seed", {None}) == first
    assert free_id(b"seed", {first, third}) == second
