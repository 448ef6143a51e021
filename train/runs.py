"""A finished run read back: its network, what it was trained to give, and on what."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from cxrvit_edge.bundle import MANIFEST, WEIGHTS, Bundle
from cxrvit_edge.errors import UsageError
from cxrvit_edge.model.config import NetworkConfig
from cxrvit_edge.preprocess import PreprocessConfig
from train.networks import build
from train.predict import TASKS, Networks, Pooling

GIVES = {  # what a stage's weights are good for
    "backbone": ("findings",),
    "diagnosis": ("diagnosis",),
    "severity": ("severity",),
    "lungs": ("lungs",),
    "joint": TASKS,
    "simclr": (),
}


@dataclass(frozen=True)
class Run:
    """sources: training images by source, empty if the checkpoint does not say; options: all its settings."""

    name: str
    net: nn.Module
    config: NetworkConfig
    stage: str
    gives: tuple[str, ...]
    preprocessing: PreprocessConfig
    options: Mapping[str, Any]
    sources: Mapping[str, int]
    checkpoint: str

    @property
    def pooling(self) -> Pooling:
        return "average" if self.options.get("pooling") == "average" else "max"

    @property
    def view(self) -> str:
        """The views it learned from: any, PA, or AP with AP Supine."""
        return str(self.options.get("view") or "any")

    def described(self) -> dict[str, Any]:
        """For JSON; no path of this machine in it."""
        config = json.loads(json.dumps(asdict(self.config)))
        return {
            "name": self.name,
            "stage": self.stage,
            "network": self.config.network,
            "preset": self.config.preset,
            "config": config,
            "options": dict(self.options),
            "sources": dict(self.sources),
            "checkpoint_sha256": self.checkpoint,
        }


def is_bundle(path: Path) -> bool:
    return (path / MANIFEST).is_file()


def find_weights(path: Path) -> Path:
    """The .safetensors of a run's folder, of a bundle's, or itself. UsageError if there is none."""
    if path.is_file():
        return path
    for name in ("model.safetensors", WEIGHTS):
        if (path / name).is_file():
            return path / name
    raise UsageError(f"{path}: no model.safetensors or {WEIGHTS} in it; name the folder of a finished run or a bundle")


def load_run(path: Path, device: str = "cpu") -> Run:
    """UsageError where there is no run or its stage is unknown; BundleError if it is damaged."""
    weights = find_weights(path)
    net, config, extra = build.load(weights)
    if is_bundle(weights.parent):
        manifest = json.loads((weights.parent / MANIFEST).read_text(encoding="utf-8"))
        extra = {**manifest["training"], **extra, "stage": "joint"}
    stage = extra.get("stage", "joint")
    if stage not in GIVES:
        raise UsageError(f"{weights}: made by stage {stage!r}, which this version does not know; use the one it is of")
    options: dict[str, Any] = {}
    for part in ("options", "recipe", "about"):
        options |= extra.get(part) or {}
    sources = extra.get("sources") or {}
    return Run(
        name=weights.parent.resolve().name,
        net=net.to(device).eval(),
        config=config,
        stage=stage,
        gives=tuple(t for t in GIVES[stage] if t != "findings" or _has_findings(weights)),
        preprocessing=PreprocessConfig.from_dict(extra.get("preprocessing", {"size": config.image_size})),
        options=options,
        sources=dict(sources) if isinstance(sources, Mapping) else dict.fromkeys(sources, 0),
        checkpoint=hashlib.sha256(weights.read_bytes()).hexdigest(),
    )


def _has_findings(weights: Path) -> bool:
    """A bundle is stored without the findings' head, which triage never reads."""
    from safetensors import safe_open

    with safe_open(weights, framework="pt") as f:
        return any(k.startswith(("pcam.", "findings.")) for k in f.keys())  # noqa: SIM118 (safe_open is no mapping)


def combine(main: Run, severity: Run | None = None, lungs: Run | None = None) -> tuple[Networks, dict[str, Run], str]:
    """Networks by task, the run each comes from, and whose lung masks the severity score stands on.

    Masks come from the `lungs` run, else from a joint network's, else they are the true ones where an image has any
    and the embedded bundle's elsewhere, as a severity run is trained.
    UsageError if a run does not give what it is named for, or nothing at all.
    """
    for run, task in ((severity, "severity"), (lungs, "lungs")):
        if run is not None and task not in run.gives:
            raise UsageError(f"--{task} {run.name}: a {run.stage} run gives no {task}; name a {task} or joint run")
    if not main.gives:
        raise UsageError(
            f"{main.name}: a {main.stage} run has no output to evaluate; evaluate the run that starts of it"
        )
    named = {task: run for run, task in ((severity, "severity"), (lungs, "lungs")) if run is not None}
    given = {**dict.fromkeys(main.gives, main), **named}
    source, true_masks = "no network", False
    if lungs is not None:
        source = f"the lungs run {lungs.name}"
    elif joint := next((r for r in (main, severity) if r is not None and r.stage == "joint"), None):
        given["lungs"], source = joint, f"the joint network {joint.name}"
    elif "severity" in given and "lungs" not in given:
        device = next(given["severity"].net.parameters()).device
        given["lungs"] = load_run(Bundle.open(None).file(WEIGHTS).parent, str(device))
        source, true_masks = "the true masks where an image has them, else the embedded bundle", True
    nets = {task: run.net for task, run in given.items()}
    preprocessing = {task: run.preprocessing for task, run in given.items()}
    return Networks(**nets, preprocessing=preprocessing, true_masks=true_masks), given, source
