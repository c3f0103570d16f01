"""What a run is asked to do, and what that means for each image of a project."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

import shapely

from qpnuclei.errors import ConflictError, FormatError, UsageError
from qpnuclei.models.registry import DEFAULT_MODEL
from qpnuclei.pipeline.infer import (
    DEFAULT_MAX_NUCLEUS_UM,
    DEFAULT_SIMPLIFY_UM,
    DEFAULT_TILE_PX,
    plan_tiles,
)
from qpnuclei.pipeline.selection import RoiSelection, ours_within, select_regions, tissue_region
from qpnuclei.qupath.images import open_image
from qpnuclei.qupath.model import Annotation, ImageEntry, ImageObjects
from qpnuclei.qupath.regions import Region, same_outline
from qpnuclei.segmentation.engine import EngineOptions, EngineSpec, Precision, engine_spec
from qpnuclei.slides.resolution import Scale, resolve_mpp, working_downsample
from qpnuclei.slides.stains import DEFAULT_HE, Stains
from qpnuclei.system.threads import available_cores
from qpnuclei.tiling.plan import TilePlan

if TYPE_CHECKING:
    from qpnuclei.slides.slide import Slide


@dataclass(frozen=True)
class RunOptions:
    """What ``qpnuclei run`` is asked to do; the command's help explains each option.

    Raises
    ------
    UsageError
        If the class of the detections is empty.
    """

    selection: RoiSelection
    model: str = DEFAULT_MODEL
    device: str = "auto"
    precision: Precision = "auto"
    tta: bool = False
    mpp: float | None = None
    class_name: str = "Nucleus"
    on_existing: Literal["replace", "append", "skip", "error"] = "replace"
    tile_px: int = DEFAULT_TILE_PX
    batch_size: int | None = None
    workers: int = field(default_factory=available_cores)
    max_nucleus_um: float = DEFAULT_MAX_NUCLEUS_UM
    simplify_um: float = DEFAULT_SIMPLIFY_UM
    geojson_dir: Path | None = None
    parquet_dir: Path | None = None
    run_dir: Path | None = None
    force: bool = False

    def __post_init__(self) -> None:
        if not self.class_name.strip():
            raise UsageError("the class of the detections is empty", "name it with --class")

    @property
    def engine(self) -> EngineOptions:
        """How the engine is to work."""
        return EngineOptions(
            self.device, 8 if self.tta else 1, self.precision, self.workers, self.batch_size
        )

    def to_json(self) -> dict[str, Any]:
        """Return the options as JSON types."""
        content: dict[str, Any] = {
            name: str(value) if isinstance(value, Path) else value
            for name, value in dataclasses.asdict(self).items()
        }
        content["selection"]["ids"] = [str(identifier) for identifier in self.selection.ids]
        return content


@dataclass(frozen=True, eq=False)
class ImagePlan:
    """What is to be done in one image.

    Parameters
    ----------
    entry : ImageEntry
    fingerprint : str
        Says in which state the image's data was when it was planned.
    taken : frozenset of UUID
        Of all detections that the image holds before the run.
    scale : Scale
        Pixel size, and the grid that the network sees.
    mpp_source : str
        Where the pixel size comes from: ``"--mpp"``, ``"project"`` or ``"slide"``.
    stains : Stains
        For the measurements.
    regions : sequence of Region
    existing : sequence of frozenset of UUID
        For each region, the detections in it that qpnuclei wrote before.
    tiles : TilePlan
        On the grid that the network sees.
    """

    entry: ImageEntry
    fingerprint: str
    taken: frozenset[UUID]
    scale: Scale
    mpp_source: str
    stains: Stains
    regions: Sequence[Region]
    existing: Sequence[frozenset[UUID]]
    tiles: TilePlan
    notes: tuple[str, ...] = ()

    @property
    def megapixels(self) -> float:
        """Area of the regions in millions of px that the network sees."""
        area = shapely.union_all([region.geometry for region in self.regions]).area
        return float(area / (self.scale.downsample[0] * self.scale.downsample[1]) / 1e6)

    def area_mm2(self, region: Region) -> float:
        """Area of a region in mm²."""
        return float(region.geometry.area * self.scale.mpp[0] * self.scale.mpp[1] * 1e-6)


def plan_images(entries: Sequence[ImageEntry], options: RunOptions) -> list[ImagePlan]:
    """Return what `qpnuclei.pipeline.run.analyse_project` would do with images, changing nothing.

    Raises
    ------
    QpnucleiError
        Whatever would stop the run.
    """
    spec = engine_spec(options.model)
    plans = []
    for entry in entries:
        with open_image(entry) as slide:
            plan = plan_image(entry, slide, spec, options)
        if plan.regions:
            plans.append(plan)
    return plans


def plan_image(entry: ImageEntry, slide: Slide, spec: EngineSpec, options: RunOptions) -> ImagePlan:
    """Return what is to be done in one image; it has no regions if there is nothing to do.

    Raises
    ------
    MppError
        If its pixel size is missing or absurd.
    UsageError
        If ``on_existing="error"`` and qpnuclei wrote into a chosen annotation before.
    FormatError
        If its data cannot be read.
    """
    objects = entry.read()
    mpp, mpp_source = resolve_mpp(options.mpp, entry.calibration, slide.mpp, f"image {entry.name}")
    regions = (
        tissue_region(slide, mpp)
        if options.selection.tissue
        else select_regions(options.selection, objects.annotations, slide.width, slide.height)
    )
    existing = [ours_within(region, objects.detections) for region in regions]
    if options.on_existing == "error" and any(existing):
        name = next(r.label for r, ids in zip(regions, existing, strict=True) if ids)
        raise UsageError(
            f"qpnuclei has written detections into {name} of image {entry.name!r} before",
            "choose --on-existing replace, append or skip",
        )
    if options.on_existing == "skip":
        regions = [r for r, ids in zip(regions, existing, strict=True) if not ids]
        existing = [frozenset[UUID]() for _ in regions]
    notes = []
    if entry.image_type not in (None, "BRIGHTFIELD_H_E", "UNSET"):
        notes.append(f"image type is {entry.image_type}; the models were trained on H&E")
    if entry.stains is None:
        notes.append(f"no stain vectors are set: measured with {DEFAULT_HE.name}")
    scale = Scale(mpp, working_downsample(mpp, spec.mpp))
    return ImagePlan(
        entry=entry,
        fingerprint=objects.fingerprint,
        taken=_ids(objects),
        scale=scale,
        mpp_source=mpp_source,
        stains=entry.stains or DEFAULT_HE,
        regions=regions,
        existing=existing,
        tiles=plan_tiles(
            shapely.union_all([region.geometry for region in regions]),
            (slide.width, slide.height),
            scale,
            spec,
            tile_px=options.tile_px,
            max_nucleus_um=options.max_nucleus_um,
        ),
        notes=tuple(notes),
    )


def plan_again(plan: ImagePlan, options: RunOptions) -> ImagePlan:
    """Return the plan for an image that was saved by someone else after it was planned.

    The tiles and with them the nuclei are as before, so that the annotations must be where they
    were; everything else of the image may have changed.

    Raises
    ------
    ConflictError
        If an annotation is gone or has another outline, the file cannot be read, or another run
        has written into an annotation that ``on_existing`` protects.
    """
    try:
        objects = plan.entry.read()
    except FormatError as error:
        raise ConflictError(error.what, error.hint) from error
    regions = [Region(_same_annotation(r, objects), r.geometry) for r in plan.regions]
    existing = [ours_within(region, objects.detections) for region in regions]
    if options.on_existing in ("skip", "error") and any(existing):
        name = next(r.label for r, ids in zip(regions, existing, strict=True) if ids)
        raise ConflictError(f"qpnuclei wrote detections into {name} meanwhile")
    return dataclasses.replace(
        plan,
        fingerprint=objects.fingerprint,
        taken=_ids(objects),
        regions=regions,
        existing=existing,
    )


def _ids(objects: ImageObjects) -> frozenset[UUID]:
    return frozenset(own_id for own_id in objects.detections.ids if own_id is not None)


def _same_annotation(region: Region, objects: ImageObjects) -> Annotation | None:
    """Find the annotation of a region among the objects of a later state of the image."""
    wanted = region.annotation
    if wanted is None:
        return None
    for found in objects.annotations:
        # QuPath gives a UUID to what was saved without one.
        is_wanted = found.id == wanted.id if wanted.id else found.name == wanted.name
        if is_wanted and same_outline(found.geometry, wanted.geometry):
            return found
    raise ConflictError(f"the annotation {wanted.label} is gone, or has another outline meanwhile")
