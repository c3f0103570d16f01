"""The student: a small U-Net from an RGB image to nuclear foreground and a centre map."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_Span = tuple[int, int]


class StudentNet(nn.Module):
    """U-Net that starts at half resolution and predicts foreground and centre map.

    Parameters
    ----------
    base_channels : int
        Channels of the finest level.
    levels : int
        Number of resolutions, from 1/2 on; each halves the one before it.
    max_channels : int
        No level has more channels; every level has twice those of the finer one up to there.

    Attributes
    ----------
    stride : int
        Height and width of the input must be multiples of it. Two inputs whose origins differ by
        multiples of it give the same result, shifted.
    receptive_radius_px : int
        An output pixel depends on no input pixel that is farther away, in rows or in columns.

    Notes
    -----
    Convolutions pad with zeros, so results within `receptive_radius_px` of the border of the
    input depend on where that border is: give it a halo of real or reflected image.

    The stem is a 4x4 convolution of stride 2: full-resolution features cost most of a U-Net's
    time and, at 0.25 µm/px, bring little.
    """

    def __init__(self, base_channels: int = 24, levels: int = 4, max_channels: int = 96) -> None:
        super().__init__()
        if base_channels < 1 or levels < 2 or max_channels < base_channels:
            raise ValueError(
                f"base_channels={base_channels!r}, levels={levels!r}, "
                f"max_channels={max_channels!r} do not describe a network"
            )
        widths = [min(base_channels * 2**level, max_channels) for level in range(levels)]
        self.stem = _conv(3, widths[0], kernel=4, stride=2)
        self.encoder = nn.ModuleList(
            _double_conv(widths[max(level - 1, 0)], widths[level]) for level in range(levels)
        )
        self.decoder = nn.ModuleList(
            _double_conv(widths[level] + widths[level + 1], widths[level])
            for level in range(levels - 1)
        )
        self.head = nn.Conv2d(widths[0], 2, 1)
        self.stride = 2**levels
        self.receptive_radius_px = _receptive_radius(levels)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits of foreground and centre map.

        Parameters
        ----------
        image : (B, 3, H, W) float Tensor
            Normalised RGB; H and W are multiples of `stride`.

        Returns
        -------
        (B, 2, H, W) float Tensor
            Logits: channel 0 of the foreground, channel 1 of the centre map.
        """
        height, width = image.shape[-2:]
        if height % self.stride or width % self.stride:
            raise ValueError(f"{height}x{width} px are not multiples of the stride {self.stride}")
        x = self.stem(image)
        skips = []
        for level, block in enumerate(self.encoder):
            x = block(x if level == 0 else F.max_pool2d(x, 2))
            skips.append(x)
        skips.pop()
        for block in reversed(self.decoder):
            x = block(torch.cat([_upsample(x), skips.pop()], dim=1))
        logits: Tensor = _upsample(self.head(x))
        return logits


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def _double_conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(_conv(inputs, outputs), _conv(outputs, outputs))


def _upsample(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


def _receptive_radius(levels: int) -> int:
    """Follow spans of pixels from the output back to the input, along the widest path."""
    upsample: Callable[[_Span], _Span] = lambda s: ((s[0] - 1) // 2, (s[1] + 1) // 2)  # noqa: E731
    convs: Callable[[_Span], _Span] = lambda s: (s[0] - 2, s[1] + 2)  # noqa: E731
    pool: Callable[[_Span], _Span] = lambda s: (2 * s[0], 2 * s[1] + 1)  # noqa: E731
    stem: Callable[[_Span], _Span] = lambda s: (2 * s[0] - 1, 2 * s[1] + 2)  # noqa: E731
    steps = (
        [upsample]
        + [convs, upsample] * (levels - 1)
        + [convs]
        + [pool, convs] * (levels - 1)
        + [stem]
    )
    radius = 0
    for pixel in range(2**levels):
        span = (pixel, pixel)
        for step in steps:
            span = step(span)
        radius = max(radius, pixel - span[0], span[1] - pixel)
    return radius
