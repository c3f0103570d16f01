"""Measure what 8-bit integers on a CPU would save and change: a trial with ONNX Runtime.

``python -m benchmarks.eight_bit DATA --tissue FOLDER`` quantises the networks of the default model
statically, calibrated on crops of unlabelled tissue. It compares AJI on the split ``val`` of DATA,
and processor time from pixels to maps, with float32, in turn on each image. Images have 0.25 µm/px.
No run uses the result.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

from benchmarks.measuring import describe, machine, save, table
from benchmarks.networks import read_images
from benchmarks.tissue import MPP
from qpnuclei.evaluation.metrics import score
from qpnuclei.evaluation.tuning import read_validation
from qpnuclei.models.checkpoint import load_model
from qpnuclei.models.metadata import ModelMetadata
from qpnuclei.models.registry import COARSE_NETWORK, FINE_NETWORK, resolve_model
from qpnuclei.models.student_onnx import INPUT, read_student
from qpnuclei.segmentation.onnx_forward import OnnxForward
from qpnuclei.segmentation.postprocess import segment_instances
from qpnuclei.segmentation.predictor import Predictor
from qpnuclei.segmentation.torch_forward import optimise_for_inference
from qpnuclei.slides.pixels import RGB
from qpnuclei.slides.scaling import scaled

_CROP_PX = 320
_CALIBRATING = 8


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
    """Return AJI and processor time of a network in torch, in ONNX Runtime, and in 8 bits."""
    path = resolve_model(name)
    graph, layout, metadata = read_student(path)
    network, _ = load_model(path)
    cpu = torch.device("cpu")
    small = _quantised(graph, [scaled(rgb, MPP / metadata.mpp) for rgb in tissue], metadata, folder)
    variants = {
        "torch, float32": Predictor.of_network(
            optimise_for_inference(network, cpu), metadata, cpu, precision="float32"
        ),
        "ONNX Runtime, float32": Predictor.load(path, "cpu", threads=1),
        "ONNX Runtime, 8 bits": Predictor(
            OnnxForward(small, layout, metadata, views=1, threads=1), metadata
        ),
    }
    scores: dict[str, list[float]] = {variant: [] for variant in variants}
    seconds = dict.fromkeys(variants, 0.0)
    images = read_validation(data, MPP, metadata.mpp)
    for predicting in variants.values():
        predicting.predict_image(images[0].rgb)  # the first call compiles
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


def _quantised(graph: bytes, tissue: Sequence[RGB], metadata: ModelMetadata, folder: Path) -> bytes:
    """Return the graph of a network in 8 bits, calibrated on crops of tissue."""
    whole, small = folder / "whole.onnx", folder / "small.onnx"
    whole.write_bytes(graph)
    quantize_static(
        str(whole),
        str(small),
        _Crops([_normalised(rgb[:_CROP_PX, :_CROP_PX], metadata) for rgb in tissue]),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return small.read_bytes()


class _Crops(CalibrationDataReader):
    def __init__(self, crops: Sequence[np.ndarray]) -> None:
        self._left = iter(crops)

    def get_next(self) -> dict[str, np.ndarray] | None:
        crop = next(self._left, None)
        return None if crop is None else {INPUT: crop}


def _normalised(rgb: RGB, metadata: ModelMetadata) -> np.ndarray:
    """Return the input of the network for an image: (1, 3, H, W) float32."""
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
