"""A CUDA runtime and a TensorRT that need no GPU but keep its rules.

What is put on a stream happens when the stream is waited for, in real memory; an address that was never given out, or
was given back, is an error; a captured graph replays what was captured and nothing else; a context that was captured
may not be changed any more, and does its first work outside a capture.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np

from cxrvit_edge.runtime.session import Float32, Outputs

Work = Callable[[], None]
Compute = Callable[[Float32], Outputs]


class cudaError_t(IntEnum):  # noqa: N801
    cudaSuccess = 0  # noqa: N815
    cudaErrorMemoryAllocation = 2  # noqa: N815
    cudaErrorInsufficientDriver = 35  # noqa: N815
    cudaErrorNoDevice = 100  # noqa: N815
    cudaErrorIllegalAddress = 700  # noqa: N815
    cudaErrorStreamCaptureUnsupported = 900  # noqa: N815
    cudaErrorStreamCaptureInvalidated = 901  # noqa: N815


class Handle:
    def __init__(self, number: int) -> None:
        self.number = number
        self.work: list[Work] = []

    def __int__(self) -> int:
        return self.number


class FakeCuda:
    """calls: names in order; fail: name -> code that it gives from now on; memory: what is out, address -> buffer."""

    cudaStreamNonBlocking = 1  # noqa: N815
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)  # noqa: N815
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815

    def __init__(self, *, driver: int = 13000, devices: int = 1) -> None:
        self.calls: list[str] = []
        self.fail: dict[str, cudaError_t] = {}
        self.memory: dict[int, Any] = {}
        self.pinned: set[int] = set()
        self.streams: dict[int, Handle] = {}
        self.graphs: set[int] = set()
        self.capturing: Handle | None = None
        self.broken = False
        self._driver, self._devices, self._number = driver, devices, 100

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if not name.startswith("cuda") or not callable(value):
            return value

        def called(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append(name)
            if name == "cudaStreamEndCapture" and name in self.fail:
                self.capturing = None
            if name in self.fail:
                return self.fail[name], None
            return value(*arguments)  # type: ignore[no-any-return]

        return called

    def cudaDriverGetVersion(self) -> Any:  # noqa: N802
        return cudaError_t.cudaSuccess, self._driver

    def cudaGetDeviceCount(self) -> Any:  # noqa: N802
        return cudaError_t.cudaSuccess if self._devices else cudaError_t.cudaErrorNoDevice, self._devices

    def cudaSetDevice(self, device: int) -> Any:  # noqa: N802
        return (cudaError_t.cudaSuccess,)

    def cudaGetErrorString(self, code: cudaError_t) -> Any:  # noqa: N802
        return cudaError_t.cudaSuccess, b"in words"

    def cudaGetLastError(self) -> Any:  # noqa: N802
        return (cudaError_t.cudaSuccess,)

    def cudaMalloc(self, size: int) -> Any:  # noqa: N802
        if self.capturing:
            return cudaError_t.cudaErrorStreamCaptureUnsupported, None
        buffer = (ctypes.c_uint8 * size)()
        address = ctypes.addressof(buffer)
        self.memory[address] = buffer
        return cudaError_t.cudaSuccess, address

    def cudaMallocHost(self, size: int) -> Any:  # noqa: N802
        code, address = self.cudaMalloc(size)
        self.calls.pop()
        self.pinned.add(address)
        return code, address

    def cudaFree(self, address: int) -> Any:  # noqa: N802
        del self.memory[address]
        return (cudaError_t.cudaSuccess,)

    def cudaFreeHost(self, address: int) -> Any:  # noqa: N802
        self.pinned.remove(address)
        return self.cudaFree(address)

    def cudaStreamCreateWithFlags(self, flags: int) -> Any:  # noqa: N802
        assert flags == self.cudaStreamNonBlocking
        self._number += 1
        self.streams[self._number] = Handle(self._number)
        return cudaError_t.cudaSuccess, self.streams[self._number]

    def cudaStreamDestroy(self, stream: Handle) -> Any:  # noqa: N802
        del self.streams[stream.number]
        return (cudaError_t.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: Handle) -> Any:  # noqa: N802
        if self.capturing:
            return (cudaError_t.cudaErrorStreamCaptureUnsupported,)
        work, stream.work = stream.work, []
        for step in work:
            step()
        return (cudaError_t.cudaSuccess,)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: Handle) -> Any:  # noqa: N802
        host, device = (source, to) if kind == 1 else (to, source)
        assert host in self.pinned and device not in self.pinned, "asynchronous copies need pinned memory"
        for address in (to, source):
            assert size <= len(self.memory[address])
        self.enqueue(stream.number, lambda: ctypes.memmove(to, source, size) and None)
        return (cudaError_t.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: Handle, mode: int) -> Any:  # noqa: N802
        assert not stream.work, "what is under way would be captured neither here nor there"
        self.capturing, self.broken, self._captured = stream, False, []
        return (cudaError_t.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: Handle) -> Any:  # noqa: N802
        assert self.capturing is stream
        self.capturing = None
        if self.broken:
            return cudaError_t.cudaErrorStreamCaptureInvalidated, None
        return cudaError_t.cudaSuccess, self._graph(self._captured)

    def cudaGraphInstantiateWithFlags(self, graph: Handle, flags: int) -> Any:  # noqa: N802
        assert graph.number in self.graphs and flags == 0
        return cudaError_t.cudaSuccess, self._graph(graph.work)

    def cudaGraphDestroy(self, graph: Handle) -> Any:  # noqa: N802
        self.graphs.remove(graph.number)
        return (cudaError_t.cudaSuccess,)

    cudaGraphExecDestroy = cudaGraphDestroy  # noqa: N815

    def cudaGraphLaunch(self, graph: Handle, stream: Handle) -> Any:  # noqa: N802
        assert graph.number in self.graphs
        for step in graph.work:
            self.enqueue(stream.number, step)
        return (cudaError_t.cudaSuccess,)

    def enqueue(self, stream: int, step: Work) -> None:
        handle = self.streams[stream]
        (self._captured if self.capturing is handle else handle.work).append(step)

    def _graph(self, work: list[Work]) -> Handle:
        self._number += 1
        self.graphs.add(self._number)
        made = Handle(self._number)
        made.work = list(work)
        return made


class FakeEngine:
    """Runs `compute`. most: largest batch; width: of the embedding, 0 without; contexts: every one that was made."""

    device_memory_size_v2 = 1000

    def __init__(self, cuda: FakeCuda, compute: Compute, *, size: int, half: int, most: int, width: int = 0) -> None:
        self.cuda, self.compute, self.most = cuda, compute, most
        self.tensors = {
            "image": ((-1, 1, size, size), np.float32),
            "logits": ((-1, 3), np.float32),
            "features": ((-1, 5), np.float16),  # a further output
            "severity_map": ((-1, 1, half, half), np.float32),
            "lung_mask": ((-1, 2, half, half), np.float32),
        }
        if width:
            self.tensors["embedding"] = ((-1, width), np.float32)
        self.contexts: list[FakeContext] = []
        self.refuse_in_capture = False

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name][0]

    def get_tensor_dtype(self, name: str) -> Any:
        return self.tensors[name][1]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(n, *self.tensors[name][0][1:]) for n in (1, 1, self.most)]

    def create_execution_context(self, config: Any) -> FakeContext:
        assert getattr(config, "strategy", config) == "USER_MANAGED"
        self.contexts.append(FakeContext(self))
        return self.contexts[-1]


class FakeContext:
    def __init__(self, engine: FakeEngine) -> None:
        self.engine, self.captured, self.warm = engine, False, False
        self.addresses: dict[str, int] = {}
        self.shape: tuple[int, ...] = ()
        self.scratch = 0

    def set_device_memory(self, address: int, size: int) -> None:
        assert size >= self.engine.device_memory_size_v2 and len(self.engine.cuda.memory[address]) >= size
        self.scratch = address

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert not self.captured, "a captured context may not be changed"
        self.shape = shape
        return name == "image" and 1 <= shape[0] <= self.engine.most and shape[1:] == self.engine.tensors[name][0][1:]

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert not self.captured, "a captured context may not be changed"
        self.addresses[name] = address
        return name in self.engine.tensors

    def execute_async_v3(self, stream: int) -> bool:
        engine, cuda = self.engine, self.engine.cuda
        cuda.calls.append("execute_async_v3")
        assert set(self.addresses) == set(engine.tensors) and self.scratch in cuda.memory
        if cuda.capturing:
            if engine.refuse_in_capture or not self.warm:
                cuda.broken = True
                return False
            self.captured = True
        self.warm = True
        cuda.enqueue(stream, self._work)
        return True

    def _work(self) -> None:
        image = self._at("image", np.float32, self.shape)
        outputs = self.engine.compute(image.copy())
        for name, values in outputs._asdict().items():
            if name not in self.engine.tensors:
                continue
            self._at(name, np.float32, values.shape)[...] = values

    def _at(self, name: str, kind: type, shape: tuple[int, ...]) -> Any:
        buffer = self.engine.cuda.memory[self.addresses[name]]
        return np.frombuffer(buffer, kind, count=int(np.prod(shape))).reshape(shape)


class RuntimeCache:
    def __init__(self) -> None:
        self.content = b""

    def deserialize(self, blob: bytes) -> bool:
        if not blob.startswith(b"kernels"):
            return False
        self.content = blob
        return True

    def serialize(self) -> bytes:
        return self.content


class RuntimeConfig:
    strategy, cuda_graph_strategy, dynamic_shapes_kernel_specialization_strategy = "STATIC", "DISABLED", "LAZY"
    cache: RuntimeCache | None = None

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache()

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = cache
        return True


class FakeRtxEngine(FakeEngine):
    """Compiles kernels for each context, into the cache that it was given."""

    config: RuntimeConfig

    def create_runtime_config(self) -> RuntimeConfig:
        self.config = RuntimeConfig()
        return self.config

    def create_execution_context(self, config: Any) -> FakeContext:
        assert config is self.config and config.cache is not None
        config.cache.content = b"kernels of %d" % (len(self.contexts) + 1)
        return super().create_execution_context(config)


def tensorrt(engine: FakeEngine | None, *, rtx: bool = False) -> Any:
    """The package: every plan is `engine`, and None is one that it does not load."""

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING = range(3)

        def __init__(self) -> None:
            self.made = True

    class Runtime:
        def __init__(self, logger: Any) -> None:
            assert logger.made
            self.logger = logger

        def deserialize_cuda_engine(self, data: bytes) -> FakeEngine | None:
            if engine is None:
                self.logger.log(ILogger.WARNING, "nothing to worry about")
                self.logger.log(ILogger.ERROR, "built for\n another GPU")
                self.logger.log(ILogger.ERROR, "what follows from that")
            return engine

    strategies = {
        "CudaGraphStrategy": SimpleNamespace(WHOLE_GRAPH_CAPTURE="WHOLE_GRAPH_CAPTURE"),
        "DynamicShapesKernelSpecializationStrategy": SimpleNamespace(EAGER="EAGER"),
    }
    return SimpleNamespace(
        __version__="10.3.0",
        ILogger=ILogger,
        Runtime=Runtime,
        nptype=lambda kind: kind,
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="USER_MANAGED"),
        **(strategies if rtx else {}),
    )
