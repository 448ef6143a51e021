"""Peers around the same network, images and preprocessing, each in a loop as its documentation writes one."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from cxrvit_edge.host import cores
from cxrvit_edge.preprocess import Float32, PreprocessConfig, preprocess
from cxrvit_edge.radiograph import Radiograph
from cxrvit_edge.runtime.session import OUTPUTS, Outputs, named

Probabilities = list[list[float] | None]


def pixels(path: Path) -> Any:
    """(H, W) uint8 or uint16, brighter is denser, as a short script reads it."""
    if path.suffix != ".dcm":
        import cv2

        return cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    import pydicom

    ds = pydicom.dcmread(path)
    values = ds.pixel_array
    return ((1 << ds.BitsStored) - 1 - values) if ds.PhotometricInterpretation == "MONOCHROME1" else values


class Loop:
    """Batches of files: read, preprocessed as the bundle does, judged, and written as a CSV of probabilities."""

    told = ""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        self.config = PreprocessConfig.from_dict(job["preprocessing"])

    def infer(self, batch: Float32) -> Float32:
        raise NotImplementedError

    def batches(self, paths: Sequence[str], batch: int) -> Any:
        for start in range(0, len(paths), batch):
            some = paths[start : start + batch]
            yield np.stack([preprocess(Radiograph(pixels(Path(path))), self.config)[0] for path in some])

    def films(self, paths: Sequence[str], out: str, batch: int) -> Probabilities:
        found: Probabilities = []
        for tensors in self.batches(paths, batch):
            found += probabilities(self.infer(tensors), self.job["temperature"])
        write_csv(paths, found, out)
        return found


def probabilities(logits: Float32, temperature: float) -> Probabilities:
    scaled = np.asarray(logits, np.float64) / temperature
    e = np.exp(scaled - scaled.max(1, keepdims=True))
    return [[float(v) for v in row] for row in e / e.sum(1, keepdims=True)]


def write_csv(paths: Sequence[str], found: Probabilities, out: str) -> None:
    Path(out).mkdir(parents=True, exist_ok=True)
    with (Path(out) / "results.csv").open("w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows([path, *(row or ())] for path, row in zip(paths, found, strict=True))


class Eager(Loop):
    """PyTorch as it is. job: channels_last."""

    def __init__(self, job: dict[str, Any]) -> None:
        import torch

        from cxrvit_edge.model import checkpoint

        super().__init__(job)
        torch.set_num_threads(cores())
        tensors, config, _ = checkpoint.load(Path(job["weights"]))
        self.layout = torch.channels_last if job.get("channels_last") else torch.contiguous_format
        network: Any = checkpoint.network(tensors, config)
        self.network: Any = network.to(memory_format=self.layout)

    def infer(self, batch: Float32) -> Float32:
        import torch

        with torch.inference_mode():
            logits, *_ = self.network(torch.from_numpy(batch).to(memory_format=self.layout))
            values: Float32 = logits.numpy()
        return values


class Compiled(Eager):
    """torch.compile, one compilation a batch size. job: freezing."""

    def __init__(self, job: dict[str, Any]) -> None:
        import torch

        super().__init__(job)
        if job.get("freezing"):
            inductor: Any = import_module("torch._inductor.config")
            inductor.freezing = True
        self.network = torch.compile(self.network, dynamic=False)


class Monai(Eager):
    """LoadImage, Compose, DataLoader and SimpleInferer around the PyTorch network. job: loaders, 0 is none."""

    def __init__(self, job: dict[str, Any]) -> None:
        from monai.inferers import SimpleInferer
        from monai.transforms import Compose, Lambda, LoadImage

        super().__init__(job)
        load = LoadImage(image_only=True, reader="PILReader", converter=_gray, dtype=np.uint8)
        self._transform = Compose([load, Lambda(partial(_prepared, config=self.config))])
        self._inferer = SimpleInferer()

    def infer(self, batch: Float32) -> Float32:
        import torch

        with torch.inference_mode():
            x = torch.as_tensor(batch).to(memory_format=self.layout)
            logits, *_ = self._inferer(x, self.network)
            values: Float32 = logits.numpy()
        return values

    def batches(self, paths: Sequence[str], batch: int) -> Any:
        from monai.data import DataLoader, Dataset

        loaders = self.job.get("loaders", 0) if len(paths) > 1 else 0
        return DataLoader(Dataset(list(paths), self._transform), batch_size=batch, num_workers=loaders)


def _gray(image: Any) -> Any:
    return image.convert("L")


def _prepared(image: Any, config: PreprocessConfig) -> Float32:
    array = np.ascontiguousarray(np.asarray(image).T)  # its readers give (W, H)
    return preprocess(Radiograph(array), config)[0]


class OnnxRuntime(Loop):
    """An ONNX file as it is, in a session as it comes. job: graph."""

    def __init__(self, job: dict[str, Any]) -> None:
        import onnxruntime

        super().__init__(job)
        self._session = onnxruntime.InferenceSession(job["graph"], providers=["CPUExecutionProvider"])

    def infer(self, batch: Float32) -> Float32:
        values: Float32 = self._session.run(OUTPUTS, {"image": batch})[0]
        return values


class OpenVino:
    """A graph of the bundle on OpenVINO, as fast as it goes: shapes fixed, one compilation a batch size.

    arithmetic "": OpenVINO's own choice, bfloat16 where the processor has it.
    """

    backend, fingerprint = "onnxruntime", "openvino"  # by that name the pipeline forms the same batches
    batch_sizes: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    def __init__(self, path: Path, precision: str, size: int, arithmetic: str = "f32") -> None:
        openvino = import_module("openvino")
        self.version, self.precision = version("openvino"), precision
        self._core, self._path, self._size = openvino.Core(), path, size
        self._requests: dict[int, Any] = {}
        self._config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": cores()}
        if arithmetic:
            self._config["INFERENCE_PRECISION_HINT"] = arithmetic

    def run(self, batch: Float32) -> Outputs:
        n = len(batch)
        if n not in self._requests:
            model = self._core.read_model(str(self._path))
            model.reshape({"image": [n, 1, self._size, self._size]})
            self._requests[n] = self._core.compile_model(model, "CPU", self._config).create_infer_request()
        found = self._requests[n].infer({"image": batch}, share_inputs=True)
        names = named([name for output in self._requests[n].model_outputs for name in output.get_names()])
        return Outputs(*(np.array(found[name], np.float32) for name in names))


class OpenVinoLoop(Loop):
    """job: graph, precision, arithmetic."""

    def __init__(self, job: dict[str, Any]) -> None:
        super().__init__(job)
        self._session = OpenVino(Path(job["graph"]), job["precision"], self.config.size, job["arithmetic"])

    def infer(self, batch: Float32) -> Float32:
        return self._session.run(batch).logits
