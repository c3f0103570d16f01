"""The last step of an image: its nuclei from the run's folder into the project, once."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from qpnuclei.errors import FormatError, SaveError, UsageError, number_of
from qpnuclei.pipeline.commit.copies import are_missing, paths_of_copies, write_copies
from qpnuclei.pipeline.commit.new_nuclei import NewNuclei, new_nuclei
from qpnuclei.pipeline.commit.replan import regions_now
from qpnuclei.pipeline.commit.write_back import Written, loss_note, write_back
from qpnuclei.pipeline.folder import RunFolder
from qpnuclei.pipeline.inference.plausibility import Doubts
from qpnuclei.pipeline.inference.shards import About, ImageNuclei
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.planning.image_plan import (
    ImagePlan,
    area_to_clear,
    earlier_nuclei,
)
from qpnuclei.pipeline.planning.layout import Layout, layout_of
from qpnuclei.pipeline.planning.plan_file import PlannedImage
from qpnuclei.pipeline.positivity import grades_of
from qpnuclei.pipeline.selection import Locked, our_tissue
from qpnuclei.pipeline.summary import ImageResult, RegionResult, StoredResult
from qpnuclei.qupath.analysed import Record
from qpnuclei.qupath.counted_image import CountedImage, analysed_area
from qpnuclei.qupath.counts import count_in_regions
from qpnuclei.qupath.doubts import together
from qpnuclei.qupath.model import Detections, ImageEntry, ImageObjects, Project
from qpnuclei.qupath.regions import Region
from qpnuclei.segmentation.engine import EngineSpec
from qpnuclei.slides.calibration import PixelCalibration
from qpnuclei.slides.stains import stain_rows
from qpnuclei.system.commands import as_typed
from qpnuclei.system.interrupts import interrupt_postponed

_REPLACED = "later runs have replaced or removed these nuclei"


@dataclass(frozen=True, eq=False)
class ImageCommit:
    """The last step of one image of a run.

    Parameters
    ----------
    entry : ImageEntry
        The image in the project.
    image : PlannedImage
        The image in the plan.
    spec : EngineSpec
        Of the model that found its nuclei.
    """

    project: Project
    entry: ImageEntry
    image: PlannedImage
    folder: RunFolder
    spec: EngineSpec
    options: RunOptions

    @cached_property
    def layout(self) -> Layout:
        """How the image was divided.

        Raises
        ------
        FormatError
            If the plan is damaged, or was made by another version.
        """
        return layout_of(self.image, self.spec, self.options)

    @property
    def device(self) -> str:
        """Device on which the network ran; empty if nothing was analysed."""
        return self._found().about.device

    @property
    def completes_earlier(self) -> bool:
        """Whether `complete_earlier` is for this folder: it saved the image, or has its nuclei.

        Otherwise a run in another folder, with the same plan, has written the image.
        """
        stored = stored_result(self.folder, self.image)
        if stored and stored.is_saved:
            return True
        with suppress(FormatError):
            return self.folder.shard(self.image, self.layout.name).exists()
        return False

    def write(self) -> ImageResult:
        """Write the nuclei of the image into the project; return the result.

        Raises
        ------
        QpnucleiError
            If the result cannot be read or saved; the project is unchanged. A result that could not
            be saved is kept as GeoJSON in the run's folder, which the error names.
        """
        found = self._found()
        objects = self.entry.read()
        plan = self._plan(objects).to_write(objects, self.options.on_existing)
        about = found.about
        nuclei = new_nuclei(plan, found, Doubts.of(about.checks))

        def store(planned: Written) -> None:
            """Store the result: if the run is killed after the save, the next run reads it here."""
            self._store(_to_store(planned.nuclei, self._result(planned, about)))

        with interrupt_postponed():
            written = write_back(self.project, plan, nuclei, self.options, self.folder.path, store)
            result = self._result(written, about)
            result = self._finish(written, self.entry.read(), result)
        count = number_of(result.nuclei, "nucleus")
        self.folder.log("image %s: %s saved in the project", self.image.name, count)
        return result

    def complete_earlier(self, data: str, *, is_replaced: bool = False) -> ImageResult:
        """Do what is left to do for an image that this run has already saved; return its result.

        Requested copies that an earlier start did not write are written: they hold the nuclei that
        the run wrote, also those that were removed from the project since. If the file was changed
        after the nuclei were counted, for example by a filter or in QuPath, they are counted again.

        Parameters
        ----------
        data : str
            Hash of its data file.
        is_replaced : bool
            Whether later runs have replaced the nuclei: then their counts stay, with a note.

        Raises
        ------
        QpnucleiError
            If the image or its computed nuclei cannot be read, or a copy cannot be written.
        """
        stored = stored_result(self.folder, self.image)
        if stored is None or not stored.is_saved:
            result = self._finish_interrupted(stored)
        else:
            if are_missing(self.entry, self.options, stored):
                stored = self._write_missing_copies(stored)
            if stored.result.data != data and not is_replaced:
                stored = self._count_again(stored)
            result = stored.result
        return replace(result, notes=(*result.notes, _REPLACED)) if is_replaced else result

    def _finish_interrupted(self, stored: StoredResult | None) -> ImageResult:
        """Do the steps after the save; the run was killed before it had done them."""
        found = self._found()
        about = found.about
        # Now the project holds them all: only what is stored tells which are of earlier runs.
        saved = self.entry.read()
        plan = self._plan(saved)
        nuclei = new_nuclei(plan, found, Doubts.of(about.checks), stored)
        # Only that tells, too, how many they replaced.
        written = Written(0 if stored is None else stored.result.replaced, nuclei, plan)
        with interrupt_postponed():
            write_copies(self.project, plan, nuclei, self.options)
            result = stored.result if stored else self._result(written, about)
            return self._finish(written, saved, result)

    def _write_missing_copies(self, stored: StoredResult) -> StoredResult:
        """Write the requested copies of nuclei that are in the project; return the new state."""
        path = self.folder.shard(self.image, self.layout.name)
        if not path.exists():
            raise copies_lost(self.project, self.image, path)
        found = self._found()
        plan = self._plan(self.entry.read())
        nuclei = new_nuclei(plan, found, stored=stored)
        write_copies(self.project, plan, nuclei, self.options)
        copies = dict.fromkeys([*stored.copies, *paths_of_copies(self.entry, self.options)])
        return self._store(replace(stored, copies=tuple(copies)))

    def _count_again(self, stored: StoredResult) -> StoredResult:
        """Count the nuclei that the project has now; return the new state."""
        objects = self.entry.read()
        counted = _counted(self._plan(objects), objects)
        return self._store(replace(stored, result=replace(stored.result, **counted)))

    def _finish(self, written: Written, saved: ImageObjects, result: ImageResult) -> ImageResult:
        """Count what was saved, store that image and copies are done, and return the result.

        Parameters
        ----------
        saved : ImageObjects
            The image after the save.
        result : ImageResult
            What was known before the save.
        """
        loss = loss_note(self.project, self.entry, result.replaced, result.nuclei)
        notes = _notes(written, loss, saved, self.options)
        result = replace(result, **_counted(written.plan, saved), notes=notes)
        copies = paths_of_copies(self.entry, self.options)
        self._store(replace(_to_store(written.nuclei, result), is_saved=True, copies=copies))
        return result

    def _store(self, stored: StoredResult) -> StoredResult:
        """Write what is known of the image into the run's folder; return it.

        If that fails, the run goes on: a later start only repeats some steps.
        """
        with suppress(SaveError):
            stored.save(self.folder.make_for(self.folder.result_path(self.image)))
        return stored

    def _found(self) -> ImageNuclei:
        """Return the nuclei that the run found."""
        layout = self.layout
        return ImageNuclei(self.folder.shard(self.image, layout.name), layout.key)

    def _plan(self, objects: ImageObjects) -> ImagePlan:
        """Return the plan of the image with the present objects of the project."""
        image = self.image
        regions = image.areas()
        left_out = image.area_left_out()
        record = Record.of(objects.properties, self.entry.name)
        outdated = [a for a in our_tissue(objects.annotations, record) if a.id in image.outdated]
        to_clear = area_to_clear(left_out, self.options.on_existing)
        existing, left_behind = earlier_nuclei(regions, to_clear, outdated, objects.detections)
        return ImagePlan(
            entry=self.entry,
            model=image.model,
            # If the image's fingerprint has changed, the save is refused.
            fingerprint=image.data,
            size=(image.slide.width, image.slide.height),
            scale=image.scale,
            mpp_source=image.mpp_source,
            project_mpp=image.project_mpp,
            stains=image.stains,
            regions=regions,
            existing=existing,
            tiles=self.layout.tiles,
            record=record,
            tissue=regions[0].annotation if image.tissue else None,
            outdated=outdated,
            notes=image.notes,
            marker=image.marker,
            locked=Locked.of(objects.detections, [*existing, left_behind]),
            left_out=left_out,
            left_behind=left_behind,
        )

    def _result(self, written: Written, about: About) -> ImageResult:
        """Return the result as far as it is known before the save."""
        image = self.image
        plan, nuclei = written.plan, written.nuclei
        counts = about.counts or {}
        return ImageResult(
            name=image.name,
            entry=image.entry,
            model=self.spec.name,
            mpp=image.mpp,
            mpp_source=image.mpp_source,
            working_mpp=image.scale.working_mpp,
            stains=image.stains.name,
            tiles=len(plan.tiles),
            megapixels=plan.megapixels,
            regions=(),
            nuclei=len(nuclei),
            check=nuclei.doubts.image,
            replaced=written.replaced,
            outside=nuclei.outside,
            joined=counts.get("joined", 0),
            covered=counts.get("covered", 0),
            overlapping=counts.get("overlapping", 0),
            seconds=dict(about.seconds or {}),
            waited=dict(about.waited or {}),
            notes=image.notes,
            locked=len(plan.locked.rows),
            as_locked=len(nuclei.as_locked),
            marker=image.marker,
        )


def stored_result(folder: RunFolder, image: PlannedImage) -> StoredResult | None:
    """Return what the folder stores of an image, unless it is of an earlier attempt of the run."""
    stored = StoredResult.read(folder.result_path(image))
    return stored if stored is not None and stored.result.marker == image.marker else None


def _to_store(nuclei: NewNuclei, result: ImageResult) -> StoredResult:
    """Return what is stored of nuclei that will be saved."""
    return StoredResult(
        False,
        result,
        tuple(nuclei.again),
        tuple(nuclei.as_locked),
        renamed=tuple(nuclei.renamed.items()),
    )


def _notes(
    written: Written, loss: str | None, saved: ImageObjects, options: RunOptions
) -> tuple[str, ...]:
    plan, nuclei = written.plan, written.nuclei
    notes = list(plan.notes)
    if loss is not None:
        notes.append(loss)
    if nuclei.renamed:
        many = len(nuclei.renamed) > 1
        count = number_of(len(nuclei.renamed), "nucleus")
        notes.append(
            f"{count} got {'other UUIDs' if many else 'another UUID'}: other objects of the image "
            f"have {'theirs' if many else 'its own'}"
        )
    if nuclei.again and options.cell_expansion_um > 0 and options.on_existing != "replace":
        count = number_of(len(nuclei.again), "nucleus")
        notes.append(
            f"{count} of earlier runs found again: --on-existing {options.on_existing} leaves them "
            "as they are, and makes no new cells of them; --on-existing replace does"
        )
    kept = _kept(written, saved, options)
    others = _with_other_classes(saved.detections, kept, options)
    if others:
        count = number_of(others, "nucleus")
        verb = "keeps" if others == 1 else "keep"
        note = f"{count} of earlier runs {verb} another class than this run gives"
        if options.on_existing == "replace":
            notes.append(f"{note}: locked")
        else:
            notes.append(f"{note}; --on-existing replace replaces those that are not locked")
    return tuple(notes)


def _kept(written: Written, saved: ImageObjects, options: RunOptions) -> frozenset[int]:
    """Return the rows, in what is saved, of the nuclei of earlier runs that the run kept.

    Those that the run itself has appended are among them.
    """
    plan = written.plan
    kept = plan.existing if options.on_existing == "append" else [plan.locked.rows]
    if not any(kept) or options.on_existing not in ("append", "replace"):
        return frozenset()
    to_clear = area_to_clear(plan.left_out, options.on_existing)
    existing, cleared = earlier_nuclei(regions_now(plan, saved), to_clear, (), saved.detections)
    rows = cleared.union(*existing)
    if options.on_existing == "append":
        return rows
    return rows.intersection(np.flatnonzero(saved.detections.locked).tolist())


def _with_other_classes(detections: Detections, kept: frozenset[int], options: RunOptions) -> int:
    """Count the detections in some rows to which the options would give other classes."""
    if not kept:
        return 0
    base = options.class_name
    names = detections.class_names
    grades = grades_of(detections, options.positive_thresholds).tolist()
    return sum(names[row] != (f"{base}: {grades[row]}" if grades[row] else base) for row in kept)


def _counted(plan: ImagePlan, objects: ImageObjects) -> dict[str, Any]:
    """Count the nuclei of each region in what is saved, as export does, with the same doubts.

    Parameters
    ----------
    objects : ImageObjects
        What is saved of the image.

    Returns
    -------
    dict
        The fields `regions`, `check` and `data` of the result.
    """
    calibration = PixelCalibration(*plan.scale.mpp)
    stains = stain_rows(plan.stains)
    image = CountedImage("", plan.entry.name, objects, calibration, stains=stains)
    # Earlier runs may have analysed what this one left out.
    regions = [
        image.record.analysed_part(Region.of(a), image.record.status(a))
        if (a := region.annotation)
        else region
        for region in regions_now(plan, objects)
    ]
    whole = Region(None, analysed_area(image))
    *counts, (*_, twice_in_image) = count_in_regions(image, [*regions, whole])
    results = tuple(
        RegionResult.of(region, area, number, density, together([image.doubts(region), twice]))
        for region, (area, number, density, twice) in zip(regions, counts, strict=True)
    )
    return {
        "regions": results,
        "check": together([image.image_doubts(), twice_in_image]),
        "data": objects.fingerprint,
    }


def copies_lost(project: Project, image: PlannedImage, path: Path) -> UsageError:
    """Return the error of copies of nuclei that the run no longer has: their file was removed."""
    export = as_typed(["qpnuclei", "export", str(project.path)])
    return UsageError(
        f"no copies of the nuclei of image {image.name}: {path} was removed",
        "leave out --geojson and --parquet; what the project has is written by: "
        f"{export} --by nucleus -o nuclei.parquet (or .geojson)",
    )
