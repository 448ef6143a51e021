"""ONNX Runtime on the CPU: the back end that runs everywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cxrvit_edge.errors import EngineError
from cxrvit_edge.runtime.session import Float32, Outputs

OUTPUTS = ["logits", "severity_map", "lung_mask"]


class OnnxRuntimeSession:
    """A graph of the bundle on ONNX Runtime's CPU provider. threads 0: one a physical core."""

    backend = "onnxruntime"

    def __init__(self, path: Path, *, precision: str, threads: int = 0) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors only: warnings are about shapes it infers itself
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ORT's own exceptions share no public base
            raise EngineError(
                f"{path}: ONNX Runtime {ort.__version__} cannot load it ({_first_line(error)})"
            ) from error
        self.version: str = ort.__version__
        self.precision = precision
        self.path = path

    def run(self, batch: Float32) -> Outputs:
        try:
            values = self._session.run(OUTPUTS, {"image": np.ascontiguousarray(batch, np.float32)})
        except Exception as error:
            raise EngineError(
                f"{self.path}: ONNX Runtime failed on a batch of {len(batch)} ({_first_line(error)})"
            ) from error
        return Outputs(*values)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
