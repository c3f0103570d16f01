"""Measure a long run under faults: ``python -m benchmarks.soak --slides 200``.

Small synthetic slides are analysed twice. The first run is undisturbed, and its memory is measured
after each image. The second run is disturbed. The run and its worker processes are killed at
random, some slides cannot be read, saved data is damaged, and the disk is full for a while (files
are limited to a few kB). In the end, both projects must have the same nuclei: none is lost, and
none is there twice.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import shapely

from benchmarks.measuring import describe, in_child, machine, save, table
from benchmarks.tissue import FIELD_PX, paint_field
from qpnuclei.datasets.synthetic.slide import SYNTHETIC_MPP, write_slide
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.selection import Selection
from qpnuclei.qupath.create import create_from_slides
from qpnuclei.qupath.model import Edit, NewAnnotation, PathClass
from qpnuclei.qupath.native import open_project
from tests.pipeline.killing import found

#: Sides of the slides in px. Every tenth slide is large: it has four units.
SIDE, LARGE_SIDE = 320, 720
TILE_PX, MAX_NUCLEUS_UM = 128, 10.0

#: One in this many slides cannot be read at first.
UNREADABLE = 15

#: While the disk is full, no file can be longer. Shards and the data of images are longer.
FULL_DISK_BYTES = 4096

#: Number of kills of the run itself. In each of these rounds, some workers are killed, too.
ROUNDS = 6

#: Parts of the run that are compared by memory, after everything is loaded that is loaded once.
EARLY, LATE = (0.2, 0.5), (0.7, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slides", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", default="default")
    arguments = parser.parse_args()
    about = machine()
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as temporary:
        field = paint_field(Path(temporary))
        quiet, disturbed = (Path(temporary, name) for name in ("quiet", "disturbed"))
        for place in (quiet, disturbed):
            make_slides(place, field, arguments.slides)
        undisturbed = in_child(run_quietly, quiet, arguments.model)
        faults, seconds = run_disturbed(disturbed, arguments.model, chance, undisturbed)
        same = found(quiet) == found(disturbed)
        records = sorted((disturbed / "project" / "qpnuclei").glob("*/run.json"))
        states = [json.loads(path.read_text())["state"] for path in records]
        left = [path.name for path in disturbed.rglob(".qpnuclei*") if path.suffix == ".part"]
    content = {
        "machine": about,
        "slides": arguments.slides,
        "seed": arguments.seed,
        "undisturbed": undisturbed,
        "faults": dict(faults),
        "seconds": seconds,
        "same": same,
        "states": states,
        "left": left,
    }
    save("soak", content, report(content))
    if not same or states[-1] != "done":
        sys.exit("the disturbed run is not the undisturbed one")


def make_slides(place: Path, field: np.ndarray, slides: int) -> None:
    """Write slides that all differ, and a project in which each slide is annotated as a whole."""
    place.mkdir()
    chance = random.Random(0)
    paths = []
    for number in range(slides):
        side = LARGE_SIDE if number % 10 == 9 else SIDE
        x, y = (chance.randrange(FIELD_PX - side) for _ in "xy")
        paths.append(place / f"{number:05d}.tif")
        write_slide(paths[-1], field[y : y + side, x : x + side])
    project = create_from_slides(place / "project", paths, mpp=SYNTHETIC_MPP)
    for number, entry in enumerate(project.images):
        side = LARGE_SIDE if number % 10 == 9 else SIDE
        area = shapely.box(0, 0, side, side)
        annotation = NewAnnotation(area, uuid.UUID(int=1), "all", PathClass("Tumor"))
        entry.write(Edit(annotations=[annotation]), entry.read().fingerprint)


def run_quietly(place: Path, model: str) -> dict[str, Any]:
    """Run in this process; return the memory after each image, and the times."""
    from qpnuclei.pipeline.run import analyse_project

    project = open_project(place / "project")
    options = RunOptions(
        Selection(classes=("Tumor",)),
        model=model,
        device="cpu",
        tile_px=TILE_PX,
        max_nucleus_um=MAX_NUCLEUS_UM,
    )
    memory: list[float] = []
    times: list[float] = []
    process = psutil.Process()

    def progress(_image: str, done: int, tiles: int, _nuclei: int) -> None:
        if done == tiles:
            memory.append(process.memory_info().rss / 2**20)
            times.append(time.perf_counter())

    started = time.perf_counter()
    summary = analyse_project(project, project.images, options, progress)
    ended = time.perf_counter()
    stages: Counter[str] = Counter()
    for image in summary.images:
        stages.update(image.seconds)
    return {
        "nuclei": summary.nuclei,
        "failures": len(summary.failures),
        "seconds": ended - started,
        "seconds_per_image": (ended - times[0]) / max(len(times) - 1, 1),
        "before_first": times[0] - started,
        "stages": dict(stages),
        "rss_mib": [round(each, 1) for each in memory],
        "early_mib": mean_of(memory, EARLY),
        "late_mib": mean_of(memory, LATE),
    }


def mean_of(values: list[float], part: tuple[float, float]) -> float:
    return float(np.mean(values[int(part[0] * len(values)) : int(part[1] * len(values)) or 1]))


def run_disturbed(
    place: Path, model: str, chance: random.Random, undisturbed: dict[str, Any]
) -> tuple[Counter[str], float]:
    """Run repeatedly under faults, then to the end; return the faults and the time."""
    started = time.monotonic()
    faults: Counter[str] = Counter()
    slides = sorted(place.glob("*.tif"))
    hidden = {path: path.read_bytes() for path in chance.sample(slides, len(slides) // UNREADABLE)}
    damaged = list(hidden)[: len(hidden) // 2]
    # Half of them have damaged pixels, the others are not slides at all.
    for path, content in hidden.items():
        path.write_bytes(damage(content, chance) if path in damaged else b"no slide")
        faults["unreadable slides"] += 1
    startup, duration = undisturbed["before_first"], undisturbed["seconds"]
    for turn in range(ROUNDS):
        full = turn == ROUNDS // 2
        process = start(place, model, full=full)
        end = time.monotonic() + 2 * startup + chance.uniform(0.1, 0.4) * duration
        while process.poll() is None and time.monotonic() < end:
            time.sleep(chance.uniform(0.5, 1.5) * startup)
            faults["killed workers"] += kill_a_worker(process.pid, chance)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            faults["killed runs"] += 1
        process.wait()
        faults["runs on a full disk"] += full
        for shard in place.glob("project/qpnuclei/*/shards/*/*.parquet"):
            if chance.random() < 0.2:
                shard.write_bytes(damage(shard.read_bytes(), chance))
                faults["damaged shards"] += 1
    # Now only slides can fail: all other images must be finished.
    failed = start(place, model, "--retry-failed").wait()
    record = newest_record(place)
    faults["images reported as failed"] = len(record["failures"])
    if bool(failed) != bool(record["failures"]):
        raise RuntimeError("the exit code does not say whether images failed")
    for path, content in hidden.items():
        path.write_bytes(content)
    if start(place, model, "--retry-failed").wait():
        raise RuntimeError("the run failed although all slides are readable")
    return faults, time.monotonic() - started


def start(place: Path, model: str, *options: str, full: bool = False) -> subprocess.Popen[bytes]:
    """Start a run with two worker processes. It continues what earlier ones left."""

    def fill_the_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (FULL_DISK_BYTES, FULL_DISK_BYTES))

    command = [sys.executable, "-m", "qpnuclei", "run", str(place / "project"), "--roi", "Tumor"]
    command += ["--device", "cpu,cpu", "--backend", "native", "--quiet", "--no-report"]
    command += ["--tile", str(TILE_PX), "--max-nucleus", str(MAX_NUCLEUS_UM), "--model", model]
    return subprocess.Popen(
        [*command, *options],
        stdout=subprocess.DEVNULL,
        stderr=(place / "log").open("ab"),
        preexec_fn=fill_the_disk if full else None,
    )


def kill_a_worker(pid: int, chance: random.Random) -> int:
    """Kill one of the worker processes; return the number of killed ones."""
    try:
        children = psutil.Process(pid).children()
        workers = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
        if workers:
            chance.choice(workers).kill()
    except psutil.Error:  # it has just ended
        return 0
    return min(len(workers), 1)


def damage(content: bytes, chance: random.Random) -> bytes:
    """Truncate the content of a file, or overwrite a part of it."""
    at = chance.randrange(len(content) // 4, 3 * len(content) // 4)
    if chance.random() < 0.5:
        return content[:at]
    return content[:at] + os.urandom(64) + content[at + 64 :]


def newest_record(place: Path) -> dict[str, Any]:
    record = max((place / "project" / "qpnuclei").glob("*/run.json"))
    content: dict[str, Any] = json.loads(record.read_text())
    return content


def report(content: dict[str, Any]) -> str:
    """Return the results in Markdown."""
    quiet = content["undisturbed"]
    memory = quiet["rss_mib"]
    shown = sorted({0, *(round(part * (len(memory) - 1)) for part in (0.1, 0.25, 0.5, 0.75, 1))})
    same = "the same" if content["same"] else "NOT THE SAME"
    lines = [
        "# A run while things fail",
        describe(content["machine"]),
        f"`python -m benchmarks.soak --slides {content['slides']} --seed {content['seed']}`: "
        f"{content['slides']} slides of {SIDE} x {SIDE} and {LARGE_SIDE} x {LARGE_SIDE} px, "
        f"{quiet['nuclei']} nuclei. The nuclei after the disturbed run are **{same}** as after the "
        f"undisturbed one, in {len(content['states'])} run folder(s), with {len(content['left'])} "
        "temporary files left behind.",
        table(("what failed", "how often"), list(content["faults"].items())),
        f"Undisturbed: {quiet['seconds']:.0f} s, {quiet['before_first']:.1f} s until the first "
        f"image, then {quiet['seconds_per_image']:.2f} s for each. Disturbed: "
        f"{content['seconds']:.0f} s.",
        f"Memory (RSS) of the undisturbed run: {quiet['early_mib']:.0f} MiB on average between "
        f"{EARLY[0]:.0%} and {EARLY[1]:.0%} of the images, {quiet['late_mib']:.0f} MiB between "
        f"{LATE[0]:.0%} and {LATE[1]:.0%}.",
        table(("after image", "MiB"), [[number + 1, memory[number]] for number in shown]),
        table(
            ("stage", "seconds, which overlap"),
            [[name, float(seconds)] for name, seconds in quiet["stages"].items()],
        ),
    ]
    return "\n\n".join(lines)


if __name__ == "__main__":
    main()
