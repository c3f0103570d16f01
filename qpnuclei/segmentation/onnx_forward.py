"""The forward pass of a student on CPUs in ONNX Runtime, without torch."""

from __future__ import annotations

from pathlib import Path

from qpnuclei.models.metadata import ModelMetadata
from qpnuclei.models.student_layout import StudentLayout
from qpnuclei.models.student_onnx import read_student
from qpnuclei.segmentation.forward import CpuForward
from qpnuclei.segmentation.onnx_session import open_session, run_session
from qpnuclei.segmentation.quantised import FloatMap


class OnnxForward(CpuForward):
    """A student in ONNX Runtime. Threads may share it.

    Parameters
    ----------
    graph, layout, metadata
        From `qpnuclei.models.student_onnx.read_student`.
    views : {1, 8}
        See `CpuForward`.
    threads : int
        Number of threads that compute one tile. The result does not depend on it.
    """

    def __init__(
        self,
        graph: bytes,
        layout: StudentLayout,
        metadata: ModelMetadata,
        views: int,
        threads: int,
    ) -> None:
        super().__init__(metadata, layout.geometry, views, "float32", layout.cell_px)
        self._session = open_session(graph, threads)

    @classmethod
    def load(
        cls, path: Path, views: int, threads: int, metadata: ModelMetadata | None = None
    ) -> OnnxForward:
        """Load a model file; arguments and errors: `qpnuclei.models.student_onnx.read_student`."""
        return cls(*read_student(path, metadata), views, threads)

    def logits(self, x: FloatMap) -> FloatMap:
        """Return the network's output; see `CpuForward.logits`."""
        computed: FloatMap
        (computed,) = run_session(self._session, x)
        return computed
