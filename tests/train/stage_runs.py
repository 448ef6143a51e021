"""A few steps of a stage through the command line, on a tiny network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from typer.testing import CliRunner

from train.__main__ import app
from train.networks import build

TINY = ("--image-size", "64", "--layers", "1", "--heads", "2", "--width", "16", "--threads", "1", "--workers", "1")
STEPS = ("--schedule", "64:2:2", "--all-licences")


@dataclass(frozen=True)
class Done:
    """config and extra of the weights that were kept; said: on stderr."""

    out: Path
    net: torch.nn.Module
    config: Any
    extra: dict[str, Any]
    said: str


def train(stage: str, data: Path | str, out: Path, *arguments: str, sizes: tuple[str, ...] = TINY) -> Done:
    command = [stage, "--data", str(data), "--out", str(out), *sizes, *STEPS, *arguments]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    net, config, extra = build.load(out / "model.safetensors")
    assert result.stdout.strip() == str(out / "model.safetensors")
    assert extra["stage"] == stage and extra["steps"] in (1, 2)
    return Done(out, net, config, extra, result.stderr)
