"""Whether the disks have room for what a run will write; the rule is in docs/formats.md."""

from __future__ import annotations

import logging
import shutil
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import shapely
from rich.filesize import decimal

from qpnuclei.errors import SaveError
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.plan_file import PlannedImage
from qpnuclei.qupath.model import Project

#: Nuclei that are expected, and bytes of each: measured on H&E, where there are 2,000 to 10,000.
NUCLEI_PER_MM2 = 5_000
SHARD_BYTES, PROJECT_BYTES, PARQUET_BYTES, GEOJSON_BYTES = 700, 430, 300, 440
#: A run is refused if less than this part of what it needs is free: it would surely fail.
_SURELY_TOO_LITTLE = 0.25

_log = logging.getLogger(__name__)


def space_needed(area_mm2: float, data: Sequence[int], options: RunOptions) -> dict[str, float]:
    """Return how many bytes a run will write about, by what is written.

    Parameters
    ----------
    area_mm2 : float
        That is analysed.
    data : sequence of int
        Bytes of the data file of each image. It is kept as a backup, and written anew.
    options : RunOptions
    """
    nuclei = NUCLEI_PER_MM2 * area_mm2
    outlines = 1 if options.cell_expansion_um == 0 else 2
    return {
        "run": SHARD_BYTES * nuclei,
        "project": outlines * PROJECT_BYTES * nuclei + sum(data) + max(data, default=0),
        "parquet": PARQUET_BYTES * nuclei if options.parquet_dir else 0.0,
        "geojson": GEOJSON_BYTES * nuclei if options.geojson_dir else 0.0,
    }


def check_space(
    project: Project, run_dir: Path, images: Iterable[PlannedImage], options: RunOptions
) -> None:
    """Warn if the disks may lack the room for images, or refuse if they surely do.

    Raises
    ------
    SaveError
        If less than a quarter of the bytes that are needed is free.
    """
    todo = list(images)
    folder = project.path.parent
    data = [_size(folder / "data" / image.entry / "data.qpdata") for image in todo]
    needed = space_needed(sum(map(_area_mm2, todo)), data, options)
    places = {
        "run": run_dir,
        "project": folder,
        "parquet": options.parquet_dir,
        "geojson": options.geojson_dir,
    }
    on_disk: defaultdict[int, float] = defaultdict(float)
    first: dict[int, Path] = {}
    for what, place in places.items():
        if place is not None:
            there = _existing(place)
            disk = there.stat().st_dev
            on_disk[disk] += needed[what]
            first.setdefault(disk, there)
    for disk, size in on_disk.items():
        free = shutil.disk_usage(first[disk]).free
        if free >= size:
            continue
        what = (
            f"the run needs about {decimal(round(size))} on the disk of {first[disk]}, and "
            f"{decimal(free)} are free"
        )
        if free < _SURELY_TOO_LITTLE * size:
            raise SaveError(
                what,
                "free space (old files in the folders qpnuclei and qpnuclei-backups may be "
                "removed), name another disk with --run-dir, or run fewer images; what is done "
                "is not done again",
            )
        _log.warning("%s: %d nuclei per mm² are assumed", what, NUCLEI_PER_MM2)


def _area_mm2(image: PlannedImage) -> float:
    area = sum(shapely.area(region.geometry) for region in image.areas())
    return float(area * image.mpp[0] * image.mpp[1] * 1e-6)


def _existing(path: Path) -> Path:
    """Return the nearest folder that exists: the run's is made by what it first holds."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
