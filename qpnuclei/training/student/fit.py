"""One round of the student's training: loss, optimiser, moving average."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from msgspec.structs import replace
from torch import Tensor, nn
from torch.nn import functional as F

from qpnuclei.errors import TrainingError
from qpnuclei.models.metadata import IMAGENET_MEAN, IMAGENET_STD
from qpnuclei.models.student import StudentNet
from qpnuclei.training.callbacks import TrainingCallbacks
from qpnuclei.training.student.batches import TrainingExample, random_batch
from qpnuclei.training.student.recipe import StudentRecipe

#: Steps over which the learning rate rises from 0.
_WARM_UP_STEPS = 50


def student_loss(
    logits: Tensor, targets: Tensor, *, dice_weight: float, centre_weight: float
) -> Tensor:
    """Return the student's loss: cross-entropy, Dice and centre map, pixels weighted.

    Parameters
    ----------
    logits : (B, 2, H, W) float Tensor
        Of foreground and centre map.
    targets : (B, 3, H, W) float Tensor
        Foreground, centre map and weight, each 0..1.
    dice_weight : float
        Of one minus the soft Dice of the foreground over the batch.
    centre_weight : float
        Of the mean squared error of the centre map.
    """
    foreground, centre, weight = targets.unbind(dim=1)
    total = weight.sum().clamp_min(1.0)
    entropy = F.binary_cross_entropy_with_logits(logits[:, 0], foreground, reduction="none")
    probability = torch.sigmoid(logits[:, 0])
    overlap = (weight * probability * foreground).sum()
    sizes = (weight * (probability + foreground)).sum()
    dice = 1 - (2 * overlap + 1) / (sizes + 1)
    distance = (torch.sigmoid(logits[:, 1]) - centre).square()
    loss: Tensor = (
        (weight * entropy).sum() / total
        + dice_weight * dice
        + centre_weight * (weight * distance).sum() / total
    )
    return loss


def learning_rate_factor(step: int, steps: int) -> float:
    """Return the share of the learning rate at a step: a short rise, then half a cosine to 0."""
    return min(1.0, (step + 1) / _WARM_UP_STEPS) * (0.5 + 0.5 * math.cos(math.pi * step / steps))


def half_precision(device: torch.device) -> torch.autocast:
    """Return the context in which convolutions run in half precision, where that is faster."""
    dtype = torch.float16 if device.type == "cuda" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=device.type == "cuda" or has_bfloat16(device))


def has_bfloat16(device: torch.device) -> bool:
    """Tell whether a CPU computes in bfloat16; without AVX-512, it is several times slower."""
    return device.type == "cpu" and torch.backends.cpu.get_cpu_capability().startswith("AVX512")


@dataclass(frozen=True)
class Unfinished:
    """A round that was stopped before its end.

    Parameters
    ----------
    state : mapping
        From which `fit` continues without any difference. Tensors, numbers and texts only.
    batches : int
        Batches done.
    """

    state: Mapping[str, Any]
    batches: int


def fit(
    recipe: StudentRecipe,
    examples: Sequence[TrainingExample],
    round_number: int,
    before: StudentNet | None,
    *,
    seed: int,
    device: torch.device,
    callbacks: TrainingCallbacks,
    unfinished: Mapping[str, Any] | None = None,
) -> tuple[StudentNet, float] | Unfinished:
    """Train a student on examples for one round.

    Parameters
    ----------
    recipe : StudentRecipe
    examples : sequence of TrainingExample
    round_number : int
        From 1; determines, with `seed`, all random choices.
    before : StudentNet or None
        Initial weights; None starts from random ones.
    seed : int
    device : torch.device
    callbacks : TrainingCallbacks
        Called with every batch; they may stop the round.
    unfinished : mapping, optional
        `Unfinished.state` of the same round, to continue from.

    Returns
    -------
    student : StudentNet
        The moving average, in evaluation mode.
    loss : float
        Mean over the round's last tenth.

    `Unfinished` is returned instead if a stop was requested.

    Raises
    ------
    qpnuclei.errors.TrainingError
        If the loss is not a number.

    Notes
    -----
    On a CPU that has it, convolutions run in bfloat16, several times faster than float32.
    """
    rng = np.random.default_rng((seed, round_number, 1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**31)))
        network = StudentNet(**recipe.architecture)
        average = StudentNet(**recipe.architecture)
    if before is not None:
        network.load_state_dict(before.state_dict())
    average.load_state_dict(network.state_dict())
    for module in (network, average):
        module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.train()
    peak_rate = recipe.learning_rate if before is None else recipe.later_learning_rate
    optimiser = torch.optim.AdamW(network.parameters(), peak_rate, weight_decay=recipe.weight_decay)
    steps = recipe.batches_per_round if round_number > 1 else recipe.first_round_batches
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")
    losses: list[float] = []
    parts = {"network": network, "average": average, "optimiser": optimiser, "scaler": scaler}
    if unfinished is not None:
        for name, part in parts.items():
            part.load_state_dict(unfinished[name])  # type: ignore[attr-defined]
        rng.bit_generator.state = json.loads(unfinished["random"])
        losses = list(unfinished["losses"])
    for step in range(len(losses), steps):
        if callbacks.stop_requested():
            states = {name: part.state_dict() for name, part in parts.items()}  # type: ignore[attr-defined]
            random = json.dumps(rng.bit_generator.state)
            return Unfinished({**states, "random": random, "losses": losses}, step)
        for group in optimiser.param_groups:
            group["lr"] = peak_rate * learning_rate_factor(step, steps)
        images, targets = random_batch(
            examples,
            recipe.batch_size,
            recipe.crop_px,
            rng,
            IMAGENET_MEAN,
            IMAGENET_STD,
            strong_colours=recipe.strong_colours,
            borrowed_colours=recipe.borrowed_colours,
        )
        images = images.to(device).contiguous(memory_format=torch.channels_last)
        with half_precision(device):
            logits = network(images)
        loss = student_loss(
            logits.float(),
            targets.to(device),
            dice_weight=recipe.dice_loss_weight,
            centre_weight=recipe.centre_loss_weight,
        )
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise TrainingError(
                f"round {round_number}, batch {step + 1}: the loss is {losses[-1]}",
                "try a lower --set learning_rate, or another --seed",
            )
        optimiser.zero_grad()
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.unscale_(optimiser)
        nn.utils.clip_grad_norm_(network.parameters(), recipe.gradient_clip)
        scaler.step(optimiser)
        scaler.update()
        # The average of few steps must not remember the random start.
        _move_towards(average, network, min(recipe.ema_decay, (step + 1) / (step + 10)))
        callbacks.on_batch_end(round_number, step + 1, {"loss": losses[-1]})
    return average.eval(), float(np.mean(losses[-max(1, steps // 10) :]))


def seconds_per_batch(recipe: StudentRecipe, device: torch.device) -> float:
    """Measure how long a batch takes here, by training on a few batches of noise."""
    rng = np.random.default_rng(0)
    side = 2 * recipe.crop_px
    noise = rng.integers(0, 256, (side, side, 3), np.uint8)
    clock = _BatchClock()
    short = replace(recipe, first_round_batches=4)
    fit(short, [TrainingExample(noise, noise)] * 2, 1, None, seed=0, device=device, callbacks=clock)
    return (clock.ends[-1] - clock.ends[0]) / (len(clock.ends) - 1)  # the first is a warm-up


class _BatchClock(TrainingCallbacks):
    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_batch_end(self, epoch: int, batch: int, metrics: Mapping[str, float]) -> None:  # noqa: ARG002
        self.ends.append(time.monotonic())


@torch.no_grad()
def _move_towards(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Update a moving average of weights and of BatchNorm's statistics."""
    for old, new in zip(
        itertools.chain(average.parameters(), average.buffers()),
        itertools.chain(network.parameters(), network.buffers()),
        strict=True,
    ):
        if old.dtype.is_floating_point:
            old.lerp_(new, 1 - decay)
        else:
            old.copy_(new)
