"""This project, and what else does the same task from files to results: a plain script, and MONAI Deploy re-enacted.

A MONAI Application Package runs in a container on Holoscan, made for a GPU. Here its documented flow runs without them,
which spares it time: an operator that loads the image, MONAI transforms, the TorchScript network, a JSON file a study.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.peer_network import Probabilities, _gray, _prepared, probabilities, write_csv
from cxrvit_edge.host import cores
from cxrvit_edge.preprocess import Float32, PreprocessConfig

if TYPE_CHECKING:
    import torch

TOLD = ("Attention", "MultiHeadAttention")  # also where none was fused


class Ours:
    """Triage into a folder, with journal, worklist, report and thumbnails. job: backend, precision."""

    def __init__(self, job: dict[str, Any]) -> None:
        from cxrvit_edge import Triage

        self._triage = Triage.open(backend=job["backend"], precision=job["precision"])
        sessions = self._triage.sessions
        self.told = (
            f"{sessions.backend} {sessions.precision} {sessions.version}, batches of up to {sessions.batch_size}"
        )

    def infer(self, batch: Float32) -> Float32:
        (session,) = self._triage.sessions.by_graph.values()
        return session.run(batch).logits

    def films(self, paths: Sequence[str], out: str, _batch: int) -> Probabilities:
        """The batches are its own choice, not `_batch`."""
        shutil.rmtree(out, ignore_errors=True)
        self._triage.run(list(paths), out)
        by_file = {}
        for line in (Path(out) / "results.jsonl").read_text(encoding="utf-8").splitlines():
            found = json.loads(line)
            by_file[found.get("file")] = found.get("probabilities")
        return [None if not by_file[path] else [float(v) for v in by_file[path].values()] for path in paths]


class PlainScript:
    """One image at a time, cv2 and PyTorch as they come, a CSV at the end: what one writes in an afternoon."""

    told = ""

    def __init__(self, job: dict[str, Any]) -> None:
        from cxrvit_edge.model import checkpoint

        tensors, config, _ = checkpoint.load(Path(job["weights"]))
        self._network = checkpoint.network(tensors, config)
        self._temperature = job["temperature"]
        self._config = PreprocessConfig.from_dict(job["preprocessing"])

    def infer(self, batch: Float32) -> Float32:
        import torch

        with torch.no_grad():
            values: Float32 = self._network(torch.from_numpy(batch))[0].numpy()
        return values

    def films(self, paths: Sequence[str], out: str, _batch: int) -> Probabilities:
        found: Probabilities = []
        for path in paths:
            found += probabilities(self.infer(self._image(path)), self._temperature)
        write_csv(paths, found, out)
        return found

    def _image(self, path: str) -> Float32:
        """The bundle's preprocessing in calls of cv2, an 8-bit image -> (1, 1, S, S)."""
        import cv2

        c = self._config
        image = cv2.equalizeHist(cv2.imread(path, cv2.IMREAD_GRAYSCALE)).astype(np.float32)
        image = (cv2.GaussianBlur(image, (c.blur_kernel, c.blur_kernel), c.blur_sigma) - c.offset) / c.scale
        height, width = image.shape
        scale = c.size / max(height, width)
        smaller = (round(width * scale), round(height * scale)) if c.aspect == "pad" else (c.size, c.size)
        image = cv2.resize(image, smaller, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        square = np.zeros((1, 1, c.size, c.size), np.float32)
        top, left = (c.size - image.shape[0]) // 2, (c.size - image.shape[1]) // 2
        square[0, 0, top : top + image.shape[0], left : left + image.shape[1]] = image
        return square


class Deploy:
    """The operators of one application kept loaded, one study at a time. job: torchscript."""

    told = ""

    def __init__(self, job: dict[str, Any]) -> None:
        import torch
        from monai.inferers import SimpleInferer
        from monai.transforms import Compose, EnsureType, Lambda, LoadImage

        torch.set_num_threads(cores())
        config = PreprocessConfig.from_dict(job["preprocessing"])
        load = LoadImage(image_only=True, reader="PILReader", converter=_gray, dtype=np.uint8)
        self._transform = Compose([load, Lambda(lambda image: _prepared(image, config)), EnsureType()])
        self._network = torch.jit.load(job["torchscript"], map_location="cpu")
        self._inferer, self._temperature = SimpleInferer(), job["temperature"]

    def infer(self, batch: Float32) -> Float32:
        import torch

        return self._infer(torch.from_numpy(batch))

    def _infer(self, batch: torch.Tensor) -> Float32:
        import torch

        with torch.no_grad():
            values: Float32 = self._inferer(batch, self._network)[0].numpy()
        return values

    def films(self, paths: Sequence[str], out: str, _batch: int) -> Probabilities:
        found: Probabilities = []
        Path(out).mkdir(parents=True, exist_ok=True)
        for i, path in enumerate(paths):
            (row,) = probabilities(self._infer(self._transform(path)[None].float()), self._temperature)
            (Path(out) / f"study{i}.json").write_text(
                json.dumps({"file": path, "probabilities": row}), encoding="utf-8"
            )
            found.append(row)
        return found


class DeployProcess:
    """A process a study, as an application package runs: imports, network, study, JSON."""

    told = ""

    def __init__(self, job: dict[str, Any]) -> None:
        self._job = {**job, "peer": "peer_tools:Deploy"}

    def infer(self, batch: Float32) -> Float32:
        raise NotImplementedError("nothing is kept loaded: its network runs once a process")

    def films(self, paths: Sequence[str], out: str, _batch: int) -> Probabilities:
        found: Probabilities = []
        for i, path in enumerate(paths):
            folder = Path(out) / str(i)
            job = json.dumps({**self._job, "first": path, "out": str(folder)})
            command = [sys.executable, "-m", "benchmarks.peer_process", job]
            said = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True, text=True)
            if "answer" not in said.stdout:
                raise RuntimeError(said.stdout)
            found.append(json.loads((folder / "study0.json").read_text(encoding="utf-8"))["probabilities"])
        return found


def save_torchscript(weights: str, path: str, size: int) -> None:
    """The network as TorchScript, in which an application package carries it."""
    import torch

    from cxrvit_edge.model import checkpoint

    tensors, config, _ = checkpoint.load(Path(weights))
    network: Any = checkpoint.network(tensors, config)
    with torch.no_grad():
        torch.jit.trace(
            network.to(memory_format=torch.channels_last), torch.zeros(1, 1, size, size), check_trace=False
        ).save(path)


def save_optimised(graph: str, folder: str, heads: int, width: int) -> dict[str, dict[str, Any]]:
    """ONNX Runtime's transformer optimiser on this graph: by its settings, the file and what it fused."""
    from onnxruntime.transformers import optimizer

    made: dict[str, dict[str, Any]] = {}
    for level in (0, 1, 99):
        start = perf_counter()
        model = optimizer.optimize_model(graph, "vit", num_heads=heads, hidden_size=width, opt_level=level)
        path = Path(folder) / f"vit{level}.onnx"
        model.save_model_to_file(str(path))
        fused = {name: n for name, n in model.get_fused_operator_statistics().items() if n or name in TOLD}
        made[f"opt_level {level}"] = {"graph": str(path), "fused": fused, "seconds": perf_counter() - start}
    return made
