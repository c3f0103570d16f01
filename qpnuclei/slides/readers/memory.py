"""An image that is decoded completely and kept in memory."""

from __future__ import annotations

from qpnuclei.slides.pixels import RGB


class ArrayReader:
    """Reads from an array in memory.

    Parameters
    ----------
    rgb : (H, W, 3) uint8 ndarray
    vendor : str, optional
    mpp : (float, float), optional
        µm/px in x and y.
    magnification : float, optional
    icc_profile : bytes, optional
    series : int, optional
        Number of the image in an OME-TIFF.
    samples : int
        Samples per pixel in the file from which it was decoded.
    """

    bounds = None
    unused_sizes = ()

    def __init__(
        self,
        rgb: RGB,
        *,
        vendor: str | None = None,
        mpp: tuple[float, float] | None = None,
        magnification: float | None = None,
        icc_profile: bytes | None = None,
        series: int | None = None,
        samples: int = 3,
    ) -> None:
        self._rgb = rgb
        self.vendor = vendor
        self.mpp = mpp
        self.magnification = magnification
        self.icc_profile = icc_profile
        self.series = series
        self.samples = samples
        self.sizes = [(rgb.shape[1], rgb.shape[0])]

    def read(self, level: int, x: int, y: int, width: int, height: int) -> RGB:
        """Return a region; the array has one level."""
        del level
        return self._rgb[y : y + height, x : x + width]

    def close(self) -> None:
        """Do nothing: there is no file to close."""
