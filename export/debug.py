"""Which layer of a variant's graph departs first from the fp32 graph: both run tensor by tensor through Polygraphy.

ONNX Runtime's CPU computes half tensors in float32, so what overflows only in half is seen in HalfSession, not here.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cxrvit_edge.errors import EngineError, UsageError
from cxrvit_edge.runtime.session import Float32

if TYPE_CHECKING:
    import onnx

CHUNK = 256 << 20  # bytes of tensors fetched in one run, from each of the two graphs
WORST = 10


@dataclass(frozen=True)
class Departure:
    """A layer of the fp32 graph and how far its output lies from it in the variant.

    layer, op: node that makes `tensor`; module: whose weights it multiplies by, "" for none; difference: RMS, of the
    tensor's standard deviation; arrived: the largest of that among the layer's inputs; largest: absolute difference.
    """

    layer: str
    op: str
    module: str
    tensor: str
    difference: float
    arrived: float
    largest: float


def first_departure(
    reference: Path, variant: Path, tensor: Float32, *, tolerance: float, folder: Path | None = None
) -> Departure | None:
    """The first layer, in the order of the fp32 graph, whose output departs by more than `tolerance`; None if none.

    tensor: (B, 1, S, S), the network's input. A tensor of both graphs is known by its name, and compared where it
    depends on the image; a value that is not finite departs. With `folder`, the worst ten are written to
    VARIANT.departures.csv there, and the first one marked. UsageError if the graphs share no such tensor; EngineError
    if one does not run.
    """
    import onnx

    graphs = [onnx.load(path, load_external_data=False) for path in (reference, variant)]
    made = [{name for node in graph.graph.node for name in node.output if name} for graph in graphs]
    nodes = {n.output[0]: n for n in _on_the_image(graphs[0]) if n.output[0] in made[1]}
    if not nodes:
        raise UsageError(f"{variant}: shares no tensor name with {reference}; export both from one checkpoint")
    found: dict[str, tuple[float, float]] = {}
    for names in _chunks(graphs[0], list(nodes), len(tensor)):
        found |= _differences((reference, variant), graphs, names, tensor)
    departures = list(_departures(graphs[0], nodes, found))
    if not departures:
        raise UsageError(f"{variant}: shares no float tensor with {reference}; export both from one checkpoint")
    first = next((d for d in departures if not d.difference <= tolerance), None)
    if folder is not None:
        _write(folder / f"{variant.stem}.departures.csv", departures, first)
    return first


def _on_the_image(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Nodes that the image reaches: neither weights nor constants."""
    reached = {value.name for value in model.graph.input}
    for node in model.graph.node:
        if node.op_type != "Shape" and reached.intersection(node.input):
            reached.update(node.output)
            yield node


def _chunks(model: onnx.ModelProto, names: Sequence[str], batch: int) -> Iterator[list[str]]:
    """`names` in order, parted so that no part takes more than CHUNK bytes, as float32."""
    dims = {v.name: [d.dim_value or batch for d in v.type.tensor_type.shape.dim] for v in model.graph.value_info}
    chunk: list[str] = []
    room = CHUNK
    for name in names:
        size = 4 * math.prod(dims[name]) if name in dims else CHUNK // 16
        if chunk and size > room:
            yield chunk
            chunk, room = [], CHUNK
        chunk.append(name)
        room -= size
    yield chunk


def _differences(
    paths: Sequence[Path], graphs: Sequence[onnx.ModelProto], names: Sequence[str], tensor: Float32
) -> Mapping[str, tuple[float, float]]:
    """(RMS difference over standard deviation, largest difference) of each float tensor of `names`."""
    from polygraphy.backend.onnxrt import OnnxrtRunner
    from polygraphy.comparator import Comparator
    from polygraphy.exception import PolygraphyException
    from polygraphy.logger import G_LOGGER

    found: dict[str, tuple[float, float]] = {}

    def note(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, bool]:
        for name in names:
            if np.issubdtype(a[name].dtype, np.floating):
                found[name] = _difference(a[name], b[name])
        return dict.fromkeys(found, True)  # judged by the caller, over all chunks

    runners = [
        OnnxrtRunner(_session(p, g, names), name=role)
        for role, p, g in zip(("fp32", "variant"), paths, graphs, strict=True)
    ]
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        try:
            results = Comparator.run(runners, data_loader=[{"image": np.ascontiguousarray(tensor, np.float32)}])
            Comparator.compare_accuracy(results, compare_func=note)
        except PolygraphyException as error:
            raise EngineError(f"{paths[1]}: cannot be compared layer by layer ({error})") from error
    return found


def _session(path: Path, model: onnx.ModelProto, names: Sequence[str]) -> Callable[[], Any]:
    """Loader of an ONNX Runtime session with `names` for outputs; nothing fused, Q/DQ computed as written."""

    def load() -> Any:
        import onnx
        import onnxruntime as ort

        marked = onnx.ModelProto()
        marked.CopyFrom(model)
        del marked.graph.output[:]
        marked.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)  # ORT infers the type
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 3
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
        try:
            return ort.InferenceSession(marked.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ORT's own exceptions share no public base
            raise EngineError(f"{path}: ONNX Runtime {ort.__version__} cannot load it ({error})") from error

    return load


def _difference(a: Any, b: Any) -> tuple[float, float]:
    if a.shape != b.shape:
        return float("inf"), float("inf")
    with np.errstate(all="ignore"):
        gap = b.astype(np.float32) - a
        rms, spread = float(np.sqrt(np.mean(gap**2))), float(a.std())
        return (0.0 if rms == 0 else float(np.divide(rms, spread))), float(np.abs(gap).max())


def _departures(
    model: onnx.ModelProto, nodes: Mapping[str, onnx.NodeProto], found: Mapping[str, tuple[float, float]]
) -> Iterator[Departure]:
    made = {name: node for node in model.graph.node for name in node.output}
    reach = {value.name: 0.0 for value in model.graph.input}  # difference of a tensor, or of what it was made from
    for node in _on_the_image(model):
        arrived = max((reach.get(name, 0.0) for name in node.input), default=0.0, key=_badness)
        tensor = node.output[0]
        for name in node.output:
            reach[name] = found[name][0] if name in found else arrived
        if tensor in nodes and tensor in found:
            module, (difference, largest) = _module(model, node, made), found[tensor]
            yield Departure(node.name, node.op_type, module, tensor, difference, arrived, largest)


def _module(model: onnx.ModelProto, node: onnx.NodeProto, made: Mapping[str, onnx.NodeProto]) -> str:
    """`encoder.blocks.0.fc1` of the node that multiplies by its weight, directly or through casts and transposes."""
    stored = {t.name for t in model.graph.initializer}
    for name in node.input:
        while name in made and made[name].op_type in ("Cast", "Transpose"):
            name = made[name].input[0]
        if name in stored and name.endswith((".weight", ".bias")):
            return name.rpartition(".")[0]
    return ""


def _badness(difference: float) -> float:
    return difference if difference == difference else float("inf")


def _write(path: Path, departures: Sequence[Departure], first: Departure | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    worst = sorted(departures, key=lambda d: _badness(d.difference), reverse=True)[:WORST]
    if first is not None and first not in worst:
        worst = [first, *worst]
    names = [f.name for f in fields(Departure)]
    with path.open("w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow([*names, "first"])
        for d in worst:
            values = [getattr(d, name) for name in names]
            writer.writerow([f"{v:.4g}" if isinstance(v, float) else v for v in values] + ["yes" if d is first else ""])
