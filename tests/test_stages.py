from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from qpnuclei.stages import ahead


def test_order_is_kept() -> None:
    assert list(ahead(range(100), size=3)) == list(range(100))


def test_never_more_than_size_items_wait() -> None:
    made: list[int] = []
    resume = threading.Event()

    def numbers() -> Iterator[int]:
        for i in range(50):
            made.append(i)
            if len(made) >= 4:
                resume.set()
            yield i

    consumer = ahead(numbers(), size=2)
    assert next(consumer) == 0
    assert resume.wait(5)
    # One taken, two in the queue, one in the thread's hands: a fifth would be unbounded.
    threading.Event().wait(0.3)
    assert made == [0, 1, 2, 3]
    assert list(consumer) == list(range(1, 50))


def test_exception_comes_after_the_items_before_it() -> None:
    def numbers() -> Iterator[int]:
        yield 1
        raise ValueError("tile 2")

    consumer = ahead(numbers(), size=4)
    assert next(consumer) == 1
    with pytest.raises(ValueError, match="tile 2"):
        next(consumer)


def test_stopping_early_ends_the_thread() -> None:
    before = threading.active_count()
    consumer = ahead(iter(int, 1), size=1)  # endless
    next(consumer)
    consumer.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
