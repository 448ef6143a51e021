"""The compiled layer list of an engine, read.

The builder prints the list when it compiles with detailed verbosity; the engine inspector gives the same as JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cxrvit_edge.errors import EngineError

_NODE = re.compile(r"\[ONNX Layer: ([^\]\x1e\x1f]+)\]")
_CONSTANT = re.compile(r"dconst|constant|_const\b")
_FIELD = re.compile(r"([A-Za-z][A-Za-z/]*):(?: |$)")


@dataclass(frozen=True)
class Tensor:
    """datatype: Float, Half, Int8 and so on as TensorRT names them, "" where it does not say."""

    name: str
    dims: tuple[int, ...]
    datatype: str
    format: str


@dataclass(frozen=True)
class Layer:
    """One step of the compiled engine. onnx_nodes: the nodes of the graph that it came from."""

    name: str
    type: str
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    constants: tuple[Tensor, ...] = ()
    tactic: str = ""
    onnx_nodes: tuple[str, ...] = ()


def is_layer_line(line: str) -> bool:
    return line.startswith("Name: ") and ", LayerType: " in line


def parse(lines: Sequence[str]) -> list[Layer]:
    """Layers of the lines that the builder printed, or of one text of JSON; lines of another kind are passed over."""
    if len(lines) == 1 and lines[0].lstrip().startswith("{"):
        return parse_json(lines[0])
    return [_layer(_fields(line)) for line in lines if is_layer_line(line)]


def parse_json(text: str) -> list[Layer]:
    """Layers of the engine inspector's JSON. EngineError if it is none, or was built without detailed verbosity."""
    try:
        entries = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise EngineError(f"the engine inspector's answer is not understood ({error}); update cxrvit-edge") from error
    if any(not isinstance(entry, Mapping) for entry in entries):
        raise EngineError("the engine holds the names of its layers only: build it again with `cxrvit-edge build`")
    return [_layer(entry) for entry in entries]


def nodes_of(metadata: str) -> tuple[str, ...]:
    """Names of the ONNX nodes in a layer's metadata."""
    return tuple(dict.fromkeys(_NODE.findall(metadata)))


def _layer(fields: Mapping[str, Any]) -> Layer:
    inputs, constants = _tensors(fields.get("Inputs")), _tensors(fields.get("Constants"))
    if "Constants" not in fields:  # TensorRT 10 lists them as inputs
        constants = tuple(t for t in inputs if _CONSTANT.search(t.name))
        inputs = tuple(t for t in inputs if t not in constants)
    return Layer(
        name=str(fields.get("Name", "")),
        type=str(fields.get("LayerType", "")),
        inputs=inputs,
        outputs=_tensors(fields.get("Outputs")),
        constants=constants,
        tactic=str(fields.get("TacticName", "")),
        onnx_nodes=nodes_of(str(fields.get("Metadata", ""))),
    )


def _tensors(value: Any) -> tuple[Tensor, ...]:
    if isinstance(value, str):
        value = [_fields(inner) for inner in _braced(value)]
    return tuple(_tensor(entry) for entry in value or () if isinstance(entry, Mapping))


def _tensor(fields: Mapping[str, Any]) -> Tensor:
    both = str(fields.get("Format/Datatype", ""))
    dims = fields.get("Dimensions", ())
    if isinstance(dims, str):
        dims = re.findall(r"-?\d+", dims)
    datatype = str(fields.get("Datatype", "")) or _datatype(both)
    return Tensor(str(fields.get("Name", "")), tuple(map(int, dims)), datatype, str(fields.get("Format", both)))


def _datatype(text: str) -> str:
    """Of TensorRT 10's words for a format, such as `Thirty-two wide channel vectorized row major Int8 format`."""
    words = (("bf16|bfloat", "BFloat16"), ("fp16|half|float16", "Half"), ("int8", "Int8"), ("fp8", "FP8"))
    more = (("int32", "Int32"), ("int64", "Int64"), ("bool", "Bool"), ("fp32|float", "Float"))
    return next((name for pattern, name in (*words, *more) if re.search(pattern, text, re.IGNORECASE)), "")


def _fields(text: str) -> dict[str, str]:
    """`Key: value, Key: value` -> both, where a value may hold commas inside brackets."""
    fields: dict[str, str] = {}
    last = ""
    for part in _split(text):
        if found := _FIELD.match(part):
            last = found[1]
            fields[last] = part[found.end() :]
        elif last:  # a comma inside a value
            fields[last] += f", {part}"
    return fields


def _split(text: str) -> Iterator[str]:
    """At ", " outside brackets."""
    depth = start = 0
    for i, c in enumerate(text):
        if c in "[{(":
            depth += 1
        elif c in "]})":
            depth = max(0, depth - 1)
        elif c == "," and not depth and text.startswith(", ", i):
            yield text[start:i]
            start = i + 2
    yield text[start:]


def _braced(text: str) -> Iterator[str]:
    """The inside of each outermost {...}."""
    depth = start = 0
    for i, c in enumerate(text):
        if c == "{":
            depth += 1
            start = i + 1 if depth == 1 else start
        elif c == "}" and depth:
            depth -= 1
            if not depth:
                yield text[start:i].strip()
