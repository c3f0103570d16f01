"""The student: a small U-Net from an RGB image to nuclear foreground and a centre map."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qpnuclei.models.metadata import Decoder
from qpnuclei.models.student_layout import Convolution, student_layout


class StudentNet(nn.Module):
    """U-Net that starts at half or a quarter of the resolution. It predicts foreground and centre.

    Parameters
    ----------
    base_channels : int
        Channels of the finest level.
    levels : int
        Number of resolutions; each is half of the one before it.
    max_channels : int
        Channels double from level to level up to this number.
    stem_stride : {2, 4}
        The finest level has ``1 / stem_stride`` of the resolution.
    encoder_convolutions : sequence of int, optional
        Number of 3x3 convolutions of each level of the encoder, finest first. The default is two.
    decoder : {"concatenating", "adding"}
        How a decoder level combines the finer encoder level with the coarser decoder level. One way
        is concatenation followed by two convolutions. The other is addition followed by one
        convolution, which costs less than half. Then the last convolution of the coarser level has
        as many channels as the finer level.
    subpixel : bool
        Whether each cell of the finest level predicts its own pixels (sub-pixel convolution [1]_),
        which keeps outlines sharp. Otherwise, logits are interpolated to full resolution. With a
        stem stride of 4, cells always predict their pixels: interpolation would blur outlines.

    Attributes
    ----------
    stride : int
        Height and width of the input must be multiples of the stride. Two inputs with origins that
        differ by multiples of the stride give the same result, shifted.
    cell_px : int
        Size of the output patch of one cell of the finest level, in px: `stem_stride` if cells
        predict their own pixels, else 1.
    receptive_radius_px : int
        Largest distance at which an input pixel affects an output pixel, in rows or in columns.

    Raises
    ------
    ValueError
        If the arguments do not describe a network.

    Notes
    -----
    Convolutions pad with zeros. So results within `receptive_radius_px` of the border of the input
    depend on its position: add a halo of real or reflected pixels.

    The stem is a convolution that overlaps by 1 px on all sides (4x4 of stride 2, 6x6 of stride 4).
    Features at full resolution take most of the time of a U-Net and gain little at 0.25 µm/px.

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
        layout = student_layout(
            base_channels,
            levels,
            max_channels,
            stem_stride,
            encoder_convolutions,
            decoder,
            subpixel,
        )
        self.cell_px = layout.cell_px
        self._adding = layout.adding
        self.stem = _conv(layout.stem)
        self.encoder = nn.ModuleList(_convs(level) for level in layout.encoder)
        self.decoder = nn.ModuleList(_convs(level) for level in layout.decoder)
        self.head = nn.Conv2d(layout.head.inputs, layout.head.outputs, layout.head.kernel)
        self.stride = layout.geometry.stride
        self.receptive_radius_px = layout.geometry.receptive_radius_px

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
        """Return the logits of `forward`, but with the pixels of each cell as channels.

        Parameters
        ----------
        image : (B, 3, H, W) float Tensor
            As for `forward`.

        Returns
        -------
        (B, 2·c·c, H / c, W / c) float Tensor
            With c = `cell_px`: the pixels of each cell row by row, first the foreground.
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
        # In a function of its own, so that large intermediate results are freed.
        up = _upsample(x)
        return up.add_(skip) if self._adding else torch.cat([up, skip], dim=1)


def _conv(layout: Convolution) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(
            layout.inputs, layout.outputs, layout.kernel, layout.stride, padding=1, bias=False
        ),
        nn.BatchNorm2d(layout.outputs),
        nn.ReLU(inplace=True),
    )


def _convs(level: Iterable[Convolution]) -> nn.Sequential:
    return nn.Sequential(*map(_conv, level))


def _upsample(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
