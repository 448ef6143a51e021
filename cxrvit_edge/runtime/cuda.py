"""The few calls of the CUDA runtime that a session needs, through cuda-python; one that fails is an EngineError.

cuda-python has had its runtime under two names: `cuda.bindings.runtime` from 12.6.1 on, `cuda.cudart` before. The calls
used here have the same arguments under both, 12.5 to 13.5: cudaGraphInstantiate, which has not, is called by the name
that has, cudaGraphInstantiateWithFlags.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.errors import EngineError

SUCCESS = 0
Bytes = NDArray[np.uint8]


class Cuda:
    """The runtime of one device, and what was taken from it. EngineError: no cuda-python, no driver, no such device.

    driver: CUDA version that the driver serves, such as 13000.
    """

    def __init__(self, device: int = 0) -> None:
        self._api = runtime()
        self.device = device
        self._memory: list[int] = []
        self._pinned: list[int] = []
        self._streams: list[Any] = []
        self._graphs: list[Any] = []
        self.driver = self._driver()
        count = self._count()
        if device >= count:
            raise EngineError(f"no CUDA device {device} on this box (it has {count}); use --backend onnxruntime")
        self.select()

    def call(self, name: str, *arguments: Any) -> Any:
        """What a function of the runtime returns beside its error code: nothing, one value, or a tuple."""
        try:
            code, *values = getattr(self._api, name)(*arguments)
        except (RuntimeError, TypeError, AttributeError) as error:  # a library or a function that is not there
            raise EngineError(f"{name} failed ({_line(error)}); use --backend onnxruntime") from error
        if int(code) != SUCCESS:
            raise EngineError(f"{name} failed ({self._told(code)}); use --backend onnxruntime if it stays")
        return values[0] if len(values) == 1 else tuple(values) or None

    def select(self) -> None:
        """The device is chosen thread by thread: call before work in a thread that may be new."""
        self.call("cudaSetDevice", self.device)

    def allocate(self, size: int) -> int:
        """Address of `size` bytes on the device, aligned to 256."""
        self._memory.append(int(self.call("cudaMalloc", max(size, 1))))
        return self._memory[-1]

    def pinned(self, size: int) -> Bytes:
        """(size,) bytes of the host that the GPU copies from without a detour, or shares, as on a Jetson."""
        self._pinned.append(int(self.call("cudaMallocHost", size)))
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self._pinned[-1]))

    def stream(self) -> Any:
        """A stream that does not wait for the default one."""
        self._streams.append(self.call("cudaStreamCreateWithFlags", self._api.cudaStreamNonBlocking))
        return self._streams[-1]

    def to_device(self, address: int, pinned: Bytes, size: int, stream: Any) -> None:
        kind = self._api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.call("cudaMemcpyAsync", address, pinned.ctypes.data, size, kind, stream)

    def to_host(self, pinned: Bytes, address: int, size: int, stream: Any) -> None:
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.call("cudaMemcpyAsync", pinned.ctypes.data, address, size, kind, stream)

    def wait(self, stream: Any) -> None:
        self.call("cudaStreamSynchronize", stream)

    def capture(self, stream: Any, work: Callable[[], None]) -> Any:
        """What `work` enqueues on `stream`, as a graph that can be launched; nothing of it is run.

        EngineError if it cannot be captured; the stream is then as before.
        """
        mode = self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal  # other threads may allocate
        self.call("cudaStreamBeginCapture", stream, mode)
        try:
            work()
        except BaseException:
            code, *values = self._api.cudaStreamEndCapture(stream)
            if int(code) == SUCCESS and values:
                self._api.cudaGraphDestroy(values[0])
            self._api.cudaGetLastError()  # taken off, or the next call would report it
            raise
        try:
            graph = self.call("cudaStreamEndCapture", stream)
        except EngineError:
            self._api.cudaGetLastError()
            raise
        try:
            self._graphs.append(self.call("cudaGraphInstantiateWithFlags", graph, 0))
            return self._graphs[-1]
        finally:
            self.call("cudaGraphDestroy", graph)

    def launch(self, graph: Any, stream: Any) -> None:
        self.call("cudaGraphLaunch", graph, stream)

    def finish(self) -> None:
        """Wait for what is under way. Errors are passed over: a GPU that has failed says so again at every call."""
        with suppress(EngineError):
            self.select()
        for stream in self._streams:
            with suppress(EngineError):
                self.wait(stream)

    def give_back(self) -> None:
        """Graphs, memory and streams; their addresses are void from here on. Errors are passed over."""
        taken = (
            ("cudaGraphExecDestroy", self._graphs),
            ("cudaFree", self._memory),
            ("cudaFreeHost", self._pinned),
            ("cudaStreamDestroy", self._streams),
        )
        for name, handles in taken:
            while handles:
                with suppress(EngineError):
                    self.call(name, handles.pop())

    def _driver(self) -> int:
        try:
            version = int(self.call("cudaDriverGetVersion"))
        except EngineError as error:
            raise EngineError(_no_driver(_cause(error))) from error
        if not version:  # the runtime's way to say that none is installed
            raise EngineError(_no_driver("cudaDriverGetVersion gives 0"))
        return version

    def _count(self) -> int:
        try:
            return int(self.call("cudaGetDeviceCount"))
        except EngineError as error:  # no device, or a driver older than this cuda-python
            raise EngineError(_no_driver(f"{_cause(error)}, with a driver for CUDA {self.driver}")) from error

    def _told(self, code: Any) -> str:
        try:
            _, text = self._api.cudaGetErrorString(code)
        except RuntimeError:  # this call, too, needs a driver in old versions
            text = b""
        words = text.decode(errors="replace") if isinstance(text, bytes) else str(text or "")
        return f"{getattr(code, 'name', 'error')} {int(code)}{': ' if words else ''}{words}"


def runtime() -> Any:
    """The module with the CUDA runtime, under its new or its old name. EngineError if there is none."""
    try:
        from cuda.bindings import runtime as module
    except ImportError:
        try:
            from cuda import cudart as module
        except ImportError as error:
            raise EngineError(
                "TensorRT sessions need cuda-python, which is not installed: pip install 'cuda-python>=12.6' "
                "('cuda-python<13' with a CUDA 12 driver, as on JetPack 6), or use --backend onnxruntime"
            ) from error
    return module


def _no_driver(cause: str) -> str:
    hint = "install NVIDIA's driver for this GPU and a cuda-python that is no newer, or use --backend onnxruntime"
    return f"no CUDA driver on this box: {cause}; {hint}"


def _cause(error: EngineError) -> str:
    return str(error).split("; use")[0]


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
