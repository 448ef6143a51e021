"""A small bundle on disk and sessions that need no network, so that the ways around one can be tested fast."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.bundle import Bundle
from cxrvit_edge.runtime.select import Sessions
from cxrvit_edge.runtime.session import Float32, Outputs

SIZE = 64  # of the network input: small is fast


def write_bundle(folder: Path, views: Mapping[str, str] | None = None, **changes: Any) -> Path:
    """A bundle that verifies; `changes` replace fields of its manifest."""
    views = views or {"any": "shared"}
    one_file = dict.fromkeys(views.values(), "weights.safetensors")
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "weights.safetensors"
    weights.write_bytes(b"not weights, but hashed all the same")
    manifest: dict[str, Any] = {
        "schema": 1,
        "name": "fake",
        "intended_use": "Tests.",
        "licences": {"code": "Apache-2.0", "weights": "none"},
        "classes": ["normal", "other_infection", "covid19"],
        "preprocessing": {"size": SIZE},
        "operating_points": {"normal": 0.5, "other_infection": 0.5, "covid19": 0.5},
        "temperature": 1.0,
        "guard": {"least_lungs": 0.05, "least_confidence": 0.5},
        "priority": {
            "flagged": ["covid19", "other_infection"],
            "urgent_score": 3.0,
            "order": ["urgent", "review", "elevated", "routine"],
        },
        "views": views,
        "variants": {
            "fp32": {
                "files": one_file,
                "opset": 20,
                "golden": "weights.safetensors",
                "tolerance": {"logits": 1e-4, "maps": 1e-4},
            }
        },
        "golden_inputs": "weights.safetensors",
        "weights": one_file,
        "files": {"weights.safetensors": hashlib.sha256(weights.read_bytes()).hexdigest()},
    }
    (folder / "manifest.json").write_text(json.dumps({**manifest, **changes}))
    return folder


def make_bundle(folder: Path, **changes: Any) -> Bundle:
    return Bundle.open(write_bundle(folder, **changes))


class FakeSession:
    """Logits and map from the mean of each image, so that a result can be traced to its input; lungs always there."""

    backend, version, precision, fingerprint = "fake", "1.0", "fp32", ""
    batch_sizes: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    def __init__(self, *, seconds: float = 0.0, refuse: Callable[[Float32], bool] | None = None) -> None:
        self.seconds, self.refuse = seconds, refuse
        self.batches: list[int] = []
        y, x = np.mgrid[0:256, 0:256] / 256
        sides = [((x - at) / 0.14) ** 2 + ((y - 0.5) / 0.3) ** 2 < 1 for at in (0.3, 0.7)]
        self.lungs = np.stack(sides).astype(np.float32)  # (2, 256, 256)

    def run(self, batch: Float32) -> Outputs:
        self.batches.append(len(batch))
        time.sleep(self.seconds * len(batch))
        if self.refuse and self.refuse(batch):
            raise RuntimeError("made to fail")
        level = expected_level(batch)  # (B,)
        logits = np.stack([np.zeros_like(level), level - 8, level - 4], axis=1)
        maps = np.tile((level / 8)[:, None, None, None], (1, 1, 256, 256))
        return Outputs(logits, np.asarray(maps, np.float32), np.tile(self.lungs, (len(batch), 1, 1, 1)))


def expected_level(batch: Float32) -> Float32:
    """(B,) in [0, 8]: what a FakeSession sees in each image."""
    return np.clip(4 + 4 * batch.mean(axis=(1, 2, 3)), 0, 8).astype(np.float32)


def sessions(session: FakeSession | Mapping[str, FakeSession], notes: tuple[str, ...] = ()) -> Sessions:
    by_graph = {"shared": session} if isinstance(session, FakeSession) else dict(session)
    return Sessions("fake", "1.0", "fp32", by_graph, notes)


def film(seed: int = 0, height: int = 96, width: int = 80) -> NDArray[np.uint8]:
    """(H, W) uint8, smooth with noise; not a chest, but with enough to look at."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    smooth = 128 + 90 * np.sin(x / (5 + seed % 7)) * np.cos(y / (9 + seed % 5)) * (x / width) ** (seed % 3)
    return np.clip(smooth + rng.normal(0, 5, smooth.shape), 0, 255).astype(np.uint8)


def write_films(folder: Path, count: int, suffix: str = ".png") -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"film{i:03d}{suffix}" for i in range(count)]
    for i, path in enumerate(paths):
        path.write_bytes(cv2.imencode(suffix, film(i))[1].tobytes())
    return paths
