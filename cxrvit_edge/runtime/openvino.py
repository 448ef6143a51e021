"""OpenVINO on the CPU, where it is installed: a peer of ONNX Runtime for the same graphs."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from cxrvit_edge.errors import EngineError
from cxrvit_edge.host import cores
from cxrvit_edge.runtime.onnxruntime import OUTPUTS
from cxrvit_edge.runtime.session import Float32, Outputs


class OpenVinoSession:
    """A graph of the bundle on OpenVINO's CPU plugin. threads 0: one a core; cache: folder for what it compiles.

    Arithmetic that the graph has in float32 stays so: by itself OpenVINO takes bfloat16 where the processor has it,
    which the golden check of fp32 does not let pass.
    """

    backend = "openvino"
    batch_sizes: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    def __init__(self, path: Path, *, precision: str, threads: int = 0, cache: Path | None = None) -> None:
        self.version = installed()
        openvino = import_module("openvino")
        config: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",  # all threads on one batch; the pipeline forms the batches
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads or cores(),
        }
        self.path, self.precision = path, precision
        self.fingerprint = "f32"
        try:
            core = openvino.Core()
            if cache is not None:
                core.set_property({"CACHE_DIR": str(cache)})
            self._request = core.compile_model(str(path), "CPU", config).create_infer_request()
        except Exception as error:  # OpenVINO raises RuntimeError and its own
            raise EngineError(f"{path}: OpenVINO {self.version} cannot load it ({_first_line(error)})") from error

    def run(self, batch: Float32) -> Outputs:
        try:
            found = self._request.infer({"image": np.ascontiguousarray(batch, np.float32)})
            return Outputs(*(np.array(found[name], np.float32) for name in OUTPUTS))  # copies: its buffers are reused
        except Exception as error:
            raise EngineError(
                f"{self.path}: OpenVINO failed on a batch of {len(batch)} ({_first_line(error)})"
            ) from error


def installed() -> str:
    """Its version. EngineError if there is none."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("openvino")
    except PackageNotFoundError:
        raise EngineError("openvino is not installed; pip install openvino, or use --backend onnxruntime") from None


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
