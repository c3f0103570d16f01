"""A student as an ONNX graph, which ONNX Runtime computes on CPUs without torch.

Torch takes two to three seconds to load. All other parts of a small run take less.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from qpnuclei.errors import ModelError
from qpnuclei.models.metadata import RETRAIN, ModelMetadata, read_metadata, shortened
from qpnuclei.models.student_layout import Convolution, StudentLayout, student_layout
from qpnuclei.models.weights import Weights, check_shapes, read_weights

#: Names of the graph's input and output.
INPUT, OUTPUT = "rgb", "logits"

#: Constant that `torch.nn.BatchNorm2d` adds to a variance.
_EPSILON = 1e-5

#: Versions that every ONNX Runtime supported by the project can read.
_OPSET, _IR_VERSION = 17, 8

_OF_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")


def read_student(
    path: Path, metadata: ModelMetadata | None = None
) -> tuple[bytes, StudentLayout, ModelMetadata]:
    """Read the model file of a student.

    Parameters
    ----------
    path : pathlib.Path
        A ``.safetensors`` file of the family ``student``.
    metadata : ModelMetadata, optional
        Those of the file, if they were read before.

    Returns
    -------
    graph : bytes
        The ONNX model. `INPUT` is (B, 3, H, W) float32, normalised, with H and W multiples of the
        stride. `OUTPUT` are the logits. For cells of c = ``layout.cell_px`` px they are
        (B, H / c, W / c, 2·c·c) float32: the pixels of each cell row by row, first the foreground,
        then the centre map. For c = 1 they are (B, 2, H, W).
    layout : StudentLayout
    metadata : ModelMetadata

    Raises
    ------
    qpnuclei.errors.NotFoundError, qpnuclei.errors.ModelError
        As for `qpnuclei.models.checkpoint.load_model`.

    Examples
    --------
    >>> from qpnuclei.models.registry import resolve_model
    >>> graph, layout, metadata = read_student(resolve_model("default"))
    >>> layout.cell_px, metadata.mpp
    (4, 0.25)
    """
    metadata = metadata or read_metadata(path)
    try:
        layout = student_layout(**metadata.architecture)
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"model {metadata.name!r}: StudentNet cannot be built from "
            f"{shortened(metadata.architecture)}: {error}",
            RETRAIN,
        ) from error
    if metadata.network_geometry() != layout.geometry:
        raise ModelError(
            f"model file {path} states {metadata.network_geometry()}, but its network has "
            f"{layout.geometry}",
            RETRAIN,
        )
    weights = read_weights(path)
    shapes = {name: weight.shape for name, weight in weights.items()}
    check_shapes(shapes, dict(weight_shapes(layout)), f"model file {path}", "StudentNet")
    return _Graph(weights).of(layout), layout, metadata


def weight_shapes(layout: StudentLayout) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the name in the model file and the shape of every weight of a student."""
    for name, convolution in _convolutions(layout):
        outputs, kernel = convolution.outputs, convolution.kernel
        yield f"{name}.0.weight", (outputs, convolution.inputs, kernel, kernel)
        for part in _OF_BATCH_NORM:
            yield f"{name}.1.{part}", (outputs,)
        yield f"{name}.1.num_batches_tracked", ()
    head = layout.head
    yield "head.weight", (head.outputs, head.inputs, head.kernel, head.kernel)
    yield "head.bias", (head.outputs,)


def _convolutions(layout: StudentLayout) -> Iterator[tuple[str, Convolution]]:
    """Yield all convolutions with a BatchNorm, and their names in a model file."""
    yield "stem", layout.stem
    for part, levels in (("encoder", layout.encoder), ("decoder", layout.decoder)):
        for level, convolutions in enumerate(levels):
            for index, convolution in enumerate(convolutions):
                yield f"{part}.{level}.{index}", convolution


class _Graph:
    """The nodes and constants of a graph under construction. Its methods return names of values."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def of(self, layout: StudentLayout) -> bytes:
        x = self._convolved(INPUT, "stem", layout.stem)
        skips = []
        for level, convolutions in enumerate(layout.encoder):
            if level > 0:
                x = self._node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
            x = self._level(x, f"encoder.{level}", convolutions)
            skips.append(x)
        skips.pop()
        for level, convolutions in reversed(list(enumerate(layout.decoder))):
            up = self._enlarged(x)
            if layout.adding:
                x = self._node("Add", up, skips.pop())
            else:
                x = self._node("Concat", up, skips.pop(), axis=1)
            x = self._level(x, f"decoder.{level}", convolutions)
        head = self._weights["head.weight"], self._weights["head.bias"]
        x = self._convolution(x, "head", *head, padding=0)
        if layout.cell_px == 1:
            self._enlarged(x)
        else:
            self._node("Transpose", x, perm=[0, 2, 3, 1])
        self._nodes[-1].output[0] = OUTPUT
        return self._model()

    def _level(self, x: str, name: str, convolutions: tuple[Convolution, ...]) -> str:
        for index, convolution in enumerate(convolutions):
            x = self._convolved(x, f"{name}.{index}", convolution)
        return x

    def _convolved(self, x: str, name: str, convolution: Convolution) -> str:
        """Add a convolution with the BatchNorm after it folded in, and ReLU."""
        scale, shift, mean, variance = (
            self._weights[f"{name}.1.{part}"].astype(np.float64) for part in _OF_BATCH_NORM
        )
        scale /= np.sqrt(variance + _EPSILON)
        weight = self._weights[f"{name}.0.weight"] * scale[:, None, None, None]
        made = self._convolution(
            x, name, weight, shift - mean * scale, padding=1, strides=[convolution.stride] * 2
        )
        return self._node("Relu", made)

    def _convolution(
        self,
        x: str,
        name: str,
        weight: npt.NDArray[Any],
        bias: npt.NDArray[Any],
        padding: int,
        **attributes: Any,
    ) -> str:
        parts = [self._constant(f"{name}.weight", weight), self._constant(f"{name}.bias", bias)]
        return self._node("Conv", x, *parts, pads=[padding] * 4, **attributes)

    def _enlarged(self, x: str) -> str:
        """Add bilinear upsampling by 2, as in torch without aligned corners."""
        return self._node(
            "Resize",
            x,
            "",
            self._constant("twofold", np.array([1, 1, 2, 2])),
            mode="linear",
            coordinate_transformation_mode="half_pixel",
        )

    def _constant(self, name: str, value: npt.NDArray[Any]) -> str:
        if all(constant.name != name for constant in self._constants):
            array = np.ascontiguousarray(value, np.float32)
            self._constants.append(numpy_helper.from_array(array, name))
        return name

    def _node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def _model(self) -> bytes:
        float32 = onnx.TensorProto.FLOAT
        graph = helper.make_graph(
            self._nodes,
            "student",
            [helper.make_tensor_value_info(INPUT, float32, ["batch", 3, "height", "width"])],
            [helper.make_tensor_value_info(OUTPUT, float32, [None] * 4)],
            self._constants,
        )
        opset = helper.make_opsetid("", _OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION)
        return bytes(model.SerializeToString())
