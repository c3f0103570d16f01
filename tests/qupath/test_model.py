from __future__ import annotations

from uuid import RFC_4122, UUID

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from qpnuclei.nuclei.ids import NucleusIds, is_ours
from qpnuclei.qupath.model import Annotation
from tests.ids import nucleus_id


def test_ids_of_nuclei_are_what_they_were_in_every_release():
    # "qpnucl", then the digest, but for the four bits of the version and the two of the variant.
    assert str(nucleus_id(b"0123456789")) == "71706e75-636c-8031-b233-343536373839"
    assert str(nucleus_id(b"\xff" * 12)) == "71706e75-636c-8fff-bfff-ffffffffffff"
    with pytest.raises(ValueError, match="10 bytes"):
        NucleusIds(np.zeros((1, 9), np.uint8))


def test_labels_tell_annotations_apart_whoever_made_them() -> None:
    box = shapely.box(0, 0, 9, 9)
    ours = [nucleus_id(bytes([i]) * 10) for i in range(2)]
    others = [UUID("12345678-0000-4000-8000-000000000001"), UUID("87654321-" + str(ours[0])[9:])]
    labels = [
        Annotation(0, own_id, "Front", "Tumor", "PolygonROI", box).label
        for own_id in (*ours, *others)
    ]
    assert labels == [
        *(f"Front ({str(own_id)[-8:]})" for own_id in ours),
        *("Front (12345678)", "Front (87654321)"),
    ]
    assert len(set(labels)) == 4


@given(st.lists(st.binary(min_size=10, max_size=10), max_size=20))
def test_many_ids_are_those_of_each(digests):
    ids = NucleusIds(np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 10))
    expected = [nucleus_id(digest) for digest in digests]
    assert list(ids) == ids[:] == expected
    assert ids.texts() == [str(i) for i in expected]
    assert all(map(is_ours, ids))
    assert all((i.version, i.variant) == (8, RFC_4122) for i in ids)
    backwards = range(len(digests))[::-1]
    assert list(ids.take(list(backwards))) == expected[::-1]
