from __future__ import annotations

import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_graphs import make

from cxrvit_edge.errors import EngineError, UsageError
from cxrvit_edge.runtime import builder
from cxrvit_edge.runtime.builder import Compiled, Profile, compile_onnx
from cxrvit_edge.runtime.fusion import Fusion, fusion, require_fused
from cxrvit_edge.runtime.layers import parse

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: no engine can be compiled")
pytest.importorskip("onnx", reason="onnx is not installed: no graph can be made")


def compiled(path: Path, **options: Any) -> Compiled:
    return compile_onnx(path, backend="tensorrt-rtx", sm="86", **options)


def seen(made: Compiled) -> Fusion:
    return fusion(parse(made.lines), made.sources)


def test_fp16_is_fused_and_its_layer_list_tells(tmp_path: Path) -> None:
    made = compiled(make(tmp_path / "g.onnx"))
    assert made.plan.nbytes > 100_000 and made.version == trt.__version__ and made.seconds > 0
    assert set(made.sources.convolutions) == {"backbone.features.conv0", "backbone.features.conv1"} | {
        "severity.out",
        "lungs.out",
    }
    weighted = [f"encoder.blocks.{i}.{n}" for i in range(2) for n in ("attn.qkv", "attn.proj", "fc1", "fc2")]
    assert set(made.sources.matmuls) == {*weighted, "diagnosis"}
    found = seen(made)
    assert [b.name for b in found.blocks] == ["encoder.blocks.0", "encoder.blocks.1"]
    assert found.fused == 2 and found.precisions == ["Half"]
    assert found.convolutions == {"Half": 4} and found.matmuls == {"Half": 9}
    require_fused(found, where="g.onnx", least=2)


def test_int8_multiplies_in_int8_and_keeps_attention_in_fp16(tmp_path: Path) -> None:
    found = seen(compiled(make(tmp_path / "g.onnx", int8=True)))
    assert found.fused == 2 and found.precisions == ["Half"]
    assert found.convolutions == {"Half": 1, "Int8": 3} and found.matmuls == {"Half": 1, "Int8": 8}
    assert found.nodes["diagnosis"] == found.nodes["backbone.features.conv0"] == "Half"
    assert found.requantisations > 0


@pytest.mark.parametrize(
    ("options", "unfused"),
    [
        ({"dtype": np.float32}, {"encoder.blocks.0", "encoder.blocks.1"}),
        ({"attention": "exponentials"}, {"encoder.blocks.1"}),
        ({"attention": "tapped"}, {"encoder.blocks.1"}),
    ],
)
def test_attention_that_does_not_fuse_is_seen(options: dict[str, Any], unfused: set[str], tmp_path: Path) -> None:
    found = seen(compiled(make(tmp_path / "g.onnx", **options)))
    assert {b.name for b in found.blocks if not b.fused} == unfused
    with pytest.raises(EngineError, match=f"not one fused kernel in {len(unfused)} of 2 blocks") as failed:
        require_fused(found, where="g.onnx")
    assert all(f"{name} became " in str(failed.value) for name in unfused)


def test_attention_under_foreign_names_is_recognised(tmp_path: Path) -> None:
    import onnx

    for dtype, fused in ((np.float16, 1), (np.float32, 0)):
        model = onnx.load(make(tmp_path / "g.onnx", blocks=1, dtype=dtype))
        for i, node in enumerate(model.graph.node):
            node.name = f"node_{node.op_type}_{i}"
        onnx.save(model, tmp_path / "foreign.onnx")
        found = seen(compiled(tmp_path / "foreign.onnx"))
        assert len(found.blocks) == 1 and found.blocks[0].name.startswith("node_Softmax") and found.fused == fused


def test_one_attention_node_counts_as_a_block(tmp_path: Path) -> None:
    import onnx
    from onnx import helper

    model = onnx.load(make(tmp_path / "g.onnx"))
    nodes = []
    for node in model.graph.node:
        block, _, part = node.name.rpartition(".")
        if part == "context":
            inputs = [f"{block.removesuffix('.attn')}.select{k}" for k in range(3)]
            nodes.append(helper.make_node("Attention", inputs, list(node.output), f"{block}.core"))
        elif part not in ("scores", "softmax", "q", "k", "kT"):
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.opset_import[0].version = 23
    onnx.save(model, tmp_path / "op.onnx")
    made = compiled(tmp_path / "op.onnx")
    assert made.sources.blocks["encoder.blocks.0"] == ("encoder.blocks.0.attn.core",)
    assert seen(made).fused == 2


def test_progress_rises_to_the_end(tmp_path: Path) -> None:
    steps: list[tuple[str, float]] = []
    compiled(make(tmp_path / "g.onnx"), progress=lambda phase, fraction: steps.append((phase, fraction)))
    fractions = [fraction for _, fraction in steps]
    assert len({phase for phase, _ in steps}) > 1 and len(set(fractions)) > 10
    assert fractions == sorted(fractions) and fractions[0] == 0 and 0.5 < fractions[-1] <= 1


def test_an_interrupt_ends_the_compilation(tmp_path: Path) -> None:
    path = make(tmp_path / "g.onnx", blocks=12)
    taken = threading.Event()
    fractions: list[float] = []

    def handler(*_: object) -> None:
        taken.set()
        raise KeyboardInterrupt

    def interrupt(phase: str, fraction: float) -> None:
        if not fractions:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            taken.wait(10)
        fractions.append(fraction)

    before = signal.signal(signal.SIGINT, handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            compiled(path, progress=interrupt)
    finally:
        signal.signal(signal.SIGINT, before)
    assert fractions[-1] < 0.5


def without(model: Any) -> None:
    del model.graph.node[:]


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        ({"unsupported": True}, None, r"node 'diagnosis.unheard' \(Unheard\): no such operator; export the bundle"),
        ({}, lambda m: setattr(m.graph.input[0], "name", "picture"), "cannot read the graph"),
        ({}, lambda m: m.graph.initializer.pop(), "cannot read the graph"),
        ({}, without, "cannot read the graph"),
    ],
)
def test_a_graph_that_cannot_be_read(
    options: dict[str, Any], change: Callable[[Any], None] | None, message: str, tmp_path: Path
) -> None:
    import onnx

    path = make(tmp_path / "g.onnx", **options)
    if change:
        model = onnx.load(path)
        change(model)
        onnx.save(model, path)
    with pytest.raises(EngineError, match=message) as failed:
        compiled(path)
    assert str(path) in str(failed.value)


def test_a_file_that_is_no_graph(tmp_path: Path) -> None:
    (tmp_path / "g.onnx").write_bytes(b"no graph" * 100)
    with pytest.raises(EngineError, match=r"g\.onnx: tensorrt_rtx .* cannot read the graph"):
        compiled(tmp_path / "g.onnx")
    with pytest.raises(EngineError, match=r"none\.onnx: no such file"):
        compiled(tmp_path / "none.onnx")


def test_an_input_of_another_shape(tmp_path: Path) -> None:
    import onnx

    model = onnx.load(make(tmp_path / "g.onnx"))
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name == "image":
                node.input[i] = "picture"
    model.graph.input[0].name = "picture"
    onnx.save(model, tmp_path / "g.onnx")
    with pytest.raises(EngineError, match=r"its input is picture .* not image \(batch, 1, S, S\)"):
        compiled(tmp_path / "g.onnx")


def test_targets() -> None:
    assert {"86", "89", "120"} <= set(builder.targets())
    assert builder.target("sm86") == builder.target("SM86") == builder.target("8.6") == builder.target("86") == "86"
    for name in ("sm87", "sm90", "sm110", "sm11", "ampere", ""):
        with pytest.raises(UsageError, match=r"sm86.*Orin \(sm87\), Hopper \(sm90\) and Thor \(sm110\)"):
            builder.target(name)
    with pytest.raises(UsageError, match="GPU of its own box"):
        real = sys.modules.get("tensorrt")
        sys.modules["tensorrt"] = trt
        try:
            compile_onnx(Path("g.onnx"), backend="tensorrt", sm="86")
        finally:
            sys.modules.pop("tensorrt") if real is None else sys.modules.__setitem__("tensorrt", real)


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # type: ignore[arg-type]
    monkeypatch.setattr(builder, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match=r"TensorRT is not installed; on a Jetson .* pip install 'cxrvit-edge\[tens"):
        builder.load("tensorrt")
    assert builder.installed() == []


def test_what_went_wrong_in_words(tmp_path: Path) -> None:
    class Log:
        def __init__(self, *errors: str) -> None:
            self.errors = list(errors)

    def why(*errors: str) -> str:
        return builder._why_not_built(tmp_path / "g.onnx", "tensorrt", Log(*errors))

    assert "smaller --batch-size" in why("[x] Error Code 2: OutOfMemory (Requested size was 1073741824 bytes.)")
    driver = "(cudaError 35: CUDA driver version is insufficient for CUDA runtime version)"
    assert "no GPU or no driver" in why(f"Error Code 1: Cuda Runtime {driver}")
    assert "decomposed" in why("Attention operation was not supported by a dedicated kernel")
    node = "Could not find any implementation for node {ForeignNode[a...b]}."
    assert "ForeignNode[a...b]" in why("Error Code 10", node) and "onnxruntime" in why("Error Code 10", node)


def test_the_timing_cache_is_kept_and_added_to(tmp_path: Path) -> None:
    path = tmp_path / "timing" / "t.cache"
    made = trt.Builder(trt.Logger(trt.Logger.ERROR))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # RTX keeps the calls and measures nothing
        for before in (None, path, b"damaged"):
            if isinstance(before, bytes):
                path.write_bytes(before)
            with builder._timing(made.create_builder_config(), path):
                pass
            assert path.stat().st_size > len(b"damaged")
    assert [p.name for p in path.parent.iterdir()] == ["t.cache"]


def test_a_plan_without_a_driver_says_so(tmp_path: Path) -> None:
    from cxrvit_edge.host import gpus

    if gpus():
        pytest.skip("this box has a GPU")
    plan = compiled(make(tmp_path / "g.onnx", blocks=1))
    with pytest.raises(EngineError, match="does not load this engine here"):
        builder.inspected("tensorrt-rtx", bytes(plan.plan))


def test_profile_is_the_one_asked_for(tmp_path: Path) -> None:
    path = make(tmp_path / "g.onnx", blocks=1)
    code = f"""
import tensorrt_rtx as trt
from cxrvit_edge.runtime.builder import Profile, _logger, _parsed, _profile
log = _logger(trt); made = trt.Builder(log)
from pathlib import Path
network, _ = _parsed(trt, made, log, Path({str(path)!r}))
print([tuple(s) for s in _profile(made, network, Profile(1, 2, 8), Path("g")).get_shape("image")])
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.strip() == str([(1, 1, 64, 64), (2, 1, 64, 64), (8, 1, 64, 64)])
    assert Profile() == Profile(1, 1, 4)
