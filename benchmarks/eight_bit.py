"""What 8-bit integers on a CPU would save, and what they change: a trial with ONNX Runtime.

``python -m benchmarks.eight_bit DATA --tissue FOLDER`` quantises the networks of the default model
statically, calibrated on crops of unlabelled tissue, and compares AJI on the split ``val`` of DATA
and the processor time from pixels to maps with float32, in turn on each image. Images are of
0.25 µm/px. Nothing of it is used by a run.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

from benchmarks.measuring import describe, machine, save, table
from benchmarks.networks import read_images
from benchmarks.tissue import MPP
from qpnuclei.evaluation.metrics import score
from qpnuclei.evaluation.tuning import read_validation, resample
from qpnuclei.models.checkpoint import load_model
from qpnuclei.models.metadata import ModelMetadata
from qpnuclei.models.registry import COARSE_NETWORK, FINE_NETWORK, resolve_model
from qpnuclei.segmentation.postprocess import segment_instances
from qpnuclei.segmentation.predictor import Predictor
from qpnuclei.slides.pixels import RGB
from qpnuclei.slides.stains import ReinhardStatistics

_CROP_PX = 320
_STRIDE = 16
_CALIBRATING = 8

FloatMap = npt.NDArray[np.float32]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with images/, labels/ and splits.json")
    parser.add_argument("--tissue", type=Path, required=True, help="folder of unlabelled images")
    arguments = parser.parse_args()
    about = machine()
    torch.set_num_threads(1)
    tissue = read_images(arguments.tissue)[:_CALIBRATING]
    rows = []
    for name in (FINE_NETWORK, COARSE_NETWORK):
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(name, arguments.data, tissue, Path(folder))
    results = {"machine": about, "calibrating": _CALIBRATING, "rows": rows}
    save("eight_bit", results, report(results))


def measure(name: str, data: Path, tissue: Sequence[RGB], folder: Path) -> list[dict[str, Any]]:
    """Return AJI and processor time of a network as it is, in ONNX Runtime, and in 8 bits."""
    predictor = Predictor.load(name, "cpu")
    metadata = predictor.metadata
    whole, small = _quantised(name, [resample(rgb, MPP / predictor.mpp) for rgb in tissue], folder)
    variants = {
        "torch, float32": predictor,
        "ONNX Runtime, float32": _InOnnxRuntime(name, whole),
        "ONNX Runtime, 8 bits": _InOnnxRuntime(name, small),
    }
    scores: dict[str, list[float]] = {variant: [] for variant in variants}
    seconds = dict.fromkeys(variants, 0.0)
    images = read_validation(data, MPP, predictor.mpp)
    for predicting in variants.values():
        predicting.predict_image(images[0].rgb)  # the first time, some of it is compiled
    for image in images:
        for variant, predicting in variants.items():
            start = time.process_time()
            attention, centre = predicting.predict_image(image.rgb)
            seconds[variant] += time.process_time() - start
            found = segment_instances(attention, metadata.post_processing, centre)
            scores[variant].append(score(image.labels, found).AJI)
    return [
        {
            "network": name,
            "variant": variant,
            "AJI": float(np.mean(scores[variant])),
            "images": len(scores[variant]),
            "seconds": seconds[variant],
        }
        for variant in variants
    ]


def _quantised(name: str, tissue: Sequence[RGB], folder: Path) -> tuple[Path, Path]:
    """Write a network as ONNX, as it is and in 8 bits."""
    network, metadata = load_model(resolve_model(name))
    whole, small = folder / "whole.onnx", folder / "small.onnx"
    sides = {2: "height", 3: "width"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that sizes are checked only while it is written
        torch.onnx.export(
            network.eval(),
            (torch.zeros(1, 3, _CROP_PX, _CROP_PX),),
            str(whole),
            input_names=["rgb"],
            output_names=["maps"],
            dynamic_axes={"rgb": sides, "maps": sides},
            dynamo=False,
        )
    crops = [_normalised(rgb[:_CROP_PX, :_CROP_PX], metadata) for rgb in tissue]
    quantize_static(
        str(whole),
        str(small),
        _Crops(crops),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return whole, small


class _Crops(CalibrationDataReader):
    def __init__(self, crops: Sequence[np.ndarray]) -> None:
        self._left = iter(crops)

    def get_next(self) -> dict[str, np.ndarray] | None:
        crop = next(self._left, None)
        return None if crop is None else {"rgb": crop}


class _InOnnxRuntime(Predictor):
    """A network of the default model that ONNX Runtime computes, on one thread."""

    def __init__(self, name: str, path: Path) -> None:
        super().__init__(*load_model(resolve_model(name)), torch.device("cpu"))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )

    def predict(
        self,
        rgb: RGB,
        statistics: ReinhardStatistics | None = None,  # noqa: ARG002 - neither network has a use
    ) -> tuple[FloatMap, FloatMap | None]:
        height, width = rgb.shape[1:3]
        (logits,) = self._session.run(None, {"rgb": _normalised(rgb[0], self.metadata)})
        attention, centre = 1 / (1 + np.exp(-logits[:, :, :height, :width].swapaxes(0, 1)))
        return attention, centre


def _normalised(rgb: RGB, metadata: ModelMetadata) -> np.ndarray:
    """Return an image as the network takes it: (1, 3, H, W) float32, padded to its stride."""
    bottom, right = (-length % _STRIDE for length in rgb.shape[:2])
    rgb = np.pad(rgb, ((0, bottom), (0, right), (0, 0)), mode="symmetric")
    mean, std = np.float32(metadata.input_mean), np.float32(metadata.input_std)
    image = (rgb / np.float32(255) - mean) / std
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None], np.float32)


def report(results: dict[str, Any]) -> str:
    """Return the results in Markdown."""
    first = {row["network"]: row["seconds"] for row in reversed(results["rows"])}
    rows = [
        [
            row["network"],
            row["variant"],
            f"{row['AJI']:.3f}",
            row["seconds"] / row["images"],
            first[row["network"]] / row["seconds"],
        ]
        for row in results["rows"]
    ]
    columns = ("network", "computed by", "AJI on `val`", "processor s per image", "times torch")
    return "\n\n".join(
        [
            "# 8 bits on the CPU: a trial",
            describe(results["machine"]),
            "From pixels to maps, one thread, the mean over the "
            f"{results['rows'][0]['images']} images of `val` (1000x1000 px at 0.25 µm/px), each "
            "computed in turn by all. Static quantisation, calibrated on "
            f"{results['calibrating']} crops of unlabelled tissue.",
            table(columns, rows),
        ]
    )


if __name__ == "__main__":
    main()
