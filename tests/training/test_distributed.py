"""Two processes on the CPU (gloo) in the place of two GPUs."""

from __future__ import annotations

import csv
import os
import socket
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from qpnuclei.cli.app import app
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


def learn_and_put_back(folder: Path) -> None:
    before = nn.BatchNorm2d
    try:
        learn(folder)
    finally:
        nn.BatchNorm2d = before  # type: ignore[misc]


def train_in_parts(folder: Path, command: list[str], ports: list[int]) -> None:
    """Train for an epoch, then resume for one more; each with a process group of its own."""
    with (folder / f"rank-{os.environ['RANK']}.txt").open("w") as said:
        for port, more in zip(ports, ("--epochs=1", "--epochs=2"), strict=True):
            os.environ["MASTER_PORT"] = str(port)
            resume = [] if more == "--epochs=1" else ["--resume"]
            with redirect_stdout(said), redirect_stderr(said):
                code: object = 0
                try:
                    app([*command, more, *resume], standalone_mode=False)
                except SystemExit as ended:  # of ranks other than 0
                    code = ended.code
                assert not code


def as_rank(number: int, folder: Path, command: list[str], ports: list[int]) -> None:
    """Do all that is tested of two processes: starting them takes longer than their work."""
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ports[0])}
    torch.set_num_threads(1)
    with process_group(CPU):
        check_helpers()
        learn_and_put_back(folder)
    train_in_parts(folder, command, ports[1:])


@pytest.fixture(scope="module")
def command(dataset: Path) -> list[str]:
    """A small training, without folder and epochs."""
    fields = TINY | {"batches_per_epoch": 2}
    del fields["name"], fields["origin"], fields["epochs"]
    settings = [part for key, value in fields.items() for part in ("--set", f"{key}={value}")]
    options = ["--config", "proposed", "--mpp", "0.25", "--device", "cpu"]
    return ["train", str(dataset), *options, *settings]


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory, command: list[str]) -> Path:
    """Start two processes, as torchrun would; return the folder with what they leave."""
    folder = tmp_path_factory.mktemp("two")
    arguments = [*command, "-o", str(folder / "parts")]
    ports = [free_port() for _ in range(3)]
    torch.multiprocessing.spawn(as_rank, (folder, arguments, ports), nprocs=2)
    return folder


def test_without_torchrun_there_is_one_process() -> None:
    with process_group(CPU) as device:
        assert device == CPU
        assert (rank(), world_size()) == (0, 1)
        assert any_rank(True, CPU)
        assert mean_over_ranks(torch.tensor(3.0)) == 3


@pytest.mark.slow
def test_means_are_over_all_processes_and_two_halves_of_a_batch_teach_what_the_whole_does(
    of_two: Path, tmp_path: Path
) -> None:
    learn_and_put_back(tmp_path)
    (alone, one), (shared, other), (_, second) = (
        torch.load(path, weights_only=True)
        for path in (tmp_path / "0-of-1.pt", of_two / "0-of-2.pt", of_two / "1-of-2.pt")
    )
    assert shared == pytest.approx(alone, rel=1e-4)
    for part in ("attention_net", "activation", "scale_net"):
        for name, value in one[part].items():
            # Adam divides by the gradient's size: what is nearly 0 may move by up to a step, 2e-4.
            torch.testing.assert_close(other[part][name], value, rtol=1e-3, atol=2e-5)
            assert torch.equal(other[part][name], second[part][name])


def check_that_rank_0_alone_speaks(said: str, times: int) -> None:
    assert said.count("training on 2 images on cpu and 1 more") == times
    assert said.count("model.safetensors") == times


@pytest.mark.slow
def test_a_resumed_run_of_two_processes_equals_an_uninterrupted_one_of_torchrun(
    of_two: Path, command: list[str], tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", of_two / "parts"
    rgb, labels = paint_tissue(4, size=160)
    for kind, pixels in (("images", rgb), ("labels", labels)):
        (tmp_path / "labelled" / kind).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "labelled" / kind / "one.png")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    torchrun += [f"--master-port={free_port()}", "-m", "qpnuclei", *command]
    # Validation takes longer than the training, and changes nothing in it: once is enough.
    torchrun += ["-o", str(whole), "--epochs=2", "--validation", str(tmp_path / "labelled")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(torchrun, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    check_that_rank_0_alone_speaks(done.stderr + done.stdout, 1)
    check_that_rank_0_alone_speaks("".join(p.read_text() for p in of_two.glob("rank-*.txt")), 2)
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
