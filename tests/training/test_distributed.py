"""Two processes on the CPU (gloo) in the place of two GPUs."""

from __future__ import annotations

import csv
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from qpnuclei.errors import UsageError
from qpnuclei.system.distributed import (
    any_rank,
    average_over_ranks,
    mean_over_ranks,
    process_group,
    rank,
    world_size,
)
from qpnuclei.training.attention.learner import Learner
from qpnuclei.training.attention.losses import TRANSFORMS
from qpnuclei.training.config import attention_recipe
from tests.training.attention.test_loop import TINY
from tests.training.conftest import paint_tissue

CPU = torch.device("cpu")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def in_two_processes(work: Callable[..., None], *arguments: object) -> None:
    """Call ``work(*arguments)`` in two processes, as torchrun would."""
    torch.multiprocessing.spawn(_as_rank, (free_port(), work, arguments), nprocs=2)


def _as_rank(number: int, port: int, work: Callable[..., None], arguments: tuple[object]) -> None:
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    with process_group(CPU):
        work(*arguments)


def check_helpers() -> None:
    assert (rank(), world_size()) == (int(os.environ["RANK"]), 2)
    # Ranks hold 0 and 1.
    assert mean_over_ranks(torch.tensor(float(rank()))) == 0.5
    pair = [torch.full((2, 1), 1.0 + rank()), torch.full((3,), 10.0 * rank())]
    average_over_ranks(pair)
    assert torch.equal(pair[0], torch.full((2, 1), 1.5))
    assert torch.equal(pair[1], torch.full((3,), 5.0))
    assert any_rank(rank() == 1, CPU)
    assert not any_rank(False, CPU)


def learn(folder: Path) -> None:
    """Take three steps on this process's share of the batches, and save what came of it."""
    # Per-image statistics in the place of BatchNorm's, which on the CPU are each process's own.
    nn.BatchNorm2d = lambda width: nn.GroupNorm(1, width)  # type: ignore[misc, assignment]
    # Equivariance to half size is left out: its mean is over the finest crops of a share.
    learner = Learner(attention_recipe(TINY | {"gradient_clip": 0.5}), CPU, seed=0)
    generator = torch.Generator().manual_seed(5)
    for _ in range(3):
        rgb = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=generator)
        share = slice(rank(), None, world_size())
        labels = torch.tensor([0, 0, 1, 1])[share]
        metrics = learner.step(rgb[share], labels, TRANSFORMS["transpose"])
    torch.save((metrics, learner.state()), folder / f"{rank()}-of-{world_size()}.pt")


def check_and_learn(folder: Path) -> None:
    """In one start of two processes, as that takes longer than all they do."""
    check_helpers()
    learn(folder)


def learn_alone(folder: Path) -> None:
    before = nn.BatchNorm2d
    try:
        learn(folder)
    finally:
        nn.BatchNorm2d = before  # type: ignore[misc]


def test_without_torchrun_there_is_one_process() -> None:
    with process_group(CPU) as device:
        assert device == CPU
        assert (rank(), world_size()) == (0, 1)
        assert any_rank(True, CPU)
        assert mean_over_ranks(torch.tensor(3.0)) == 3


@pytest.mark.slow
def test_means_are_over_all_processes_and_two_halves_of_a_batch_teach_what_the_whole_does(
    tmp_path: Path,
) -> None:
    learn_alone(tmp_path)
    in_two_processes(check_and_learn, tmp_path)
    (alone, one), (shared, other), (_, second) = (
        torch.load(tmp_path / f"{name}.pt", weights_only=True)
        for name in ("0-of-1", "0-of-2", "1-of-2")
    )
    assert shared == pytest.approx(alone, rel=1e-4)
    for part in ("attention_net", "activation", "scale_net"):
        for name, value in one[part].items():
            # Adam divides by the gradient's size: what is nearly 0 may move by up to a step, 2e-4.
            torch.testing.assert_close(other[part][name], value, rtol=1e-3, atol=2e-5)
            assert torch.equal(other[part][name], second[part][name])


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += [f"--master-port={free_port()}", "-m", "qpnuclei", "train", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.slow
def test_a_resumed_run_of_two_processes_equals_an_uninterrupted_one(
    dataset: Path, tmp_path: Path
) -> None:
    fields = TINY | {"batches_per_epoch": 2}
    del fields["name"], fields["origin"], fields["epochs"]
    common = [part for key, value in fields.items() for part in ("--set", f"{key}={value}")]
    common += [
        str(dataset),
        "--config",
        "proposed",
        "--mpp",
        "0.25",
        "--device",
        "cpu",
    ]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    rgb, labels = paint_tissue(4, size=160)
    for kind, pixels in (("images", rgb), ("labels", labels)):
        (tmp_path / "labelled" / kind).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "labelled" / kind / "one.png")
    # Validation takes longer than the training, and changes nothing in it: once is enough.
    validated = ("--validation", str(tmp_path / "labelled"))
    for folder, epochs, more in ((whole, 2, validated), (parts, 1, ()), (parts, 2, ("--resume",))):
        finished = torchrun(*common, "-o", str(folder), "--epochs", str(epochs), *more)
        assert finished.returncode == 0, finished.stderr
        assert finished.stderr.count("training on 2 images on cpu and 1 more") == 1
        assert finished.stdout.count("model.safetensors") == 1  # rank 0 alone speaks
    states = [torch.load(f / "state.pt", weights_only=True)["learner"] for f in (whole, parts)]
    for part in ("attention_net", "activation", "scale_net", "average", "average_activation"):
        assert all(torch.equal(states[0][part][k], states[1][part][k]) for k in states[0][part])
    with (parts / "metrics.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2


def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from qpnuclei.training.attention import loop

    monkeypatch.setattr(loop, "world_size", lambda: 3)
    with pytest.raises(UsageError, match="batch_size 4 cannot be shared by 3 processes"):
        loop._check_shares(attention_recipe(TINY))
