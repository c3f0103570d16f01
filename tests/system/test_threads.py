from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from qpnuclei.system.threads import ahead, in_parallel


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
    consumer.close()
    assert threading.active_count() == before


def test_parallel_results_come_in_order_whoever_is_first() -> None:
    def slow_first(i: int) -> int:
        time.sleep(0.02 * (5 - i))
        return i

    assert list(in_parallel(slow_first, range(6), workers=3)) == list(range(6))
    assert list(in_parallel(slow_first, [], workers=3)) == []


def test_parallel_work_really_is() -> None:
    both = threading.Barrier(2, timeout=10)
    assert sorted(in_parallel(lambda _: both.wait(), range(2), workers=2)) == [0, 1]


def test_parallel_takes_no_more_items_than_workers_can_have() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for i in range(50):
            taken.append(i)
            yield i

    consumer = in_parallel(lambda i: i, items(), workers=2)
    assert next(consumer) == 0
    assert taken == [0, 1, 2]
    consumer.close()


def test_parallel_failure_comes_in_its_place_and_nothing_more_is_begun() -> None:
    before = threading.active_count()
    begun: list[int] = []

    def work(i: int) -> int:
        begun.append(i)
        if i == 2:
            raise ValueError("tile 2")
        return i

    consumer = in_parallel(work, range(100), workers=2)
    assert [next(consumer), next(consumer)] == [0, 1]
    with pytest.raises(ValueError, match="tile 2"):
        next(consumer)
    assert threading.active_count() == before
    assert len(begun) <= 5
