"""Engines of TensorRT and TensorRT-RTX on a GPU.

Images go through pinned memory, asynchronous copies and one stream; each batch size is captured once as a CUDA graph.
A graph fixes addresses, shapes and the state of its execution context, so each batch size has a context of its own, and
all share one block of activation memory. TensorRT-RTX captures by itself where its IRuntimeConfig offers that.

Built and not run, for want of a GPU: everything after the driver is found, that is deserialising, copies, capture and
RTX's runtime cache. Tests run those calls, in their order, against a CUDA of their own that moves real memory; names
and arguments were held against cuda-python 12.6 to 13.4 and tensorrt-rtx 1.7.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cxrvit_edge.bundle import cache_dir
from cxrvit_edge.errors import EngineError
from cxrvit_edge.host import gpus
from cxrvit_edge.runtime import builder, records
from cxrvit_edge.runtime.cuda import Bytes, Cuda
from cxrvit_edge.runtime.session import OUTPUTS, Float32, Outputs, joined, named

IMAGE = "image"


class TensorRTSession:
    """A plan, deserialised. Batches over the profile's largest are run in parts.

    EngineError if the package, cuda-python or a driver is missing, or if the plan was not built for this box.
    """

    def __init__(self, plan: Path, *, backend: str, precision: str, device: int = 0) -> None:
        self._trt = trt = builder.load(backend)
        self.backend, self.precision, self.path = backend, precision, plan
        self.version: str = trt.__version__
        self._notes: list[str] = []
        try:
            data = plan.read_bytes()
        except OSError as error:
            raise EngineError(f"{plan}: cannot be read ({error.strerror}); run `cxrvit-edge build` again") from error
        digest = hashlib.sha256(data).hexdigest()
        self._cuda = Cuda(device)
        self.fingerprint = fingerprint(digest, device)
        self._held = _Held(self._cuda)
        self._graphs: dict[int, Any] = {}
        self._device: dict[str, int] = {}
        self._pinned: dict[str, Bytes] = {}
        self._cache_path, self._cached = cache_dir() / "engines" / f"{digest[:32]}.runtime-cache", b""
        self._close = weakref.finalize(self, self._held.release)  # at exit too, while there is still an interpreter
        try:
            self._open(data)
        except BaseException:
            self.close()
            raise

    @property
    def batch_sizes(self) -> Sequence[int]:
        return range(1, self.largest + 1)

    @property
    def notes(self) -> Sequence[str]:
        return self._notes

    def run(self, batch: Float32) -> Outputs:
        if not self._close.alive:
            raise EngineError(f"{self.path}: this session is closed; open another")
        if batch.shape[1:] != self._shapes[IMAGE] or not len(batch):
            wanted = ", ".join(map(str, self._shapes[IMAGE]))
            raise EngineError(
                f"{self.path}: {self.backend} failed on a batch of shape {batch.shape}, not (B, {wanted})"
            )
        self._cuda.select()
        parts = [self._part(batch[i : i + self.largest]) for i in range(0, len(batch), self.largest)]
        return joined(parts)

    def close(self) -> None:
        """Give the GPU's memory back. Runs by itself when the session is forgotten or the process ends."""
        self._close()

    def _open(self, data: bytes) -> None:
        held = self._held
        held.logger = log = _logger(self._trt)
        held.runtime = self._trt.Runtime(log)
        try:
            held.engine = held.runtime.deserialize_cuda_engine(data)
        except RuntimeError as error:
            log.lines.append(str(error))
        if held.engine is None:
            raise EngineError(
                f"{self.path}: {self.backend} {self.version} cannot load this engine "
                f"({log.reason()}); run `cxrvit-edge build` on this box"
            )
        self._read_profile()
        self._stream = self._cuda.stream()
        for name, size in self._sizes.items():
            self._device[name] = self._cuda.allocate(size * self.largest)
            if name == IMAGE or name in self._outputs:
                self._pinned[name] = self._cuda.pinned(size * self.largest)
        self._configure()

    def _read_profile(self) -> None:
        """Largest batch, and shape and bytes of one image of each tensor."""
        engine, trt = self._held.engine, self._trt
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        if absent := sorted({IMAGE, *OUTPUTS} - set(names)):
            raise EngineError(f"{self.path}: the engine has no {', '.join(absent)}; run `cxrvit-edge build` again")
        self._outputs = named(names)
        self.largest = int(next(iter(engine.get_tensor_profile_shape(IMAGE, 0)[2])))
        self._shapes = {name: tuple(engine.get_tensor_shape(name))[1:] for name in names}
        kinds = {name: np.dtype(trt.nptype(engine.get_tensor_dtype(name))) for name in names}
        whole = all(size > 0 for shape in self._shapes.values() for size in shape)
        if not whole or any(kinds[name] != np.float32 for name in (IMAGE, *self._outputs)):
            raise EngineError(f"{self.path}: not an engine of ours ({self._shapes}); run `cxrvit-edge build` again")
        self._sizes = {name: math.prod(self._shapes[name]) * kinds[name].itemsize for name in names}

    def _configure(self) -> None:
        """How contexts are made: activation memory is ours, and on RTX compiled kernels are kept."""
        engine, held, trt = self._held.engine, self._held, self._trt
        self._captures_itself = False
        self._activations = self._activation_memory()
        shared = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self.backend != "tensorrt-rtx" or not hasattr(engine, "create_runtime_config"):
            held.config = shared
            return
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(shared)
        if hasattr(trt, "CudaGraphStrategy"):
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            self._captures_itself = True
        if hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
            # by default kernels are replaced while it runs: what gives results must be what the golden check saw
            eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
            config.dynamic_shapes_kernel_specialization_strategy = eager
        held.cache = config.create_runtime_cache()
        with contextlib.suppress(OSError):
            held.cache.deserialize(self._cache_path.read_bytes())  # RTX itself turns down what is not of this box
        config.set_runtime_cache(held.cache)
        held.config = config

    def _activation_memory(self) -> int:
        engine = self._held.engine
        size = engine.device_memory_size_v2 if hasattr(engine, "device_memory_size_v2") else engine.device_memory_size
        self._activation_bytes = max(int(size), 256)
        return self._cuda.allocate(self._activation_bytes)

    def _part(self, images: Float32) -> Outputs:
        """At most the largest batch: in, through and out, on one stream."""
        count, held, cuda = len(images), self._held, self._cuda
        first = count not in held.contexts
        if first:
            held.contexts[count] = self._context(count)
        size = count * self._sizes[IMAGE]
        self._pinned[IMAGE][:size] = np.ascontiguousarray(images, np.float32).reshape(-1).view(np.uint8)
        cuda.to_device(self._device[IMAGE], self._pinned[IMAGE], size, self._stream)
        if first:  # the first time it allocates and settles what depends on the shape, which no graph can hold
            self._enqueue(count)
            cuda.wait(self._stream)
            self._capture(count)
            self._save_cache()
        if count in self._graphs:
            cuda.launch(self._graphs[count], self._stream)
        elif not first:
            self._enqueue(count)
        for name in self._outputs:
            cuda.to_host(self._pinned[name], self._device[name], count * self._sizes[name], self._stream)
        cuda.wait(self._stream)
        return Outputs(*(self._read(self._pinned[name], name, count) for name in self._outputs))

    def _read(self, pinned: Bytes, name: str, count: int) -> Float32:
        values = pinned[: count * self._sizes[name]].view(np.float32)
        return values.reshape(count, *self._shapes[name]).copy()

    def _context(self, count: int) -> Any:
        held = self._held
        context = held.engine.create_execution_context(held.config)
        if context is None:
            raise self._failed(f"no execution context for a batch of {count}")
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(self._activations, self._activation_bytes)
        else:  # TensorRT 10.0
            context.device_memory = self._activations
        if not context.set_input_shape(IMAGE, (count, *self._shapes[IMAGE])):
            raise self._failed(f"a batch of {count} is not in its profile")
        for name, address in self._device.items():
            if not context.set_tensor_address(name, address):
                raise self._failed(f"no address for {name}")
        return context

    def _enqueue(self, count: int) -> None:
        if not self._held.contexts[count].execute_async_v3(int(self._stream)):
            raise self._failed(f"a batch of {count} could not be enqueued")

    def _capture(self, count: int) -> None:
        """Where it cannot be captured it is enqueued each time: the same results, later."""
        if self._captures_itself:
            return
        try:
            self._graphs[count] = self._cuda.capture(self._stream, lambda: self._enqueue(count))
        except EngineError as error:
            self._notes.append(f"{self.backend} runs batches of {count} without a CUDA graph, so slower ({error})")

    def _save_cache(self) -> None:
        """Keep what RTX has compiled for this GPU, if it is more than before."""
        blob = None if self._held.cache is None else self._held.cache.serialize()
        data = b"" if blob is None else bytes(blob)
        if data and data != self._cached:
            self._cached = data
            records.write_bytes(self._cache_path, data)

    def _failed(self, what: str) -> EngineError:
        return EngineError(f"{self.path}: {self.backend} failed: {what} ({self._held.logger.reason()})")


class _Held:
    """What depends on each other: released from the contexts down."""

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        self.logger: Any = None
        self.runtime: Any = None
        self.engine: Any = None
        self.config: Any = None
        self.cache: Any = None
        self.contexts: dict[int, Any] = {}

    def release(self) -> None:
        self.cuda.finish()
        self.contexts.clear()
        self.config = self.cache = None
        self.cuda.give_back()
        self.engine = self.runtime = self.logger = None


def fingerprint(plan_sha256: str, device: int = 0) -> str:
    """What an engine's results depend on beside the back end's version: the plan, the GPU and its driver."""
    found = [f"{gpu.name} sm{gpu.sm} {gpu.driver}" for gpu in gpus() if gpu.index == device]
    return " ".join([plan_sha256, *found])


def _logger(trt: Any) -> Any:
    """A logger that keeps errors, so that a null can be explained."""

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.lines.append(message)

        def reason(self) -> str:
            """The first error since the last asking: later ones follow from it."""
            first = " ".join(self.lines[0].split()) if self.lines else "it gave no reason"
            self.lines = []
            return first[:300]

    return Log()
