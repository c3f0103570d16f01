"""Decide a slide's pixel size, and the scale from level 0 to a model's resolution."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qpnuclei.choices import MAX_MPP, MIN_MPP
from qpnuclei.errors import MppError, UsageError, quoted
from qpnuclei.slides.calibration import Mpp, PixelCalibration
from qpnuclei.system.arguments import is_number


@dataclass(frozen=True)
class Scale:
    """Pixel size of level 0, and the downsample to the working grid.

    Parameters
    ----------
    mpp : (float, float)
        µm per level-0 px in x and y.
    downsample : (float, float)
        Level-0 px per px of the working grid, which the network sees.
    """

    mpp: Mpp
    downsample: tuple[float, float] = (1.0, 1.0)

    @property
    def working_mpp(self) -> Mpp:
        """µm per px of the working grid in x and y."""
        return self.mpp[0] * self.downsample[0], self.mpp[1] * self.downsample[1]


_log = logging.getLogger(__name__)

MppSource = Literal["--mpp", "project", "slide"]

#: Two pixel sizes agree if their relative difference is less.
_AGREEMENT = 0.01
#: They are the same if it is less: programs round differently when they store a pixel size.
_ROUNDING = 1e-6

#: A change of scale by 10 % does not matter to a network, as the sizes of nuclei vary more.
#: Resampling from 0.2526 to 0.25 µm/px would interpolate every pixel: that blurs chromatin and
#: takes time.
NATIVE_TOLERANCE = 0.10


def resolve_mpp(
    override: float | None,
    calibration: PixelCalibration | None,
    slide: Mpp | None,
    name: str = "the slide",
) -> tuple[Mpp, MppSource]:
    """Decide the level-0 pixel size: the user's, otherwise the project's, otherwise the slide's.

    Parameters
    ----------
    override : float or None
        The user's ``--mpp`` in µm/px, for both axes; it overrides all others.
    calibration : PixelCalibration or None
        The project's pixel size of the image.
    slide : (float, float) or None
        The slide file's pixel size, `qpnuclei.slides.Slide.mpp`.
    name : str
        Name of the image in messages.

    Returns
    -------
    (mpp_x, mpp_y) : tuple of float
    source : str
        ``"--mpp"``, ``"project"`` or ``"slide"``.

    Raises
    ------
    qpnuclei.errors.MppError
        If there is none, or it is outside 0.05 to 2.5 µm/px.
    """
    project = None if calibration is None else calibration.mpp_xy
    if override is not None:
        chosen = _checked((override, override), "--mpp", name)
        for source, stated in (("the project", project), ("the slide file", slide)):
            if stated is not None and not agree(chosen, stated):
                _log.warning(
                    "%s: --mpp %g is used, although %s says %s µm/px",
                    name,
                    override,
                    source,
                    mpp_text(stated),
                )
                break
        return chosen, "--mpp"
    if project is not None:
        return _checked(project, "project", name), "project"
    if slide is not None:
        return _checked(slide, "slide", name), "slide"
    raise MppError(
        f"{name} has no pixel size, neither in the project nor in the slide file",
        "give it with --mpp, in µm per level-0 pixel (40x scans have about 0.25, 20x about 0.5)",
    )


def working_downsample(slide_mpp: Mpp, model_mpp: float) -> tuple[float, float]:
    """Return level-0 px per px of a model's working grid, in x and y.

    The result is exactly ``(1.0, 1.0)`` if both axes are within 10 % of the model's resolution
    (`NATIVE_TOLERANCE`).

    Parameters
    ----------
    slide_mpp : (float, float)
        Level-0 µm/px in x and y.
    model_mpp : float
        µm/px of the model's input.
    """
    x, y = (model_mpp / mpp for mpp in slide_mpp)
    if all(abs(mpp / model_mpp - 1) <= NATIVE_TOLERANCE for mpp in slide_mpp):
        return 1.0, 1.0
    return x, y


def checked_mpp(name: str, value: Any) -> float:
    """Return a pixel size that the user gives, in µm/px, as `float`.

    Parameters
    ----------
    name : str
        Of the parameter or the image, for the message.

    Raises
    ------
    qpnuclei.errors.MppError
        If it is not a number, or outside 0.05 to 2.5 µm/px.
    """
    return _checked((value, value), "--mpp", name)[0]


def checked_sizes(name: str, sizes: Mapping[str, Any]) -> dict[str, float]:
    """Return pixel sizes by image as `checked_mpp` does.

    Raises
    ------
    UsageError
        If `sizes` is not a mapping.
    MppError
        If one is not a number, or outside 0.05 to 2.5 µm/px.
    """
    if not isinstance(sizes, Mapping):
        raise UsageError(f"{name}={quoted(sizes)}: not a mapping", "give {image: µm/px}")
    return {image: checked_mpp(f"{name}, image {image}", mpp) for image, mpp in sizes.items()}


def _checked(mpp: Mpp, source: MppSource, name: str) -> Mpp:
    is_numbers = all(map(is_number, mpp))
    if not is_numbers or not all(MIN_MPP <= axis <= MAX_MPP for axis in mpp):
        size = mpp_text(mpp) if is_numbers else quoted(mpp[0])
        where = {"--mpp": "the given mpp", "project": "the project", "slide": "the slide file"}[
            source
        ]
        raise MppError(
            f"{name}: a pixel size of {size} µm/px, from {where}, cannot be right "
            f"(possible: {MIN_MPP} to {MAX_MPP})",
            "give the true one as mpp (--mpp), in µm per level-0 pixel (40x scans have about 0.25)"
            if is_numbers
            else "give one number as mpp, in µm per level-0 pixel",
        )
    return float(mpp[0]), float(mpp[1])


def agree(a: Mpp, b: Mpp) -> bool:
    """Tell whether two pixel sizes, in µm/px in x and y, differ by less than 1 %."""
    return _are_close(a, b, _AGREEMENT)


def same_mpp(a: Mpp | None, b: Mpp | None) -> bool:
    """Tell whether two pixel sizes, in µm/px in x and y, are equal but for rounding, or unknown.

    Examples
    --------
    >>> same_mpp((0.5, 0.25), (0.500000001, 0.25)), same_mpp((0.5, 0.25), (0.501, 0.25))
    (True, False)
    >>> same_mpp(None, None), same_mpp(None, (0.5, 0.5))
    (True, False)
    """
    if a is None or b is None:
        return a is b
    return _are_close(a, b, _ROUNDING)


def _are_close(a: Mpp, b: Mpp, tolerance: float) -> bool:
    return all(math.isclose(p, q, rel_tol=tolerance) for p, q in zip(a, b, strict=True))


def mpp_text(mpp: Mpp) -> str:
    """Return a pixel size in x and y for a message.

    Examples
    --------
    >>> mpp_text((0.5, 0.5)), mpp_text((0.5, 0.25))
    ('0.5', '0.5 x 0.25')
    """
    x, y = (f"{axis:.4g}" for axis in mpp)
    return x if x == y else f"{x} x {y}"
