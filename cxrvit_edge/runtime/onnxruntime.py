"""ONNX Runtime on the CPU: the back end that runs everywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cxrvit_edge.errors import EngineError
from cxrvit_edge.host import cpu_flags
from cxrvit_edge.runtime.session import Float32, Outputs

OUTPUTS = ["logits", "severity_map", "lung_mask"]
DOT_PRODUCTS = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")  # 8-bit products summed in 32 bits
NO_SATURATION = ("session.x64quantprecision", "1")
NO_QUANTISED_KERNELS = ("session.disable_quant_qdq", "1")


class OnnxRuntimeSession:
    """A graph of the bundle, or its bytes, on ONNX Runtime's CPU provider. threads 0: one a physical core.

    precision int8: where the processor sums 8-bit products in 16 bits, which saturate, the slower kernels that do not
    are asked for. exact: Q/DQ nodes run as float32 arithmetic between rounded values, the reference for every engine.
    """

    backend = "onnxruntime"
    batch_sizes: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    def __init__(self, path: Path | bytes, *, precision: str, threads: int = 0, exact: bool = False) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors only: warnings are about shapes it infers itself
        settings = arithmetic(precision, exact=exact)
        for key, value in settings.items():
            options.add_session_config_entry(key, value)
        graph = path if isinstance(path, bytes) else str(path)
        self.path = Path("a graph in memory") if isinstance(path, bytes) else path
        try:
            self._session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ORT's own exceptions share no public base
            raise EngineError(
                f"{self.path}: ONNX Runtime {ort.__version__} cannot load it ({_first_line(error)})"
            ) from error
        self.version: str = ort.__version__
        self.precision = precision
        self.fingerprint = fingerprint(settings)

    def run(self, batch: Float32) -> Outputs:
        try:
            values = self._session.run(OUTPUTS, {"image": np.ascontiguousarray(batch, np.float32)})
        except Exception as error:
            raise EngineError(
                f"{self.path}: ONNX Runtime failed on a batch of {len(batch)} ({_first_line(error)})"
            ) from error
        return Outputs(*values)


def exact_int8() -> bool:
    """Whether this processor's INT8 kernels give exact sums at full speed."""
    return any(flag in DOT_PRODUCTS for flag in cpu_flags())


def arithmetic(precision: str, *, exact: bool = False) -> dict[str, str]:
    """Session settings that change what a graph of this precision gives on this box."""
    if exact:
        return dict([NO_QUANTISED_KERNELS])
    return {} if precision == "fp32" or exact_int8() else dict([NO_SATURATION])


def fingerprint(settings: dict[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in sorted(settings.items()))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
