"""One real bundle a session, made as every bundle is made: a tiny network, exported over a generated data folder.

It finds lungs; its other weights are random, and what it says of them means nothing.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from cxrvit_edge.bundle import MANIFEST
from cxrvit_edge.phantom import make_phantom

if TYPE_CHECKING:
    import onnx
    from torch import Tensor

    from cxrvit_edge.model.config import NetworkConfig
    from cxrvit_edge.model.triage_net import TriageNet

SIZE = 64
CASES = (("normal", "none", "PA"), ("other", "focal", "PA"), ("covid", "diffuse", "AP"))  # label, lesions, view


@dataclass(frozen=True)
class Exported:
    """bundle, checkpoint and data folder; graph: as traced, before its weights were moved out."""

    bundle: Path
    checkpoint: Path
    data: Path
    graph: onnx.ModelProto


def config() -> NetworkConfig:
    from cxrvit_edge.model.config import NetworkConfig

    widths: dict[str, Any] = {"map_widths": (8, 4, 4), "lung_widths": (16, 16, 8, 8)}
    return NetworkConfig("edge", layers=1, heads=2, width=48, image_size=SIZE, **widths)


def network() -> TriageNet:
    """Random weights with the normalisation statistics of eight films; the lung decoder alone is fitted to theirs.

    So films differ, lungs lie where they are, and the guard lets films in.
    """
    import torch
    import torch.nn.functional as F
    from torch import nn

    from cxrvit_edge.model.triage_net import TriageNet

    images, lungs = _films(range(90, 98))
    torch.manual_seed(0)
    net = TriageNet(config()).train()
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.momentum = None  # a plain average
        for p in net.parameters():
            if p.ndim == 1:  # biases and scales as after training: no two alike
                p.add_(torch.randn(p.shape) * 0.15)
        net(images)
        out = net.eval().training_forward(images)
        for head, values, spread in ((net.diagnosis, out.logits, 0.5), (net.severity.out, out.severity, 1.0)):
            assert head.bias is not None
            axes = [i for i in range(values.ndim) if i != 1]
            scale = spread / values.std(axes)
            head.weight.mul_(scale.view(-1, *[1] * (head.weight.ndim - 1)))
            head.bias.copy_((head.bias - values.mean(axes)) * scale)
        features = net.backbone(images)
    adam = torch.optim.Adam(net.lungs.parameters(), lr=0.005)
    for _ in range(200):
        adam.zero_grad()
        F.binary_cross_entropy_with_logits(net.lungs(features), lungs).backward()
        adam.step()
    return net


def _films(seeds: Iterable[int]) -> tuple[Tensor, Tensor]:
    """Network inputs (N, 1, S, S) and lungs (N, 2, S/2, S/2) of generated films."""
    import torch

    from cxrvit_edge.preprocess import PreprocessConfig, preprocess
    from cxrvit_edge.radiograph import Radiograph

    images, lungs = [], []
    for i in seeds:
        film = make_phantom(i, height=160, width=144, lesions=CASES[i % 3][1])  # type: ignore[arg-type]
        image, g = preprocess(Radiograph(film.pixels), PreprocessConfig(size=SIZE))
        mask = np.zeros((2, SIZE, SIZE), np.float32)
        for side in range(2):
            small = cv2.resize(film.lungs[side].astype(np.float32), (g.content_width, g.content_height))
            mask[side, g.top : g.top + g.content_height, g.left : g.left + g.content_width] = small
        images.append(image)
        lungs.append(mask[:, ::2, ::2])
    return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(lungs))


def write_checkpoint(path: Path, net: TriageNet | None = None) -> Path:
    from cxrvit_edge.model import checkpoint
    from cxrvit_edge.preprocess import PreprocessConfig

    net = net or network()
    extra = {"stage": "joint", "preprocessing": PreprocessConfig(size=net.config.image_size).to_dict()}
    checkpoint.save(path, net.state_dict(), net.config, extra)
    return path


def write_data(folder: Path, *, of_each: int = 2) -> Path:
    """manifest.csv, masks and severity scores: `of_each` films of each class in val, and in test."""
    rows, masks, severity = [], [], []
    for i in range(2 * of_each * len(CASES)):
        label, lesions, view = CASES[i % len(CASES)]
        film = make_phantom(i, height=160, width=144, lesions=lesions, view=view)  # type: ignore[arg-type]
        name, mask = f"images/{i:02d}.png", f"masks/lungvae/{i:02d}.png"
        for path, pixels in ((name, film.pixels << 4), (mask, film.lungs.any(0).astype(np.uint8) * 255)):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(folder / path), pixels)
        split = "val" if i < of_each * len(CASES) else "test"
        rows.append(
            {"path": name, "label": label, "view": view, "group_id": f"p{i}", "source": "generated", "reuse": "yes"}
            | {"split": split, "finding_raw": ""}
        )
        masks.append({"mask_path": mask, "image_path": name, "kind": "lungvae"})
        if label == "covid":
            severity.append({"path": name, **{f"S-{zone}": str((i + k) % 4) for k, zone in enumerate("ABCDEF")}})
    for path, table in (("manifest.csv", rows), ("masks/masks.csv", masks), ("severity.csv", severity)):
        with (folder / path).open("w", newline="", encoding="utf-8") as f:
            writer = csv.DictWriter(f, list(table[0]))
            writer.writeheader()
            writer.writerows(table)
    return folder


def make(folder: Path) -> Exported:
    from export import graph
    from export.bundle import export
    from export.variants import Options
    from train.data import manifest

    data, checkpoint = write_data(folder / "data"), write_checkpoint(folder / "model.safetensors")
    traced: list[onnx.ModelProto] = []
    trace = graph.trace

    def trace_and_keep(net: TriageNet, *, opset: int = graph.OPSET) -> onnx.ModelProto:
        import onnx

        traced.append(trace(net, opset=opset))
        kept = onnx.ModelProto()
        kept.CopyFrom(traced[0])
        return kept

    graph.trace = trace_and_keep
    try:
        out, only = folder / "bundle", Options(precisions=("fp32",))
        bundle = export(checkpoint, manifest.read(data), out, name="small", say=lambda _: None, options=only)
    finally:
        graph.trace = trace
    return Exported(bundle, checkpoint, data, traced[0])


@contextmanager
def another_user() -> Iterator[None]:
    """Root may read everything, so the test steps down."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def replace(path: Path, content: bytes) -> None:
    """Write a new file in the place of one that may be a hard link."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def reseal(folder: Path, changes: Mapping[str, Any] | None = None) -> None:
    """Write the manifest again with `changes` to its fields and the hashes of its files as they are now."""
    raw = json.loads((folder / MANIFEST).read_bytes())
    raw |= {"files": {p.name: _sha256(p) for p in sorted(folder.iterdir()) if p.name != MANIFEST}, **(changes or {})}
    replace(folder / MANIFEST, json.dumps(raw).encode())


def shift_golden(folder: Path, name: str) -> None:
    """Golden outputs that no session gives, as if they were sealed so."""
    with np.load(folder / name) as stored:
        arrays = dict(stored)
    arrays["shared.logits"] = arrays["shared.logits"] + np.float32(0.5)
    (folder / name).unlink()
    np.savez(folder / name, **arrays)
    reseal(folder)


def forget_embedding(folder: Path) -> None:
    """The bundle as it was made before graphs had that output."""
    import onnx

    model = onnx.load(folder / "fp32.onnx", load_external_data=False)
    (last,) = [o for o in model.graph.output if o.name == "embedding"]
    model.graph.output.remove(last)
    replace(folder / "fp32.onnx", model.SerializeToString())
    with np.load(folder / "golden_fp32.npz") as stored:
        arrays = {name: stored[name] for name in stored.files if not name.endswith(".embedding")}
    (folder / "golden_fp32.npz").unlink()
    np.savez_compressed(folder / "golden_fp32.npz", **arrays)
    reseal(folder)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
