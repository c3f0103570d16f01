"""Measure the processor time that ``--speed fast`` saves, on the same pixels.

``python -m benchmarks.speed`` gives painted tissue to both networks of the default model, in turn
in one process. With ``--images FOLDER`` (JPEG, PNG, TIFF at 0.25 µm/px), it gives them real tissue.
It measures from pixels in memory to measured nuclei, after everything is loaded and compiled. The
result is the ratio within a round, which is right on a busy machine, too.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measuring import describe, machine, save, table
from benchmarks.networks import painted, read_images
from benchmarks.tissue import MPP
from qpnuclei.models.registry import COARSE_NETWORK, FINE_NETWORK
from qpnuclei.pipeline.image import segment
from qpnuclei.segmentation.engine import EngineOptions, load_engine
from qpnuclei.slides.pixels import RGB
from qpnuclei.system.memory import keep_freed_memory

_NETWORKS = (FINE_NETWORK, COARSE_NETWORK)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, help="folder of images to use")
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    about = machine()
    images = read_images(arguments.images) if arguments.images else painted()
    if not images:
        parser.error(f"no images in {arguments.images}")
    with keep_freed_memory():
        rounds = measure(images, arguments.repeat)
    mpx = sum(rgb.shape[0] * rgb.shape[1] for rgb in images) / 1e6
    what = "real" if arguments.images else "painted"
    results = {"machine": about, "mpx": mpx, "tissue": what, "rounds": rounds}
    save("speed", results, report(results))


def measure(images: list[RGB], repeat: int) -> list[dict[str, dict[str, float]]]:
    """Return, for each round and network, processor seconds and nuclei."""
    options = EngineOptions(device="cpu", workers=1)
    engines = {name: load_engine(name, options) for name in _NETWORKS}
    for engine in engines.values():
        segment(engine, images[0], MPP)
    rounds = []
    for _ in range(repeat):
        measured = {}
        for name, engine in engines.items():
            start = time.process_time()
            nuclei = sum(len(segment(engine, rgb, MPP)) for rgb in images)
            seconds = time.process_time() - start
            measured[name] = {"processor_seconds": seconds, "nuclei": nuclei}
        rounds.append(measured)
    return rounds


def report(results: dict[str, Any]) -> str:
    """Return the results in Markdown."""
    mpx, rounds = results["mpx"], results["rounds"]
    rows = []
    for name in _NETWORKS:
        cost = [r[name]["processor_seconds"] / mpx for r in rounds]
        ratios = [
            r[FINE_NETWORK]["processor_seconds"] / r[name]["processor_seconds"] for r in rounds
        ]
        nuclei = rounds[0][name]["nuclei"]
        rows.append([name, min(cost), median(ratios), min(ratios), max(ratios), nuclei])
    columns = ("network", "processor s/Mpx, least", "saving: median", "least", "most", "nuclei")
    return "\n\n".join(
        [
            f"# The networks of the default model on {mpx:.1f} Mpx of {results['tissue']} tissue",
            describe(results["machine"]),
            f"CPU, one worker, {len(rounds)} rounds, both networks in turn in each. Mpx are those "
            "of the images, of 0.25 µm/px: `default-20x` sees a quarter of them. Savings: "
            "processor time of `default-40x` over that of the network, in the same round.",
            table(columns, rows),
        ]
    )


if __name__ == "__main__":
    main()
