"""Commands on very large projects: ``python -m benchmarks.scale``.

Three projects of one slide of 40,960 x 40,960 px: 3,000 annotations and a million own detections;
200,000 annotations and 100,000 detections; an annotation of 200,000 vertices and 100,000
detections. Each command runs in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import shapely
import tifffile

from benchmarks.measuring import describe, in_child, machine, save, table
from benchmarks.qupath_io import Nuclei
from qpnuclei.qupath.create import create_from_slides
from qpnuclei.qupath.model import Edit, NewAnnotation, PathClass

HERE = Path(__file__).resolve().parent.parent
SIDE = 40_960
COMMANDS = {
    "info": ["info", "PROJECT"],
    "run --dry-run": ["run", "PROJECT", "--roi", "Tumor", "--dry-run"],
    "export": ["export", "PROJECT", "--class", "Nucleus", "-o", "OUT.csv"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", type=float, default=1.0, help="share of these numbers, 0 to 1")
    parser.add_argument("--only", choices=sorted(CASES), help="use only this project")
    arguments = parser.parse_args()
    about = machine()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        slide = glass(Path(temporary))
        for name, (many, vertices, detections) in CASES.items():
            if arguments.only not in (None, name):
                continue
            sizes = [max(1, int(n * arguments.part)) for n in (many, vertices, detections)]
            sizes[1] = max(4, sizes[1]) if vertices > 4 else 4
            # The peak memory of a process is at least that of the process that started it.
            project = in_child(make_project, Path(temporary, name), slide, *sizes)["folder"]
            for command, words in COMMANDS.items():
                places = {"PROJECT": str(project), "OUT.csv": f"{temporary}/{name}.csv"}
                seconds, mib = measure([places.get(word, word) for word in words])
                rows.append([name, command, seconds, mib])
                print(*rows[-1], flush=True)
    text = table(("project", "command", "s", "peak MiB"), rows)
    if arguments.part == 1 and arguments.only is None:
        title = f"# {__doc__.splitlines()[0]}\n\n{__doc__.partition(chr(10) * 2)[2].strip()}"
        save("scale", {"machine": about, "rows": rows}, f"{title}\n\n{describe(about)}\n\n{text}")
    else:
        print(text)


#: Numbers of annotations, of vertices of each annotation, and of detections.
CASES = {
    "3,000 annotations, 1,000,000 detections": (3_000, 4, 1_000_000),
    "200,000 annotations, 100,000 detections": (200_000, 4, 100_000),
    "1 annotation of 200,000 vertices, 100,000 detections": (1, 200_000, 100_000),
}


def make_project(
    folder: Path, slide: Path, annotations: int, vertices: int, detections: int
) -> dict[str, Any]:
    """Make a project with annotations of class Tumor that contain all detections."""
    entry = create_from_slides(folder, [slide], mpp=0.25).images[0]
    entry.write(Edit(annotations=list(areas(annotations, vertices))), entry.read().fingerprint)
    read = entry.read()
    parent = read.annotations[0].handle
    entry.write(Edit(add=Nuclei(parent, detections, 1)), read.fingerprint)
    return {"folder": folder}


def areas(number: int, vertices: int) -> Iterator[NewAnnotation]:
    """Yield boxes on a grid, or wavy discs with many vertices."""
    side = int(np.ceil(np.sqrt(number)))
    pitch = SIDE / side
    angles = np.linspace(0, 2 * np.pi, vertices, endpoint=False)
    radii = 0.45 * pitch * (1 + 0.05 * np.sin(2000 * angles))
    disc = np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)
    for index in range(number):
        x, y = (index % side + 0.5) * pitch, (index // side + 0.5) * pitch
        half = 0.45 * pitch
        box = shapely.box(x - half, y - half, x + half, y + half)
        area = box if vertices == 4 else shapely.Polygon(np.add(disc, (x, y)))
        yield NewAnnotation(area, uuid.UUID(int=index + 1), f"a{index}", PathClass("Tumor"))


def glass(folder: Path) -> Path:
    """Write a white slide; all tiles have the same bytes."""
    tile = imagecodecs.jpeg8_encode(np.full((1024, 1024, 3), 245, np.uint8), colorspace="RGB")
    path = folder / "glass.tif"
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for level in range(4):
            side = SIDE >> level
            writer.write(
                iter([tile] * (side // 1024) ** 2),
                shape=(side, side, 3),
                dtype=np.uint8,
                tile=(1024, 1024),
                photometric="rgb",
                compression="jpeg",
                subfiletype=int(level > 0),
                metadata=None,
            )
    return path


#: Runs the command line, and writes its peak memory in MiB into a file at the end.
PROGRAM = """
import atexit, pathlib, sys
from qpnuclei.__main__ import main
from qpnuclei.system.timing import peak_memory_mib
path = pathlib.Path(sys.argv.pop(1))
atexit.register(lambda: path.write_text(str(peak_memory_mib())))
main()
"""


def measure(words: list[str]) -> tuple[float, float]:
    """Run the command line; return its seconds, and its peak memory in MiB."""
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    with tempfile.TemporaryDirectory() as temporary:
        peak = Path(temporary, "peak")
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", PROGRAM, str(peak), *words],
            env=environment,
            stdout=subprocess.DEVNULL,
            check=True,
        )
        return time.perf_counter() - start, float(peak.read_text())


if __name__ == "__main__":
    main()
