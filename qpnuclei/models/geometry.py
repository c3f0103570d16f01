"""Receptive fields and strides of the networks, computed without torch for planning a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from qpnuclei.system.checked import rechecked

#: Dilations of the six residual blocks in the network of the paper.
PAPER_DILATIONS = (1, 2, 3, 5, 10, 20)

#: Largest accepted radius; larger values in a file are an error.
LARGEST_PX = 4096

#: More convolutions in a level mean a broken file, and would take minutes to follow.
MOST_CONVOLUTIONS = 64

_Span = tuple[int, int]


class NetworkGeometry(Struct, frozen=True, forbid_unknown_fields=True):
    """Receptive field and input alignment of a network, in px of its input.

    Parameters
    ----------
    receptive_radius_px : int
        A pixel of the output depends only on pixels of the input up to this distance, in rows and
        in columns.
    stride : int
        Height and width of the input must be multiples of the stride. Two inputs with origins that
        differ by multiples of the stride give the same result, shifted.
    """

    receptive_radius_px: int
    stride: int

    def __post_init__(self) -> None:
        if not 0 <= self.receptive_radius_px <= LARGEST_PX:
            raise ValueError(f"a receptive radius of {self.receptive_radius_px} px is impossible")
        if not 1 <= self.stride <= LARGEST_PX:
            raise ValueError(f"a stride of {self.stride} px is impossible")


def geometry_of(family: str, architecture: Mapping[str, Any]) -> NetworkGeometry:
    """Return the geometry of a network from the arguments that build it.

    Parameters
    ----------
    family : {"attention", "student"}
    architecture : mapping
        Arguments of `qpnuclei.models.attention.AttentionNet` or of
        `qpnuclei.models.student.StudentNet`.

    Raises
    ------
    TypeError, ValueError
        If the arguments do not describe such a network.

    Examples
    --------
    >>> geometry_of("attention", {})
    NetworkGeometry(receptive_radius_px=83, stride=1)
    >>> geometry_of("student", {"levels": 2, "stem_stride": 4, "decoder": "adding"})
    NetworkGeometry(receptive_radius_px=40, stride=8)
    """
    if family == "attention":
        geometry = attention_geometry(
            architecture.get("dilations", PAPER_DILATIONS), architecture.get("stride", 1)
        )
    else:
        geometry = student_geometry(
            architecture.get("encoder_convolutions") or (2,) * architecture.get("levels", 4),
            architecture.get("stem_stride", 2),
            1 if architecture.get("decoder") == "adding" else 2,
            subpixel=architecture.get("subpixel", False),
        )
    return rechecked(geometry)  # an architecture may have numbers that are no integers


def attention_geometry(dilations: Sequence[int], stride: int) -> NetworkGeometry:
    """Return the geometry of an `AttentionNet` (a radius of 83 px in the paper)."""
    radius = 2 * sum(dilations)
    # Stride 2: the interpolation reaches 1 px into the next cell, and the 4x4 stem 2 px more.
    return NetworkGeometry(radius + 1 if stride == 1 else 2 * radius + 3, stride)


def attention_min_size_px(dilations: Sequence[int], stride: int, padding: str) -> int:
    """Return the smallest height and width of the input of an `AttentionNet`, in px."""
    return stride * (max(dilations) + 1 if padding == "reflect" else 1)


def student_geometry(
    encoder_convolutions: Sequence[int],
    stem_stride: int,
    decoder_convolutions: int,
    *,
    subpixel: bool = False,
) -> NetworkGeometry:
    """Return the geometry of a `StudentNet`.

    The function follows spans of pixels from the output back to the input, along the widest path.

    Parameters
    ----------
    encoder_convolutions : sequence of int
        Number of 3x3 convolutions of each level, finest first.
    stem_stride : {2, 4}
    decoder_convolutions : int
        Number of 3x3 convolutions of each level of the decoder.
    subpixel : bool
        Whether cells predict their own pixels; with a stem stride of 4 they always do.
    """

    def upsample(span: _Span) -> _Span:
        return (span[0] - 1) // 2, (span[1] + 1) // 2

    def to_cell(span: _Span) -> _Span:
        return span[0] // stem_stride, span[1] // stem_stride

    def convolve(span: _Span) -> _Span:
        return span[0] - 1, span[1] + 1

    def pool(span: _Span) -> _Span:
        return 2 * span[0], 2 * span[1] + 1

    def stem(span: _Span) -> _Span:
        return stem_stride * span[0] - 1, stem_stride * (span[1] + 1)

    halvings = len(encoder_convolutions) - 1
    steps = [to_cell if subpixel or stem_stride == 4 else upsample]
    steps += [*[convolve] * decoder_convolutions, upsample] * halvings
    for convolutions in reversed(encoder_convolutions):
        steps += [*[convolve] * convolutions, pool]
    steps[-1] = stem  # there is no pooling before the finest level
    stride: int = stem_stride * 2**halvings
    if stride > LARGEST_PX:
        raise ValueError(f"{halvings + 1} levels make a stride of {stride} px")
    if max(encoder_convolutions) > MOST_CONVOLUTIONS:
        raise ValueError(
            f"a level has {max(encoder_convolutions)} convolutions; {MOST_CONVOLUTIONS} is the most"
        )
    radius = 0
    for pixel in range(stride):
        span = (pixel, pixel)
        for step in steps:
            span = step(span)
        radius = max(radius, pixel - span[0], span[1] - pixel)
    return NetworkGeometry(radius, stride)
