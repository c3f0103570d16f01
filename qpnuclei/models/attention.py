"""The attention network F of the paper and its compressed, biased sigmoid.

References
----------
.. [1] M. Sahasrabudhe et al., "Self-Supervised Nuclei Segmentation in Histopathological Images
   Using Attention", MICCAI 2020.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qpnuclei.models.geometry import PAPER_DILATIONS, attention_geometry, attention_min_size_px
from qpnuclei.system.distributed import mean_over_ranks

Padding = Literal["reflect", "zeros"]

#: Weight of a new batch in the running tau.
_TAU_MOMENTUM = 0.1


class ResidualBlock(nn.Module):
    """Two dilated 3x3 convolutions (no bias, BatchNorm) and a shortcut around them."""

    def __init__(self, width: int, dilation: int, padding: Padding) -> None:
        super().__init__()
        self.conv1 = _conv3x3(width, width, dilation, padding)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = _conv3x3(width, width, dilation, padding)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width, H, W) to the same shape."""
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(x + self.norm2(self.conv2(y)), inplace=True)


class AttentionNet(nn.Module):
    """F: a fully convolutional network with growing dilations ([1]_, figure 1).

    Its output is the confidence map.

    Parameters
    ----------
    width : int
        Channels of every hidden layer (64 in the paper).
    padding : {'reflect', 'zeros'}
        Padding of the convolutions. The code of the paper pads with zeros, which creates frames in
        the attention. Reflection does not, but needs an input of at least `min_size_px`.
    stride : {1, 2}
        1 is the network of the paper. 2 is our variant for machines without a GPU. It works at half
        resolution: a 4x4 convolution of stride 2 is the first layer, bilinear interpolation to full
        resolution the last. The grids of both are centred alike, so the output is not shifted.
    dilations : sequence of int
        Dilation of each residual block.
    """

    def __init__(
        self,
        width: int = 64,
        padding: Padding = "reflect",
        stride: int = 1,
        dilations: Sequence[int] = PAPER_DILATIONS,
    ) -> None:
        super().__init__()
        if padding not in ("reflect", "zeros"):
            raise ValueError(f"padding must be 'reflect' or 'zeros', not {padding!r}")
        if stride not in (1, 2):
            raise ValueError(f"stride must be 1 or 2, not {stride!r}")
        if width < 1 or not dilations or min(dilations) < 1:
            raise ValueError(f"width {width!r} and dilations {dilations!r} must be positive")
        self.padding: Padding = padding
        self.dilations = tuple(dilations)
        #: Height and width of the input must be multiples of this.
        self.stride = stride
        self.stem = (
            _conv3x3(3, width, 1, padding)
            if stride == 1
            else nn.Conv2d(3, width, 4, stride=2, padding=1, padding_mode=padding, bias=False)
        )
        self.norm = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(*(ResidualBlock(width, d, padding) for d in self.dilations))
        self.head = nn.Conv2d(width, 1, 1)

    @property
    def receptive_radius_px(self) -> int:
        """Radius of the receptive field in input px (83 for the network of the paper)."""
        return attention_geometry(self.dilations, self.stride).receptive_radius_px

    @property
    def min_size_px(self) -> int:
        """Smallest height and width of the input in px."""
        return attention_min_size_px(self.dilations, self.stride, self.padding)

    def forward(self, x: Tensor) -> Tensor:
        """Return the confidence map a.

        Parameters
        ----------
        x : (B, 3, H, W) float Tensor
            RGB, normalised to the ImageNet mean and standard deviation.

        Returns
        -------
        (B, 1, H, W) float Tensor
            Not limited to a range; `AttentionActivation` turns it into attention.

        Raises
        ------
        ValueError
            If the image is smaller than `min_size_px` or not a multiple of `stride`.
        """
        height, width = x.shape[-2:]
        if min(height, width) < self.min_size_px:
            raise ValueError(
                f"image of {height}x{width} px is smaller than {self.min_size_px} px, the minimum "
                f"for padding {self.padding!r} with dilation {max(self.dilations)}"
            )
        if height % self.stride or width % self.stride:
            raise ValueError(f"image of {height}x{width} px is not a multiple of {self.stride} px")
        a: Tensor = self.head(self.blocks(F.relu(self.norm(self.stem(x)))))
        if self.stride == 1:
            return a
        return F.interpolate(a, scale_factor=self.stride, mode="bilinear", align_corners=False)


def batch_tau(a: Tensor, eta: float) -> Tensor:
    """Return the mean over the batch of the upper eta-quantiles of the images (equation 1 of [1]_).

    With several GPUs, the mean is over the whole batch, which is divided among the processes.

    Parameters
    ----------
    a : (B, 1, H, W) float Tensor
        Confidence maps.
    eta : float
        Share of the pixels that the attention should cover, from 0 to 1 (0.07 in the paper).

    Returns
    -------
    () float32 Tensor
        No gradient flows through it: tau positions the sigmoid and is not learned.
    """
    if not 0 <= eta < 1:
        raise ValueError(f"eta must be in 0..1, not {eta!r}")
    pixels = a.detach().float().flatten(1)
    descending = pixels.sort(dim=1, descending=True).values
    return mean_over_ranks(descending[:, int(eta * pixels.shape[1])].mean())


def compressed_sigmoid(a: Tensor, tau: Tensor | float, gain: float) -> Tensor:
    """Return 1 / (1 + exp(-gain·(a - tau))), in float32 ([1]_, after equation 1)."""
    return torch.sigmoid(gain * (a.float() - tau))


class AttentionActivation(nn.Module):
    """Turns the confidence map into the attention A; keeps tau for evaluation.

    In training mode, tau is that of the batch. A running tau follows it: the first batch sets it,
    later batches change it to 0.9·old + 0.1·new. In evaluation mode, the running tau is used.

    Parameters
    ----------
    eta : float
        Share of the pixels that the attention should cover (0.07 in the paper).
    gain : float
        The r of the sigmoid (20 in the paper).
    sparse : bool
        False is the ablation M_-sparse: the plain sigmoid, ``tau == 0`` and ``gain == 1``.
    """

    tau: Tensor
    batches_seen: Tensor

    def __init__(self, eta: float = 0.07, gain: float = 20.0, sparse: bool = True) -> None:
        super().__init__()
        self.eta = eta
        self.gain = gain if sparse else 1.0
        self.sparse = sparse
        self.register_buffer("tau", torch.zeros(()))
        self.register_buffer("batches_seen", torch.zeros((), dtype=torch.int64))

    def forward(self, a: Tensor) -> Tensor:
        """Map confidence (B, 1, H, W) to attention in 0..1 of the same shape, float32."""
        if not self.sparse or not self.training:
            return compressed_sigmoid(a, self.tau, self.gain)
        tau = batch_tau(a, self.eta)
        # torch.where avoids a synchronisation with the GPU to read batches_seen.
        followed = (1 - _TAU_MOMENTUM) * self.tau + _TAU_MOMENTUM * tau
        self.tau.copy_(torch.where(self.batches_seen == 0, tau, followed))
        self.batches_seen.add_(1)
        return compressed_sigmoid(a, tau, self.gain)


def _conv3x3(inputs: int, outputs: int, dilation: int, padding: Padding) -> nn.Conv2d:
    return nn.Conv2d(
        inputs,
        outputs,
        3,
        padding=dilation,
        dilation=dilation,
        padding_mode=padding,
        bias=False,
    )
