"""Graphs and what runs them on the processor: variants of a bundle, ONNX files, presets exported anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cxrvit_edge.bundle import Bundle
from cxrvit_edge.errors import CxrVitError
from cxrvit_edge.runtime import golden
from cxrvit_edge.runtime.candidates import VARIANTS, find, graphs
from export import count as counting

BACKENDS = ("onnxruntime", "openvino", "torch")


@dataclass
class Graph:
    """A graph's work, and what runs it here by name. sha256: of its file, 12 digits, "" where it is made anew."""

    name: str
    sha256: str
    count: counting.Count
    runs: dict[str, Callable[[], object]] = field(default_factory=dict)


def of_bundle(bundle: Bundle, batch: int, say: Callable[[str], None] = print) -> list[Graph]:
    """Each graph of each variant, with every back end of the processor that opens it and passes its golden check."""
    import onnx

    found = []
    films = golden.load_inputs(bundle)
    image = films[np.arange(batch) % len(films)]  # (B, 1, S, S)
    for variant, spec in bundle.manifest.variants.items():
        for graph in graphs(bundle):
            file = spec.files[graph]
            model = onnx.load(bundle.file(file), load_external_data=False)
            name = variant if len(graphs(bundle)) == 1 else f"{variant} {graph}"
            sha256 = bundle.manifest.files[file][:12]
            found.append(Graph(name, sha256, counting.count(model, batch), _runs(bundle, variant, graph, image, say)))
    return found


def _runs(
    bundle: Bundle, variant: str, graph: str, image: Any, say: Callable[[str], None]
) -> dict[str, Callable[[], object]]:
    out: dict[str, Callable[[], object]] = {}
    for backend in BACKENDS:
        for precision, needs in VARIANTS[backend].items():
            if needs != variant:
                continue
            name = f"{backend} {precision}"
            try:
                candidate = find(bundle, backend, {precision: variant}, 0)[0][0]
                session = candidate.open(graph)
                golden.check(bundle, variant, graph, session)
            except CxrVitError as error:
                say(f"passed over: {name}: {error}")
                continue
            name += "" if candidate.batch_size is None else ", tuned by build"
            out[name] = lambda session=session: session.run(image)  # type: ignore[misc]
    return out


def of_file(path: Path, batch: int, name: str = "", say: Callable[[str], None] = print) -> Graph:
    """An ONNX graph, run by ONNX Runtime as it comes."""
    import hashlib

    import onnx

    model = onnx.load(path, load_external_data=False)
    made = Graph(name or path.name, "", counting.count(model, batch))
    if not name:
        made.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    try:
        made.runs["onnxruntime as exported"] = _plain(path, batch)
    except Exception as error:  # ORT's own exceptions share no public base
        say(f"passed over: {path.name} on onnxruntime: {(str(error).splitlines() or ['no reason'])[0]}")
    return made


def _plain(path: Path, batch: int) -> Callable[[], object]:
    """A run on noise."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    rng, kinds = np.random.default_rng(0), {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    feed = {
        i.name: rng.normal(size=[d if isinstance(d, int) else batch for d in i.shape]).astype(kinds[i.type])
        for i in session.get_inputs()
    }
    session.run(None, feed)
    return lambda: session.run(None, feed)


def of_preset(name: str, batch: int, work: Path) -> Graph:
    """Exported with random weights, as a bundle's fp32 graph is."""
    import torch

    from cxrvit_edge.bundle import WEIGHTS
    from cxrvit_edge.model.config import preset
    from cxrvit_edge.model.triage_net import TriageNet
    from export import graph
    from export.weights import write_weights

    torch.manual_seed(0)
    net = write_weights(TriageNet(preset(name)).eval(), work / WEIGHTS, {})
    graph.save(graph.trace(net), work / f"{name}.onnx", WEIGHTS)
    return of_file(work / f"{name}.onnx", batch, f"preset {name}")
