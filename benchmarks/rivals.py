"""What `qpnuclei run` is compared with: two plain programs, written as one would in a notebook."""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage
from skimage.color import rgb2hed
from skimage.feature import peak_local_max
from skimage.filters import gaussian, threshold_otsu
from skimage.measure import find_contours, label, regionprops
from skimage.morphology import disk, opening
from skimage.segmentation import watershed

from benchmarks.reference import reference_instances
from benchmarks.tissue import MPP

TILE_PX = 1024


def literal(slide: Path, side: int, output: Path) -> dict[str, Any]:
    """Run the method of the paper, tile by tile and nucleus by nucleus.

    The same network as ``qpnuclei run``, as it was trained (float32), without halos; section 3.4
    with SciPy and scikit-image; regionprops, contours and stain statistics one object at a time.
    """
    from qpnuclei.nn.segmenter import Segmenter
    from qpnuclei.slides.slide import open_slide

    segmenter = Segmenter.load("default", device="cpu")
    segmenter.attend(np.zeros((1, 256, 256, 3), np.uint8))
    seconds = dict.fromkeys(("read", "attend", "segment", "measure", "write"), 0.0)
    features: list[dict[str, Any]] = []
    start = last = time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal last
        now = time.perf_counter()
        seconds[stage] += now - last
        last = now

    with open_slide(slide) as opened:
        for y in range(0, side, TILE_PX):
            for x in range(0, side, TILE_PX):
                width, height = min(TILE_PX, side - x), min(TILE_PX, side - y)
                rgb = opened.read(x, y, width, height)
                lap("read")
                attention, centre = segmenter.attend(rgb[None])
                lap("attend")
                labels = reference_instances(
                    attention[0],
                    segmenter.metadata.post_processing,
                    None if centre is None else centre[0],
                )
                lap("segment")
                features += _measure_one_by_one(labels, rgb, (x, y))
                lap("measure")
    _write(output, features)
    lap("write")
    return {"seconds": last - start, "stages": seconds, "nuclei": len(features)}


def classical(slide: Path, side: int, output: Path) -> dict[str, Any]:
    """Haematoxylin by colour deconvolution, Otsu's threshold, watershed; no network."""
    from qpnuclei.slides.slide import open_slide

    seconds = dict.fromkeys(("read", "segment", "measure", "write"), 0.0)
    features: list[dict[str, Any]] = []
    start = last = time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal last
        now = time.perf_counter()
        seconds[stage] += now - last
        last = now

    with open_slide(slide) as opened:
        for y in range(0, side, TILE_PX):
            for x in range(0, side, TILE_PX):
                rgb = opened.read(x, y, min(TILE_PX, side - x), min(TILE_PX, side - y))
                lap("read")
                stain = gaussian(rgb2hed(rgb)[..., 0], 1)
                mask = opening(stain > threshold_otsu(stain), disk(2))
                distance = gaussian(ndimage.distance_transform_edt(mask), 1)
                peaks = peak_local_max(distance, min_distance=7, labels=label(mask))
                markers = np.zeros(mask.shape, np.int32)
                markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
                labels = watershed(-distance, markers, mask=mask)
                lap("segment")
                features += _measure_one_by_one(labels, rgb, (x, y))
                lap("measure")
    _write(output, features)
    lap("write")
    return {"seconds": last - start, "stages": seconds, "nuclei": len(features)}


def _measure_one_by_one(
    labels: np.ndarray, rgb: np.ndarray, origin: tuple[int, int]
) -> list[dict[str, Any]]:
    stains = rgb2hed(rgb)[..., :2]
    features = []
    for region in regionprops(labels):
        outline = max(find_contours(np.pad(region.image, 1), 0.5), key=len)
        y0, x0 = region.bbox[:2]
        ring = outline[:, ::-1] - 0.5 + (origin[0] + x0, origin[1] + y0)
        values = stains[tuple(region.coords.T)]
        measurements = {
            "Area µm^2": region.area * MPP**2,
            "Length µm": region.perimeter * MPP,
            "Circularity": 4 * np.pi * region.area / max(region.perimeter, 1) ** 2,
            "Solidity": region.solidity,
            "Max diameter µm": region.axis_major_length * MPP,
            "Min diameter µm": region.axis_minor_length * MPP,
        }
        for channel, name in enumerate(("Hematoxylin", "Eosin")):
            of_stain = values[:, channel]
            measurements |= {
                f"{name}: Mean": of_stain.mean(),
                f"{name}: Median": np.median(of_stain),
                f"{name}: Min": of_stain.min(),
                f"{name}: Max": of_stain.max(),
                f"{name}: Std.Dev.": of_stain.std(),
            }
        features.append(
            {
                "type": "Feature",
                "id": str(uuid.uuid4()),
                "geometry": {"type": "Polygon", "coordinates": [ring.round(2).tolist()]},
                "properties": {
                    "objectType": "detection",
                    "classification": {"name": "Nucleus"},
                    "measurements": {k: float(v) for k, v in measurements.items()},
                },
            }
        )
    return features


def _write(output: Path, features: list[dict[str, Any]]) -> None:
    output.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
