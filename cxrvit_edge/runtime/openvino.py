"""OpenVINO on the CPU, where it is installed: a peer of ONNX Runtime for the same graphs."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from cxrvit_edge.errors import EngineError
from cxrvit_edge.host import cores, give_back_memory
from cxrvit_edge.runtime.session import Float32, Outputs, named

ARITHMETICS = ("f32", "bf16")


class OpenVinoSession:
    """A graph of the bundle on OpenVINO's CPU plugin. threads 0: one a core; cache: folder for what it compiles.

    Compiled for each batch size as it comes: a graph of any batch size ran at 1.04 to 1.2 times the time.

    arithmetic: one of ARITHMETICS, of what the graph has in float32. By itself OpenVINO takes bfloat16 where the
    processor has it, which the golden check of fp32 does not let pass.
    """

    backend = "openvino"
    batch_sizes: tuple[int, ...] = ()

    def __init__(
        self, path: Path, *, precision: str, threads: int = 0, cache: Path | None = None, arithmetic: str = "f32"
    ) -> None:
        self.version = installed()
        openvino = import_module("openvino")
        self._config: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",  # all threads on one batch; the pipeline forms the batches
            "INFERENCE_PRECISION_HINT": arithmetic,
            "INFERENCE_NUM_THREADS": threads or cores(),
        }
        self.path, self.precision = path, precision
        self.fingerprint = arithmetic
        half = "OpenVINO runs in bfloat16 what the graph has in float32: faster here, golden check passed"
        self.notes: tuple[str, ...] = () if arithmetic == "f32" else (half,)
        self._requests: dict[int, Any] = {}  # by batch size
        try:
            self._core = openvino.Core()
            if cache is not None:
                self._core.set_property({"CACHE_DIR": str(cache)})
            self._model = self._core.read_model(str(path))
            self._outputs = named([name for output in self._model.outputs for name in output.get_names()])
        except Exception as error:  # OpenVINO raises RuntimeError and its own
            raise EngineError(f"{path}: OpenVINO {self.version} cannot load it ({_first_line(error)})") from error

    def _compiled(self, shape: tuple[int, ...]) -> Any:
        self._model.reshape({"image": list(shape)})
        request = self._core.compile_model(self._model, "CPU", self._config).create_infer_request()
        give_back_memory()  # some 20 MB that compiling took
        self._requests[shape[0]] = request
        return request

    def run(self, batch: Float32) -> Outputs:
        try:
            request = self._requests.get(len(batch)) or self._compiled(batch.shape)
            found = request.infer({"image": np.ascontiguousarray(batch, np.float32)})
            return Outputs(
                *(np.array(found[name], np.float32) for name in self._outputs)
            )  # copies: its buffers are reused
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
