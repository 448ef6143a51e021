"""The small bundle with an int8-cpu variant, quantised by ONNX Runtime's own tools on generated films."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import small_bundle as small

from cxrvit_edge.bundle import MANIFEST, Bundle
from cxrvit_edge.runtime import golden
from cxrvit_edge.runtime.onnxruntime import OnnxRuntimeSession
from export import goldens

VARIANT, GRAPH, GOLDEN = "int8-cpu", "int8_cpu.onnx", "golden_int8_cpu.npz"


def make(exported: small.Exported, folder: Path) -> Path:
    """Golden outputs are those of exact arithmetic."""
    shutil.copytree(exported.bundle, folder, copy_function=os.link)
    bundle = Bundle.open(folder)
    films = golden.load_inputs(bundle)
    _quantise(exported.graph, films, folder / GRAPH)
    exact = OnnxRuntimeSession(folder / GRAPH, precision="int8", threads=1, exact=True)
    goldens.write_outputs(folder / GOLDEN, {"shared": exact.run(films)})
    add(folder, VARIANT, files={"shared": GRAPH}, golden=GOLDEN, tolerance={"logits": 0.05, "maps": 0.01})
    return folder


def add(folder: Path, name: str, **changes: Any) -> None:
    """A further variant in the manifest: that of fp32 but for the changes."""
    variants = json.loads((folder / MANIFEST).read_bytes())["variants"]
    small.reseal(folder, {"variants": {**variants, name: {**variants["fp32"], "parity": None, **changes}}})


def _quantise(graph: onnx.ModelProto, films: golden.Float32, path: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Films(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches: Iterator[dict[str, np.ndarray]] = iter([{"image": films[i : i + 1]} for i in range(4)])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.batches, None)

    copy = onnx.ModelProto()  # what it is given is changed
    copy.CopyFrom(graph)
    weighted = [node.name for node in graph.graph.node if node.op_type in ("Conv", "MatMul")]
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it asks for a preprocessing step that changes nothing here
    try:
        quantize_static(
            copy,
            path,
            Films(),
            quant_format=QuantFormat.QDQ,
            nodes_to_quantize=weighted[-14:],  # the heads: more would make a random network another one
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            extra_options={"ActivationSymmetric": True, "QuantizeBias": False},
        )
    finally:
        logging.disable(before)
