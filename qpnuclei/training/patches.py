"""The tissue a student learns from: a sample of each slide, held in memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qpnuclei.errors import UsageError
from qpnuclei.qupath.model import Stains
from qpnuclei.slides.resolution import working_downsample
from qpnuclei.slides.stains import estimate_macenko
from qpnuclei.training.sources import Source
from qpnuclei.training.tiles import build_tile_index

RGB = npt.NDArray[np.uint8]

#: Stain vectors are estimated on every such pixel.
_STAIN_STEP = 5


@dataclass(frozen=True, eq=False)
class SlideSample:
    """Patches of one slide, and its colours.

    Parameters
    ----------
    name : str
        Of the slide.
    patches : list of (H, W, 3) uint8 ndarray
        At the model's resolution.
    stains : Stains
        Estimated on all of these patches together.
    """

    name: str
    patches: list[RGB]
    stains: Stains


def sample_slides(
    sources: Sequence[Source],
    *,
    mpp: float,
    patch_px: int,
    patches_per_slide: int,
    min_tissue: float,
    seed: int,
    on_source: Callable[[int], None] = lambda _: None,
) -> list[SlideSample]:
    """Read image patches whole, and of every slide a random sample of its tissue.

    Parameters
    ----------
    sources : sequence of Source
    mpp : float
        µm/px of the patches.
    patch_px : int
        Side of the patches, in px of `mpp`. An image patch is cut into equal parts of about this
        size.
    patches_per_slide : int
        At most so many of a whole slide; of image patches, all.
    min_tissue : float
        Least share of tissue in a patch of a whole slide, 0 to 1.
    seed : int
        Of the sample.
    on_source : callable
        Called with the number of sources read.

    Raises
    ------
    qpnuclei.errors.UsageError
        If a whole slide has no tissue, or is coarser than `mpp`.
    qpnuclei.errors.SlideError
        If an image cannot be read.
    """
    samples = []
    for number, source in enumerate(sources):
        on_source(number)
        rng = np.random.default_rng((seed, number))
        downsample = working_downsample(source.mpp, mpp)
        if source.is_patch and source.roi is None:
            windows = _equal_parts(
                int(source.width / downsample[0]), int(source.height / downsample[1]), patch_px
            )
        else:
            index = build_tile_index([source], [mpp], patch_px, min_tissue)
            chosen = rng.permutation(len(index))[:patches_per_slide]
            windows = [(int(index.x[i]), int(index.y[i]), patch_px, patch_px) for i in chosen]
        with source.open() as slide:
            patches = [slide.read(*window, downsample) for window in windows]
        pixels = np.concatenate([patch.reshape(-1, 3)[::_STAIN_STEP] for patch in patches])
        samples.append(SlideSample(source.name, patches, estimate_macenko(pixels)))
    on_source(len(sources))
    if not samples:
        raise UsageError("there is nothing to learn from", "name slides, patches or projects")
    return samples


def _equal_parts(width: int, height: int, size: int) -> list[tuple[int, int, int, int]]:
    """Windows (x, y, width, height) that divide an image, each of about `size`."""
    x, y = (
        np.linspace(0, extent, max(1, round(extent / size)) + 1).round().astype(int)
        for extent in (width, height)
    )
    return [
        (int(x0), int(y0), int(x1 - x0), int(y1 - y0))
        for y0, y1 in itertools.pairwise(y)
        for x0, x1 in itertools.pairwise(x)
    ]
