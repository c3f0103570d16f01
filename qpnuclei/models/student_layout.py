"""The convolutions of a student, from the arguments that describe it. Needs no torch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from qpnuclei.models.geometry import NetworkGeometry, student_geometry
from qpnuclei.models.metadata import Decoder


@dataclass(frozen=True)
class Convolution:
    """A square convolution; all but the head are followed by BatchNorm and ReLU."""

    inputs: int
    outputs: int
    kernel: int = 3
    stride: int = 1


@dataclass(frozen=True)
class StudentLayout:
    """The convolutions of a student.

    Parameters
    ----------
    stem : Convolution
    encoder : tuple of tuple of Convolution
        Convolutions of each level, finest first. A 2x2 max pooling precedes all but the first.
    decoder : tuple of tuple of Convolution
        Convolutions of each level but the coarsest, finest first. The input is the coarser level,
        upsampled by 2, together with the encoder level.
    head : Convolution
        Has a bias, and no BatchNorm or ReLU after it.
    adding : bool
        Whether the two inputs of a decoder level are added. Otherwise they are concatenated, the
        upsampled one first.
    cell_px : int
        Size of the output patch of one cell of the finest level, in px. If it is 1, the output of
        the head is upsampled by 2.
    geometry : NetworkGeometry
    """

    stem: Convolution
    encoder: tuple[tuple[Convolution, ...], ...]
    decoder: tuple[tuple[Convolution, ...], ...]
    head: Convolution
    adding: bool
    cell_px: int
    geometry: NetworkGeometry


def student_layout(
    base_channels: int = 24,
    levels: int = 4,
    max_channels: int = 96,
    stem_stride: int = 2,
    encoder_convolutions: Sequence[int] | None = None,
    decoder: Decoder = "concatenating",
    subpixel: bool = False,
) -> StudentLayout:
    """Return the layout of a student; see `qpnuclei.models.student.StudentNet` for the arguments.

    Raises
    ------
    TypeError, ValueError
        If the arguments do not describe a network.

    Examples
    --------
    >>> layout = student_layout(8, levels=2, stem_stride=4, decoder="adding")
    >>> layout.stem
    Convolution(inputs=3, outputs=8, kernel=6, stride=4)
    >>> layout.decoder
    ((Convolution(inputs=8, outputs=8, kernel=3, stride=1),),)
    """
    depths = (2,) * levels if encoder_convolutions is None else tuple(encoder_convolutions)
    if base_channels < 1 or not 2 <= levels <= 8:
        raise ValueError(
            f"base_channels={base_channels!r}, levels={levels!r} do not describe a network"
        )
    if max_channels < base_channels:
        raise ValueError(f"max_channels={max_channels!r} is less than {base_channels=!r}")
    if len(depths) != levels or min(depths) < 1:
        raise ValueError(
            f"encoder_convolutions={depths!r} is not a number of at least 1 for each of "
            f"{levels} levels"
        )
    if stem_stride not in (2, 4):
        raise ValueError(f"stem_stride must be 2 or 4, not {stem_stride!r}")
    if decoder not in get_args(Decoder):
        raise ValueError(f"decoder must be one of {get_args(Decoder)}, not {decoder!r}")
    adding = decoder == "adding"
    cell_px = stem_stride if subpixel or stem_stride == 4 else 1
    geometry = student_geometry(
        depths, stem_stride, 1 if adding else 2, subpixel=subpixel or stem_stride == 4
    )
    widths = [min(base_channels * 2**level, max_channels) for level in range(levels)]
    above = [widths[max(level - 1, 0)] for level in range(levels)]
    ends = list(widths)
    if adding:
        ends[-1] = above[-1]  # addition needs equal channels
    return StudentLayout(
        Convolution(3, widths[0], stem_stride + 2, stem_stride),
        tuple(
            _chain(above[level], *[widths[level]] * (depths[level] - 1), ends[level])
            for level in range(levels)
        ),
        tuple(
            _chain(widths[level], above[level])
            if adding
            else _chain(widths[level] + widths[level + 1], widths[level], widths[level])
            for level in range(levels - 1)
        ),
        Convolution(widths[0], 2 * cell_px**2, 1),
        adding,
        cell_px,
        geometry,
    )


def _chain(*channels: int) -> tuple[Convolution, ...]:
    return tuple(itertools.starmap(Convolution, itertools.pairwise(channels)))
