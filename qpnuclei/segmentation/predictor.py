"""Run one of our networks: image in, attention (and centre map) out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from qpnuclei.choices import Precision
from qpnuclei.models.device import takes_cpu
from qpnuclei.models.metadata import ModelMetadata, PostProcessing, read_metadata
from qpnuclei.models.registry import DEFAULT_MODEL, resolve_model
from qpnuclei.segmentation.forward import Forward
from qpnuclei.segmentation.quantised import FloatMap, QuantisedAttention, QuantisedCentre
from qpnuclei.slides.pixels import RGB
from qpnuclei.slides.reinhard import ReinhardStatistics, reinhard_transfer
from qpnuclei.system.threads import available_cores

if TYPE_CHECKING:
    import torch
    from torch import nn

#: Height and width of the tiles into which `Predictor.predict_image` cuts a large image, in px.
_TILE_PX = 1024


class Predictor:
    """A trained network on a device.

    Parameters
    ----------
    forward : Forward
        The network.
    metadata : ModelMetadata
        Metadata of the model.

    Examples
    --------
    >>> predictor = Predictor.load("default", device="cpu")
    >>> glass = np.full((1, 64, 64, 3), 243, np.uint8)
    >>> attention, centre = predictor.predict(glass)
    >>> attention.shape, bool((attention < 0.5).all())
    ((1, 64, 64), True)
    """

    def __init__(self, forward: Forward, metadata: ModelMetadata) -> None:
        self._forward = forward
        self._metadata = metadata

    @classmethod
    def load(
        cls,
        name_or_path: str | Path = DEFAULT_MODEL,
        device: str = "auto",
        views: int | None = None,
        precision: Precision = "auto",
        threads: int | None = None,
    ) -> Predictor:
        """Load a model: a packaged one by its name, or a ``.safetensors`` file.

        On CPUs, ONNX Runtime computes students in float32, because it loads in a tenth of the time
        that torch takes. Torch computes everything else.

        Parameters
        ----------
        name_or_path : str or pathlib.Path
            See `resolve_model`.
        device : str
            See `qpnuclei.models.device.resolve_device`.
        views : {1, 8}, optional
            With 8, results over the flips and right-angle rotations of the image are averaged, as
            in the test code of the paper. This is eight times slower. By default, the value of the
            model.
        precision : {"auto", "float32", "bfloat16"}
            Number format of the convolutions. Auto is float16 on CUDA, float32 elsewhere. On CPUs
            with bfloat16 arithmetic, bfloat16 takes less than half the time. Then about 1 in 4000
            pixels of the mask of the default model changes, and the last bits of the attention
            change everywhere.
        threads : int, optional
            Number of threads that ONNX Runtime uses for one tile; all cores if not given. Torch
            has a setting for the whole process instead.

        Raises
        ------
        qpnuclei.errors.NotFoundError
            If there is no such model.
        qpnuclei.errors.ModelError
            If the file is not a model of this program.
        qpnuclei.errors.UsageError, qpnuclei.errors.DeviceError
            If `device` is not a device, or is not available.
        ValueError
            If `views` is neither 1 nor 8.
        """
        path = resolve_model(name_or_path)
        metadata = read_metadata(path)
        views = _checked_views(views, metadata)
        if metadata.family == "student" and precision != "bfloat16" and takes_cpu(device):
            from qpnuclei.segmentation.onnx_forward import OnnxForward

            threads = threads or available_cores()
            return cls(OnnxForward.load(path, views, threads, metadata), metadata)
        from qpnuclei.models.checkpoint import load_model
        from qpnuclei.models.device import resolve_device
        from qpnuclei.segmentation.torch_forward import optimise_for_inference

        resolved = resolve_device(device)
        network, _ = load_model(path, metadata)
        network = optimise_for_inference(network.eval(), resolved)
        return cls.of_network(network, metadata, resolved, views, precision)

    @classmethod
    def of_network(
        cls,
        network: nn.Module,
        metadata: ModelMetadata,
        device: torch.device,
        views: int | None = None,
        precision: Precision = "auto",
    ) -> Predictor:
        """Make a predictor from a network that is in memory, for example during training.

        The arguments are those of `qpnuclei.segmentation.torch_forward.torch_forward`.

        Raises
        ------
        ValueError
            If `views` is neither 1 nor 8.
        """
        from qpnuclei.segmentation.torch_forward import torch_forward

        views = _checked_views(views, metadata)
        return cls(torch_forward(network, metadata, device, views, precision), metadata)

    def with_post_processing(self, parameters: PostProcessing) -> Predictor:
        """Return a predictor with the same network and another post-processing."""
        metadata = replace(self._metadata, post_processing=parameters)
        return Predictor(self._forward, metadata)

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
        """How far from a pixel the image can affect its result, in px of the resolution `mpp`."""
        return self._forward.geometry.receptive_radius_px

    @property
    def stride(self) -> int:
        """Overlapping tiles agree if their origins differ by a multiple of this, in px."""
        return self._forward.geometry.stride

    @property
    def precision(self) -> str:
        """Number format of the convolutions, for example ``"float32"``."""
        return self._forward.precision

    @property
    def views(self) -> int:
        """Number of flips and rotations of a tile that are averaged: 1 or 8."""
        return self._forward.views

    @property
    def device(self) -> str:
        """Where the network runs, for example ``"cuda:0"``."""
        return self._forward.device

    @property
    def tiles_at_once(self) -> int:
        """Best batch size for `predict_quantised`: several tiles on a GPU, else one."""
        return self._forward.tiles_at_once

    def predict(
        self, rgb: RGB, statistics: ReinhardStatistics | None = None
    ) -> tuple[FloatMap, FloatMap | None]:
        """Return attention and centre map of a batch of tiles.

        Parameters
        ----------
        rgb : (B, H, W, 3) uint8 ndarray
            Tiles at `mpp`. Results within `receptive_radius_px` of the border depend on the border:
            give tiles a margin and cut it off.
        statistics : ReinhardStatistics, optional
            Colour statistics of the whole slide; those of a tile would cause seams. Models whose
            metadata ask for colour transfer by Reinhard need them, others ignore them.

        Returns
        -------
        attention : (B, H, W) float32 ndarray
            Values in 0..1.
        centre : (B, H, W) float32 ndarray or None
            Values in 0..1, high in the middle of nuclei; None for models without a centre map.

        Raises
        ------
        ValueError
            If `rgb` has another shape or dtype, or the model needs `statistics`.
        """
        maps = self._forward.maps(self._checked(rgb, statistics))
        return maps[:, 0], maps[:, 1] if maps.shape[1] > 1 else None

    def predict_quantised(
        self, rgb: RGB, statistics: ReinhardStatistics | None = None
    ) -> tuple[QuantisedAttention, QuantisedCentre | None]:
        """Return quantised attention and centre map of a batch of tiles.

        See `qpnuclei.segmentation.quantised` for the levels.

        Threads may call it at the same time. Then one batch is copied to a GPU while another is
        computed. Most batches should have the same shape.

        Parameters
        ----------
        rgb, statistics
            As for `predict`.

        Returns
        -------
        attention : (B, H, W) uint8 ndarray
        centre : (B, H, W) uint16 ndarray or None
            None for models without a centre map.

        Raises
        ------
        ValueError
            As for `predict`.
        qpnuclei.errors.DeviceError
            If one tile does not fit into the memory of a GPU.
        """
        return self._forward.quantised_maps(self._checked(rgb, statistics))

    def predict_image(
        self, rgb: RGB, statistics: ReinhardStatistics | None = None
    ) -> tuple[FloatMap, FloatMap | None]:
        """Return attention and centre map of one whole image, in tiles if it is large.

        Parameters
        ----------
        rgb : (H, W, 3) uint8 ndarray
            Pixels at `mpp`. They are reflected outside the border of the image.
        statistics : ReinhardStatistics, optional
            As for `predict`.

        Returns
        -------
        attention : (H, W) float32 ndarray
        centre : (H, W) float32 ndarray or None

        Raises
        ------
        ValueError
            As for `predict`.
        """
        _check_image(rgb)
        height, width = rgb.shape[:2]
        # Halo and core are multiples of the stride, so all tiles lie on the same grid of strides.
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


def normalise_colour(
    rgb: RGB, metadata: ModelMetadata, statistics: ReinhardStatistics | None
) -> RGB:
    """Transfer the colours of a slide to those that the model was trained on.

    Parameters
    ----------
    rgb : (..., 3) uint8 ndarray
    metadata : ModelMetadata
    statistics : ReinhardStatistics or None
        Colour statistics of the slide; may be None if the model needs no colour transfer.

    Raises
    ------
    ValueError
        If the model needs the transfer and `statistics` is None.
    """
    if metadata.colour.method == "none":
        return rgb
    if statistics is None:
        raise ValueError(
            f"model {metadata.name!r} normalises colours: give the colour statistics of the slide"
        )
    mean, std = metadata.colour.target_mean, metadata.colour.target_std
    assert mean is not None  # ModelMetadata rejects metadata without a target
    assert std is not None
    return reinhard_transfer(rgb, statistics, mean, std)


def _check_image(rgb: RGB) -> None:
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or rgb.size == 0:
        raise ValueError(f"rgb must be (H, W, 3) uint8 and not empty: {rgb.shape} {rgb.dtype}")


def _checked_views(views: int | None, metadata: ModelMetadata) -> int:
    if views is None:
        return metadata.views
    if views not in (1, 8):
        raise ValueError(f"views must be 1 or 8, not {views!r}")
    return views
