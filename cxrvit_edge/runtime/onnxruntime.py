"""ONNX Runtime on the CPU: the back end that runs everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cxrvit_edge.errors import EngineError
from cxrvit_edge.host import cpu_flags
from cxrvit_edge.runtime.session import Float32, Outputs, named

DOT_PRODUCTS = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")  # 8-bit products summed in 32 bits
NO_SATURATION = ("session.x64quantprecision", "1")
NO_QUANTISED_KERNELS = ("session.disable_quant_qdq", "1")
SPINNING = "session.intra_op.allow_spinning"
LEVELS = ("all", "extended")  # the first is ONNX Runtime's own; "extended" leaves the blocked layout out
OPTIMISED = ("graph.onnx", "graph.data")  # files of a saved graph: the second holds its weights


@dataclass(frozen=True)
class Settings:
    """How ONNX Runtime runs a graph here; as it stands, what ONNX Runtime does by itself.

    threads: 0 is one a physical core; spinning: idle threads wait busily; memory: "arena" keeps what was allocated and
    plans it by pattern, "arena without pattern", or "system" gives it back; level: one of LEVELS.
    """

    threads: int = 0
    spinning: bool = True
    memory: str = "arena"
    level: str = "all"

    def told(self) -> str:
        count = f"{self.threads} threads" if self.threads > 1 else "1 thread" if self.threads else "a thread a core"
        own = [] if self.memory == "arena" else [f"memory: {self.memory}"]
        own += [] if self.level == "all" else [f"optimisation: {self.level}"]
        return ", ".join([count, "spinning" if self.spinning else "not spinning", *own])


class OnnxRuntimeSession:
    """A graph of the bundle, or its bytes, on ONNX Runtime's CPU provider. threads 0: one a physical core.

    precision int8: where the processor sums 8-bit products in 16 bits, which saturate, the slower kernels that do not
    are asked for. exact: Q/DQ nodes run as float32 arithmetic between rounded values, the reference for every engine.
    settings: as tuned on this box; threads, where it is not 0, comes before theirs. optimised: SHA-256 of the graph
    where `path` is one that `save_optimised` wrote with the same settings, which is then opened as it is.
    """

    backend = "onnxruntime"
    batch_sizes: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    def __init__(
        self,
        path: Path | bytes,
        *,
        precision: str,
        threads: int = 0,
        exact: bool = False,
        settings: Settings | None = None,
        optimised: str = "",
    ) -> None:
        import onnxruntime as ort

        settings = settings or Settings()
        entries = arithmetic(precision, exact=exact)
        options = _options(settings, entries, threads)
        if optimised:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        graph = path if isinstance(path, bytes) else str(path)
        self.path = Path("a graph in memory") if isinstance(path, bytes) else path
        try:
            self._session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ORT's own exceptions share no public base
            raise EngineError(
                f"{self.path}: ONNX Runtime {ort.__version__} cannot load it ({_first_line(error)})"
            ) from error
        self._outputs = named([output.name for output in self._session.get_outputs()])
        self.version: str = ort.__version__
        self.precision = precision
        self.fingerprint = fingerprint(graph_settings(settings, entries, optimised))

    def run(self, batch: Float32) -> Outputs:
        try:
            values = self._session.run(self._outputs, {"image": np.ascontiguousarray(batch, np.float32)})
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


def graph_settings(settings: Settings, entries: dict[str, str], optimised: str = "") -> dict[str, str]:
    """All that outputs depend on: what asks nothing of ONNX Runtime leaves no trace, so its passes stay valid."""
    found = dict(entries)
    if settings.level != LEVELS[0]:
        found["level"] = settings.level
    if optimised:
        found["optimised"] = optimised
    return found


def save_optimised(path: Path, folder: Path, *, precision: str, settings: Settings) -> None:
    """Write the graph as ONNX Runtime has optimised it for this processor into `folder`, as the files of OPTIMISED.

    EngineError if it cannot be loaded, or not be written.
    """
    import onnxruntime as ort

    options = _options(settings, arithmetic(precision), 1)
    options.optimized_model_filepath = str(folder / OPTIMISED[0])
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", OPTIMISED[1])
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    try:
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise EngineError(
            f"{path}: ONNX Runtime {ort.__version__} cannot optimise and save it ({_first_line(error)})"
        ) from error


def _options(settings: Settings, entries: dict[str, str], threads: int) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or settings.threads
    options.log_severity_level = 3  # errors only: warnings are about shapes it infers itself
    options.enable_cpu_mem_arena = settings.memory != "system"
    options.enable_mem_pattern = settings.memory == "arena"
    if settings.level == "extended":
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    if not settings.spinning:
        options.add_session_config_entry(SPINNING, "0")
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    return options


def fingerprint(settings: dict[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in sorted(settings.items()))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
