"""The size of a slide's pixels."""

from __future__ import annotations

from dataclasses import dataclass

#: Pixel size in x and y, in µm per level-0 px.
Mpp = tuple[float, float]


@dataclass(frozen=True)
class PixelCalibration:
    """Size of a level-0 pixel in µm; None if the image is not calibrated."""

    width_um: float | None = None
    height_um: float | None = None

    @property
    def mpp(self) -> float | None:
        """Mean of width and height in µm/px, or None."""
        return None if self.mpp_xy is None else sum(self.mpp_xy) / 2

    @property
    def mpp_xy(self) -> Mpp | None:
        """Width and height in µm/px; None if one of them is unknown."""
        if self.width_um is None or self.height_um is None:
            return None
        return self.width_um, self.height_um


def area_mm2(area_px2: float, mpp: Mpp) -> float:
    """Return an area given in px² in mm²; `mpp` is µm/px in x and y.

    Examples
    --------
    >>> area_mm2(4_000_000, (0.5, 0.5))
    1.0
    """
    return float(area_px2 * mpp[0] * mpp[1] * 1e-6)
