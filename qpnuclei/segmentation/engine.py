"""The `Engine` protocol: the interface between a run and the models it can use.

A run knows only the `Engine`, not what is behind it. Engines are found by name through the
entry-point group ``qpnuclei.engines``; each entry is an `EngineFactory`. A model is named
``ENGINE:MODEL`` (``onnx:nuclei.onnx``). Without a prefix, it is one of our own models.
"""

from __future__ import annotations

import os
import pkgutil
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from qpnuclei.choices import BATCH, THRESHOLD, WORKERS, Precision
from qpnuclei.errors import UsageError
from qpnuclei.models.registry import is_file_name
from qpnuclei.slides.pixels import RGB
from qpnuclei.slides.reinhard import ReinhardStatistics
from qpnuclei.system.arguments import (
    check_choice,
    check_fields,
    checked_count,
    checked_name,
    checked_number,
    checked_text,
)
from qpnuclei.system.memory import no_collection
from qpnuclei.system.threads import available_cores
from qpnuclei.system.timing import Stopwatch
from qpnuclei.tiling.box import Box
from qpnuclei.tiling.plan import Tile, TilePlan

#: Reads the (H, W, 3) pixels of a box of the working grid. The box may extend beyond the slide:
#: there it has the reflection of the slide.
ReadPixels: TypeAlias = Callable[[Box], RGB]

#: The engine of the models that `qpnuclei train` makes.
OWN_ENGINE = "maps"

_GROUP = "qpnuclei.engines"

#: Most runs use it, so it is found without a search of the metadata of all installed packages.
_OWN_FACTORY = "qpnuclei.segmentation.maps_engine:MapsEngineFactory"


@dataclass(frozen=True)
class EngineSpec:
    """What a run must know about an engine and its model, before any weights are loaded.

    Parameters
    ----------
    name : str
        Name of the model.
    sha256 : str
        Hash of the model file; tells models of the same name apart.
    mpp : float
        Pixel size of the working grid, in µm/px. The engine is given pixels of this grid.
    context_px : int
        Receptive radius: how far from a pixel the image can affect its result, in px of the
        working grid.
    stride : int
        Two tiles agree where they overlap if their origins differ by a multiple of the stride.
    interaction_px : int
        How far beyond a nucleus post-processing can change its outline, in px.
    columns : tuple of str
        Names of the measurements that it makes of each nucleus, such as ``("Attention: Mean",)``:
        the keys of `TileInstances.scores`, in this order.
    needs_colour : bool
        Whether it needs the colour statistics of the whole region.
    details : mapping
        Further facts for the run's record (JSON types), for example its post-processing.
    """

    name: str
    sha256: str
    mpp: float
    context_px: int
    stride: int
    interaction_px: int
    columns: tuple[str, ...] = ()
    needs_colour: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def margin_px(self) -> int:
        """`context_px`, rounded up to the stride: the margin to read around a box, in px."""
        return -(-self.context_px // self.stride) * self.stride


_CHECKS: dict[str, Callable[[str, Any], object]] = {
    "device": checked_text,
    "workers": partial(checked_count, limits=WORKERS),
    "batch_size": partial(checked_count, limits=BATCH),
    "threshold": partial(checked_number, limits=THRESHOLD),
}


@dataclass(frozen=True)
class EngineOptions:
    """How an engine runs. Only `views`, `precision` and `threshold` can change what it finds.

    Parameters
    ----------
    device : str
        See `qpnuclei.models.device.resolve_device`.
    views : {1, 8} or None
        With 8, results over the flips and right-angle rotations of every tile are averaged. None
        takes the value of the model.
    precision : {"auto", "float32", "bfloat16"}
        Number format of the network.
    workers : int
        Number of processor cores to use.
    batch_size : int or None
        Tiles that a GPU takes at once; None lets the engine choose.
    threshold : float or None
        From 0.01 to 0.99. A pixel belongs to a nucleus if its attention (of third-party models: its
        probability) is higher. None takes the value of the model.

    Raises
    ------
    UsageError
        If `views` or `precision` is unknown, `device` is no text, or a number is not within its
        limits.

    Examples
    --------
    >>> EngineOptions(device="cpu", views=8, workers=2, threshold=0.6)
    EngineOptions(device='cpu', views=8, ..., workers=2, batch_size=None, threshold=0.6)
    """

    device: str = "auto"
    views: int | None = None
    precision: Precision = "auto"
    workers: int = field(default_factory=available_cores)
    batch_size: int | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        check_choice("views", self.views, (None, 1, 8))
        check_choice("precision", self.precision, get_args(Precision))
        check_fields(self, _CHECKS, may_be_none=["batch_size", "threshold"])


def views_of(tta: bool | None) -> int | None:
    """Return `EngineOptions.views` for ``--tta``, ``--no-tta`` or neither."""
    if tta is None:
        return None
    return 8 if tta else 1


@dataclass(frozen=True, eq=False)
class ScoreMap:
    """A quantised map whose mean over a nucleus is one of its measurements.

    Parameters
    ----------
    levels : (H, W) unsigned integer ndarray
        Indices into `values`.
    values : (K,) float32 ndarray
        The value that each level stands for.
    """

    levels: npt.NDArray[np.unsignedinteger[Any]]
    values: npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class TileInstances:
    """The instances in one tile.

    Parameters
    ----------
    tile : Tile
    rgb : (H, W, 3) uint8 ndarray
        The pixels of ``tile.view``.
    labels : (H, W) int32 ndarray
        0 is background, 1 to N are instances. Each is one 4-connected region without holes.
    scores : mapping of str to ScoreMap
        Keyed by `EngineSpec.columns`; a run refuses others.
    """

    tile: Tile
    rgb: RGB
    labels: npt.NDArray[np.int32]
    scores: Mapping[str, ScoreMap]


class Engine(Protocol):
    """A model that is loaded and ready."""

    @property
    def spec(self) -> EngineSpec:
        """What a run must know about the engine."""

    @property
    def execution(self) -> str:
        """Where and how the engine runs, for example ``"cpu, float32, 8 views"``."""

    def segment(
        self,
        read: ReadPixels,
        tiles: TilePlan,
        colour: ReinhardStatistics | None,
        clock: Stopwatch,
    ) -> Generator[TileInstances, None, None]:
        """Yield the instances of every tile, in the order of the plan.

        What the engine finds in a tile depends only on the pixels of the tile and its margin, and
        neither on other tiles nor on `EngineOptions.workers`.

        Parameters
        ----------
        read : callable
            Reads pixels of the working grid; may be called from another thread.
        tiles : TilePlan
            On the working grid.
        colour : ReinhardStatistics or None
            Colour statistics of the whole region; given if `EngineSpec.needs_colour`.
        clock : Stopwatch
            Adds up the seconds of the stages ``read``, ``predict`` and ``segment``.

        Raises
        ------
        qpnuclei.errors.QpnucleiError
            If a tile cannot be read or segmented; the message names the tile.
        """


class EngineFactory(Protocol):
    """The object behind each entry point of the group ``qpnuclei.engines``."""

    def spec(self, model: str) -> EngineSpec:
        """Return the spec of a model, without loading its weights or a deep-learning library.

        Raises
        ------
        qpnuclei.errors.NotFoundError, qpnuclei.errors.ModelError
            If the model does not exist or cannot be used.
        """

    def load(self, model: str, options: EngineOptions) -> Engine:
        """Load a model and return its engine.

        Raises
        ------
        qpnuclei.errors.QpnucleiError
            As for `spec`; also if the device or a required library is missing.
        """


def engines() -> tuple[str, ...]:
    """Return the names of the engines that are installed.

    Examples
    --------
    >>> "maps" in engines()
    True
    """
    from importlib.metadata import entry_points

    return tuple(sorted(entry_points(group=_GROUP).names))


def split_model(model: str) -> tuple[str, str]:
    """Split ``ENGINE:MODEL`` into the engine and the model.

    Examples
    --------
    >>> split_model("onnx:models/nuclei.onnx")
    ('onnx', 'models/nuclei.onnx')
    >>> split_model("default")
    ('maps', 'default')

    The drive letter of a Windows path is not an engine.

    >>> split_model("C:/models/ours.safetensors")
    ('maps', 'C:/models/ours.safetensors')
    """
    engine, separator, name = model.partition(":")
    if separator and len(engine) > 1 and not set(engine) & set("/\\."):
        return engine, name
    return OWN_ENGINE, model


def absolute_model(model: str, absolute: Callable[[Path], Path] = Path.absolute) -> str:
    """Return a model such that it means the same file in any working folder.

    Parameters
    ----------
    model : str
        As for `load_engine`. Names, and paths of missing files, stay as they are.
    absolute : callable
        Returns the absolute path to use for that of the model's file.

    Examples
    --------
    >>> absolute_model("default")
    'default'
    """
    engine, name = split_model(model)
    if not os.path.isfile(name):  # noqa: PTH113 - Path.is_file raises for a folder of others
        return model
    if engine == OWN_ENGINE and not is_file_name(name):  # a packaged one, whatever is in the folder
        return model
    return model.removesuffix(name) + str(absolute(Path(name)))


def engine_spec(model: str) -> EngineSpec:
    """Return the spec of a model, without loading its weights.

    Raises
    ------
    UsageError
        If there is no such engine.
    qpnuclei.errors.NotFoundError, qpnuclei.errors.ModelError
        If the model does not exist or cannot be used.
    """
    factory, name = _find(model)
    return factory.spec(name)


def engine_specs(models: Iterable[str]) -> dict[str, EngineSpec]:
    """Return the specs of several models; see `engine_spec`."""
    return {model: engine_spec(model) for model in models}


def load_engine(model: str | os.PathLike[str], options: EngineOptions | None = None) -> Engine:
    """Load a model and return its engine.

    Parameters
    ----------
    model : path-like
        ``ENGINE:MODEL``, or one of our own models: the name of a packaged one, or a
        ``.safetensors`` file. A run gives 20x slides to ``default-20x``; here ``default`` is
        ``default-40x``.
    options : EngineOptions, optional

    Raises
    ------
    UsageError
        If there is no such engine, or `model` is neither a name nor a path.
    qpnuclei.errors.QpnucleiError
        If the model or the device cannot be used.

    Examples
    --------
    >>> engine = load_engine("default", EngineOptions(device="cpu"))
    >>> engine.spec.mpp
    0.25
    """
    factory, name = _find(checked_name("model", model))
    with no_collection():  # most of the time goes into imports
        return factory.load(name, options or EngineOptions())


def _find(model: str) -> tuple[EngineFactory, str]:
    engine, name = split_model(model)
    for factory in [_OWN_FACTORY] if engine == OWN_ENGINE else _installed(engine):
        try:
            return pkgutil.resolve_name(factory)(), name
        except ImportError as error:
            raise UsageError(
                f"the engine {engine!r} cannot be loaded: {error}",
                f"install what {factory} needs, or name another engine",
            ) from error
    raise UsageError(
        f"no engine is called {engine!r}", f"the installed engines are {', '.join(engines())}"
    )


def _installed(engine: str) -> list[str]:
    """Return the places of the factories of this name, as ``module:class``."""
    from importlib.metadata import entry_points  # 20 ms, which a dry run spares

    found = entry_points(group=_GROUP, name=engine)
    return [f"{entry.module}:{entry.attr}" for entry in found]
