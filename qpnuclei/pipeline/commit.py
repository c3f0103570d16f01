"""How the nuclei found in an image reach the project, and the files beside it."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import overload
from uuid import UUID

import numpy as np
import numpy.typing as npt

from qpnuclei._version import __version__
from qpnuclei.errors import ConflictError, QpnucleiError, SaveError
from qpnuclei.nuclei.exports.geoparquet import geo_metadata
from qpnuclei.nuclei.ids import NucleusIds
from qpnuclei.nuclei.table import NucleiTable
from qpnuclei.pipeline.plan import ImagePlan, RunOptions, plan_again
from qpnuclei.pipeline.plausibility import Check
from qpnuclei.pipeline.positivity import NucleusClasses, classes_of_nuclei
from qpnuclei.pipeline.selection import TISSUE_CLASS
from qpnuclei.qupath.analysed import UsedMpp
from qpnuclei.qupath.backups import list_backups
from qpnuclei.qupath.geojson.writing import write_groups
from qpnuclei.qupath.model import (
    Annotation,
    DetectionGroup,
    Edit,
    ImageEntry,
    NewAnnotation,
    Project,
)
from qpnuclei.qupath.names import class_of, file_stem
from qpnuclei.qupath.pixel_size import project_mpp
from qpnuclei.qupath.regions import region_of
from qpnuclei.system.files import (
    atomic_file,
    folders_of_last_resort,
    make_folder_below,
)

_log = logging.getLogger(__name__)

_NO_DOUBTS = Check()

#: Packed ARGB, light grey: tissue is no finding.
_TISSUE_COLOR = -3355444


@dataclass(frozen=True, eq=False)
class NewNuclei:
    """The N nuclei that are to be written into an image.

    Parameters
    ----------
    entry : ImageEntry
        The image.
    tables : sequence of NucleiTable
        S tables in which the nuclei are sorted by region.
    counts : (S, R) int64 ndarray
        How many of each table belong to each of the plan's regions.
    outside : int
        Nuclei that were found in none of the regions, and left out.
    doubts : Check
        What is doubtful about what was found.
    """

    entry: ImageEntry
    tables: Sequence[NucleiTable]
    counts: npt.NDArray[np.int64]
    outside: int
    doubts: Check = _NO_DOUBTS

    def __len__(self) -> int:
        return int(self.counts.sum())

    def groups(
        self,
        parents: Sequence[int | None],
        classes: NucleusClasses,
        taken: Collection[UUID] = frozenset(),
    ) -> Sequence[DetectionGroup]:
        """Return detections for a project, made when asked for, table by table.

        Parameters
        ----------
        parents : (R,) sequence of int or None
            Handles of the regions' annotations.
        classes : NucleusClasses
            By which the nuclei of a table and region are divided.
        taken : collection of UUID
            Nuclei that are left out.
        """
        return _Groups(self, parents, classes, taken)


class _Groups(Sequence[DetectionGroup]):
    """The groups of `NewNuclei.groups`: one for each table and region that have any, and class."""

    def __init__(
        self,
        nuclei: NewNuclei,
        parents: Sequence[int | None],
        classes: NucleusClasses,
        taken: Collection[UUID],
    ) -> None:
        self._nuclei = nuclei
        self._parents = parents
        self._classes = classes
        self._taken = taken
        self._at = [
            (*at, code)
            for at in np.argwhere(nuclei.counts).tolist()
            for code in range(len(classes))
        ]
        # Regions of one table follow each other: it is read once for all of them. A group that is
        # the only one is made once, however often it is asked for.
        self._table = lru_cache(1)(nuclei.tables.__getitem__)
        self._codes = lru_cache(1)(lambda number: classes.codes(self._table(number)))
        self._ids: dict[int, NucleusIds] = {}
        self._group = lru_cache(1)(self._make)

    def __len__(self) -> int:
        return len(self._at)

    @overload
    def __getitem__(self, index: int) -> DetectionGroup: ...
    @overload
    def __getitem__(self, index: slice) -> list[DetectionGroup]: ...
    def __getitem__(self, index: int | slice) -> DetectionGroup | list[DetectionGroup]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._group(*self._at[index])

    def _make(self, number: int, region: int, code: int) -> DetectionGroup:
        table = self._table(number)
        if number not in self._ids:
            self._ids[number] = _ids(table, self._nuclei.entry)
        ids = self._ids[number]
        stop = int(self._nuclei.counts[number, : region + 1].sum())
        start = stop - int(self._nuclei.counts[number, region])
        rows = (start + np.flatnonzero(self._codes(number)[start:stop] == code)).tolist()
        if self._taken:
            rows = [row for row in rows if ids[row] not in self._taken]
        path_class = self._classes.classes[code]
        return DetectionGroup(self._parents[region], table.take(rows), ids.take(rows), path_class)


def new_nuclei(
    plan: ImagePlan,
    found: Sequence[NucleiTable],
    options: RunOptions,
    doubts: Check = _NO_DOUBTS,
) -> NewNuclei:
    """Say which region each nucleus found belongs to, and leave out what belongs to none.

    With ``on_existing="append"`` those already there are left out, too. The UUID of a nucleus is
    made from the image and its outline: found again, it has the same.

    Parameters
    ----------
    found : sequence of NucleiTable
        In level-0 px. Read one after the other, and again when they are written.
    """
    known = plan.taken if options.on_existing == "append" else frozenset[UUID]()
    counts = np.zeros((len(found), len(plan.regions)), np.int64)
    orders: list[npt.NDArray[np.int64] | None] = []
    outside = 0
    for number, of_table in enumerate(counts):
        table = found[number]
        region = region_of(table.centroids(), plan.regions)
        outside += int(np.count_nonzero(region < 0))
        if known:
            region[[own_id in known for own_id in _ids(table, plan.entry)]] = -1
        by_region = np.argsort(region, kind="stable")[np.count_nonzero(region < 0) :]
        as_it_is = np.array_equal(by_region, np.arange(len(table)))
        orders.append(None if as_it_is else by_region)
        of_table += np.bincount(region[by_region], minlength=len(of_table))
    return NewNuclei(plan.entry, _Sorted(found, orders), counts, outside, doubts)


class _Sorted(Sequence[NucleiTable]):
    """Tables in which the nuclei are put into an order when they are asked for."""

    def __init__(
        self, tables: Sequence[NucleiTable], orders: Sequence[npt.NDArray[np.int64] | None]
    ) -> None:
        self._tables = tables
        self._orders = orders

    def __len__(self) -> int:
        return len(self._tables)

    @overload
    def __getitem__(self, index: int) -> NucleiTable: ...
    @overload
    def __getitem__(self, index: slice) -> list[NucleiTable]: ...
    def __getitem__(self, index: int | slice) -> NucleiTable | list[NucleiTable]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        table, order = self._tables[index], self._orders[index]
        return table if order is None else table.take(order)


def write_back(
    project: Project, plan: ImagePlan, nuclei: NewNuclei, options: RunOptions, run_dir: Path
) -> int:
    """Write nuclei into the project, and the copies asked for beside it.

    Returns
    -------
    int
        How many detections of earlier runs were replaced.

    Raises
    ------
    QpnucleiError
        If the project could not be saved and is as it was; the error says where the nuclei are.
    SaveError
        If a copy could not be written; the project is saved.
    """
    stem = file_stem(plan.entry)
    try:
        classes = classes_of_nuclei(options.class_name, options.positive_thresholds, project)
        replaced = _save(project, plan, nuclei, classes, options)
    except QpnucleiError as error:
        # Whatever went wrong: what took hours to find is not lost.
        groups = nuclei.groups(
            [None] * len(plan.regions),
            classes_of_nuclei(options.class_name, options.positive_thresholds),
        )
        raise _rescued(error, f"{stem}.rescued.geojson.gz", groups, project, run_dir) from error
    write_copies(project, plan, nuclei, options)
    return replaced


def write_copies(project: Project, plan: ImagePlan, nuclei: NewNuclei, options: RunOptions) -> None:
    """Write the copies of nuclei that are asked for beside the project.

    Raises
    ------
    SaveError
        If one cannot be written.
    """
    stem = file_stem(plan.entry)
    classes = classes_of_nuclei(options.class_name, options.positive_thresholds, project)
    for folder in (options.geojson_dir, options.parquet_dir):
        if folder is not None:  # it was there when the run began
            make_folder_below(folder.absolute().parent, folder)
    if options.geojson_dir is not None:
        path = options.geojson_dir / f"{stem}.geojson.gz"
        write_groups(path, nuclei.groups([None] * len(plan.regions), classes))
    if options.parquet_dir is not None:
        write_parquet(options.parquet_dir / f"{stem}.parquet", plan, nuclei)


def _save(
    project: Project,
    plan: ImagePlan,
    nuclei: NewNuclei,
    classes: NucleusClasses,
    options: RunOptions,
) -> int:
    """Write nuclei into the project; with `force` also if the image changed meanwhile."""
    try:
        return _write(project, plan, nuclei, classes, options)
    except ConflictError:
        if not options.force:
            raise
        replaced = _write(project, plan_again(plan, options), nuclei, classes, options)
        _log.warning(
            "image %s was changed meanwhile: the nuclei are in it as it is now, and what was "
            "there without them is its newest backup",
            plan.entry.name,
        )
        return replaced


def _write(
    project: Project,
    plan: ImagePlan,
    nuclei: NewNuclei,
    classes: NucleusClasses,
    options: RunOptions,
) -> int:
    """Write nuclei into the project; return how many of earlier runs were replaced."""
    replaced: frozenset[UUID] = frozenset()
    if options.on_existing == "replace":
        replaced = replaced.union(*plan.existing)
    parents = [region.handle for region in plan.regions]
    tissue = [] if plan.tissue is None else [_tissue(project, plan.tissue)]
    used = UsedMpp(plan.scale.mpp, plan.mpp_source, project_mpp(plan.entry))
    record = plan.record.with_run(
        plan.regions, used, plan.outdated, nuclei.doubts.image, nuclei.doubts.regions, plan.marker
    )
    # A run meanwhile may have found the same nucleus.
    groups = nuclei.groups(parents, classes, plan.taken - replaced)
    step = ("qpnuclei run", f"// qpnuclei {__version__}: run with {options.to_json()}")
    edit = Edit(
        remove=replaced | plan.outdated,
        add=groups,
        annotations=tissue,
        workflow_step=step,
        properties=record.to_properties(),
    )
    plan.entry.write(edit, plan.fingerprint)
    return len(replaced)


def _tissue(project: Project, found: Annotation) -> NewAnnotation:
    """Return the annotation that a run of the tissue leaves."""
    if found.id is None:
        raise ValueError("an annotation of ours has a UUID")
    path_class = class_of(project, TISSUE_CLASS, _TISSUE_COLOR)
    return NewAnnotation(found.geometry, found.id, None, path_class, locked=True)


def loss_note(project: Project, entry: ImageEntry, replaced: int, written: int) -> str | None:
    """Say so if a run replaced most of what earlier ones had found by nothing, and how to undo it.

    Parameters
    ----------
    replaced, written : int
        Nuclei of earlier runs that were removed, and those that came in their place.
    """
    if written >= replaced / 2:
        return None
    said = f"{replaced} nuclei of earlier runs were replaced by {written}"
    backups = list_backups(project.path.parent / "data" / entry.id / "data.qpdata")
    if not backups:
        return said
    alike = [other for other in project.images if other.name == entry.name]
    image = entry.name if len(alike) == 1 else entry.id
    command = ["qpnuclei", "project", "restore", str(project.path), "--image", image]
    command += ["--backup", backups[0].id]
    return (
        f"{said}; they are in the backup {backups[0].id}, and come back with: {shlex.join(command)}"
    )


def _rescued(
    error: QpnucleiError,
    name: str,
    groups: Sequence[DetectionGroup],
    project: Project,
    run_dir: Path,
) -> QpnucleiError:
    """Write nuclei that could not be saved where it is possible; return the error that says so."""
    # The disk of the project may be full, or its drive gone: no folder is made in its place then.
    for folder in (run_dir, *folders_of_last_resort()):
        try:
            make_folder_below(project.path.parent, folder)
            write_groups(folder / name, groups)
        except SaveError as refused:
            _log.warning("%s", refused)
            continue
        return type(error)(
            f"{error.what}; the project is unchanged, the nuclei are in {folder / name}",
            error.hint or "run again, or import that file with: qpnuclei geojson import",
        )
    return type(error)(
        f"{error.what}; the project is unchanged, and the nuclei could not be saved elsewhere",
        error.hint or "make room, and run again",
    )


def write_parquet(path: Path, plan: ImagePlan, nuclei: NewNuclei) -> None:
    """Write nuclei as GeoParquet: one row each, outlines as WKB, measurements as columns.

    The outlines of cells are in ``cell_geometry``.

    Raises
    ------
    SaveError
        If it cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    import shapely

    labels = [region.label for region in plan.regions]

    def part(number: int) -> pa.Table:
        table = nuclei.tables[number]
        centroids = table.centroids()
        return pa.table(
            {
                "id": pa.array(_ids(table, plan.entry).texts(), pa.string()),
                "annotation": pa.array(np.repeat(labels, nuclei.counts[number]), pa.string()),
                "centroid_x_px": centroids[:, 0],
                "centroid_y_px": centroids[:, 1],
                **{
                    name: pa.array(shapely.to_wkb(outlines.polygons()), pa.binary())
                    for name, outlines in (("geometry", table), ("cell_geometry", table.cells))
                    if outlines is not None
                },
                **table.measurements,
            }
        )

    first = part(0)
    types = ["Polygon"] if len(first) else []
    columns = [name for name in ("geometry", "cell_geometry") if name in first.column_names]
    schema = first.schema.with_metadata(geo_metadata(types, columns=columns))
    with atomic_file(path) as stream, pq.ParquetWriter(stream, schema) as writer:
        writer.write_table(first.cast(schema))
        for number in range(1, len(nuclei.tables)):
            writer.write_table(part(number).cast(schema))


def _ids(table: NucleiTable, entry: ImageEntry) -> NucleusIds:
    salt = f"{entry.id}/{entry.name}".encode()
    ends = 8 * table.ring_offsets[table.polygon_offsets]
    outlines = table.vertices.astype("<f4").tobytes()
    digests = b"".join(
        blake2b(salt + outlines[a:b], digest_size=10).digest() for a, b in pairwise(ends.tolist())
    )
    return NucleusIds(np.frombuffer(digests, np.uint8).reshape(-1, 10))
