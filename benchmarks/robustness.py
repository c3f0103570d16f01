"""Measure the accuracy of a model under changes of colour, sharpness and compression.

``python -m benchmarks.robustness DATA`` prints the table of the model cards. ``DATA`` is a folder
of annotated images with ``images/`` and ``labels/``. If it has a ``splits.json``, only the split
``val`` is used. The post-processing of the model is the same for all changes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from benchmarks.measuring import table
from qpnuclei.evaluation.tuning import (
    RECOLOURINGS,
    LabelledImage,
    predict,
    read_validation,
    recoloured,
    summarise,
)
from qpnuclei.models.registry import DEFAULT_MODEL
from qpnuclei.segmentation.predictor import Predictor
from qpnuclei.slides.pixels import RGB
from qpnuclei.slides.stains import DEFAULT_HE, optical_density, stain_matrix


def blurred(rgb: RGB) -> RGB:
    """Return an (H, W, 3) uint8 image after a Gaussian of 1 px."""
    return np.asarray(cv2.GaussianBlur(rgb, (0, 0), 1.0), np.uint8)


def coarsened(rgb: RGB) -> RGB:
    """Return an (H, W, 3) uint8 image reduced to half its resolution and enlarged again."""
    half = cv2.resize(rgb, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(half, rgb.shape[1::-1]), np.uint8)


def compressed(rgb: RGB) -> RGB:
    """Return an (H, W, 3) uint8 image after JPEG of quality 40."""
    _, encoded = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 40])
    return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1], np.uint8)


def restained(rgb: RGB, haematoxylin: float, eosin: float) -> RGB:
    """Return an (H, W, 3) uint8 image with scaled stains, using the default vectors of QuPath."""
    stains = stain_matrix(DEFAULT_HE)
    amounts = optical_density(rgb) @ np.linalg.inv(stains) * (haematoxylin, eosin, 1)
    return np.rint(np.clip(255 * 10 ** -(amounts @ stains), 0, 255)).astype(np.uint8)


CHANGES: dict[str, Callable[[RGB], RGB]] = {
    "as they are": lambda rgb: rgb,
    "Gaussian blur of 1 px": blurred,
    "reduced to 20x and enlarged again": coarsened,
    "JPEG quality 40": compressed,
    "haematoxylin x 0.7, eosin x 1.3": lambda rgb: restained(rgb, 0.7, 1.3),
    "haematoxylin x 1.3, eosin x 0.7": lambda rgb: restained(rgb, 1.3, 0.7),
}


def versions(images: Sequence[LabelledImage]) -> Iterator[tuple[str, list[LabelledImage]]]:
    """Yield the images with each change, and with the strong colour changes of validation."""
    for name, change in CHANGES.items():
        yield name, [LabelledImage(i.name, change(i.rgb), i.labels) for i in images]
    yield (
        f"recoloured strongly ({RECOLOURINGS} times)",
        [image for seed in range(RECOLOURINGS) for image in recoloured(images, seed)],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--mpp", type=float, default=0.25, help="µm/px of the images")
    arguments = parser.parse_args()
    predictor = Predictor.load(arguments.model)
    images = read_validation(arguments.data, arguments.mpp, predictor.mpp)
    rows = []
    for name, changed in versions(images):
        parameters = predictor.metadata.post_processing
        mean = summarise(predict(predictor, changed), parameters)["mean"]
        rows.append([name, *(f"{mean[key]:.3f}" for key in ("AJI", "ADC", "PQ"))])
    print(table(("", "AJI", "Dice", "PQ"), rows))


if __name__ == "__main__":
    main()
