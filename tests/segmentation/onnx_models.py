"""Models as other programs export them, which load quickly and need no torch."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
from onnx import TensorProto, helper


def sidecar(**fields: object) -> dict[str, object]:
    plain = {"mean": [0, 0, 0], "std": [1, 1, 1]}
    return {"mpp": 0.5, "context_px": 0, "normalisation": plain} | fields


def dark_in_onnx(folder: Path, channels: str = "first", **fields: object) -> str:
    """Write a model whose map is how dark the red channel is, as an ONNX graph; return its name."""
    shape = [1, 3, "h", "w"] if channels == "first" else [1, "h", "w", 3]
    axis = 1 if channels == "first" else 3
    constants = {"start": [0], "end": [1], "axis": [axis], "half": 0.5, "gain": 20.0}
    values = [
        helper.make_tensor(
            name,
            TensorProto.INT64 if isinstance(value, list) else TensorProto.FLOAT,
            [1] if isinstance(value, list) else [],
            value if isinstance(value, list) else [value],
        )
        for name, value in constants.items()
    ]
    nodes = [
        helper.make_node("Slice", ["x", "start", "end", "axis"], ["red"]),
        helper.make_node("Sub", ["half", "red"], ["dark"]),
        helper.make_node("Mul", ["gain", "dark"], ["score"]),
        helper.make_node("Sigmoid", ["score"], ["probability"]),
    ]
    graph = helper.make_graph(
        nodes,
        "dark",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, None)],
        values,
    )
    return in_onnx(folder, graph, output="maps", channels=channels, **fields)


def in_onnx(folder: Path, graph: onnx.GraphProto, **fields: object) -> str:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path = folder / "model.onnx"
    onnx.save(model, path)
    path.with_suffix(".json").write_text(json.dumps(sidecar(**fields)))
    return f"onnx:{path}"
