"""Where the tissue tiles are: an index, built once.

Nothing is exported: a tile is read from its slide when a batch wants it
(`qpnuclei.training.tile_reader`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from qpnuclei.errors import NotFoundError, UsageError, number_of
from qpnuclei.slides.hdab_as_he import has_dab
from qpnuclei.slides.masks import rasterise
from qpnuclei.slides.resolution import working_downsample
from qpnuclei.slides.slide import Slide
from qpnuclei.slides.tissue import tissue_fraction
from qpnuclei.system.files import resolved, write_atomically
from qpnuclei.training.sources import Source

_log = logging.getLogger(__name__)


#: Tissue is judged on the slide reduced to this many µm/px.
_OVERVIEW_MPP = 4.0

#: A scale up to this much finer than the slide is still read from it. Beyond, enlarged pixels
#: would teach the network that the finest scale is the blurred one.
MAX_ENLARGEMENT = 1.2

#: Patches of a data set may all be too small for a scale: a warning names so many.
_NAMED = 3


@dataclass(frozen=True, eq=False)
class TileIndex:
    """N tiles.

    Parameters
    ----------
    source : (N,) int32 ndarray
        Index of the image in the list of sources.
    scale : (N,) int8 ndarray
        Index of the magnification in the recipe's scales.
    x, y : (N,) int32 ndarray
        Corner, in px of that scale.
    tissue : (N,) float32 ndarray
        Share of tissue (within the ROI, if there is one), 0 to 1.
    """

    source: npt.NDArray[np.int32]
    scale: npt.NDArray[np.int8]
    x: npt.NDArray[np.int32]
    y: npt.NDArray[np.int32]
    tissue: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.source)

    def per_scale(self, n_scales: int) -> list[npt.NDArray[np.intp]]:
        """Return the indices of the tiles of each scale."""
        return [np.flatnonzero(self.scale == i) for i in range(n_scales)]

    def images(self, sources: Sequence[Source]) -> list[str]:
        """Return the names of the sources that have tiles."""
        return [sources[i].name for i in sorted(set(self.source.tolist()))]

    def to_parquet(self, path: Path, sources: Sequence[Source], scales: Sequence[float]) -> None:
        """Write the index, readable on its own: each tile with its slide's name and µm/px."""
        names = pa.array([source.name for source in sources])
        table = pa.table(
            {
                "slide": pa.DictionaryArray.from_arrays(pa.array(self.source), names),
                "mpp": np.asarray(scales, np.float32)[self.scale],
                "x": self.x,
                "y": self.y,
                "tissue": self.tissue,
                "source": self.source,
                "scale": self.scale,
            }
        )
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        write_atomically(path, sink.getvalue().to_pybytes())

    @classmethod
    def from_parquet(cls, path: Path) -> TileIndex:
        """Read an index that `to_parquet` wrote."""
        with path.open("rb") as stream:  # Arrow itself opens only names in UTF-8
            table = pq.read_table(stream, columns=["source", "scale", "x", "y", "tissue"])
        return cls(**{name: table[name].to_numpy() for name in table.column_names})


def cached_tile_index(
    folder: Path,
    sources: Sequence[Source],
    scales: Sequence[float],
    tile_px: int,
    min_tissue: float,
    on_source: Callable[[int], None] = lambda _: None,
) -> TileIndex:
    """Return the tile index of these sources, from `folder` if it was built before.

    The file's name holds a hash of everything that determines its content; see `sources_digest`.

    Parameters
    ----------
    folder : pathlib.Path
    sources, scales, tile_px, min_tissue, on_source
        As for `build_tile_index`.
    """
    digest = sources_digest(sources, scales, tile_px, min_tissue)
    path = folder / f"tiles-{digest}.parquet"
    if path.is_file():
        _log.info("tile index %s", path)
        return TileIndex.from_parquet(path)
    index = build_tile_index(sources, scales, tile_px, min_tissue, on_source)
    index.to_parquet(path, sources, scales)
    return index


def build_tile_index(
    sources: Sequence[Source],
    scales: Sequence[float],
    tile_px: int,
    min_tissue: float,
    on_source: Callable[[int], None] = lambda _: None,
) -> TileIndex:
    """Return the tissue tiles of all sources, of which every scale has some.

    Warnings name the sources that have none, at all or at a scale.

    Parameters
    ----------
    sources, scales, tile_px, min_tissue, on_source
        As for `tissue_tiles`.

    Raises
    ------
    qpnuclei.errors.UsageError
        If a scale has no tile at all.
    """
    index = tissue_tiles(sources, scales, tile_px, min_tissue, on_source)
    per_scale = index.per_scale(len(scales))
    with_tiles = [mpp for mpp, tiles in zip(scales, per_scale, strict=True) if len(tiles)]
    for mpp, tiles in zip(scales, per_scale, strict=True):
        if len(tiles) == 0:
            hint = "give larger or finer images"
            if len(with_tiles) > 1:  # the magnification is told from another one
                left = ",".join(f"{other:g}" for other in with_tiles)
                hint += f", or leave that scale out: --set scales=[{left}]"
            raise UsageError(
                f"no source has a tile of {tile_px} px at {mpp} µm/px that is {min_tissue:.0%} "
                f"tissue (the finest source has {min(max(s.mpp) for s in sources):.3g} µm/px)",
                hint,
            )
        _log.info("%s at %g µm/px", number_of(len(tiles), "tile"), mpp)
    _warn_of_sources_without_tiles(index, sources, scales, tile_px, min_tissue)
    return index


def _warn_of_sources_without_tiles(
    index: TileIndex,
    sources: Sequence[Source],
    scales: Sequence[float],
    tile_px: int,
    min_tissue: float,
) -> None:
    """Name them, except at scales for which they are too coarse: `tissue_tiles` did that."""
    used = set(index.source.tolist())
    for number, source in enumerate(sources):
        finer = [mpp for mpp in scales if not _is_too_coarse(source, mpp)]
        if number not in used and finer:
            _log.warning(
                "%s is left out: no part of %d px at %s µm/px is %.0f %% tissue",
                *(source.name, tile_px, " or ".join(f"{mpp:g}" for mpp in finer)),
                100 * min_tissue,
            )
    for mpp, tiles in zip(scales, index.per_scale(len(scales)), strict=True):
        without = used - set(index.source[tiles].tolist())
        names = [sources[i].name for i in sorted(without) if not _is_too_coarse(sources[i], mpp)]
        if names:
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            _log.warning(
                "no tiles at %g µm/px, where no part of %d px is %.0f %% tissue: %s%s",
                *(mpp, tile_px, 100 * min_tissue, ", ".join(names[:_NAMED]), more),
            )


def _is_too_coarse(source: Source, mpp: float, max_enlargement: float = MAX_ENLARGEMENT) -> bool:
    return mpp * max_enlargement < max(source.mpp)


def tissue_tiles(
    sources: Sequence[Source],
    scales: Sequence[float],
    tile_px: int,
    min_tissue: float,
    on_source: Callable[[int], None] = lambda _: None,
    max_enlargement: float = MAX_ENLARGEMENT,
) -> TileIndex:
    """Cut every source into tiles at every scale, and keep those with enough tissue.

    Parameters
    ----------
    sources : sequence of Source
    scales : sequence of float
        In µm/px.
    tile_px : int
        Side of the tiles. They cover the whole image: the last ones overlap where it is no
        multiple of the tile.
    min_tissue : float
        Least share of tissue, 0 to 1 (section 4.1: 0.7).
    on_source : callable
        Called with the number of sources done.
    max_enlargement : float
        A source gives tiles at scales up to so many times finer than its own resolution.
    """
    rows: list[npt.NDArray[Any]] = []
    for number, source in enumerate(sources):
        on_source(number)
        with source.open() as slide:
            overview = _TissueOverview(slide, source)
        for scale, mpp in enumerate(scales):
            if _is_too_coarse(source, mpp, max_enlargement):
                _log.warning(
                    "%s: too coarse (%.3g µm/px) for the scale of %g µm/px: no tiles of it there",
                    *(source.name, max(source.mpp), mpp),
                )
                continue
            downsample = working_downsample(source.mpp, mpp)
            x = _starts(int(source.width / downsample[0]), tile_px)
            y = _starts(int(source.height / downsample[1]), tile_px)
            corners = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
            tissue = overview.fractions(corners, tile_px, downsample)
            kept = tissue >= min_tissue
            row = np.empty((int(kept.sum()), 5), np.float64)
            row[:, 0], row[:, 1] = number, scale
            row[:, 2:4], row[:, 4] = corners[kept], tissue[kept]
            rows.append(row)
    on_source(len(sources))
    table = np.concatenate(rows) if rows else np.empty((0, 5))
    return TileIndex(
        table[:, 0].astype(np.int32),
        table[:, 1].astype(np.int8),
        table[:, 2].astype(np.int32),
        table[:, 3].astype(np.int32),
        table[:, 4].astype(np.float32),
    )


class _TissueOverview:
    """Which parts of a reduced slide are tissue in the ROI, summed so that any window is quick."""

    def __init__(self, slide: Slide, source: Source) -> None:
        size = [
            max(1, round(length * mpp / max(_OVERVIEW_MPP, mpp)))
            for length, mpp in zip((slide.width, slide.height), source.mpp, strict=True)
        ]
        self._pixel_px = slide.width / size[0], slide.height / size[1]
        rgb = slide.read(0, 0, size[0], size[1], self._pixel_px)
        mask = tissue_fraction(rgb[:, :, None, None]).astype(np.uint8)
        if source.roi is not None:
            mask &= rasterise(source.roi, mask.shape, self._pixel_px)
        self._sums = cv2.integral(mask)

    def fractions(
        self, corners: npt.NDArray[np.integer[Any]], tile_px: int, downsample: tuple[float, float]
    ) -> npt.NDArray[np.float64]:
        """Share of tissue of the (N, 2) tiles at these corners."""
        scale = np.divide(downsample, self._pixel_px)
        limit = np.array(self._sums.shape[::-1]) - 1
        low = np.clip(np.floor(corners * scale).astype(int), 0, limit - 1)
        high = np.clip(np.ceil((corners + tile_px) * scale).astype(int), low + 1, limit)
        (x0, y0), (x1, y1) = low.T, high.T
        s = self._sums
        inside = s[y1, x1] - s[y0, x1] - s[y1, x0] + s[y0, x0]
        fractions: npt.NDArray[np.float64] = inside / ((x1 - x0) * (y1 - y0))
        return fractions


def _starts(extent: int, size: int) -> npt.NDArray[np.int64]:
    """First px of as many windows as cover the extent, evenly spread; none if it is too small."""
    if extent < size:
        return np.empty(0, np.int64)
    return np.rint(np.linspace(0, extent - size, math.ceil(extent / size))).astype(np.int64)


def sources_digest(
    sources: Sequence[Source], scales: Sequence[float], tile_px: int, min_tissue: float
) -> str:
    """Hash all that decides the tiles: the images and how they are cut.

    Of an image, this is its path, size and date; how it is opened (bounds, series, ICC profile);
    its pixel size, ROI, and stains if they include DAB.

    Raises
    ------
    qpnuclei.errors.NotFoundError
        If an image is no longer there.
    """
    files = [_stat(source.path) for source in sources]
    content = json.dumps(
        [
            [
                [
                    str(resolved(source.path)),
                    file.st_size,
                    file.st_mtime_ns,
                    source.mpp,
                    source.crop_to_bounds,
                    None if source.roi is None else source.roi.wkb_hex,
                    asdict(source.stains) if has_dab(source.stains) else None,
                    # Only if given, so that runs of former versions can be resumed.
                    *([] if source.series is None else [f"series {source.series}"]),
                    *(["ICC profile"] if source.apply_icc else []),
                ]
                for source, file in zip(sources, files, strict=True)
            ],
            list(scales),
            tile_px,
            min_tissue,
        ]
    )
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise NotFoundError(f"{path}: {error.strerror}", "was it moved?") from error
