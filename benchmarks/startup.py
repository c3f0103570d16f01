"""Measure how long commands take to start: ``python -m benchmarks.startup``.

Each command runs several times in a separate process, on a project with two annotations of 300 x
300 px; the best time counts. ``--against FOLDER`` also runs another checkout, in turn.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from uuid import uuid4

import shapely

from benchmarks.measuring import table
from qpnuclei.datasets.synthetic.slide import make_slide
from qpnuclei.qupath.create import create_from_slides
from qpnuclei.qupath.model import Edit, NewAnnotation, PathClass

HERE = Path(__file__).resolve().parent.parent
SIDE = 300
COMMANDS = {
    "--version": ["--version"],
    "run --help": ["run", "--help"],
    "info": ["info", "PROJECT"],
    "run --dry-run": ["run", "PROJECT", "--roi", "Small", "--dry-run"],
    "run": ["run", "PROJECT", "--roi", "Small", "--device", "cpu", "--quiet"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5, help="runs of each command")
    parser.add_argument("--against", type=Path, help="another checkout to compare with")
    arguments = parser.parse_args()
    checkouts = {"this": HERE}
    if arguments.against is not None:
        checkouts["other"] = arguments.against.resolve()
    with tempfile.TemporaryDirectory() as temporary:
        project = small_project(Path(temporary))
        rows = []
        for name, command in COMMANDS.items():
            words = [word.replace("PROJECT", str(project)) for word in command]
            for checkout in checkouts.values():  # to compile everything first
                measure(checkout, words)
            times: dict[str, list[tuple[float, float]]] = {where: [] for where in checkouts}
            for _ in range(arguments.repeat):
                for where, checkout in checkouts.items():
                    times[where].append(measure(checkout, words))
            best = [min(each[i] for each in times[w]) for w in checkouts for i in (0, 1)]
            rows.append([name, *best, *([best[0] / best[2]] if len(checkouts) > 1 else [])])
    columns = [f"{where}: {what}" for where in checkouts for what in ("s", "processor s")]
    print(table(("command", *columns, *(["ratio"] if len(checkouts) > 1 else [])), rows))


def small_project(folder: Path) -> Path:
    """Make a project of painted tissue with two small annotations of class Small."""
    slide = make_slide(folder / "synthetic.tif", (4 * SIDE, 4 * SIDE))
    project = create_from_slides(folder / "project", [slide.path])
    small = [
        NewAnnotation(shapely.box(x, x, x + SIDE, x + SIDE), uuid4(), None, PathClass("Small"))
        for x in (SIDE, 2 * SIDE)
    ]
    entry = project.images[0]
    entry.write(Edit(annotations=small), entry.read().fingerprint)
    return project.path


def measure(checkout: Path, arguments: list[str]) -> tuple[float, float]:
    """Run the command line of a checkout; return wall and processor seconds."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # installations have bytecode
    environment["PYTHONPYCACHEPREFIX"] = f"{tempfile.gettempdir()}/{checkout.name}-bytecode"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "qpnuclei", *arguments],
        env=environment,
        cwd=checkout,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
