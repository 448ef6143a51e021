"""The reference network by torch on a GPU: eager, compiled, and as a CUDA graph, in float32, TF32 and FP16."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cxrvit_edge.errors import EngineError
from cxrvit_edge.runtime.session import Float32, Outputs


@dataclass(frozen=True)
class Way:
    """kind: arithmetic, fp32, tf32 or fp16; how: eager, graph, compiled or compiled graph; told: its settings."""

    kind: str
    how: str
    told: str
    autocast: bool = False

    @property
    def name(self) -> str:
        words = ["torch", self.kind, *(["autocast"] if self.autocast else [])]
        return " ".join([*words, *([self.how] if self.how != "eager" else [])])


_FP32, _TF32 = "TF32 off", "TF32 in convolutions and products"
_FP16 = "weights and activations FP16, channels_last"
_GRAPH, _COMPILED = "captured by torch.cuda.CUDAGraph", "torch.compile, for each batch size"
WAYS = (
    Way("fp32", "eager", _FP32),
    Way("tf32", "eager", _TF32),
    Way("fp16", "eager", _FP16),
    Way("fp16", "eager", "weights float32, torch.autocast to FP16, channels_last", autocast=True),
    Way("fp32", "graph", f"{_FP32}, {_GRAPH}"),
    Way("fp16", "graph", f"{_FP16}, {_GRAPH}"),
    Way("fp32", "compiled", f"{_FP32}, {_COMPILED}"),
    Way("fp16", "compiled", f"{_FP16}, {_COMPILED}"),
    Way("fp16", "compiled graph", f"{_FP16}, {_COMPILED}, mode reduce-overhead"),
)


def load(weights: Path) -> nn.Module:
    """The reference in float32 on the processor. Reads the file by hand where safetensors is not installed."""
    from cxrvit_edge.model import checkpoint
    from cxrvit_edge.model.config import NetworkConfig

    if find_spec("safetensors") is not None:
        tensors, config, _ = checkpoint.load(weights)
    else:
        data = np.fromfile(weights, np.uint8)
        start = 8 + int(data[:8].view(np.uint64)[0])
        header = json.loads(data[8:start].tobytes())
        config = NetworkConfig.from_json(header.pop("__metadata__")["config"])
        kinds = {"F16": np.float16, "F32": np.float32, "I64": np.int64}
        tensors = {}
        for name, entry in header.items():
            first, last = (start + at for at in entry["data_offsets"])
            values = np.frombuffer(data[first:last].tobytes(), kinds[entry["dtype"]]).reshape(entry["shape"])
            tensors[name] = torch.from_numpy(values.copy())
    return checkpoint.network(tensors, config, name=str(weights)).eval()


def forget() -> None:
    """Drop what was compiled for other batch sizes: each further one is looked up among them at every call."""
    torch._dynamo.reset()


class Bound:
    """A way at one batch size. EngineError if it needs CUDA; what torch raises where it cannot."""

    def __init__(self, net: nn.Module, way: Way, example: Float32, device: str) -> None:
        self._way, self._device = way, device
        cuda = device.startswith("cuda")
        if "graph" in way.how and not cuda:
            raise EngineError("CUDA graphs need CUDA")
        half = way.kind == "fp16" and not way.autocast
        own = copy.deepcopy(net).to(device=device, dtype=torch.float16 if half else torch.float32)
        if way.kind == "fp16":
            own = own.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._net: Callable[[Tensor], Any] = own
        if way.how.startswith("compiled"):
            mode = "reduce-overhead" if way.how == "compiled graph" else None
            self._net = torch.compile(own, fullgraph=True, dynamic=False, mode=mode)
        self._host = torch.empty(example.shape, pin_memory=cuda)
        self._image = torch.empty(example.shape, device=device, dtype=torch.float16 if half else torch.float32)
        self._graph: Any = None
        self._captured: tuple[Tensor, ...] = ()
        self._fill(example)
        if way.how == "graph":
            self._capture()
        self._out = [torch.empty(o.shape, pin_memory=cuda) for o in self._forward()]
        self.resident()

    def whole(self, batch: Float32) -> Outputs:
        """From an array of the host to arrays of the host, through pinned memory."""
        self._fill(batch)
        for held, value in zip(self._out, self._forward(), strict=True):
            held.copy_(value, non_blocking=True)
        self._wait()
        return Outputs(*(held.numpy().copy() for held in self._out))

    def resident(self) -> None:
        """The image is on the device already, and what comes out stays there."""
        self._forward()
        self._wait()

    def _fill(self, batch: Float32) -> None:
        self._host.copy_(torch.from_numpy(batch))
        self._image.copy_(self._host, non_blocking=True)

    def _forward(self) -> tuple[Tensor, ...]:
        if self._graph is not None:
            self._graph.replay()
            return self._captured
        with torch.no_grad(), _arithmetic(self._way, self._device):
            return tuple(value.float() for value in self._net(self._image))

    def _capture(self) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):  # choice of kernels and workspaces, which no graph can hold
                self._forward()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._captured = self._forward()
        self._graph = graph

    def _wait(self) -> None:
        if self._device.startswith("cuda"):
            torch.cuda.synchronize()


@contextmanager
def _arithmetic(way: Way, device: str) -> Iterator[None]:
    torch.set_float32_matmul_precision("high" if way.kind == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = way.kind == "tf32"
    kind = device.split(":")[0]
    with torch.autocast(kind, torch.float16) if way.autocast else nullcontext():
        yield
