"""The plan of all images of a run: what to do, and what is already in the project."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass

import shapely
from msgspec.structs import replace

from qpnuclei._version import __version__
from qpnuclei.errors import FormatError, NotFoundError, QpnucleiError, number_of, standing_alone
from qpnuclei.pipeline.commit.commit_image import ImageCommit
from qpnuclei.pipeline.folder import RunFolder
from qpnuclei.pipeline.inference.units import Conduct
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.planning.image_plan import ImagePlan, NothingToDo, plan_image
from qpnuclei.pipeline.planning.keys import inputs_of, request_of
from qpnuclei.pipeline.planning.layout import divide
from qpnuclei.pipeline.planning.plan_file import PlannedImage, RunPlan, UnplannedImage
from qpnuclei.pipeline.planning.plan_parts import (
    PlannedRegion,
    PlannedSlide,
)
from qpnuclei.qupath.analysed import Record
from qpnuclei.qupath.images import open_image
from qpnuclei.qupath.model import ImageEntry, ImageObjects, Project
from qpnuclei.qupath.names import file_stem
from qpnuclei.segmentation.engine import EngineSpec, absolute_model, engine_specs
from qpnuclei.system.checked import rechecked

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Planned:
    """A plan, its images that are already in the project, and images that could not be planned.

    `committed` has the hash of the present data file of each image by its entry ID. An image that
    is in the project and could not be looked at again is among all three.
    """

    plan: RunPlan
    committed: Mapping[str, str]
    errors: dict[str, QpnucleiError]


def plan_project(
    project: Project,
    entries: Sequence[ImageEntry],
    options: RunOptions,
    folder: RunFolder,
    conduct: Conduct,
) -> Planned:
    """Plan the images and write the plan."""
    specs = engine_specs(options.models)
    goes_on = conduct.resume and (conduct.extend or not folder.is_done)
    earlier = _earlier_images(folder, options) if goes_on else {}

    def commit_of(entry: ImageEntry, image: PlannedImage) -> ImageCommit:
        spec = specs[options.model_for(image.mpp)]
        return ImageCommit(project, entry, image, folder, spec, options)

    images: list[PlannedImage] = []
    committed: dict[str, str] = {}
    errors: dict[str, QpnucleiError] = {}
    nothing: dict[str, str] = {}
    for entry in entries:

        def fail(error: QpnucleiError, entry: ImageEntry = entry) -> None:
            errors[entry.id] = error
            known = earlier.get(entry.id)
            data = None if known is None else _data_as_written(commit_of(entry, known), specs)
            if known is not None and data is not None:
                images.append(known)
                committed[entry.id] = data
            if conduct.fail_fast:
                raise error

        with standing_alone(f"image {entry.name}", fail):
            try:
                known = earlier.get(entry.id)
                written = None if known is None else commit_of(entry, known)
                image, data = _plan_image(project, entry, specs, options, written)
            except NothingToDo as reason:
                nothing[entry.id] = str(reason)
                _log.info("image %s: not analysed: %s", entry.name, reason)
            else:
                images.append(image)
                if data is not None:
                    committed[entry.id] = data
        conduct.check_stop()
    plan = RunPlan(
        project=str(project.path.absolute()),
        request=request_of(options),
        arguments=options.to_json(),
        engines={absolute_model(model): asdict(spec) for model, spec in specs.items()},
        names={entry.id: entry.name for entry in entries},
        images=tuple(images),
        failures=tuple(
            UnplannedImage(entry=entry_id, error=error.what, hint=error.hint)
            for entry_id, error in errors.items()
        ),
        nothing_to_do=nothing,
    )
    folder.save_plan(plan)
    folder.log("qpnuclei %s: planned: %s", __version__, number_of(len(images), "image"))
    if conduct.retry_failed:
        folder.forget_failures()
    if earlier:
        there = [folder.shard(image, name).exists() for image in images for name in image.units]
        # If nothing can be used again, an input of every unit has changed: it is a new run.
        if committed or any(there):
            _log.info(
                "continuing %s: in the project: %d of %s; computed: %d of %s",
                folder.path,
                len(committed),
                number_of(len(images), "image"),
                sum(there),
                number_of(len(there), "unit"),
            )
    return Planned(plan, committed, errors)


def _earlier_images(folder: RunFolder, options: RunOptions) -> dict[str, PlannedImage]:
    """Return by entry ID the images of the plan in the folder; none if it cannot be read.

    A plan of another version, or a damaged one, is no error here: this plan replaces it.
    """
    try:
        # The same model may be spelled in another way now.
        return {
            image.entry: replace(image, model=absolute_model(options.model_for(image.mpp)))
            for image in folder.plan().images
        }
    except NotFoundError:
        return {}
    except FormatError as error:
        _log.warning("%s: it is replaced, and all images are planned anew", error.what)
        return {}


def _plan_image(
    project: Project,
    entry: ImageEntry,
    specs: Mapping[str, EngineSpec],
    options: RunOptions,
    earlier: ImageCommit | None,
) -> tuple[PlannedImage, str | None]:
    """Plan an image; if this run has already written it, also return the hash of its data file.

    Parameters
    ----------
    earlier : ImageCommit or None
        Of the image as the plan in the folder has it.
    """
    objects = entry.read()
    with open_image(entry) as slide:
        file = PlannedSlide.of(slide)
        inputs = _inputs(entry, objects, specs, options, file)
        is_same = earlier is not None and earlier.image.inputs == inputs
        if earlier is not None and is_same and _is_written(earlier, objects):
            return earlier.image, objects.fingerprint
        # The marks of an earlier attempt of this run are among its inputs.
        if options.qc and not is_same:
            from qpnuclei.pipeline.planning.artefacts import mark_artefacts, report_marks

            report_marks(entry, mark_artefacts(project, entry, options.pixel_sizes).area_mm2)
            objects = entry.read()
            inputs = _inputs(entry, objects, specs, options, file)
        plan = plan_image(entry, slide, specs, options, objects)
    return _planned_image(plan, file, inputs, specs[plan.model], options), None


def _data_as_written(earlier: ImageCommit, specs: Mapping[str, EngineSpec]) -> str | None:
    """Return the hash of an image's data file if it holds the planned result; read no slide."""
    entry, image = earlier.entry, earlier.image
    with suppress(QpnucleiError):
        objects = entry.read()
        inputs = _inputs(entry, objects, specs, earlier.options, image.slide)
        if inputs == image.inputs and _is_written(earlier, objects):
            return objects.fingerprint
    return None


def _is_written(earlier: ImageCommit, objects: ImageObjects) -> bool:
    """Return whether an image holds the planned result, and this folder completes it.

    The same plan in another folder has the same marker, so the marker alone does not tell.
    """
    record = Record.of(objects.properties, earlier.entry.name)
    return record.has_run(earlier.image.marker) and earlier.completes_earlier


def _planned_image(
    plan: ImagePlan, slide: PlannedSlide, inputs: str, spec: EngineSpec, options: RunOptions
) -> PlannedImage:
    """Return the plan of an image as data."""
    made = PlannedImage(
        entry=plan.entry.id,
        name=plan.entry.name,
        folder=file_stem(plan.entry),
        slide=slide,
        uris=plan.entry.server.uris,
        model=absolute_model(plan.model),
        mpp=plan.scale.mpp,
        mpp_source=plan.mpp_source,
        project_mpp=plan.project_mpp,
        stated_mpp=plan.entry.server.mpp,
        downsample=plan.scale.downsample,
        stains=plan.stains,
        regions=tuple(PlannedRegion.of(region) for region in plan.regions),
        tissue=plan.tissue is not None,
        outdated=tuple(sorted(a.id for a in plan.outdated if a.id is not None)),
        left_out="" if plan.left_out.is_empty else shapely.to_wkb(plan.left_out, hex=True),
        notes=plan.notes,
        data=plan.fingerprint,
        inputs=inputs,
        units=(),
    )
    image = rechecked(made)  # the types of a plan that is read again
    units = divide(plan.tiles, image, spec, options).units
    return replace(image, units=tuple(unit.name for unit in units))


def _inputs(
    entry: ImageEntry,
    objects: ImageObjects,
    specs: Mapping[str, EngineSpec],
    options: RunOptions,
    file: PlannedSlide,
) -> str:
    selection = options.selection
    chosen = [a for a in objects.annotations if not selection.tissue and selection.matches(a)]
    excluded = [a for a in objects.annotations if selection.excludes(a)]
    known = [repr(entry.calibration), repr(entry.stains), options.mpp_by_image.get(entry.id)]
    return inputs_of(options, list(specs.values()), file, chosen, excluded, known)
