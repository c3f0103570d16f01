"""Estimate the pixel size of images that do not state it, from the size of their nuclei.

``python -m benchmarks.pixel_size --like DATA FOLDER...`` prints a µm/px for each folder. At this
pixel size, the median nucleus that a model finds is as large as in the images of ``DATA``, which
have a known pixel size. There is one estimate per folder, so its images must come from one scanner
or camera.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.measuring import table
from qpnuclei.evaluation.datasets import IMAGE_SUFFIXES, read_rgb
from qpnuclei.segmentation.postprocess import segment_instances
from qpnuclei.segmentation.predictor import Predictor
from qpnuclei.slides.pixels import RGB
from qpnuclei.slides.scaling import scaled

#: These differ by a factor of 1.2: nuclei cannot tell smaller differences.
_CANDIDATES = tuple(0.12 * 1.2**step for step in range(10))


def median_area(predictor: Predictor, images: Sequence[RGB], mpp: float) -> float:
    """Return the median area of the found nuclei in µm², assuming that the images have `mpp` µm/px.

    NaN if no nuclei are found.
    """
    areas: list[npt.NDArray[np.int64]] = []
    for image in images:
        rgb = scaled(image, mpp / predictor.mpp)
        attention, centre = predictor.predict_image(rgb)
        labels = segment_instances(attention, predictor.metadata.post_processing, centre)
        areas.append(np.bincount(labels.ravel())[1:])
    pixels = np.concatenate(areas)
    return float(np.median(pixels)) * predictor.mpp**2 if len(pixels) else math.nan


def crossing(sizes: Sequence[float], areas: Sequence[float], wanted: float) -> float:
    """Return the size at which the rising area reaches `wanted`; NaN if it never does.

    Between two sizes, the logarithms are interpolated linearly. Of several crossings, the last is
    returned, because more sizes below it have smaller areas.
    """
    found = math.nan
    for i in range(len(sizes) - 1):
        low, high = areas[i], areas[i + 1]
        if low < wanted <= high:
            part = math.log(wanted / low) / math.log(high / low)
            found = sizes[i] * (sizes[i + 1] / sizes[i]) ** part
    return found


def read_some(folder: Path, limit: int, side_px: int) -> list[RGB]:
    """Read the middle of `limit` evenly spaced images of a folder, at most `side_px` wide."""
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES)
    chosen = files[:: max(1, len(files) // limit)][:limit]
    return [_middle(read_rgb(file), side_px) for file in chosen]


def _middle(rgb: RGB, side: int) -> RGB:
    y, x = (max(0, (length - side) // 2) for length in rgb.shape[:2])
    return np.ascontiguousarray(rgb[y : y + side, x : x + side])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument(
        "--like", type=Path, required=True, help="folder of images with pixel size --mpp"
    )
    parser.add_argument(
        "--mpp", type=float, default=0.25, help="µm/px of --like (default: %(default)s)"
    )
    parser.add_argument("--model", default="default")
    parser.add_argument("--limit", type=int, default=8, help="images per folder (default: 8)")
    parser.add_argument(
        "--side", type=int, default=768, help="px of the middle to use (default: 768)"
    )
    arguments = parser.parse_args()
    predictor = Predictor.load(arguments.model)
    like = read_some(arguments.like, arguments.limit, arguments.side)
    wanted = median_area(predictor, like, arguments.mpp)
    rows = []
    for folder in arguments.folders:
        images = read_some(folder, arguments.limit, arguments.side)
        areas = [median_area(predictor, images, mpp) for mpp in _CANDIDATES]
        seen = "  ".join(f"{m:.2f}: {a:.0f}" for m, a in zip(_CANDIDATES, areas, strict=True))
        rows.append([folder.name, f"{crossing(_CANDIDATES, areas, wanted):.3f}", seen])
    print(f"median nucleus of {arguments.like}: {wanted:.1f} µm²")
    print(table(("folder", "µm/px", "median area in µm² at µm/px"), rows))


if __name__ == "__main__":
    main()
