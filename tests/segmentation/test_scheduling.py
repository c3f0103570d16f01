"""Which way, and how many at once, tiles go through a device."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from qpnuclei.errors import DeviceError
from qpnuclei.segmentation.scheduling import (
    FittingBatches,
    Function,
    GraphOrEager,
    batch_that_fits,
)


def inverted(batch: Tensor) -> tuple[Tensor, ...]:
    return 255 - batch[..., 0], batch[..., 1].to(torch.int16)


def tiles(count: int, side: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (count, side, side, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


class Graphs:
    """Captures functions as the real one does, with memory of its own for the argument."""

    def __init__(self) -> None:
        self.captured: list[tuple[int, ...]] = []
        self.replayed = 0

    def capture(self, function: Function, example: Tensor) -> Function:
        self.captured.append(tuple(example.shape))
        argument = example.clone()

        def replay(batch: Tensor) -> tuple[Tensor, ...]:
            argument.copy_(batch)
            self.replayed += 1
            return function(argument)

        return replay


def in_turn(*times: float) -> Callable[[Callable[[], object]], float]:
    """Pretend that calls take these times, those of eager runs first."""
    left = list(times)

    def milliseconds(call: Callable[[], object]) -> float:
        call()
        return left.pop(0)

    return milliseconds


def test_a_shape_that_comes_often_is_replayed_if_that_is_faster() -> None:
    graphs = Graphs()
    run = GraphOrEager(inverted, graphs.capture, in_turn(2.1, 1.0))
    assert run.execution == "eager"
    for _ in range(3):
        run(tiles(1))
    assert graphs.captured == []
    assert same(run(tiles(1)), inverted(tiles(1)))
    assert graphs.captured == [(1, 4, 4, 3)]
    assert run.execution == "CUDA graphs (2.10x eager, measured)"
    before = graphs.replayed
    other = 255 - tiles(1)
    assert same(run(other), inverted(other))  # not what was captured
    assert graphs.replayed == before + 1


def test_what_is_slower_as_a_graph_stays_eager() -> None:
    graphs = Graphs()
    run = GraphOrEager(inverted, graphs.capture, in_turn(1.0, 1.25))
    for _ in range(4):
        run(tiles(1))
    before = graphs.replayed
    assert same(run(tiles(1)), inverted(tiles(1)))
    assert graphs.replayed == before
    assert run.execution == "eager (CUDA graphs 0.80x, measured)"


def test_without_graphs_it_stays_eager_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(_function: Function, _example: Tensor) -> Function:
        raise RuntimeError("operation not permitted when stream is capturing")

    run = GraphOrEager(inverted, refuse, in_turn())
    with caplog.at_level(logging.WARNING):
        for side in (4, 8):
            for _ in range(5):
                assert same(run(tiles(1, side)), inverted(tiles(1, side)))
    assert [r.getMessage() for r in caplog.records] == [
        "no CUDA graphs, batches are run eagerly: operation not permitted when stream is capturing"
    ]
    assert run.execution == "eager"


def test_a_graph_that_gives_something_else_is_not_taken(caplog: pytest.LogCaptureFixture) -> None:
    def stale(function: Function, _example: Tensor) -> Function:
        return lambda batch: function(batch + 1)

    run = GraphOrEager(inverted, stale, in_turn(2.0, 1.0))
    for _ in range(5):
        assert same(run(tiles(1)), inverted(tiles(1)))
    assert "their results differ" in caplog.text


def test_only_the_graphs_of_the_last_shapes_are_kept() -> None:
    graphs = Graphs()
    run = GraphOrEager(inverted, graphs.capture, in_turn(*[2.0, 1.0] * 10))
    for side in range(1, 10):
        for _ in range(4):
            run(tiles(1, side))
    assert len(graphs.captured) == 9
    for _ in range(4):
        run(tiles(1, 2))  # the least recently used of those that are kept
    assert len(graphs.captured) == 9
    for _ in range(4):
        run(tiles(1, 1))  # gone
    assert len(graphs.captured) == 10


def test_after_forgetting_a_shape_is_counted_anew() -> None:
    graphs = Graphs()
    run = GraphOrEager(inverted, graphs.capture, in_turn(2.0, 1.0, 2.0, 1.0))
    for _ in range(4):
        run(tiles(1))
    run.forget()
    before = graphs.replayed
    run(tiles(1))
    assert graphs.replayed == before
    for _ in range(3):
        run(tiles(1))
    assert len(graphs.captured) == 2


class Memory:
    """A device on which so many tiles of 4x4 px fit."""

    def __init__(self, fitting: int) -> None:
        self.fitting = fitting
        self.asked: list[int] = []
        self.released = 0

    def run(self, batch: Tensor) -> tuple[Tensor, ...]:
        self.asked.append(len(batch))
        if batch[..., 0].numel() > self.fitting * 16:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return inverted(batch)

    def release(self) -> None:
        self.released += 1


def test_a_batch_that_does_not_fit_is_halved_until_it_does() -> None:
    memory = Memory(fitting=3)
    run = FittingBatches(memory.run, memory.release)
    assert same(run(tiles(9)), inverted(tiles(9)))
    assert memory.asked == [9, 4, 2, 2, 2, 2, 1]
    assert memory.released == 2
    assert same(run(tiles(4)), inverted(tiles(4)))
    assert memory.asked[7:] == [2, 2]  # it does not try again what failed
    assert same(run(tiles(5, side=2)), inverted(tiles(5, side=2)))
    assert memory.asked[9:] == [5]  # smaller tiles: as many as have as many px
    assert memory.released == 2


def test_a_tile_that_does_not_fit_is_an_error_with_a_remedy() -> None:
    memory = Memory(fitting=0)
    with pytest.raises(DeviceError, match="a tile of 4x4 px") as caught:
        FittingBatches(memory.run, memory.release)(tiles(2))
    assert "--tile" in caught.value.hint
    assert "--device cpu" in caught.value.hint
    assert memory.asked == [2, 1]


def test_other_errors_pass() -> None:
    def fail(_batch: Tensor) -> tuple[Tensor, ...]:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        FittingBatches(fail, lambda: None)(tiles(2))


@pytest.mark.parametrize(
    ("free", "expected"), [(10_000_000, 4), (9_999_999, 3), (10**9, 8), (1000, 1)]
)
def test_a_batch_takes_two_fifths_of_the_free_memory(free: int, expected: int) -> None:
    # 100 x 100 px of 100 bytes each: a tile takes 10^6.
    assert batch_that_fits(free, 100.0, 100) == expected
