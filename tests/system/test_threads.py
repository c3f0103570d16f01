from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from qpnuclei.system.threads import map_in_threads, prefetch


def test_order_is_kept() -> None:
    assert list(prefetch(range(100), size=3)) == list(range(100))


def test_never_more_than_size_items_wait() -> None:
    made: list[int] = []
    resume = threading.Event()

    def numbers() -> Iterator[int]:
        for i in range(50):
            made.append(i)
            if len(made) >= 4:
                resume.set()
            yield i

    consumer = prefetch(numbers(), size=2)
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

    consumer = prefetch(numbers(), size=4)
    assert next(consumer) == 1
    with pytest.raises(ValueError, match="tile 2"):
        next(consumer)


def test_stopping_early_ends_the_thread() -> None:
    before = {*threading.enumerate()}
    consumer = prefetch(iter(int, 1), size=1)  # endless
    next(consumer)
    consumer.close()
    assert {*threading.enumerate()} <= before


def test_parallel_results_come_in_order_whoever_is_first() -> None:
    def slow_first(i: int) -> int:
        time.sleep(0.02 * (5 - i))
        return i

    assert list(map_in_threads(slow_first, range(6), workers=3)) == list(range(6))
    assert list(map_in_threads(slow_first, [], workers=3)) == []


def test_threads_work_in_parallel() -> None:
    both = threading.Barrier(2, timeout=10)
    assert sorted(map_in_threads(lambda _: both.wait(), range(2), workers=2)) == [0, 1]


def test_parallel_takes_no_more_items_than_workers_can_have() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for i in range(50):
            taken.append(i)
            yield i

    consumer = map_in_threads(lambda i: i, items(), workers=2)
    assert next(consumer) == 0
    assert taken == [0, 1, 2]
    consumer.close()


def test_parallel_failure_comes_in_its_place_and_nothing_more_is_begun() -> None:
    before = {*threading.enumerate()}
    begun: list[int] = []

    def work(i: int) -> int:
        begun.append(i)
        if i == 2:
            raise ValueError("tile 2")
        return i

    consumer = map_in_threads(work, range(100), workers=2)
    assert [next(consumer), next(consumer)] == [0, 1]
    with pytest.raises(ValueError, match="tile 2"):
        next(consumer)
    assert {*threading.enumerate()} <= before
    assert len(begun) <= 5
