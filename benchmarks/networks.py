"""Measure the speed of the packaged networks alone, and the effect of bfloat16.

``python -m benchmarks.networks`` measures forward passes on the CPU, from pixels to maps. It runs
all models and precisions in turn in one process, so that their ratios are right on a busy machine,
too. With ``--images FOLDER`` (JPEG, PNG, TIFF at the resolution of the models) it compares masks of
real tissue.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image

from benchmarks.measuring import describe, machine, save, table
from benchmarks.tissue import paint_field
from qpnuclei.evaluation.datasets import IMAGE_SUFFIXES
from qpnuclei.models.metadata import read_metadata
from qpnuclei.models.registry import FINE_NETWORK, WEIGHTS_FOLDER
from qpnuclei.segmentation.predictor import Predictor
from qpnuclei.system.memory import keep_freed_memory
from qpnuclei.system.threads import available_cores

Precision = Literal["float32", "bfloat16"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, help="folder of images to use")
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    with keep_freed_memory():
        _measure(parser, arguments)


def _measure(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    about = machine()
    torch.set_num_threads(arguments.threads)
    images = read_images(arguments.images) if arguments.images else painted()
    if not images:
        parser.error(f"no images in {arguments.images}")
    predictors = {
        (path.stem, precision): Predictor.load(path, "cpu", precision=precision)
        for path in sorted(WEIGHTS_FOLDER.glob("*.safetensors"))
        for precision in get_args(Precision)
    }
    results = {
        "machine": about,
        "threads": arguments.threads,
        "images": len(images),
        "networks": measure(predictors, images, arguments.repeat),
    }
    save("networks", results, report(results))


def measure(
    predictors: dict[tuple[str, Precision], Predictor], images: list[np.ndarray], repeat: int
) -> list[dict[str, Any]]:
    """Return the best time of each network, and how its masks differ from those in float32."""
    best = dict.fromkeys(predictors, float("inf"))
    changed: dict[tuple[str, Precision], list[float]] = {key: [] for key in predictors}
    for image in images:
        masks = {key: _mask(predictor, image) for key, predictor in predictors.items()}
        for (name, precision), mask in masks.items():
            changed[name, precision].append(float((mask != masks[name, "float32"]).mean()))
    for _ in range(repeat):
        for key, predictor in predictors.items():
            start = time.perf_counter()
            predictor.predict(images[0][None])
            best[key] = min(best[key], time.perf_counter() - start)
    reference = best[FINE_NETWORK, "float32"]
    return [
        {
            "model": name,
            "precision": precision,
            "receptive_radius_px": predictor.receptive_radius_px,
            "mpx_per_s": images[0].shape[0] * images[0].shape[1] / best[name, precision] / 1e6,
            "ratio": reference / best[name, precision],
            "changed_per_10000": 1e4 * float(np.mean(changed[name, precision])),
            "most_changed_per_10000": 1e4 * max(changed[name, precision]),
            "validation": read_metadata(WEIGHTS_FOLDER / f"{name}.safetensors").validation["mean"],
        }
        for (name, precision), predictor in predictors.items()
    ]


def report(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    columns = (
        "model",
        "precision",
        "Mpx/s",
        f"times `{FINE_NETWORK}`",
        "mask pixels changed, of 10^4: mean, most",
        "radius, px",
        "AJI / Dice (its metadata)",
    )
    rows = [
        (
            row["model"],
            row["precision"],
            f"{row['mpx_per_s']:.1f}",
            f"{row['ratio']:.2f}",
            f"{row['changed_per_10000']:.1f}, {row['most_changed_per_10000']:.1f}",
            row["receptive_radius_px"],
            f"{row['validation']['AJI']:.3f} / {row['validation']['ADC']:.3f}",
        )
        for row in results["networks"]
    ]
    return (
        "# The networks alone\n\n"
        f"Forward passes on {results['threads']} threads: uint8 pixels in, attention and centre "
        f"map out; Mpx are of the network's own resolution. {results['images']} images. "
        f"{describe(results['machine'])}.\n\n" + table(columns, rows)
    )


def _mask(predictor: Predictor, image: np.ndarray) -> np.ndarray:
    attention, _ = predictor.predict(image[None])
    mask: np.ndarray = attention > predictor.metadata.post_processing.threshold
    return mask


def read_images(folder: Path) -> list[np.ndarray]:
    """Return the images of a folder, (H, W, 3) uint8."""
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    return [np.asarray(Image.open(path).convert("RGB")) for path in paths]


def painted() -> list[np.ndarray]:
    """Return two images of painted tissue, (1024, 1024, 3) uint8."""
    with tempfile.TemporaryDirectory() as temporary:
        field = paint_field(Path(temporary))
    return [field[:1024, :1024], field[1024:, 1024:]]


if __name__ == "__main__":
    main()
