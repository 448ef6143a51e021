"""Weights in parts, for a way that takes small files only: as export stores them, with a checksum of every part."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch

from cxrvit_edge.errors import BundleError, UsageError
from cxrvit_edge.model import checkpoint
from cxrvit_edge.model.folding import fold
from cxrvit_edge.model.triage_net import TriageNet
from train.networks import build
from train.runs import find_weights

INDEX = "parts.json"
MB = 1_000_000
HALF_MAX = torch.finfo(torch.float16).max


def split(source: Path, out: Path, part_mb: float = 15.0) -> list[Path]:
    """Write the weights of a run, checkpoint or bundle to the new or empty folder `out`, in files of `part_mb` 10^6
    bytes at most and parts.json; their paths.

    BatchNorm of a cxrvit is folded, tensors of two dimensions and more are FP16, the others stay float32: an export of
    what `join` makes stores the weights that an export of the source would. UsageError if `out` holds something;
    BundleError for damaged weights, or some beyond FP16.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: is there and not empty; name another folder")
    weights = find_weights(source)
    given = checkpoint.load(weights)[0]
    net, config, extra = build.load(weights)
    absent = set(net.state_dict()) - set(given)  # a head that it never reads
    if isinstance(net, TriageNet):
        net = fold(net)
        config = net.config
    tensors = {}
    for name, value in net.state_dict().items():
        if name in absent:
            continue
        if value.ndim > 1 and float(value.abs().max()) > HALF_MAX:
            raise BundleError(f"{weights}: {name} does not fit FP16; train with decay")
        tensors[name] = value.half() if value.ndim > 1 else value
    out.mkdir(parents=True, exist_ok=True)
    whole = out / f"{os.getpid()}.part"
    try:
        checkpoint.save(whole, tensors, config, extra)
        content = whole.read_bytes()
    finally:
        whole.unlink(missing_ok=True)
    length = max(1, int(part_mb * MB))
    index: dict[str, Any] = {"sha256": _sha256(content), "parts": []}
    for start in range(0, len(content), length):
        part = content[start : start + length]
        path = out / f"weights.{len(index['parts']):02d}"
        path.write_bytes(part)
        index["parts"].append({"name": path.name, "bytes": len(part), "sha256": _sha256(part)})
    (out / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return [*(out / part["name"] for part in index["parts"]), out / INDEX]


def join(parts: Path, out: Path) -> Path:
    """The weights that `split` wrote into the folder `parts`, as one checkpoint; `out` is replaced if it is there.

    UsageError for what is no such folder, and for a part that is absent or damaged, by its name; `out` stays as it was.
    """
    try:
        index = json.loads((parts / INDEX).read_text(encoding="utf-8"))
        listed = [(str(p["name"]), str(p["sha256"])) for p in index["parts"]]
        wanted = str(index["sha256"])
    except FileNotFoundError:
        raise UsageError(f"{parts}: no {INDEX} in it; name the folder that carry split wrote") from None
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(f"{parts / INDEX}: damaged ({error!r}); copy it again") from error
    content = bytearray()
    for name, digest in listed:
        path = parts / Path(name).name
        if not path.is_file():
            raise UsageError(f"{path}: is absent; copy it too ({len(listed)} parts are listed)")
        part = path.read_bytes()
        if _sha256(part) != digest:
            raise UsageError(f"{path}: damaged, its SHA-256 is not the one in {INDEX}; copy it again")
        content += part
    if _sha256(content) != wanted:
        raise UsageError(f"{parts}: its parts do not make the whole that {INDEX} lists; copy them again")
    out.parent.mkdir(parents=True, exist_ok=True)
    whole = out.with_name(f"{out.name}.{os.getpid()}.part")
    try:
        whole.write_bytes(content)
        checkpoint.load(whole)
        whole.replace(out)
    finally:
        whole.unlink(missing_ok=True)
    return out


def _sha256(content: bytes | bytearray) -> str:
    return hashlib.sha256(content).hexdigest()
