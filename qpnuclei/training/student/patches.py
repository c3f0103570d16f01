"""The tissue a student learns from: a sample of each slide, held in memory."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from qpnuclei.errors import UsageError
from qpnuclei.slides.pixels import RGB
from qpnuclei.slides.resolution import Scale, working_downsample
from qpnuclei.slides.stains import Stains, estimate_macenko
from qpnuclei.training.sources import Source
from qpnuclei.training.tile_index import MAX_ENLARGEMENT, tissue_tiles

_log = logging.getLogger(__name__)

_Window = tuple[int, int, int, int]  # x, y, width, height

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
    mpp : (float, float)
        µm/px of the patches in x and y: up to 10 % from the model's, as such slides are not
        resampled (`qpnuclei.slides.resolution.working_downsample`).
    """

    name: str
    patches: list[RGB]
    stains: Stains
    mpp: tuple[float, float]


def sample_slides(
    sources: Sequence[Source],
    *,
    mpp: float,
    patch_px: int,
    patches_per_slide: int,
    max_patches: int,
    min_tissue: float,
    max_enlargement: float = MAX_ENLARGEMENT,
    seed: int,
    on_source: Callable[[int], None] = lambda _: None,
    warns: bool = True,
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
        Largest number of patches of a whole slide; image patches are used completely.
    max_patches : int
        Largest number of patches in all, drawn evenly from the slides.
    min_tissue : float
        Least share of tissue in a patch of a whole slide, 0 to 1.
    max_enlargement : float
        Images whose µm/px exceed this factor times `mpp` are refused.
    seed : int
        Of the sample.
    on_source : callable
        Called with the number of sources looked at.
    warns : bool
        Whether to log a warning for each source of which nothing is drawn.

    Returns
    -------
    list of SlideSample
        Those sources of which a patch was drawn: no whole slides without tissue, and no images of
        less than a pixel at `mpp`.

    Raises
    ------
    qpnuclei.errors.UsageError
        If an image is too coarse.
    qpnuclei.errors.SlideError
        If an image cannot be read.
    """
    _check_resolution(sources, mpp, max_enlargement)
    rng = np.random.default_rng(seed)
    candidates: list[tuple[Source, _Window]] = []
    for number, source in enumerate(sources):
        on_source(number)
        downsample = working_downsample(source.mpp, mpp)
        if source.is_patch and source.roi is None:
            width, height = int(source.width / downsample[0]), int(source.height / downsample[1])
            windows = _equal_parts(width, height, patch_px)
            reason = f"it is less than a pixel at {mpp:g} µm/px"
        else:
            index = tissue_tiles(
                [source], [mpp], patch_px, min_tissue, max_enlargement=max_enlargement
            )
            reason = f"no part of {patch_px} px at {mpp:g} µm/px is {100 * min_tissue:.0f} % tissue"
            chosen = rng.permutation(len(index))[:patches_per_slide]
            windows = [(int(index.x[i]), int(index.y[i]), patch_px, patch_px) for i in chosen]
        if not windows and warns:
            _log.warning("%s is left out: %s", source.name, reason)
        candidates += [(source, window) for window in windows]
    on_source(len(sources))
    if len(candidates) > max_patches:
        kept = sorted(rng.permutation(len(candidates))[:max_patches])
        candidates = [candidates[i] for i in kept]
    return [
        _read(source, [window for _, window in group], mpp)
        for source, group in itertools.groupby(candidates, key=lambda candidate: candidate[0])
    ]


def _check_resolution(sources: Sequence[Source], mpp: float, max_enlargement: float) -> None:
    """Refuse images that would be enlarged: the student would learn blurred nuclei."""
    coarse = [source for source in sources if max(source.mpp) > mpp * max_enlargement]
    if coarse:
        coarsest = max(max(source.mpp) for source in coarse)
        more = f" and {len(coarse) - 1} more" if len(coarse) > 1 else ""
        raise UsageError(
            f"{coarse[0].name}{more}: up to {coarsest:.3g} µm/px, coarser than the {mpp:g} µm/px "
            "that the recipe learns at",
            "leave them out, or adapt the packaged model to them alone (up to 1.1 µm/px): qpnuclei "
            f"adapt; or train a model for them: qpnuclei train --set mpp={coarsest:.3g}",
        )


def _read(source: Source, windows: Sequence[_Window], mpp: float) -> SlideSample:
    scale = Scale(source.mpp, working_downsample(source.mpp, mpp))
    with source.open() as slide:
        seen = source.pixels(slide)
        patches = [seen.read(*window, scale.downsample) for window in windows]
    pixels = np.concatenate([patch.reshape(-1, 3)[::_STAIN_STEP] for patch in patches])
    return SlideSample(source.name, patches, estimate_macenko(pixels), scale.working_mpp)


def _equal_parts(width: int, height: int, size: int) -> list[_Window]:
    """Windows that divide an image, each of about `size`; none of an image without pixels."""
    if min(width, height) == 0:
        return []
    x, y = (
        np.linspace(0, extent, max(1, round(extent / size)) + 1).round().astype(int)
        for extent in (width, height)
    )
    return [
        (int(x0), int(y0), int(x1 - x0), int(y1 - y0))
        for y0, y1 in itertools.pairwise(y)
        for x0, x1 in itertools.pairwise(x)
    ]
