"""Check that the disks have room for what a run, or a phase of it, will write.

The rule is in docs/formats.md.
"""

from __future__ import annotations

import logging
import shutil
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import shapely
from rich.filesize import decimal

from qpnuclei.errors import FormatError, SaveError
from qpnuclei.pipeline.folder import RunFolder
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.planning.layout import JOINED
from qpnuclei.pipeline.planning.plan_file import PlannedImage
from qpnuclei.qupath.model import Project
from qpnuclei.qupath.project_file import data_file
from qpnuclei.slides.calibration import area_mm2
from qpnuclei.system.files import nearest_existing

#: Expected nuclei per mm² (in H&E slides: 2,000 to 10,000) and measured bytes per nucleus.
NUCLEI_PER_MM2 = 5_000
SHARD_BYTES, PROJECT_BYTES, PARQUET_BYTES, GEOJSON_BYTES = 700, 430, 300, 440
#: A run is refused if less than this share of the needed space is free: it would surely fail.
_SURELY_TOO_LITTLE = 0.25

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Need:
    """Bytes that will be written below a folder."""

    folder: Path
    size: float


def need_of_shards(
    folder: RunFolder, images: Iterable[PlannedImage], share: tuple[int, int] = (1, 1)
) -> list[Need]:
    """Return the space that the missing shards will need.

    Parameters
    ----------
    share : (int, int)
        Number of the share that is computed, from 1, and number of shares.
    """
    area = sum(_area_mm2(image) * _part_left(folder, image) for image in images)
    return [Need(folder.path, SHARD_BYTES * NUCLEI_PER_MM2 * area / share[1])]


def need_of_results(
    project: Project, images: Iterable[PlannedImage], options: RunOptions
) -> list[Need]:
    """Return the space that the project, its backups and the requested copies will need.

    The current data file of an image is kept as a backup, and a new one is written.
    """
    todo = list(images)
    folder = project.path.parent
    data = [_size(data_file(folder, image.entry)) for image in todo]
    nuclei = NUCLEI_PER_MM2 * sum(map(_area_mm2, todo))
    outlines = 1 if options.cell_expansion_um == 0 else 2
    needs = [Need(folder, outlines * PROJECT_BYTES * nuclei + sum(data) + max(data, default=0))]
    return needs + need_of_copies(todo, options)


def need_of_copies(images: Iterable[PlannedImage], options: RunOptions) -> list[Need]:
    """Return the space that the requested copies of some images need."""
    nuclei = NUCLEI_PER_MM2 * sum(map(_area_mm2, images))
    copies = (options.parquet_dir, PARQUET_BYTES), (options.geojson_dir, GEOJSON_BYTES)
    return [Need(place, size * nuclei) for place, size in copies if place is not None]


def check_space(needs: Iterable[Need]) -> None:
    """Warn if the disks may have too little space; refuse the run if they surely have.

    Raises
    ------
    SaveError
        If less than a quarter of the bytes that are needed is free.
    """
    on_disk: defaultdict[int, float] = defaultdict(float)
    first: dict[int, Path] = {}
    for need in needs:
        there = nearest_existing(need.folder.absolute())
        disk = there.stat().st_dev
        on_disk[disk] += need.size
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
                "removed), name another disk with --run-dir, or run fewer images; finished work "
                "is kept",
            )
        _log.warning("%s (assuming %d nuclei per mm²)", what, NUCLEI_PER_MM2)


def _part_left(folder: RunFolder, image: PlannedImage) -> float:
    """Return the share of an image's units without a shard."""
    try:
        shards = folder.shard(image, "any").parent
    except FormatError:
        return 1.0  # reported when the image is processed
    names = {path.stem for path in shards.glob("*.parquet")}
    if any(name.startswith(JOINED) for name in names):
        return 0.0
    return sum(name not in names for name in image.units) / max(len(image.units), 1)


def _area_mm2(image: PlannedImage) -> float:
    return area_mm2(sum(shapely.area(r.geometry) for r in image.areas()), image.mpp)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
