from __future__ import annotations

import uuid

from hypothesis import given
from hypothesis import strategies as st

from qpnuclei.qupath.native.path_objects import uuid_texts


@given(st.lists(st.uuids()))
def test_texts_of_uuids(ids: list[uuid.UUID]) -> None:
    assert uuid_texts(ids).astype(str).tolist() == [str(own_id) for own_id in ids]
