"""The two networks and their optimiser: one step on one batch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from qpnuclei.models.attention import AttentionActivation, AttentionNet
from qpnuclei.system.distributed import average_over_ranks, mean_over_ranks, world_size
from qpnuclei.training.attention.losses import normalise, training_losses
from qpnuclei.training.attention.scale import build_scale_network
from qpnuclei.training.config import AttentionRecipe


class Learner:
    """F, sigma and G with their Adam, and the running mean of F's weights if the recipe wants it.

    On CUDA they run in channels_last and mixed precision. On the CPU they stay in float32 and in
    the usual layout: there, bfloat16 with channels_last and dilation has given NaN gradients.

    In one of several processes (see `qpnuclei.system.distributed`) they learn from the batches of
    all: gradients, tau and, on CUDA, the statistics of BatchNorm are those of the whole batch. On
    the CPU, which has no synchronised BatchNorm, each process normalises its own share, and the
    running statistics are averaged.

    Parameters
    ----------
    recipe : AttentionRecipe
    device : torch.device
    seed : int
        Seed of the initial weights.
    imagenet : bool
        Whether G may start from ImageNet weights, if the recipe says so; False avoids the download
        if its weights will be replaced anyway.

    Notes
    -----
    The mean of the weights on the way varies less than the last ones [1]_; this one is exponential,
    as a mean teacher's [2]_. BatchNorm and tau of the mean are undefined until `measure_average`
    was called.

    References
    ----------
    .. [1] B. T. Polyak, A. B. Juditsky, "Acceleration of Stochastic Approximation by Averaging",
       SIAM Journal on Control and Optimization 30(4), 1992.
    .. [2] A. Tarvainen, H. Valpola, "Mean Teachers Are Better Role Models", NIPS 2017.
    """

    def __init__(
        self, recipe: AttentionRecipe, device: torch.device, seed: int, imagenet: bool = True
    ) -> None:
        self.device = device
        self.architecture = {
            "width": recipe.width,
            "padding": recipe.padding,
            "stride": recipe.stride,
            "dilations": list(recipe.dilations),
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed % 2**64)  # PyTorch takes 64 bits, NumPy any seed
            self.attention_net = AttentionNet(
                recipe.width, recipe.padding, recipe.stride, recipe.dilations
            )
            self.scale_net = build_scale_network(
                recipe.scale_network,
                len(recipe.scales),
                imagenet=imagenet and recipe.scale_weights == "imagenet",
                width=recipe.scale_width,
            )
        self.activation = AttentionActivation(recipe.eta, recipe.sigmoid_gain, recipe.sparse)
        self._recipe = recipe
        # The running mean of F's weights, and the sigma that goes with it.
        self._average: AveragedModel | None = None
        if recipe.average_decay:
            self._average = AveragedModel(
                self.attention_net,
                device=device,
                multi_avg_fn=get_ema_multi_avg_fn(recipe.average_decay),  # type: ignore[no-untyped-call]
            )
            self._average_activation = copy.deepcopy(self.activation).to(device)
        self._modules: dict[str, nn.Module] = {
            "attention_net": self.attention_net,
            "activation": self.activation,
            "scale_net": self.scale_net,
        }
        self._memory = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        for name, module in self._modules.items():
            if world_size() > 1 and device.type == "cuda":
                # Changes the layers within; none of the three is itself a BatchNorm.
                self._modules[name] = nn.SyncBatchNorm.convert_sync_batchnorm(  # type: ignore[no-untyped-call]
                    module
                )
            module.to(device, memory_format=self._memory)  # type: ignore[call-overload]
        self._parameters = [p for m in self._modules.values() for p in m.parameters()]
        groups = [
            {"params": list(self.attention_net.parameters()), "lr": recipe.learning_rate},
            {"params": list(self.scale_net.parameters()), "lr": recipe.scale_learning_rate},
        ]
        self._rates = [recipe.learning_rate, recipe.scale_learning_rate]
        self._optimiser = torch.optim.Adam(
            groups, betas=recipe.betas, weight_decay=recipe.weight_decay
        )
        self._scaler = torch.amp.GradScaler("cuda", enabled=device.type == "cuda")

    def set_learning_rate(self, factor: float) -> None:
        """Set the learning rates of the next step: a factor of those of the recipe."""
        for group, rate in zip(self._optimiser.param_groups, self._rates, strict=True):
            group["lr"] = factor * rate

    def step(
        self, rgb: Tensor, labels: Tensor, transform: Callable[[Tensor], Tensor]
    ) -> dict[str, float]:
        """Learn from one batch, or in one of several processes from a share of it.

        Parameters
        ----------
        rgb : (B, 3, H, W) uint8 Tensor
        labels : (B,) int64 Tensor
        transform : callable
            t of the equivariance loss.

        Returns
        -------
        dict of str to float
            The total loss, each of its terms, and what `training_losses` measures: means over
            all processes.

        Raises
        ------
        FloatingPointError
            If the loss or the gradient is not finite; the weights are then as they were.
        """
        for module in self._modules.values():
            module.train()
        labels = labels.to(self.device, non_blocking=True)
        with torch.autocast("cuda", torch.float16, enabled=self._scaler.is_enabled()):
            losses = training_losses(
                self.attention_net,
                self.activation,
                self.scale_net,
                self._to_device(rgb),
                labels,
                self._recipe,
                transform,
            )
        named = {"loss": losses.total}
        named |= {f"{name} loss": term for name, term in losses.terms.items()}
        named |= losses.measures
        # Transfer all in one go: each transfer waits for the GPU. A NaN in one process reaches all
        # of them.
        values = mean_over_ranks(torch.stack([v.float() for v in named.values()])).tolist()
        metrics = dict(zip(named, values, strict=True))
        broken = [name for name in metrics if not torch.isfinite(torch.tensor(metrics[name]))]
        if broken:
            raise FloatingPointError(f"{', '.join(broken)} became NaN or infinite")
        self._optimiser.zero_grad(set_to_none=True)
        self._scaler.scale(losses.total).backward()  # type: ignore[no-untyped-call]
        average_over_ranks(p.grad for p in self._parameters if p.grad is not None)
        self._scaler.unscale_(self._optimiser)
        limit = self._recipe.gradient_clip or float("inf")
        norm = nn.utils.clip_grad_norm_(self._parameters, limit)
        # With mixed precision a gradient may overflow: the scaler skips that step and adapts.
        if not self._scaler.is_enabled() and not norm.isfinite():
            raise FloatingPointError("the gradient became NaN or infinite")
        self._scaler.step(self._optimiser)
        self._scaler.update()
        buffers = [b for m in self._modules.values() for b in m.buffers()]
        average_over_ranks(b for b in buffers if b.is_floating_point())
        if self._average is not None:
            self._average.update_parameters(self.attention_net)
        return metrics

    def measure_average(self, batches: Iterable[Tensor]) -> None:
        """Measure BatchNorm's statistics and tau of the averaged F on some batches.

        They are not the averages of F's statistics: the mean of two networks has other activations
        [1]_. Without an average in the recipe, nothing is done. Processes must call it together.

        Parameters
        ----------
        batches : iterable of (B, 3, H, W) uint8 Tensor

        References
        ----------
        .. [1] P. Izmailov et al., "Averaging Weights Leads to Wider Optima and Better
           Generalization", UAI 2018: `torch.optim.swa_utils.update_bn`.
        """
        if self._average is None:
            return
        self._average_activation.batches_seen.zero_()
        network = nn.Sequential(self._average.module, self._average_activation).eval()
        update_bn((normalise(self._to_device(rgb)) for rgb in batches), network)
        average_over_ranks(b for b in network.buffers() if b.is_floating_point())

    @property
    def kept_net(self) -> nn.Module:
        """The F that is validated and saved: the average, if the recipe has one."""
        return self.attention_net if self._average is None else self._average.module

    @property
    def kept_activation(self) -> AttentionActivation:
        """The sigma of `kept_net`."""
        return self.activation if self._average is None else self._average_activation

    def predict(self, rgb: Tensor) -> Tensor:
        """Return the (B, 1, H, W) attention of (B, 3, H, W) uint8 crops as at test time."""
        network = nn.Sequential(self.kept_net, self.kept_activation).eval()
        with torch.inference_mode():
            attention: Tensor = network(normalise(self._to_device(rgb)))
        return attention.cpu()

    def state(self) -> dict[str, Any]:
        """Return all that a later `load_state` needs to continue without any difference."""
        state: dict[str, Any] = {name: m.state_dict() for name, m in self._modules.items()}
        if self._average is not None:
            state["average"] = self._average.state_dict()
            state["average_activation"] = self._average_activation.state_dict()
        return state | {
            "optimiser": self._optimiser.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go back to a `state` of a learner of the same recipe."""
        for name, module in self._modules.items():
            module.load_state_dict(state[name])
        if self._average is not None:
            self._average.load_state_dict(state["average"])
            self._average_activation.load_state_dict(state["average_activation"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._scaler.load_state_dict(state["scaler"])

    def _to_device(self, rgb: Tensor) -> Tensor:
        pixels = rgb.to(self.device, non_blocking=True).float() / 255
        return pixels.contiguous(memory_format=self._memory)
