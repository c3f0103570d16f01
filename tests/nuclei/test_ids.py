from __future__ import annotations

import uuid

import numpy as np

from qpnuclei.nuclei.ids import NucleusIds, is_ours


def test_ours_have_both_the_prefix_and_the_version() -> None:
    (own_id,) = NucleusIds(np.arange(10, dtype=np.uint8)[None])
    assert own_id.bytes[:6] == b"qpnucl"
    assert is_ours(own_id)
    assert not is_ours(None)
    # RFC 9562, A.7: somebody else's version 8.
    assert not is_ours(uuid.UUID("2489E9AD-2EE2-8E00-8EC9-32D5F69181C0"))
    assert not is_ours(uuid.UUID(bytes=own_id.bytes, version=4))
