"""What a box can do at most: a large GEMM in each kind of arithmetic and a large copy, on the processor or on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from cxrvit_edge.host import cores

GEMM, GEMM_GPU = 2048, 8192  # rows and columns
COPY = 1 << 30  # bytes read, and as many written: far more than a core's share of the last cache


@dataclass(frozen=True)
class Probe:
    """kind: "fp32", "tf32", "bf16", "fp16", "int8" or "bytes"; amount: operations or bytes of one run."""

    device: str
    kind: str
    way: str
    amount: float
    run: Callable[[], object]


@dataclass(frozen=True)
class Peak:
    """a_second: operations, or bytes, at the best run."""

    device: str
    kind: str
    way: str
    a_second: float

    def row(self) -> dict[str, Any]:
        unit = "GB/s" if self.kind == "bytes" else "GFLOP/s" if self.kind != "int8" else "GOP/s"
        return {
            "device": self.device,
            "kind": self.kind,
            "way": self.way,
            "peak": float(f"{self.a_second / 1e9:.4g}"),
            "unit": unit,
        }


def measured(probes: Mapping[int, Probe], seconds: Mapping[int, float]) -> list[Peak]:
    """By the same keys."""
    return [Peak(p.device, p.kind, p.way, p.amount / seconds[key]) for key, p in probes.items()]


def best(peaks: list[Peak], device: str) -> dict[str, float]:
    """Kind -> the most a second that any way reached on the device."""
    out: dict[str, float] = {}
    for p in peaks:
        if p.device == device:
            out[p.kind] = max(out.get(p.kind, 0.0), p.a_second)
    return out


def on_cpu(size: int = GEMM, copied: int = COPY, say: Callable[[str], None] = print) -> list[Probe]:
    """Those that the packages here can run, each tried once; what fails is told and left out."""
    makers = (_numpy_gemm, _onnxruntime_gemm, _torch_gemms, _copy)
    return list(_tried((probe for maker in makers for probe in _made(maker, size, copied, say)), say))


def on_gpu(
    size: int = GEMM_GPU, copied: int = COPY, device: str = "cuda", say: Callable[[str], None] = print
) -> list[Probe]:
    """GEMMs of torch in float32, TF32, FP16, BF16 and INT8, and a copy in the card's memory."""
    import torch

    def products(kind: str, dtype: Any) -> Probe:
        a, b = (_random(size).to(device, dtype) for _ in range(2))
        multiply = torch._int_mm if dtype == torch.int8 else torch.matmul
        b = b.t() if dtype == torch.int8 else b  # as the card's INT8 products want it

        def run() -> None:
            torch.set_float32_matmul_precision("high" if kind == "tf32" else "highest")
            multiply(a, b)
            wait(device)

        return Probe(device, kind, f"torch {size} x {size}", 2.0 * size**3, run)

    kinds = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    source = torch.zeros(copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        wait(device)

    probes = [products(kind, dtype) for kind, dtype in (kinds | {"int8": torch.int8}).items()]
    probes.append(Probe(device, "bytes", f"torch copy of {copied / 2**20:.0f} MiB", 2.0 * copied, copy))
    return list(_tried(probes, say))


def has_gpu() -> bool:
    """Whether torch is here and sees a CUDA device."""
    if find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


def wait(device: str) -> None:
    """Until the GPU has done what was asked of it."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()


def _made(maker: Callable[[int, int], list[Probe]], size: int, copied: int, say: Callable[[str], None]) -> list[Probe]:
    try:
        return maker(size, copied)
    except Exception as error:  # a probe that cannot be made is no reason to stop
        say(f"passed over: {maker.__name__.strip('_')}: {_line(error)}")
        return []


def _tried(probes: Any, say: Callable[[str], None]) -> Iterator[Probe]:
    for probe in probes:
        if why := _fails(probe):
            say(f"passed over: {probe.kind} by {probe.way} on {probe.device}: {why}")
        else:
            yield probe


def _fails(probe: Probe) -> str:
    try:
        probe.run()
    except Exception as error:
        return _line(error)
    return ""


def _random(size: int) -> Any:
    """(size, size) small whole numbers: a product of zeros or ones draws less power than one of data."""
    import torch

    return torch.randint(-9, 9, (size, size), generator=torch.Generator().manual_seed(0)).float()


def _numpy_gemm(size: int, copied: int) -> list[Probe]:  # noqa: ARG001
    a, b = (np.random.default_rng(0).integers(-9, 9, (size, size)).astype(np.float32) for _ in range(2))
    out = np.empty_like(a)
    return [Probe("cpu", "fp32", f"numpy {size} x {size}", 2.0 * size**3, lambda: np.matmul(a, b, out=out))]


def _onnxruntime_gemm(size: int, copied: int) -> list[Probe]:  # noqa: ARG001
    """MatMul, and MatMulInteger of uint8 by int8, the second factor constant as weights are."""
    if find_spec("onnx") is None or find_spec("onnxruntime") is None:
        raise ImportError("onnx and onnxruntime are needed")
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    probes, rng = [], np.random.default_rng(0)
    ways = (("fp32", "MatMul", np.float32, np.float32), ("int8", "MatMulInteger", np.uint8, np.int8))
    for kind, operator, left, right in ways:
        element, result = helper.np_dtype_to_tensor_dtype(np.dtype(left)), TensorProto.FLOAT
        if kind == "int8":
            result = TensorProto.INT32
        graph = helper.make_graph(
            [helper.make_node(operator, ["a", "b"], ["c"])],
            "gemm",
            [helper.make_tensor_value_info("a", element, (size, size))],
            [helper.make_tensor_value_info("c", result, (size, size))],
            [numpy_helper.from_array(rng.integers(-9, 9, (size, size)).astype(right), "b")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        a = rng.integers(0, 9, (size, size)).astype(left)

        def run(session: Any = session, a: Any = a) -> None:
            session.run(None, {"a": a})

        probes.append(Probe("cpu", kind, f"onnxruntime {operator} {size} x {size}", 2.0 * size**3, run))
    return probes


def _torch_gemms(size: int, copied: int) -> list[Probe]:  # noqa: ARG001
    if find_spec("torch") is None:
        raise ImportError("torch is not installed")
    import torch

    probes = []
    for kind, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("int8", torch.int8)):
        a, b = (_random(size).to(dtype) for _ in range(2))
        multiply = torch._int_mm if kind == "int8" else torch.matmul

        def run(multiply: Any = multiply, a: Any = a, b: Any = b) -> None:
            with torch.inference_mode():
                multiply(a, b)

        probes.append(Probe("cpu", kind, f"torch {size} x {size}", 2.0 * size**3, run))
    return probes


def _copy(size: int, copied: int) -> list[Probe]:  # noqa: ARG001
    threads = cores()
    source, target = np.zeros(copied, np.uint8), np.ones(copied, np.uint8)
    source[:] = 1  # pages of zeros are not memory yet
    parts = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))
    pool = ThreadPoolExecutor(threads)

    def run() -> None:
        list(pool.map(lambda part: np.copyto(*part), parts))

    return [Probe("cpu", "bytes", f"numpy copy of {copied / 2**20:.0f} MiB, {threads} threads", 2.0 * copied, run)]


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
