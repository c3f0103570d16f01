"""The nuclei of one image in memory: what a run does, without a project."""

from __future__ import annotations

import numpy as np
import shapely

from qpnuclei.errors import UsageError, quoted
from qpnuclei.nuclei.table import NucleiTable, concatenate
from qpnuclei.pipeline.inference.infer import find_nuclei
from qpnuclei.pipeline.planning.tiles import plan_tiles
from qpnuclei.segmentation.engine import Engine
from qpnuclei.slides.pixels import RGB
from qpnuclei.slides.resolution import Scale, resolve_mpp, working_downsample
from qpnuclei.slides.slide import ImageInMemory
from qpnuclei.slides.stains import DEFAULT_HE, Stains


def segment(
    engine: Engine, rgb: RGB, mpp: float | tuple[float, float], stains: Stains = DEFAULT_HE
) -> NucleiTable:
    """Find and measure the nuclei of one image in memory: what ``qpnuclei run`` does.

    The nuclei of a crop of a slide are exactly those that a run finds there only if the origin of
    the crop is a multiple of `EngineSpec.stride` in x and y, in px of the engine's resolution. Near
    the border of a crop they can differ in any case: beyond it, the engine sees its reflection.

    Parameters
    ----------
    engine : Engine
        From `qpnuclei.segmentation.engine.load_engine`.
    rgb : (H, W, 3) uint8 ndarray
        Tissue. An engine that normalises colours takes all of it as the sample.
    mpp : float or (float, float)
        Resolution of `rgb` in µm/px; in x and in y, if it is two numbers, as of `Slide.mpp`. It is
        resampled to the engine's resolution unless they differ by less than 10 %.
    stains : Stains
        For the measurements.

    Returns
    -------
    NucleiTable
        Polygons in px of `rgb`, with QuPath's measurements.

    Raises
    ------
    qpnuclei.errors.MppError
        If `mpp` is absurd (< 0.05 or > 2.5).
    qpnuclei.errors.UsageError
        If `rgb` is not such an array, or `engine` or `stains` is something else.

    Examples
    --------
    >>> from qpnuclei.segmentation.engine import EngineOptions, load_engine
    >>> engine = load_engine("default", EngineOptions(device="cpu"))
    >>> glass = np.full((64, 64, 3), 243, np.uint8)
    >>> len(segment(engine, glass, mpp=0.25))
    0
    """
    if not hasattr(engine, "spec"):
        raise UsageError(f"engine={quoted(engine)}: not an engine", "load one with load_engine")
    if not isinstance(stains, Stains):
        raise UsageError(f"stains={quoted(stains)}: not Stains", "leave it out for H&E")
    if not isinstance(rgb, np.ndarray):
        raise UsageError(
            f"rgb={quoted(rgb)}: not an array",
            "give (H, W, 3) uint8; of a picture of Pillow, np.asarray(picture.convert('RGB'))",
        )
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or rgb.size == 0:
        raise UsageError(
            f"rgb must be (H, W, 3) uint8 and not empty, but is {rgb.shape} {rgb.dtype}",
            "convert it; of a grey image, np.dstack([grey] * 3)",
        )
    one, two = (None, mpp) if isinstance(mpp, tuple) and len(mpp) == 2 else (mpp, None)
    (resolved, _) = resolve_mpp(one, None, two, "the image")
    image = ImageInMemory(rgb, resolved)
    scale = Scale(resolved, working_downsample(resolved, engine.spec.mpp))
    size = image.width, image.height
    tiles = plan_tiles(shapely.box(0, 0, *size), size, scale, engine.spec)
    found: list[NucleiTable] = []
    find_nuclei(image, tiles, engine, scale, stains, found)
    return concatenate(found)
