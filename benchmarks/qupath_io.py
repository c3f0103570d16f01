"""Measure time and peak memory of reading and writing detections of a QuPath project.

``python -m benchmarks.qupath_io`` measures 10,000, 100,000 and a million detections with 24
vertices and 10 measurements, without QuPath. They come in groups of 20,000 that are created on
access, just as the detections of a run are read from disk. Each step runs in a separate process, so
that its peak memory can be measured. Times exclude imports.

If QuPath is available (``PAQUO_QUPATH_DIR``), the paquo backend is compared with the function
``add_detection`` of paquo, called for one detection after the other. Both run in turn, several
times, in one process. ``--only-qupath`` prints only this comparison and saves nothing.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from PIL import Image

from benchmarks.measuring import describe, in_child, machine, save, table
from qpnuclei.nuclei.ids import NucleusIds, is_ours
from qpnuclei.nuclei.table import NucleiTable, concatenate
from qpnuclei.qupath.model import DetectionGroup, Edit, ImageEntry, NewAnnotation, PathClass
from qpnuclei.qupath.project import choose_backend, find_qupath, open_project
from qpnuclei.system.sequences import MadeOnDemand

VERTICES = 24
MEASUREMENTS = 10
NUCLEUS = PathClass("Nucleus", -16732080)
#: Nuclei in memory at once.
GROUP = 20_000
#: Number of detections that are added to existing ones.
SECOND = 1000
#: Numbers of detections written through QuPath in two ways in turn, and number of rounds.
THROUGH_QUPATH = (10_000, 100_000)
ROUNDS = 5
#: Hidden rounds before the first size, in which Java compiles methods that are called often.
WARM_UP_ROUNDS = 8
ONE_BY_ONE, BATCHED = "one by one", "batched"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--only-qupath", action="store_true")
    arguments = parser.parse_args()
    if arguments.only_qupath:
        print(_through_qupath(compare_with_paquo()))
        return
    about = machine()
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        for size in arguments.sizes:
            folder = Path(temporary) / str(size)
            results[size] = {
                "write": in_child(write, folder, size),
                "read annotations": in_child(read_annotations, folder),
                "read UUIDs and places": in_child(read_places, folder, size),
                f"add {SECOND} more": in_child(add, folder),
                "replace all": in_child(replace, folder, size),
                "read all": in_child(read_all, folder, size),
                "write GeoJSON": in_child(write_geojson, folder, size),
            }
    steps = list(next(iter(results.values())))
    rows = [
        [step, *(v for r in results.values() for v in (r[step]["seconds"], r[step]["peak_mib"]))]
        for step in steps
    ]
    columns = [f"{size:,}: {unit}" for size in results for unit in ("s", "peak MiB")]
    first, last = min(results), max(results)
    growth = [
        [step, (results[last][step]["seconds"] / results[first][step]["seconds"]) / (last / first)]
        for step in steps
    ]
    batched = compare_with_paquo() if choose_backend() == "paquo" else None
    text = "\n\n".join(
        [
            f"# Detections of {VERTICES} vertices and {MEASUREMENTS} measurements in a project",
            describe(about),
            table(("step", *columns), rows),
            f"Seconds per detection with {last:,} over those with {first:,} (1 is linear, less "
            "where the smaller one is mostly overhead):",
            table(("step", "ratio"), growth),
            _through_qupath(batched),
        ]
    )
    save("qupath_io", {"machine": about, "sizes": results, "through QuPath": batched}, text)


def write(folder: Path, size: int) -> dict[str, Any]:
    """Make a project with one image and one annotation, and write detections below it."""
    entry = _new_project(folder)
    side = 40 * np.ceil(np.sqrt(size))
    annotation = NewAnnotation(shapely.box(0, 0, side, side), uuid.UUID(int=1), "all")
    entry.write(Edit(annotations=[annotation]), entry.read().fingerprint)
    start = time.perf_counter()
    found = entry.read()
    entry.write(Edit(add=Nuclei(found.annotations[0].handle, size, 1)), found.fingerprint)
    return {"seconds": time.perf_counter() - start}


def read_annotations(folder: Path) -> dict[str, Any]:
    """Read the annotations of an image; the detections are only counted."""
    objects = _entry(folder).read()
    return {"annotations": len(objects.annotations), "detections": len(objects.detections)}


def read_places(folder: Path, size: int) -> dict[str, Any]:
    """Read the data that planning a run needs to replace the nuclei of earlier runs."""
    detections = _entry(folder).read().detections
    assert sum(map(is_ours, detections.ids)) == size
    return {"centroid": detections.centroids.mean(axis=0).tolist()}


def read_all(folder: Path, size: int) -> dict[str, Any]:
    """Read all detections with outlines and measurements."""
    detections = _entry(folder).read().detections
    assert len(detections) == size
    assert len(detections.measurements) == MEASUREMENTS
    return {"vertices": int(shapely.get_num_coordinates(detections.geometries).sum())}


def add(folder: Path) -> dict[str, Any]:
    """Open the file again and add some detections."""
    entry = _entry(folder)
    found = entry.read()
    edit = Edit(add=Nuclei(found.annotations[0].handle, SECOND, 2))
    entry.write(edit, found.fingerprint)
    return {}


def replace(folder: Path, size: int) -> dict[str, Any]:
    """Open the file again and replace all detections."""
    entry = _entry(folder)
    found = entry.read()
    ours = frozenset(range(len(found.detections)))
    assert len(ours) == size + SECOND
    edit = Edit(remove=ours, add=Nuclei(found.annotations[0].handle, size, 3))
    entry.write(edit, found.fingerprint)
    return {}


def write_geojson(folder: Path, size: int) -> dict[str, Any]:
    """Write the detections, as one table, as QuPath GeoJSON."""
    from qpnuclei.qupath.geojson.writing import write_detections

    nuclei, ids = _together(Nuclei(0, size, 1))
    start = time.perf_counter()
    write_detections(folder / "detections.geojson.gz", nuclei, ids, NUCLEUS)
    return {"seconds": time.perf_counter() - start}


def compare_with_paquo() -> dict[str, Any]:
    """Write and save detections through a real QuPath, in a batch and one by one."""
    with tempfile.TemporaryDirectory() as temporary:
        result = in_child(_write_both_ways, Path(temporary))
    found = find_qupath()
    return {**result, "qupath": None if found is None else found.version}


def _write_both_ways(folder: Path) -> dict[str, Any]:
    """Time both ways in one process: for each round, making the detections, and everything."""
    from qpnuclei.qupath.paquo import jvm

    jvm.start()  # paquo itself would start it with debug messages
    sizes = {}
    for size in THROUGH_QUPATH:
        nuclei, ids = _together(Nuclei(0, size, 1))
        group = DetectionGroup(None, nuclei, ids, NUCLEUS)
        rounds = []
        for number in range(ROUNDS if sizes else WARM_UP_ROUNDS + ROUNDS):
            with tempfile.TemporaryDirectory(dir=folder) as temporary:
                one_by_one = _write_one_by_one(Path(temporary) / ONE_BY_ONE, nuclei)
                gc.collect()  # one way must not clear away the garbage of the other
                batched = _write_batched(Path(temporary) / BATCHED, group)
                gc.collect()
            if sizes or number >= WARM_UP_ROUNDS:
                rounds.append({ONE_BY_ONE: one_by_one, BATCHED: batched})
        sizes[size] = rounds
    return {"sizes": sizes}


def _write_batched(folder: Path, group: DetectionGroup) -> dict[str, float]:
    """Write with the paquo backend, which also makes a backup and verifies the file."""
    from qpnuclei.qupath.paquo.editing import apply_edit
    from qpnuclei.qupath.paquo.jvm import java_class
    from qpnuclei.qupath.qpdata.new_detections import Additions

    _new_project(folder)
    start = time.perf_counter()
    entry = open_project(folder / "project", "paquo").images[0]
    entry.write(Edit(add=[group]), entry.read().fingerprint)
    seconds = time.perf_counter() - start
    assert len(_entry(folder).read().detections) == len(group.ids)
    hierarchy = java_class("qupath.lib.objects.hierarchy.PathObjectHierarchy")()
    start = time.perf_counter()
    apply_edit(*Additions.of(Edit(add=[group])), hierarchy)
    return {"make": time.perf_counter() - start, "write": seconds}


def _write_one_by_one(folder: Path, nuclei: NucleiTable) -> dict[str, float]:
    """Write as in the documentation of paquo."""
    from paquo.classes import QuPathPathClass
    from paquo.projects import QuPathProject

    _new_project(folder)
    polygons = nuclei.polygons()
    names = list(nuclei.measurements)
    rows = np.stack([*nuclei.measurements.values()], axis=1).tolist()
    start = time.perf_counter()
    with QuPathProject(folder / "project", mode="r+") as project:
        path_class = QuPathPathClass(NUCLEUS.name)
        hierarchy = project.images[0].hierarchy
        begin = time.perf_counter()
        for polygon, row in zip(polygons, rows, strict=True):
            hierarchy.add_detection(polygon, path_class, dict(zip(names, row, strict=True)))
        made = time.perf_counter() - begin
        project.save()
    seconds = time.perf_counter() - start
    assert len(_entry(folder).read().detections) == len(nuclei)
    return {"make": made, "write": seconds}


def _through_qupath(measured: dict[str, Any] | None) -> str:
    if measured is None:
        return "No QuPath present: nothing was written through paquo."
    rows = []
    for size, rounds in measured["sizes"].items():
        for step in ("make", "write"):
            slow, fast = (
                np.array([one[way][step] for one in rounds]) for way in (ONE_BY_ONE, BATCHED)
            )
            ratios = slow / fast
            rows.append(
                [
                    f"{step} {size:,}",
                    *map(float, (np.median(slow), np.median(fast))),
                    *map(float, (np.median(ratios), ratios.min(), ratios.max())),
                ]
            )
    return "\n\n".join(
        [
            f"Through QuPath {measured['qupath']}, in one warm process: paquo's `add_detection` "
            f"one by one, and the paquo backend, in turn, {ROUNDS} times. `make` is the objects in "
            "QuPath; `write` is that, opening the project and saving, for the backend also backup "
            "and verification:",
            table(
                (
                    "step",
                    "one by one: median s",
                    "batched: median s",
                    "times as fast: median",
                    "least",
                    "most",
                ),
                rows,
            ),
        ]
    )


def _new_project(folder: Path) -> ImageEntry:
    from qpnuclei.qupath.create import create_from_slides

    folder.mkdir(parents=True)
    image = folder / "image.png"
    Image.fromarray(np.full((64, 64, 3), 255, np.uint8)).save(image)
    return create_from_slides(folder / "project", [image], mpp=0.25).images[0]


def _entry(folder: Path) -> ImageEntry:
    return open_project(folder / "project", "native").images[0]


class Nuclei(MadeOnDemand[DetectionGroup]):
    """Circles on a grid of 40 px, with measurements, in groups created on access.

    Parameters
    ----------
    parent : int
    size : int
        Number of nuclei.
    salt : int
        Nuclei with another salt have other UUIDs and sizes.
    """

    def __init__(self, parent: int, size: int, salt: int) -> None:
        self._parent = parent
        self._size = size
        self._salt = salt

    def __len__(self) -> int:
        return -(-self._size // GROUP)

    def _item(self, index: int) -> DetectionGroup:
        rows = np.arange(index * GROUP, min((index + 1) * GROUP, self._size))
        rng = np.random.default_rng([self._salt, index])
        angles = np.linspace(0, 2 * np.pi, VERTICES + 1)
        ring = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        ring[-1] = ring[0]
        centres = np.stack(np.divmod(rows, int(np.ceil(np.sqrt(self._size))))[::-1], axis=1)
        radii = rng.uniform(8, 16, len(rows))
        vertices = 40.0 * centres[:, None] + 20 + radii[:, None, None] * ring
        digests = b"".join(b"%d %8d" % (self._salt, row) for row in rows.tolist())
        ids = NucleusIds(np.frombuffer(digests, np.uint8).reshape(-1, 10))
        nuclei = NucleiTable(
            vertices.reshape(-1, 2).astype(np.float32),
            np.arange(len(rows) + 1) * (VERTICES + 1),
            np.arange(len(rows) + 1),
            {f"Measurement {i}": rng.random(len(rows), np.float32) for i in range(MEASUREMENTS)},
        )
        return DetectionGroup(self._parent, nuclei, ids, NUCLEUS)


def _together(groups: Iterable[DetectionGroup]) -> tuple[NucleiTable, list[uuid.UUID]]:
    groups = list(groups)
    return concatenate([g.nuclei for g in groups]), [i for g in groups for i in g.ids]


if __name__ == "__main__":
    main()
