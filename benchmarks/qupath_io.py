"""How fast detections go into a QuPath project and out of it, without QuPath.

``python -m benchmarks.qupath_io`` measures 10,000, 100,000 and a million detections of 24
vertices and 10 measurements. Every step is a process of its own, so that its peak memory is known;
times are without imports.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import uuid
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from PIL import Image

from benchmarks.measuring import describe, in_child, machine, save, table
from qpnuclei.nuclei import NucleiTable
from qpnuclei.qupath.model import (
    DetectionGroup,
    Edit,
    ImageEntry,
    NewAnnotation,
    PathClass,
    nucleus_id,
)
from qpnuclei.qupath.native.project import open_project

VERTICES = 24
MEASUREMENTS = 10
NUCLEUS = PathClass("Nucleus", -16732080)
#: Added to, or put in the place of, those that are there.
SECOND = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    arguments = parser.parse_args()
    about = machine()
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        for size in arguments.sizes:
            folder = Path(temporary) / str(size)
            results[size] = {
                "write": in_child(write, folder, size),
                "read annotations": in_child(read_annotations, folder),
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
    text = "\n\n".join(
        [
            f"# Detections of {VERTICES} vertices and {MEASUREMENTS} measurements in a project",
            describe(about),
            table(("step", *columns), rows),
            f"Seconds per detection with {last:,} over those with {first:,} (1 is linear, less "
            "where the smaller one is mostly overhead):",
            table(("step", "ratio"), growth),
        ]
    )
    save("qupath_io", {"machine": about, "sizes": results}, text)


def write(folder: Path, size: int) -> dict[str, Any]:
    """Make a project of one image with one annotation, and write detections under it."""
    from qpnuclei.new_project import create_from_slides

    folder.mkdir(parents=True)
    image = folder / "image.png"
    Image.fromarray(np.full((64, 64, 3), 255, np.uint8)).save(image)
    project = create_from_slides(folder / "project", [image], mpp=0.25)
    entry = project.images[0]
    side = 40 * np.ceil(np.sqrt(size))
    annotation = NewAnnotation(shapely.box(0, 0, side, side), uuid.UUID(int=1), "all")
    entry.write(Edit(annotations=[annotation]), entry.read().fingerprint)
    found = entry.read()
    handle = found.annotations[0].handle
    edit = Edit(add=[_detections(handle, size, "first")])
    start = time.perf_counter()
    entry.write(edit, found.fingerprint)
    return {"seconds": time.perf_counter() - start}


def read_annotations(folder: Path) -> dict[str, Any]:
    """Read an image's objects; detections are decoded only as far as needed."""
    return {"annotations": len(_entry(folder).read().annotations)}


def read_all(folder: Path, size: int) -> dict[str, Any]:
    """Read all detections with outlines and measurements."""
    detections = _entry(folder).read().detections
    assert len(detections) == size + SECOND
    assert len(detections.measurements) == MEASUREMENTS
    return {"vertices": int(shapely.get_num_coordinates(detections.geometries).sum())}


def add(folder: Path) -> dict[str, Any]:
    """Open the file again and add some."""
    start = time.perf_counter()
    entry = _entry(folder)
    found = entry.read()
    group = _detections(found.annotations[0].handle, SECOND, "second")
    entry.write(Edit(add=[group]), found.fingerprint)
    return {"seconds": time.perf_counter() - start}


def replace(folder: Path, size: int) -> dict[str, Any]:
    """Open the file again and put others in the place of the first."""
    start = time.perf_counter()
    entry = _entry(folder)
    found = entry.read()
    read = time.perf_counter() - start
    group = _detections(found.annotations[0].handle, size, "third")
    start = time.perf_counter()
    entry.write(Edit(remove=frozenset(_ids(size, "first")), add=[group]), found.fingerprint)
    return {"seconds": read + time.perf_counter() - start}


def write_geojson(folder: Path, size: int) -> dict[str, Any]:
    """Write the detections as QuPath GeoJSON."""
    from qpnuclei.qupath.geojson import write_detections

    group = _detections(0, size, "first")
    start = time.perf_counter()
    write_detections(folder / "detections.geojson.gz", group.nuclei, group.ids, NUCLEUS)
    return {"seconds": time.perf_counter() - start}


def _entry(folder: Path) -> ImageEntry:
    return open_project(folder / "project").images[0]


def _detections(parent: int, size: int, salt: str) -> DetectionGroup:
    """Return circles on a grid of 40 px, with measurements."""
    rng = np.random.default_rng(size)
    angles = np.linspace(0, 2 * np.pi, VERTICES + 1)
    columns = int(np.ceil(np.sqrt(size)))
    centres = np.stack(np.divmod(np.arange(size), columns)[::-1], axis=1) * 40.0 + 20
    radii = rng.uniform(8, 16, size)
    ring = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    ring[-1] = ring[0]
    vertices = centres[:, None] + radii[:, None, None] * ring
    table_of_nuclei = NucleiTable(
        vertices.reshape(-1, 2).astype(np.float32),
        np.arange(size + 1) * (VERTICES + 1),
        np.arange(size + 1),
        {f"Measurement {i}": rng.random(size, np.float32) for i in range(MEASUREMENTS)},
    )
    return DetectionGroup(parent, table_of_nuclei, _ids(size, salt), NUCLEUS)


def _ids(size: int, salt: str) -> list[uuid.UUID]:
    return [
        nucleus_id(blake2b(f"{salt} {i}".encode(), digest_size=10).digest()) for i in range(size)
    ]


if __name__ == "__main__":
    main()
