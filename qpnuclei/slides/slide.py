"""Open a slide and read regions of it on a working grid."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from qpnuclei.slides.colour_profile import to_srgb
from qpnuclei.slides.dicom import needed_series_of
from qpnuclei.slides.pixels import RGB
from qpnuclei.slides.readers import open_reader, openslide
from qpnuclei.slides.readers.memory import ArrayReader
from qpnuclei.slides.readers.reader import SlideReader, needing_packages, reading
from qpnuclei.slides.resample import AxisWeights, axis_weights, resample
from qpnuclei.system.arguments import checked_flag

#: Formats that not every OpenSlide in QuPath 0.4 to 0.6 opens, with their suffixes, by vendor.
#: Bio-Formats opens them, with all levels.
LEFT_TO_BIO_FORMATS = {"dicom": ".dcm", "zeiss": ".czi"}


class PixelSource(Protocol):
    """A source of image regions: a `Slide`, or an image in memory."""

    width: int
    height: int

    def read(
        self, x: int, y: int, width: int, height: int, downsample: tuple[float, float]
    ) -> npt.NDArray[np.uint8]:
        """Return a region of the working grid; see `qpnuclei.slides.slide.Slide.read`."""


#: Larger regions of source pixels are read in parts, to limit memory.
_MAX_SOURCE_PIXELS = 2**25


@dataclass(frozen=True)
class Level:
    """One level of the pyramid: its downsample (mean of x and y) and its size in px."""

    downsample: float
    width: int
    height: int


def open_slide(
    path: str | Path,
    *,
    crop_to_bounds: bool = False,
    series: int | None = None,
    apply_icc: bool = False,
) -> Slide:
    """Open a slide or image; docs/formats.md lists the formats and their libraries.

    Parameters
    ----------
    path : path-like
    crop_to_bounds : bool
        Whether to crop level 0 to ``openslide.bounds-*``, as QuPath does if it opens a slide with
        OpenSlide and without ``--no-crop``. No effect on a slide without bounds.
    series : int, optional
        Index of the image in an OME-TIFF with several images, from 0. By default the first one,
        which is refused if it is a label or an overview.
    apply_icc : bool
        Whether to convert colours to sRGB with the ICC profile in the file.

    Raises
    ------
    qpnuclei.errors.UsageError
        If `crop_to_bounds` or `apply_icc` is neither true nor false.
    qpnuclei.errors.NotFoundError
        If there is no such file.
    qpnuclei.errors.SlideError
        If the file cannot be read, is not an 8-bit RGB image, or has no such series; or if a colour
        profile is requested but missing or unusable.

    Examples
    --------
    >>> from PIL import Image
    >>> Image.new("RGB", (640, 480), "white").save("glass.png")
    >>> with open_slide("glass.png") as slide:
    ...     slide.width, slide.height, slide.read(600, 400, 64, 64).shape
    (640, 480, (64, 64, 3))
    """
    path = Path(path)
    crop_to_bounds = checked_flag("crop_to_bounds", crop_to_bounds)
    apply_icc = checked_flag("apply_icc", apply_icc)
    # Without pydicom, OpenSlide would open each file of a DICOM slide as another slide.
    needed_series_of(path)
    reader = open_reader(path, series)
    try:
        return Slide(path, reader, crop_to_bounds, series=series, apply_icc=apply_icc)
    except BaseException:
        reader.close()
        raise


class Slide:
    """An open slide; made by `open_slide`.

    Any thread may read, but reads of one `Slide` take turns. Threads that should read at the same
    time open one slide each. Opening takes milliseconds, or a tenth of a second for a pyramid in
    JPEG 2000. A pickled slide contains the arguments of `open_slide`; the receiving process opens
    the file again.

    Attributes
    ----------
    path : Path
    width, height : int
        Level-0 size in px, in QuPath's frame.
    crop_to_bounds, series, apply_icc
        As given to `open_slide`.
    mpp : (float, float) or None
        µm/px in x and y as stated in the file, unchecked; None if it is not stated.
    magnification : float or None
        Magnification of the objective, as stated in the file.
    levels : tuple of Level
        Largest first.
    image_number : int or None
        Number of the image in an OME-TIFF, from 0, chosen by `series` or by default; None in other
        formats.
    vendor : str or None
        For example ``"aperio"``; None for generic TIFF and plain images.
    """

    def __init__(
        self,
        path: Path,
        reader: SlideReader,
        crop_to_bounds: bool,
        *,
        series: int | None = None,
        apply_icc: bool = False,
    ) -> None:
        self.path = path
        self.mpp = reader.mpp
        self.magnification = reader.magnification
        self.vendor = reader.vendor
        self.image_number = reader.series
        self._reader = reader
        self.crop_to_bounds, self.series, self.apply_icc = crop_to_bounds, series, apply_icc
        self._to_srgb = to_srgb(path, reader.icc_profile) if apply_icc else None
        self._lock = threading.Lock()
        full_width, full_height = reader.sizes[0]
        x, y, self.width, self.height = (0, 0, full_width, full_height)
        if crop_to_bounds and reader.bounds is not None:
            x, y, self.width, self.height = reader.bounds
        self._origin = x, y
        self._pixel_sizes = [_pixel_size((full_width, full_height), size) for size in reader.sizes]
        self.levels = self._levels(reader.sizes)

    def __repr__(self) -> str:
        return f"Slide({str(self.path)!r}, {self.width}x{self.height} px, mpp={self.mpp})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.path, self.crop_to_bounds, self.series, self.apply_icc)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._reader.close()

    def levels_of_openslide(self) -> tuple[Level, ...]:
        """Return the levels that OpenSlide has, up to the first that shows something else.

        They may be others than `levels`: OpenSlide does not know all levels that qpnuclei reads,
        and knows more of some formats.

        Returns
        -------
        tuple of Level
            Largest first; empty if OpenSlide is missing, cannot open the file, or reads another
            image of it.
        """
        if isinstance(self._reader, openslide.OpenSlideReader):
            return self.levels
        with reading(self.path):
            sizes = openslide.level_sizes(self.path)
        same = sizes[:1] == list(self._reader.sizes[:1])
        return self._levels(self._before_unused(sizes)) if same else ()

    def levels_of_bio_formats(self) -> tuple[Level, ...]:
        """Return the levels that Bio-Formats has, up to the first that shows something else.

        Of a TIFF that is no OME-TIFF, Bio-Formats need not know more than the first.

        Returns
        -------
        tuple of Level
            Largest first.
        """
        has_all = self.image_number is not None or self.vendor in LEFT_TO_BIO_FORMATS
        sizes = self._reader.sizes if has_all else self._reader.sizes[:1]
        return self._levels(self._before_unused(sizes))

    def channels_of_bio_formats(self) -> int:
        """Return the number of channels that QuPath has of the file if Bio-Formats reads it.

        It shows the indices of a palette as grey, and leaves out the alpha channel of RGB, but not
        that of grey.

        Returns
        -------
        int
            1, 2, or 3 for RGB.
        """
        return min(self._reader.samples, 3)

    def _before_unused(self, sizes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return the sizes of levels that are larger than any page that is no level.

        Other programs count that page as a level, and so number the smaller ones differently.
        """
        widest = max((width for width, _ in self._reader.unused_sizes), default=0)
        return [*sizes[:1], *(size for size in sizes[1:] if size[0] > widest)]

    def _levels(self, sizes: Sequence[tuple[int, int]]) -> tuple[Level, ...]:
        """Describe levels of these sizes; they are cropped if the slide is."""
        levels = []
        for width, height in sizes:
            sx, sy = _pixel_size(self._reader.sizes[0], (width, height))
            if (self.width, self.height) != self._reader.sizes[0]:
                width, height = round(self.width / sx), round(self.height / sy)
            levels.append(Level((sx + sy) / 2, width, height))
        return tuple(levels)

    def read(
        self,
        x: int,
        y: int,
        width: int,
        height: int,
        downsample: tuple[float, float] = (1.0, 1.0),
    ) -> RGB:
        """Read a region of the working grid.

        Working pixel ``(i, j)`` covers the level-0 area ``[i * sx, (i + 1) * sx)`` by
        ``[j * sy, (j + 1) * sy)``. Its value does not depend on the region that is read. Reductions
        average by area, from the smallest level that is fine enough; enlargements interpolate
        linearly between pixel centres.

        Parameters
        ----------
        x, y, width, height : int
            The region in working pixels; may reach beyond the slide.
        downsample : (float, float)
            ``(sx, sy)``: level-0 px per working pixel.

        Returns
        -------
        (height, width, 3) uint8 ndarray
            RGB; white beyond the slide.

        Raises
        ------
        ValueError
            If the size is negative or a downsample is not positive.
        qpnuclei.errors.SlideError
            If pixels cannot be decoded.
        """
        if width < 0 or height < 0:
            raise ValueError(f"the size of a region must not be negative: {width} x {height} px")
        if not all(math.isfinite(s) and s > 0 for s in downsample):
            raise ValueError(f"downsample must be positive, not {downsample!r}")
        region = np.full((height, width, 3), 255, np.uint8)
        self._read_into(region, x, y, downsample, self._best_level(downsample))
        return region

    def thumbnail(self, max_width: int, max_height: int) -> RGB:
        """Return the whole slide, reduced (never enlarged) to fit the given size.

        Returns
        -------
        (height, width, 3) uint8 ndarray
        """
        factor = max(self.width / max_width, self.height / max_height, 1.0)
        width = max(1, round(self.width / factor))
        height = max(1, round(self.height / factor))
        return self.read(0, 0, width, height, (self.width / width, self.height / height))

    def _best_level(self, downsample: tuple[float, float]) -> int:
        fine_enough = [
            i
            for i, sizes in enumerate(self._pixel_sizes)
            if all(size <= s * (1 + 1e-9) for size, s in zip(sizes, downsample, strict=True))
        ]
        return max(fine_enough, key=lambda i: self._pixel_sizes[i], default=0)

    def _read_into(
        self, region: RGB, x: int, y: int, downsample: tuple[float, float], level: int
    ) -> None:
        height, width = region.shape[:2]
        if width == 0 or height == 0:
            return
        columns = self._weights(0, x, width, downsample, level)
        rows = self._weights(1, y, height, downsample, level)
        source_width, source_height = columns.stop - columns.first, rows.stop - rows.first
        if source_width == 0 or source_height == 0:
            return
        if source_width * source_height > _MAX_SOURCE_PIXELS and width * height > 1:
            if source_height >= source_width and height > 1:
                half = height // 2
                self._read_into(region[:half], x, y, downsample, level)
                self._read_into(region[half:], x, y + half, downsample, level)
            else:
                half = width // 2
                self._read_into(region[:, :half], x, y, downsample, level)
                self._read_into(region[:, half:], x + half, y, downsample, level)
            return
        with self._lock, needing_packages(self.path), reading(self.path, "cannot be decoded"):
            source = self._reader.read(
                level, columns.first, rows.first, source_width, source_height
            )
        if self._to_srgb is not None:
            source = self._to_srgb(source)
        region[:] = resample(source, rows, columns)

    def _weights(
        self, axis: int, start: int, count: int, downsample: tuple[float, float], level: int
    ) -> AxisWeights:
        return axis_weights(
            start,
            count,
            downsample[axis],
            pixel_size=self._pixel_sizes[level][axis],
            n_pixels=self._reader.sizes[level][axis],
            origin=self._origin[axis],
            extent=(self.width, self.height)[axis],
        )


class ImageInMemory(Slide):
    """An array as a slide.

    Parameters
    ----------
    rgb : (H, W, 3) uint8 ndarray
    mpp : (float, float)
        µm/px in x and y.
    """

    def __init__(self, rgb: RGB, mpp: tuple[float, float]) -> None:
        super().__init__(Path("image in memory"), ArrayReader(rgb, mpp=mpp), False)


def _reopen(path: Path, crop_to_bounds: bool, series: int | None, apply_icc: bool) -> Slide:
    return open_slide(path, crop_to_bounds=crop_to_bounds, series=series, apply_icc=apply_icc)


def _pixel_size(full: tuple[int, int], size: tuple[int, int]) -> tuple[float, float]:
    """Return level-0 px per px of a level, in x and y.

    Pyramids are made with integer factors, and an incomplete last pixel is cropped or padded. The
    quotient of the sizes (4443 / 2221) would stretch the level and shift its far end.
    """
    factor = round((full[0] / size[0] + full[1] / size[1]) / 2)
    if all(abs(f / factor - s) < 1 for f, s in zip(full, size, strict=True)):
        return float(factor), float(factor)
    return full[0] / size[0], full[1] / size[1]
