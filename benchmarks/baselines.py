"""The baselines of `benchmarks.run`: two plain programs, like those in notebooks."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import numpy as np
import shapely
from scipy import ndimage
from skimage.color import rgb2hed
from skimage.feature import peak_local_max
from skimage.filters import gaussian, threshold_otsu
from skimage.measure import find_contours, label, regionprops
from skimage.morphology import disk, opening
from skimage.segmentation import watershed

from benchmarks.tissue import MPP
from qpnuclei.errors import UsageError
from qpnuclei.qupath.project import choose_backend
from tests.segmentation.reference import reference_instances

TILE_PX = 1024


def literal(project: Path, side: int, model: str) -> dict[str, Any]:
    """Run the method of the paper, tile by tile and nucleus by nucleus.

    A trained network (float32) predicts tiles without halos. SciPy and scikit-image do section 3.4.
    Regionprops, contours and stain statistics are computed for one object at a time, which is then
    added to the project (see `_OneByOne`).
    """
    from qpnuclei.segmentation.predictor import Predictor
    from qpnuclei.slides.slide import open_slide

    predictor = Predictor.load(model, device="cpu")
    predictor.predict(np.zeros((1, 256, 256, 3), np.uint8))  # work that is done only once
    with _OneByOne(project) as output, open_slide(_slide(project)) as opened:
        laps = Laps()
        for x, y, width, height in _tiles(side):
            rgb = opened.read(x, y, width, height)
            laps("read")
            attention, centre = predictor.predict(rgb[None])
            laps("predict")
            labels = reference_instances(
                attention[0],
                predictor.metadata.post_processing,
                None if centre is None else centre[0],
            )
            laps("segment")
            output.add_objects(labels, rgb, (x, y), laps)
        output.save()
        laps("write")
    return {**laps.result(), "nuclei": output.count, "written_with": output.how}


def paper_network(side: int = TILE_PX) -> dict[str, Any]:
    """Run the unchanged network of the paper (64 channels, full resolution, float32) on one tile.

    It is prepared like the networks of qpnuclei. Its weights are random, so its output means
    nothing: only the time of its forward pass counts.
    """
    import torch

    from qpnuclei.models.attention import AttentionNet
    from qpnuclei.segmentation.torch_forward import optimise_for_inference

    network = optimise_for_inference(AttentionNet(width=64).eval(), torch.device("cpu")).to(
        memory_format=torch.channels_last
    )
    image = torch.rand(1, 3, side, side).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        network(image[..., :256, :256])
        start = time.perf_counter()
        network(image)
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "megapixels": side**2 / 1e6}


def classical(project: Path, side: int) -> dict[str, Any]:
    """Run colour deconvolution, Otsu's threshold on haematoxylin, and a watershed; no network."""
    from qpnuclei.slides.slide import open_slide

    with _OneByOne(project) as output, open_slide(_slide(project)) as opened:
        laps = Laps()
        for x, y, width, height in _tiles(side):
            rgb = opened.read(x, y, width, height)
            laps("read")
            stain = gaussian(rgb2hed(rgb)[..., 0], 1)
            mask = opening(stain > threshold_otsu(stain), disk(2))
            distance = gaussian(ndimage.distance_transform_edt(mask), 1)
            peaks = peak_local_max(distance, min_distance=7, labels=label(mask))
            markers = np.zeros(mask.shape, np.int32)
            markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
            labels = watershed(-distance, markers, mask=mask)
            laps("segment")
            output.add_objects(labels, rgb, (x, y), laps)
        output.save()
        laps("write")
    return {**laps.result(), "nuclei": output.count, "written_with": output.how}


class Laps:
    """Adds the seconds since the last call to the named stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = self._last = time.perf_counter()

    def __call__(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now

    def result(self) -> dict[str, Any]:
        return {"seconds": self._last - self._start, "stages": self.seconds}


def _slide(project: Path) -> Path:
    return next(project.parent.glob("*.tif"))


def _tiles(side: int) -> Iterator[tuple[int, int, int, int]]:
    for y in range(0, side, TILE_PX):
        for x in range(0, side, TILE_PX):
            yield x, y, min(TILE_PX, side - x), min(TILE_PX, side - y)


class _OneByOne:
    """Writes objects one at a time: into the project with paquo, as notebooks do.

    If paquo finds no usable QuPath, it writes a GeoJSON file beside the project.
    """

    def __init__(self, project: Path) -> None:
        self._exit = ExitStack()
        self.count = 0
        try:
            with_paquo = choose_backend() == "paquo"
        except UsageError:
            with_paquo = False
        self.how = "paquo, one by one" if with_paquo else "GeoJSON, one by one"
        if not with_paquo:
            self._file = self._exit.enter_context((project / "nuclei.geojson").open("w"))
            self._file.write('{"type": "FeatureCollection", "features": [')
            return
        from paquo.classes import QuPathPathClass
        from paquo.projects import QuPathProject

        opened = QuPathProject(project / "project.qpproj", mode="r+")
        self._project = self._exit.enter_context(opened)
        self._hierarchy = opened.images[0].hierarchy
        self._class = QuPathPathClass("Nucleus")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def add_objects(
        self, labels: np.ndarray, rgb: np.ndarray, origin: tuple[int, int], laps: Laps
    ) -> None:
        for ring, measurements in _measured_one_by_one(labels, rgb, origin):
            laps("measure")
            self._add(ring, measurements)
            laps("write")
            self.count += 1
        laps("measure")

    def _add(self, ring: np.ndarray, measurements: dict[str, float]) -> None:
        if self.how.startswith("paquo"):
            polygon = shapely.Polygon(ring)
            self._hierarchy.add_detection(polygon, self._class, measurements)
            return
        feature = {
            "type": "Feature",
            "id": str(uuid.uuid4()),
            "geometry": {"type": "Polygon", "coordinates": [ring.round(2).tolist()]},
            "properties": {
                "objectType": "detection",
                "classification": {"name": "Nucleus"},
                "measurements": measurements,
            },
        }
        self._file.write(",\n" * (self.count > 0) + json.dumps(feature))

    def save(self) -> None:
        if self.how.startswith("paquo"):
            self._project.save()
            return
        self._file.write("]}")
        self._file.flush()


def _measured_one_by_one(
    labels: np.ndarray, rgb: np.ndarray, origin: tuple[int, int]
) -> Iterator[tuple[np.ndarray, dict[str, float]]]:
    stains = rgb2hed(rgb)[..., :2]
    for region in regionprops(labels):
        outline = max(find_contours(np.pad(region.image, 1), 0.5), key=len)
        y0, x0 = region.bbox[:2]
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
        yield (
            outline[:, ::-1] - 0.5 + (origin[0] + x0, origin[1] + y0),
            {name: float(value) for name, value in measurements.items()},
        )
