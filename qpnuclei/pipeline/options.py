"""The options of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, get_args

from qpnuclei.choices import (
    BATCH,
    CELL_EXPANSION_UM,
    DEFAULT_MAX_NUCLEUS_UM,
    DEFAULT_SIMPLIFY_UM,
    DEFAULT_TILE_PX,
    IGNORE_CLASS,
    MAX_NUCLEUS_UM,
    MIN_AREA_UM2,
    NUCLEUS_CLASS,
    SIMPLIFY_UM,
    THRESHOLD,
    TILE_PX,
    WORKERS,
    OnExisting,
    Precision,
    Speed,
)
from qpnuclei.errors import UsageError
from qpnuclei.models.registry import DEFAULT_MODEL, check_speed, network_for, networks_of
from qpnuclei.pipeline.positivity import checked_thresholds
from qpnuclei.pipeline.selection import Selection
from qpnuclei.qupath.names import checked_class_name
from qpnuclei.qupath.pixel_size import AskedMpp
from qpnuclei.segmentation.engine import EngineOptions, absolute_model, views_of
from qpnuclei.slides.resolution import checked_mpp, checked_sizes
from qpnuclei.system.arguments import (
    check_choice,
    check_fields,
    checked_count,
    checked_flag,
    checked_name,
    checked_number,
    checked_text,
    checked_texts,
    listed,
    path_or_none,
)
from qpnuclei.system.threads import available_cores

_CHECKS: dict[str, Callable[[str, Any], object]] = {
    "model": checked_name,
    "device": checked_text,
    "tta": checked_flag,
    "mpp": checked_mpp,
    "mpp_only_missing": checked_flag,
    "mpp_by_image": checked_sizes,
    "tissue_annotation": checked_flag,
    "qc": checked_flag,
    "class_name": checked_text,
    "tile_px": partial(checked_count, limits=TILE_PX),
    "batch_size": partial(checked_count, limits=BATCH),
    "workers": partial(checked_count, limits=WORKERS),
    "max_nucleus_um": partial(checked_number, limits=MAX_NUCLEUS_UM),
    "simplify_um": partial(checked_number, limits=SIMPLIFY_UM),
    "threshold": partial(checked_number, limits=THRESHOLD),
    "min_area_um2": partial(checked_number, limits=MIN_AREA_UM2),
    "cell_expansion_um": partial(checked_number, limits=CELL_EXPANSION_UM),
    "force": checked_flag,
    "images": checked_texts,
}
_MAY_BE_NONE = frozenset({"tta", "mpp", "batch_size", "threshold"})


@dataclass(frozen=True)
class RunOptions:
    """The options of ``qpnuclei run``; the command's help explains each.

    Folders may be text, and the model's file a path.

    Raises
    ------
    UsageError
        If `speed`, `precision` or `on_existing` is unknown, a flag is neither true nor false,
        `model` is neither a name nor a path, `device`, `class_name` or one of `images` is no text,
        `mpp_by_image` is not a mapping, a number is not within the limits that the command's help
        gives, the class of the detections is empty or not UTF-8, the thresholds of positive nuclei
        are invalid, the areas that `qc` marks would not be excluded, or `speed` is given with a
        model other than the default.
    MppError
        If a pixel size is not 0.05 to 2.5 µm/px.

    Examples
    --------
    >>> options = RunOptions(Selection(classes=("Tumor",)), model="default", device="cpu")
    >>> options.class_name, options.on_existing
    ('Nucleus', 'replace')
    """

    selection: Selection
    model: str = DEFAULT_MODEL
    speed: Speed = "auto"
    device: str = "auto"
    precision: Precision = "auto"
    tta: bool | None = None
    mpp: float | None = None
    mpp_only_missing: bool = False
    #: By entry ID; `qpnuclei.run` and `qpnuclei.plan` take names, too.
    mpp_by_image: Mapping[str, float] = field(default_factory=dict)
    tissue_annotation: bool = True
    qc: bool = False
    class_name: str = NUCLEUS_CLASS
    on_existing: OnExisting = "replace"
    tile_px: int = DEFAULT_TILE_PX
    batch_size: int | None = None
    workers: int = field(default_factory=available_cores)
    max_nucleus_um: float = DEFAULT_MAX_NUCLEUS_UM
    simplify_um: float = DEFAULT_SIMPLIFY_UM
    threshold: float | None = None
    min_area_um2: float = 0.0
    cell_expansion_um: float = 0.0
    positive_thresholds: tuple[float, ...] = ()
    geojson_dir: Path | None = None
    parquet_dir: Path | None = None
    run_dir: Path | None = None
    force: bool = False
    images: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self, _CHECKS, _MAY_BE_NONE)
        check_choice("precision", self.precision, get_args(Precision))
        check_choice("on_existing", self.on_existing, get_args(OnExisting))
        object.__setattr__(self, "class_name", checked_class_name(self.class_name))
        for name in ("geojson_dir", "parquet_dir", "run_dir"):
            object.__setattr__(self, name, path_or_none(getattr(self, name)))
        thresholds = checked_thresholds(listed(self.positive_thresholds), self.class_name)
        object.__setattr__(self, "positive_thresholds", thresholds)
        if self.qc and not self.selection.excludes_class(IGNORE_CLASS):
            raise UsageError(
                f"--qc marks areas as {IGNORE_CLASS}, and --exclude does not leave them out",
                f"add --exclude '{IGNORE_CLASS}'",
            )
        check_speed(self.model, self.speed)

    @property
    def models(self) -> tuple[str, ...]:
        """All models that images may need, whatever their pixel size."""
        return networks_of(self.model, self.speed)

    def model_for(self, mpp: tuple[float, float]) -> str:
        """Return the model for an image of this pixel size in µm."""
        return network_for(self.model, sum(mpp) / 2, self.speed)

    @property
    def pixel_sizes(self) -> AskedMpp:
        """What the user says about pixel sizes."""
        return AskedMpp(self.mpp, self.mpp_only_missing, self.mpp_by_image)

    @property
    def engine(self) -> EngineOptions:
        """The options of the engine."""
        return EngineOptions(
            self.device,
            views_of(self.tta),
            self.precision,
            self.workers,
            self.batch_size,
            self.threshold,
        )

    def to_json(self, absolute: Callable[[Path], Path] = Path.absolute) -> dict[str, Any]:
        """Return the options as JSON types; paths mean the same files in any working folder.

        Parameters
        ----------
        absolute : callable
            Returns the absolute path to write for that of a folder or a model.
        """
        content: dict[str, Any] = {
            name: str(absolute(value)) if isinstance(value, Path) else value
            for name, value in dataclasses.asdict(self).items()
        }
        content["model"] = absolute_model(self.model, absolute)
        content["selection"]["ids"] = [str(identifier) for identifier in self.selection.ids]
        return content
