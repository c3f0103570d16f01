"""The one way to run a network of ours: image in, attention (and centre map) out."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from qpnuclei.choices import Precision
from qpnuclei.models.checkpoint import Network, load_model
from qpnuclei.models.device import resolve_device
from qpnuclei.models.metadata import ModelMetadata, PostProcessing
from qpnuclei.models.registry import DEFAULT_MODEL, resolve_model
from qpnuclei.segmentation.cuda import TILES_AT_ONCE, CudaForward
from qpnuclei.segmentation.forward import Forward, prepared
from qpnuclei.segmentation.quantised import AttentionCodes, CentreCodes, FloatMap
from qpnuclei.slides.pixels import RGB
from qpnuclei.slides.stains import ReinhardStatistics, reinhard_transfer

#: Height and width of the tiles in which `Predictor.predict_image` looks at a large image.
_TILE_PX = 1024

_DTYPES = {"auto": torch.float32, "float32": torch.float32, "bfloat16": torch.bfloat16}


class Predictor:
    """A trained network on a device.

    Parameters
    ----------
    network : torch.nn.Module
        Of the family that `metadata` names, with its trained weights.
    metadata : ModelMetadata
    device : torch.device
    views : {1, 8}
        With 8, the results for the image's flips and right-angle rotations are averaged: what the
        paper's code does at test time. Eight times slower.
    precision : {"auto", "float32", "bfloat16"}
        Of the convolutions. Auto is float16 on CUDA, float32 elsewhere. On CPUs that compute in
        bfloat16, it takes less than half the time; about 1 of 4000 pixels of the default model's
        mask then changes sides, and the last bits of the attention everywhere.

    Examples
    --------
    >>> predictor = Predictor.load("default", device="cpu")
    >>> glass = np.full((1, 64, 64, 3), 243, np.uint8)
    >>> attention, centre = predictor.predict(glass)
    >>> attention.shape, bool((attention < 0.5).all())
    ((1, 64, 64), True)
    """

    def __init__(
        self,
        network: nn.Module,
        metadata: ModelMetadata,
        device: torch.device,
        views: int = 1,
        precision: Precision = "auto",
    ) -> None:
        if views not in (1, 8):
            raise ValueError(f"views must be 1 or 8, not {views!r}")
        self._precision = precision
        self._dtype = _DTYPES[precision]
        if precision == "auto" and device.type == "cuda":
            # Not bfloat16: its 8 bits are coarse for a sigmoid of gain 20.
            self._dtype = torch.float16
        self._metadata = metadata
        self._device = device
        self._views = views
        self._network = network.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._forward = Forward(self._network, metadata, device, views, self._dtype)
        self._on_cuda = None
        if device.type == "cuda":
            self._on_cuda = CudaForward(self._forward, device, self.stride)

    @classmethod
    def load(
        cls,
        name_or_path: str | Path = DEFAULT_MODEL,
        device: str = "auto",
        views: int = 1,
        precision: Precision = "auto",
    ) -> Predictor:
        """Load a model by the name of one in the package, or from a ``.safetensors`` file.

        Parameters
        ----------
        name_or_path : str or pathlib.Path
            See `resolve_model`.
        device : str
            See `qpnuclei.models.device.resolve_device`.
        views, precision
            See `Predictor`.

        Raises
        ------
        qpnuclei.errors.NotFoundError
            If there is no such model.
        qpnuclei.errors.ModelError
            If the file is not a model of this program.
        qpnuclei.errors.UsageError, qpnuclei.errors.DeviceError
            If `device` is not a device, or not there.
        """
        resolved = resolve_device(device)
        network, metadata = load_model(resolve_model(name_or_path))
        return cls(prepared(network.eval(), resolved), metadata, resolved, views, precision)

    def with_post_processing(self, parameters: PostProcessing) -> Predictor:
        """Return a predictor with the same network whose metadata name other parameters."""
        metadata = self._metadata.model_copy(update={"post_processing": parameters})
        return Predictor(self._network, metadata, self._device, self._views, self._precision)

    @property
    def metadata(self) -> ModelMetadata:
        """What the model file says about itself."""
        return self._metadata

    @property
    def mpp(self) -> float:
        """Resolution in µm/px that `predict` expects."""
        return self._metadata.mpp

    @property
    def receptive_radius_px(self) -> int:
        """How far, in px of the model's resolution, a pixel of the result looks."""
        return cast(Network, self._network).receptive_radius_px

    @property
    def stride(self) -> int:
        """Two tiles give the same result where both see it whole if their origins differ by it."""
        return cast(Network, self._network).stride

    @property
    def precision(self) -> str:
        """What the convolutions compute in, for example ``"float32"``."""
        return str(self._dtype).removeprefix("torch.")

    @property
    def views(self) -> int:
        """How many flips and rotations of a tile it looks at: 1 or 8."""
        return self._views

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return self._device

    @property
    def tiles_at_once(self) -> int:
        """Best batch size for `predict_codes`: several tiles on a GPU, else one."""
        return 1 if self._on_cuda is None else TILES_AT_ONCE

    def predict(
        self, rgb: RGB, statistics: ReinhardStatistics | None = None
    ) -> tuple[FloatMap, FloatMap | None]:
        """Return attention and centre map of a batch of tiles.

        Parameters
        ----------
        rgb : (B, H, W, 3) uint8 ndarray
            Tiles at `mpp`. Within `receptive_radius_px` of their border the result depends on
            where the border is: give them a halo.
        statistics : ReinhardStatistics, optional
            Of the whole slide (never of the tile: that makes seams). Needed by models whose
            metadata ask for the Reinhard colour transfer, ignored by others.

        Returns
        -------
        attention : (B, H, W) float32 ndarray
            0..1.
        centre : (B, H, W) float32 ndarray or None
            0..1, high in the middle of nuclei; None for models that have none.

        Raises
        ------
        ValueError
            If `rgb` is not such an array, or the model needs `statistics`.
        """
        height, width = rgb.shape[1:3]
        maps = self._forward.maps(self._pixels(rgb, statistics)).cpu().numpy()[..., :height, :width]
        return maps[:, 0], maps[:, 1] if maps.shape[1] > 1 else None

    def predict_codes(
        self, rgb: RGB, statistics: ReinhardStatistics | None = None
    ) -> tuple[AttentionCodes, CentreCodes | None]:
        """Return what `predict` returns of a batch of tiles, as codes.

        See `qpnuclei.segmentation.quantised` for the codes.

        Threads may call it at the same time. On a GPU, one batch is then copied while another is
        computed; batches should mostly have the same shape.

        Parameters
        ----------
        rgb, statistics
            As for `predict`.

        Returns
        -------
        attention : (B, H, W) uint8 ndarray
        centre : (B, H, W) uint16 ndarray or None
            None for models that have none.

        Raises
        ------
        ValueError
            As `predict`.
        qpnuclei.errors.DeviceError
            If one tile does not fit into the memory of a GPU.
        """
        if self._on_cuda is not None:
            return self._on_cuda.codes(self._checked(rgb, statistics))
        height, width = rgb.shape[1:3]
        attention, centre = self._forward.codes(self._pixels(rgb, statistics))
        within = np.s_[:, :height, :width]
        return attention[within], None if centre is None else centre[within]

    def predict_image(
        self, rgb: RGB, statistics: ReinhardStatistics | None = None
    ) -> tuple[FloatMap, FloatMap | None]:
        """Return attention and centre map of one whole image, in tiles if it is large.

        Parameters
        ----------
        rgb : (H, W, 3) uint8 ndarray
            At `mpp`. Beyond its border it is continued by reflection.
        statistics : ReinhardStatistics, optional
            As for `predict`.

        Returns
        -------
        attention : (H, W) float32 ndarray
        centre : (H, W) float32 ndarray or None

        Raises
        ------
        ValueError
            As `predict`.
        """
        _check_image(rgb)
        height, width = rgb.shape[:2]
        # A halo and a core that are multiples of the stride: every tile sees the same grid.
        halo = -(-self.receptive_radius_px // self.stride) * self.stride
        core = max((_TILE_PX - 2 * halo) // self.stride, 1) * self.stride
        padded = np.pad(rgb, ((halo, halo), (halo, halo), (0, 0)), mode="symmetric")
        maps: npt.NDArray[np.float32] | None = None
        for y in range(0, height, core):
            for x in range(0, width, core):
                tile = padded[None, y : y + core + 2 * halo, x : x + core + 2 * halo]
                inner = np.s_[0, halo : tile.shape[1] - halo, halo : tile.shape[2] - halo]
                found = [m[inner] for m in self.predict(tile, statistics) if m is not None]
                if maps is None:
                    maps = np.empty((len(found), height, width), np.float32)
                maps[:, y : y + core, x : x + core] = found
        assert maps is not None  # an image has at least one tile: _check_image
        return maps[0], maps[1] if len(maps) > 1 else None

    def _checked(self, rgb: RGB, statistics: ReinhardStatistics | None) -> RGB:
        """Return tiles with their colours normalised."""
        if rgb.ndim != 4 or rgb.shape[3] != 3 or rgb.dtype != np.uint8:
            raise ValueError(f"rgb must be (B, H, W, 3) uint8, not {rgb.shape} {rgb.dtype}")
        return normalise_colour(rgb, self._metadata, statistics)

    def _pixels(self, rgb: RGB, statistics: ReinhardStatistics | None) -> Tensor:
        """Return tiles on the device, with normalised colours, continued to whole strides."""
        rgb = self._checked(rgb, statistics)
        bottom, right = (-length % self.stride for length in rgb.shape[1:3])
        if bottom or right:
            rgb = np.pad(rgb, ((0, 0), (0, bottom), (0, right), (0, 0)), mode="symmetric")
        return torch.from_numpy(np.ascontiguousarray(rgb)).to(self._device)


def normalise_colour(
    rgb: RGB, metadata: ModelMetadata, statistics: ReinhardStatistics | None
) -> RGB:
    """Bring the colours of a slide's pixels to those the model was trained on.

    Parameters
    ----------
    rgb : (..., 3) uint8 ndarray
    metadata : ModelMetadata
    statistics : ReinhardStatistics or None
        Of the slide; None only if the model wants no colour transfer.

    Raises
    ------
    ValueError
        If the model wants the transfer and `statistics` is None.
    """
    if metadata.colour.method == "none":
        return rgb
    if statistics is None:
        raise ValueError(
            f"model {metadata.name!r} normalises colours: give the statistics of the slide"
        )
    mean, std = metadata.colour.target_mean, metadata.colour.target_std
    assert mean is not None  # metadata without a target are refused when they are made
    assert std is not None
    return reinhard_transfer(rgb, statistics, mean, std)


def _check_image(rgb: RGB) -> None:
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or rgb.size == 0:
        raise ValueError(f"rgb must be (H, W, 3) uint8 and not empty: {rgb.shape} {rgb.dtype}")
