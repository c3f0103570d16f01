"""The forward pass: a network turns the pixels of tiles into maps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from qpnuclei.models.geometry import NetworkGeometry
from qpnuclei.models.metadata import ModelMetadata
from qpnuclei.segmentation.quantised import (
    FloatMap,
    QuantisedAttention,
    QuantisedCentre,
    quantise_cells,
)
from qpnuclei.slides.pixels import RGB
from qpnuclei.system.compiled import compiled

#: A NumPy array or a torch tensor.
Array = TypeVar("Array")

#: Number of values in one step of the sigmoid: few enough for the cache of the processor.
_SIGMOID_BLOCK = 32768


class Forward(Protocol):
    """A trained network on a device: it turns the pixels of tiles into maps."""

    @property
    def device(self) -> str:
        """Where it runs, for example ``"cuda:0"``."""

    @property
    def precision(self) -> str:
        """Number format of the convolutions, for example ``"float32"``."""

    @property
    def views(self) -> int:
        """Number of flips and rotations of a tile that are averaged: 1 or 8."""

    @property
    def geometry(self) -> NetworkGeometry:
        """Receptive field and stride."""

    @property
    def tiles_at_once(self) -> int:
        """Best batch size for `quantised_maps`."""

    def maps(self, rgb: RGB) -> FloatMap:
        """Return the maps of a batch of tiles.

        Parameters
        ----------
        rgb : (B, H, W, 3) uint8 ndarray
            With normalised colours.

        Returns
        -------
        (B, C, H, W) float32 ndarray
            Values in 0..1: attention and, with two channels, the centre map.
        """

    def quantised_maps(self, rgb: RGB) -> tuple[QuantisedAttention, QuantisedCentre | None]:
        """Return the maps of a batch of tiles, quantised (see `qpnuclei.segmentation.quantised`).

        Returns
        -------
        attention : (B, H, W) uint8 ndarray
        centre : (B, H, W) uint16 ndarray or None

        Raises
        ------
        qpnuclei.errors.DeviceError
            If one tile does not fit into the memory of a GPU.
        """


class CpuForward(ABC):
    """A network on CPUs. Subclasses choose the library that computes its logits.

    Parameters
    ----------
    metadata : ModelMetadata
    geometry : NetworkGeometry
    views : {1, 8}
        With 8, maps are averages over the flips and right-angle rotations of the image.
    precision : str
        Number format of the convolutions.
    cell_px : int
        Side of the cells in the output of the network, see `logits`.
    """

    device = "cpu"
    #: Larger batches are no faster, and would make a result depend on other tiles in its batch.
    tiles_at_once = 1

    def __init__(
        self,
        metadata: ModelMetadata,
        geometry: NetworkGeometry,
        views: int,
        precision: str,
        cell_px: int,
    ) -> None:
        self.geometry = geometry
        self.views = views
        self.precision = precision
        self._metadata = metadata
        self._cell_px = cell_px
        mean, std = np.array([metadata.input_mean, metadata.input_std], np.float32)
        self._levels = (np.arange(256, dtype=np.float32)[:, None] / np.float32(255) - mean) / std

    @abstractmethod
    def logits(self, x: FloatMap) -> FloatMap:
        """Return the network's output of a batch of tiles.

        Parameters
        ----------
        x : (B, 3, H, W) float32 ndarray
            Normalised RGB, contiguous; H and W are multiples of the stride.

        Returns
        -------
        float32 ndarray
            Contiguous; the caller may change it. Its shape is (B, C, H, W). A network that predicts
            cells of c x c px at once returns (B, H / c, W / c, C·c·c) instead: for each cell its
            pixels row by row, first the attention.
        """

    def maps(self, rgb: RGB) -> FloatMap:
        """Return the maps of a batch of tiles; see `Forward.maps`."""
        height, width = rgb.shape[1:3]
        x = self._normalised(rgb)
        one = self.views == 1
        maps = self._predicted(x) if one else mean_of_views(x, self._predicted, np.flip)
        return maps[:, :, :height, :width]

    def quantised_maps(self, rgb: RGB) -> tuple[QuantisedAttention, QuantisedCentre | None]:
        """Return quantised maps; see `Forward.quantised_maps`."""
        height, width = rgb.shape[1:3]
        if self._cell_px == 1 or self.views > 1:
            maps = np.ascontiguousarray(self.maps(rgb))
            return quantise_cells(maps.reshape(len(maps), -1), (len(maps), height, width), 1)
        x = self._normalised(rgb)
        batch, _, padded_height, padded_width = x.shape
        cells = self._activated(x)
        attention, centre = quantise_cells(
            cells.reshape(-1, cells.shape[3]), (batch, padded_height, padded_width), self._cell_px
        )
        within = np.s_[:, :height, :width]
        return attention[within], None if centre is None else centre[within]

    def _normalised(self, rgb: RGB) -> FloatMap:
        """Pad tiles to the stride, and replace pixel values by the input values of the network."""
        bottom, right = (-length % self.geometry.stride for length in rgb.shape[1:3])
        if bottom or right:
            rgb = np.pad(rgb, ((0, 0), (0, bottom), (0, right), (0, 0)), mode="symmetric")
        batch, height, width = rgb.shape[:3]
        x = np.empty((batch, 3, height, width), np.float32)
        for tile, out in zip(np.ascontiguousarray(rgb), x, strict=True):
            _look_up(tile.reshape(-1, 3), self._levels, out.reshape(3, -1))
        return x

    def _activated(self, x: FloatMap) -> FloatMap:
        """Return the sigmoid of the logits, with tau and gain of equation 1 if the model has them.

        Torch computes the end of the share of each thread differently: the last bit would depend on
        the number of threads and on the position of a pixel in its tile. NumPy does not.
        """
        logits = self.logits(x)
        if self._metadata.tau is not None:
            logits -= np.float32(self._metadata.tau)
            logits *= np.float32(self._metadata.sigmoid_gain)
        values = logits.reshape(-1)
        with np.errstate(over="ignore"):
            for start in range(0, len(values), _SIGMOID_BLOCK):
                block = values[start : start + _SIGMOID_BLOCK]
                np.negative(block, out=block)
                np.exp(block, out=block)
                np.add(block, 1, out=block)
                np.divide(1, block, out=block)
        return logits

    def _predicted(self, x: FloatMap) -> FloatMap:
        """Return (B, C, H, W) maps of the normalised pixels of tiles."""
        activated = self._activated(np.ascontiguousarray(x))
        side = self._cell_px
        if side == 1:
            return activated
        batch, rows, columns, values = activated.shape
        cells = activated.reshape(batch, rows, columns, values // side**2, side, side)
        return cells.transpose(0, 3, 1, 4, 2, 5).reshape(batch, -1, rows * side, columns * side)


def mean_of_views(
    x: Array,
    predict: Callable[[Array], Array],
    flip: Callable[[Array, tuple[int, ...]], Array],
) -> Array:
    """Return the mean of the maps over the flips and right-angle rotations of tiles.

    Parameters
    ----------
    x : array
        A batch of tiles, (B, 3, H, W).
    predict : callable
        Turns tiles into (B, C, H, W) maps.
    flip : callable
        `numpy.flip` or `torch.flip`.
    """
    total: Any = 0
    for transpose in (False, True):
        for which in ((), (2,), (3,), (2, 3)):
            view: Any = x.swapaxes(2, 3) if transpose else x  # type: ignore[attr-defined]
            maps: Any = flip(predict(flip(view, which)), which)
            total = total + (maps.swapaxes(2, 3) if transpose else maps)
    mean: Array = total / 8
    return mean


@compiled
def _look_up(
    rgb: npt.NDArray[np.uint8], levels: npt.NDArray[np.float32], out: npt.NDArray[np.float32]
) -> None:
    """Write the entries of (N, 3) uint8 channel values in a (256, 3) table to a (3, N) array."""
    for row in range(rgb.shape[0]):
        for channel in range(3):
            out[channel, row] = levels[rgb[row, channel], channel]
