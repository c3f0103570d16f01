from __future__ import annotations

import gc

from qpnuclei.__main__ import collect_later


def test_garbage_is_searched_for_as_usual_after_the_start() -> None:
    usual, callbacks = gc.get_threshold(), list(gc.callbacks)
    try:
        collect_later()
        assert gc.get_threshold()[0] > usual[0]
        gc.collect()
        assert gc.get_threshold() == usual
        assert gc.callbacks == callbacks
    finally:
        gc.set_threshold(*usual)
