"""How the nuclei found in an image reach the project, and the files beside it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import numpy as np
import numpy.typing as npt

import qpnuclei
from qpnuclei.errors import SaveError
from qpnuclei.nuclei import NucleiTable
from qpnuclei.qupath.geojson import write_detections
from qpnuclei.qupath.model import (
    DetectionGroup,
    Edit,
    ImageEntry,
    PathClass,
    Project,
    nucleus_id,
)

if TYPE_CHECKING:
    from qpnuclei.planning import ImagePlan, RunOptions

#: Colour of a class that the project does not have yet: packed ARGB, green.
_NEW_CLASS_COLOR = -16732080


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
    SaveError
        If the project could not be saved and is as it was; the nuclei lie in `run_dir`.
    """
    path_class = class_of(project, options.class_name)
    stem = file_stem(plan.entry)
    if options.geojson_dir is not None:
        path = options.geojson_dir / f"{stem}.geojson.gz"
        write_detections(path, nuclei.table, nuclei.ids, path_class)
    if options.parquet_dir is not None:
        write_parquet(options.parquet_dir / f"{stem}.parquet", plan, nuclei)
    replaced: frozenset[UUID] = frozenset()
    if options.on_existing == "replace":
        replaced = replaced.union(*plan.existing)
    groups = [
        DetectionGroup(
            parent=region.handle,
            nuclei=nuclei.table.take(nuclei.region == index),
            ids=[nuclei.ids[i] for i in np.flatnonzero(nuclei.region == index)],
            path_class=path_class,
        )
        for index, region in enumerate(plan.regions)
        if np.any(nuclei.region == index)
    ]
    step = ("qpnuclei run", f"// qpnuclei {qpnuclei.__version__}: run with {options.to_json()}")
    try:
        plan.entry.write(
            Edit(remove=replaced, add=groups, workflow_step=step), plan.objects.fingerprint
        )
    except SaveError as error:
        rescue = run_dir / f"{stem}.rescued.geojson.gz"
        write_detections(rescue, nuclei.table, nuclei.ids, path_class)
        raise type(error)(
            f"{error.what}; the project is unchanged, the nuclei are in {rescue}",
            error.hint or "run again, or import that file with: qpnuclei geojson import",
        ) from error
    return len(replaced)


def make_run_dir(project: Project, options: RunOptions) -> Path:
    """Make the folder that ``run.json`` goes to.

    Raises
    ------
    SaveError
        If it cannot be made.
    """
    name = datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    folder = options.run_dir or project.path.parent / "qpnuclei" / name
    for wanted in (folder, options.geojson_dir, options.parquet_dir):
        if wanted is None:
            continue
        try:
            wanted.mkdir(parents=True, exist_ok=True)
            probe = wanted / ".qpnuclei-write-test"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise SaveError(
                f"cannot write to {wanted}: {error.strerror or error}",
                "choose another folder, or change its permissions",
            ) from error
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

    from qpnuclei.files import atomic_file

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


def file_stem(entry: ImageEntry) -> str:
    """Return a file name for an image: its entry ID and what of its name is safe in any file."""
    safe = "".join(c if c.isalnum() or c in "-_. " else "_" for c in entry.name)
    return f"{entry.id}-{safe}"[:120].rstrip(". ")


def class_of(project: Project, name: str, color: int | None = None) -> PathClass:
    """Return the project's class of this name with its colour; a new one gets `color` or green."""
    known = {path_class.name: path_class for path_class in project.classes}
    found = known.get(name)
    if found is not None and found.color is not None:
        return found
    return PathClass(name, _NEW_CLASS_COLOR if color is None else color)


def _ids(table: NucleiTable, entry: ImageEntry) -> list[UUID]:
    salt = f"{entry.id}/{entry.name}".encode()
    first = table.ring_offsets[table.polygon_offsets[:-1]].tolist()
    last = table.ring_offsets[table.polygon_offsets[1:]].tolist()
    vertices = np.ascontiguousarray(table.vertices.astype("<f4"))
    return [
        nucleus_id(blake2b(salt + vertices[a:b].tobytes(), digest_size=10).digest())
        for a, b in zip(first, last, strict=True)
    ]
