"""The size of a slide's pixels."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PixelCalibration:
    """Size of a level-0 pixel in µm; None if the image is not calibrated."""

    width_um: float | None = None
    height_um: float | None = None

    @property
    def mpp(self) -> float | None:
        """Mean of width and height in µm/px, or None."""
        if self.width_um is None or self.height_um is None:
            return None
        return (self.width_um + self.height_um) / 2
