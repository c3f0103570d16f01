"""The student: a small U-Net from an RGB image to nuclear foreground and a centre map."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qpnuclei.models.geometry import student_geometry
from qpnuclei.models.metadata import Decoder


class StudentNet(nn.Module):
    """U-Net that starts at half or a quarter of the resolution; foreground and centre map.

    Parameters
    ----------
    base_channels : int
        Channels of the finest level.
    levels : int
        Number of resolutions; each halves the one before it.
    max_channels : int
        Channels double from level to level up to this number.
    stem_stride : {2, 4}
        The finest level has ``1 / stem_stride`` of the resolution.
    encoder_convolutions : sequence of int, optional
        3x3 convolutions of each level of the encoder, finest first; two each if not given.
    decoder : {"concatenating", "adding"}
        How a decoder level combines the finer encoder level with the coarser decoder level: by
        concatenation followed by two convolutions; or, at less than half the cost, by addition
        followed by one. In the latter case, the last convolution of the coarser level has the
        channels of the finer level.
    subpixel : bool
        Whether each cell of the finest level predicts its own pixels (sub-pixel convolution [1]_),
        which keeps outlines sharp. Else logits are interpolated to full resolution. A stem stride
        of 4 is always with it: interpolation would blur outlines.

    Attributes
    ----------
    stride : int
        Height and width of the input must be multiples of it. Two inputs whose origins differ by
        multiples of it give the same result, shifted.
    cell_px : int
        Size of the output patch of one cell of the finest level, in px: `stem_stride` if cells
        predict their own pixels, else 1.
    receptive_radius_px : int
        An output pixel depends on no input pixel that is farther away, in rows or in columns.

    Raises
    ------
    ValueError
        If the arguments do not describe a network.

    Notes
    -----
    Convolutions pad with zeros, so results within `receptive_radius_px` of the border of the
    input depend on the position of the border: add a halo of real or reflected image.

    The stem is a convolution that overlaps by 1 px on all sides (4x4 of stride 2, 6x6 of stride
    4): full-resolution features take most of a U-Net's time and, at 0.25 µm/px, gain little.

    References
    ----------
    .. [1] W. Shi et al., "Real-Time Single Image and Video Super-Resolution Using an Efficient
       Sub-Pixel Convolutional Neural Network", CVPR 2016.
    """

    def __init__(
        self,
        base_channels: int = 24,
        levels: int = 4,
        max_channels: int = 96,
        stem_stride: int = 2,
        encoder_convolutions: Sequence[int] | None = None,
        decoder: Decoder = "concatenating",
        subpixel: bool = False,
    ) -> None:
        super().__init__()
        depths = (2,) * levels if encoder_convolutions is None else tuple(encoder_convolutions)
        if base_channels < 1 or not 2 <= levels <= 8 or max_channels < base_channels:
            raise ValueError(
                f"base_channels={base_channels!r}, levels={levels!r}, "
                f"max_channels={max_channels!r} do not describe a network"
            )
        if len(depths) != levels or min(depths) < 1:
            raise ValueError(
                f"encoder_convolutions={depths!r} is not one number from 1 on for each of "
                f"{levels} levels"
            )
        if stem_stride not in (2, 4):
            raise ValueError(f"stem_stride must be 2 or 4, not {stem_stride!r}")
        if decoder not in get_args(Decoder):
            raise ValueError(f"decoder must be one of {get_args(Decoder)}, not {decoder!r}")
        widths = [min(base_channels * 2**level, max_channels) for level in range(levels)]
        self.cell_px = stem_stride if subpixel or stem_stride == 4 else 1
        self._adding = decoder == "adding"
        self.stem = _conv(3, widths[0], kernel=stem_stride + 2, stride=stem_stride)
        above = [widths[max(level - 1, 0)] for level in range(levels)]
        ends = list(widths)
        if self._adding:
            ends[-1] = above[-1]  # addition needs equal channels
        self.encoder = nn.ModuleList(
            _convs(above[level], *[widths[level]] * (depths[level] - 1), ends[level])
            for level in range(levels)
        )
        self.decoder = nn.ModuleList(
            _convs(widths[level], above[level])
            if self._adding
            else _convs(widths[level] + widths[level + 1], widths[level], widths[level])
            for level in range(levels - 1)
        )
        self.head = nn.Conv2d(widths[0], 2 * self.cell_px**2, 1)
        geometry = student_geometry(
            depths, stem_stride, 1 if self._adding else 2, subpixel=self.cell_px > 1
        )
        self.stride = geometry.stride
        self.receptive_radius_px = geometry.receptive_radius_px

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
        cells = self.cells(image)
        return cells if self.cell_px == 1 else F.pixel_shuffle(cells, self.cell_px)

    def cells(self, image: Tensor) -> Tensor:
        """Return the same as `forward`, with the pixels of each cell as channels.

        Parameters
        ----------
        image : (B, 3, H, W) float Tensor
            As for `forward`.

        Returns
        -------
        (B, 2·c·c, H / c, W / c) float Tensor
            For cells of c = `cell_px`: their pixels row by row, first the foreground.
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
            x = block(self._joined(x, skips.pop()))
        x = self.head(x)
        # Interpolating the two channels separately is three times faster.
        return _upsample(x.contiguous()) if self.cell_px == 1 else x

    def _joined(self, x: Tensor, skip: Tensor) -> Tensor:
        # A separate function, so that its large intermediate results are freed.
        up = _upsample(x)
        return up.add_(skip) if self._adding else torch.cat([up, skip], dim=1)


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def _convs(*channels: int) -> nn.Sequential:
    return nn.Sequential(*(_conv(*pair) for pair in itertools.pairwise(channels)))


def _upsample(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
