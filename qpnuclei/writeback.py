"""How the nuclei found in an image reach the project, and the files beside it."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from pathlib import Path
from uuid import UUID

import numpy as np
import numpy.typing as npt

import qpnuclei
from qpnuclei.errors import ConflictError, QpnucleiError, SaveError
from qpnuclei.files import atomic_file, make_writable_folder
from qpnuclei.nuclei import NucleiTable
from qpnuclei.planning import ImagePlan, RunOptions, plan_again
from qpnuclei.qupath.geojson import write_detections
from qpnuclei.qupath.model import (
    DetectionGroup,
    Edit,
    ImageEntry,
    PathClass,
    Project,
    nucleus_id,
)
from qpnuclei.qupath.names import NEW_CLASS_COLOR, class_of, file_stem

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class NewNuclei:
    """The N nuclei that are to be written into an image.

    Parameters
    ----------
    table : NucleiTable
    ids : (N,) list of UUID
    region : (N,) int64 ndarray
        Which of the plan's regions each belongs to.
    """

    table: NucleiTable
    ids: list[UUID]
    region: npt.NDArray[np.int64]


def new_nuclei(
    plan: ImagePlan, table: NucleiTable, region: npt.NDArray[np.int64], options: RunOptions
) -> NewNuclei:
    """Give nuclei their UUIDs; with ``on_existing="append"`` leave out those already there.

    A UUID is made from the image and the outline: the same nucleus found again has it again.
    """
    ids = _ids(table, plan.entry)
    if options.on_existing != "append":
        return NewNuclei(table, ids, region)
    known = set(plan.objects.detections.ids)
    new = np.array([nucleus not in known for nucleus in ids], bool)
    return NewNuclei(
        table.take(new), [nucleus for nucleus in ids if nucleus not in known], region[new]
    )


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
        path_class = class_of(project, options.class_name)
        replaced = _save(plan, nuclei, path_class, options)
    except QpnucleiError as error:
        # Whatever went wrong: what took hours to find is not lost.
        raise _rescued(error, f"{stem}.rescued.geojson.gz", nuclei, options, run_dir) from error
    if options.geojson_dir is not None:
        path = options.geojson_dir / f"{stem}.geojson.gz"
        write_detections(path, nuclei.table, nuclei.ids, path_class)
    if options.parquet_dir is not None:
        write_parquet(options.parquet_dir / f"{stem}.parquet", plan, nuclei)
    return replaced


def _save(plan: ImagePlan, nuclei: NewNuclei, path_class: PathClass, options: RunOptions) -> int:
    """Write nuclei into the project; with `force` also if the image changed meanwhile."""
    try:
        return _write(plan, nuclei, path_class, options)
    except ConflictError:
        if not options.force:
            raise
        replaced = _write(plan_again(plan, options), nuclei, path_class, options)
        _LOG.warning(
            "image %s was changed meanwhile: the nuclei are in it as it is now, and what was "
            "there without them is its newest backup",
            plan.entry.name,
        )
        return replaced


def _write(plan: ImagePlan, nuclei: NewNuclei, path_class: PathClass, options: RunOptions) -> int:
    """Write nuclei into the project; return how many of earlier runs were replaced."""
    replaced: frozenset[UUID] = frozenset()
    if options.on_existing == "replace":
        replaced = replaced.union(*plan.existing)
    # A run meanwhile may have found the same nucleus.
    taken = set(plan.objects.detections.ids) - replaced
    new = np.array([own_id not in taken for own_id in nuclei.ids], bool)
    groups = []
    for index, region in enumerate(plan.regions):
        rows = np.flatnonzero(new & (nuclei.region == index))
        if len(rows):
            ids = [nuclei.ids[row] for row in rows.tolist()]
            groups.append(DetectionGroup(region.handle, nuclei.table.take(rows), ids, path_class))
    step = ("qpnuclei run", f"// qpnuclei {qpnuclei.__version__}: run with {options.to_json()}")
    plan.entry.write(
        Edit(remove=replaced, add=groups, workflow_step=step), plan.objects.fingerprint
    )
    return len(replaced)


def _rescued(
    error: QpnucleiError, name: str, nuclei: NewNuclei, options: RunOptions, run_dir: Path
) -> QpnucleiError:
    """Write nuclei that could not be saved where it is possible; return the error that says so."""
    path_class = PathClass(options.class_name, NEW_CLASS_COLOR)
    # The disk of the project may be full, or its drive gone.
    for folder in filter(Path.is_dir, (run_dir, Path.cwd(), Path(tempfile.gettempdir()))):
        try:
            write_detections(folder / name, nuclei.table, nuclei.ids, path_class)
        except SaveError as refused:
            _LOG.warning("%s", refused)
            continue
        return type(error)(
            f"{error.what}; the project is unchanged, the nuclei are in {folder / name}",
            error.hint or "run again, or import that file with: qpnuclei geojson import",
        )
    return type(error)(
        f"{error.what}; the project is unchanged, and the nuclei could not be saved elsewhere",
        error.hint or "make room, and run again",
    )


def make_run_dir(project: Project, options: RunOptions) -> Path:
    """Make the folders that ``run.json`` and copies go to; return the former.

    Raises
    ------
    SaveError
        If it cannot be made.
    """
    name = datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    folder = options.run_dir or project.path.parent / "qpnuclei" / name
    for wanted in (folder, options.geojson_dir, options.parquet_dir):
        if wanted is not None:
            make_writable_folder(wanted)
    return folder


def write_parquet(path: Path, plan: ImagePlan, nuclei: NewNuclei) -> None:
    """Write nuclei as a Parquet table: one row each, outlines as WKB, measurements as columns.

    Raises
    ------
    SaveError
        If it cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    import shapely

    centroids = nuclei.table.centroids()
    columns = {
        "id": [str(nucleus) for nucleus in nuclei.ids],
        "annotation": [plan.regions[i].label for i in nuclei.region.tolist()],
        "centroid_x_px": centroids[:, 0],
        "centroid_y_px": centroids[:, 1],
        "geometry": list(shapely.to_wkb(nuclei.table.polygons())),
        **nuclei.table.measurements,
    }
    with atomic_file(path) as stream:
        pq.write_table(pa.table(columns), stream)


def _ids(table: NucleiTable, entry: ImageEntry) -> list[UUID]:
    salt = f"{entry.id}/{entry.name}".encode()
    first = table.ring_offsets[table.polygon_offsets[:-1]].tolist()
    last = table.ring_offsets[table.polygon_offsets[1:]].tolist()
    vertices = np.ascontiguousarray(table.vertices.astype("<f4"))
    return [
        nucleus_id(blake2b(salt + vertices[a:b].tobytes(), digest_size=10).digest())
        for a, b in zip(first, last, strict=True)
    ]
