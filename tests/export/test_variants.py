"""A bundle with all its variants: made from a bundle, each held against torch, and what is wrong is not written."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import chexpert_files
import numpy as np
import onnx
import pytest
import small_bundle as small
from small_bundle import Exported

from cxrvit_edge.bundle import MANIFEST, Bundle
from cxrvit_edge.errors import CxrVitError, ParityError, UsageError
from cxrvit_edge.runtime import builder, golden
from cxrvit_edge.runtime.fusion import fusion, require_fused
from cxrvit_edge.runtime.layers import parse
from cxrvit_edge.runtime.onnxruntime import OnnxRuntimeSession
from cxrvit_edge.runtime.select import open_sessions
from export import fp16, graph, parity, quantise, recipe, surgery
from export.bundle import PARITY_PAGE, export
from export.variants import INT8_WEIGHTS, Options
from train.data import manifest
from train.data.record import Record

pytestmark = pytest.mark.usefixtures("one_torch_thread")

LOOSE = parity.Bounds(flips=12, probability=1.0, logits_rms=1.0, severity_mae=6.0)  # random weights magnify rounding
ALL = {"fp32": parity.BOUNDS["fp32"], "fp16": LOOSE, "int8": LOOSE, "int8-cpu": LOOSE}


@pytest.fixture(scope="module")
def source(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small bundle with logits a fifth as far apart: rounding moves them as little as a trained network's."""
    net = small.network()
    net.diagnosis.weight.data *= 0.2
    checkpoint = small.write_checkpoint(tmp_path_factory.mktemp("source") / "model.safetensors", net)
    out = checkpoint.parent / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        _trace_from(patch, exported)
        return export(
            checkpoint,
            manifest.read(exported.data),
            out,
            name="small",
            say=lambda _: None,
            options=Options(precisions=("fp32",)),
        )


def _trace_from(
    patch: pytest.MonkeyPatch, exported: Exported, change: Callable[[onnx.ModelProto, int], None] | None = None
) -> None:
    """The session's traced graph with this network's weights: tracing takes ten seconds. `change` gets its number."""
    count = 0

    def traced(net: Any, *, opset: int) -> onnx.ModelProto:
        nonlocal count
        model = surgery.copy(exported.graph)
        state = net.state_dict()
        for name in surgery.weights(model):
            if name in state:
                surgery.set_weight(model, name, state[name].numpy())
        if change is not None:
            change(model, count)
        count += 1
        return model

    patch.setattr(graph, "trace", traced)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Calibration images: a folder in the CheXpert layout."""
    return chexpert_files.make(tmp_path_factory.mktemp("calibration") / "CheXpert-v1.0-small", chexpert_files.rows(24))


@pytest.fixture(scope="module")
def records(exported: Exported) -> list[Record]:
    return manifest.read(exported.data)


def options(films: Path, **changes: Any) -> Options:
    int8 = recipe.Int8Options(
        calibration=films, images=16, estimator="mse", smooth=0.0, search_images=2, sensitivity_images=1, bounds=LOOSE
    )
    return replace(Options(int8=int8, bounds=ALL), **changes)


@pytest.fixture(scope="module")
def bundle(
    source: Path, films: Path, records: list[Record], exported: Exported, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("variants") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        _trace_from(patch, exported)
        return export(source, records, out, say=lambda _: None, options=options(films))


def test_every_variant_is_there_with_its_parity(bundle: Path, source: Path, films: Path) -> None:
    b, before = Bundle.open(bundle), Bundle.open(source)
    assert list(b.manifest.variants) == ["fp32", "fp16", "int8", "int8-cpu"]
    for variant in b.manifest.variants.values():
        assert variant.parity is not None
        assert variant.parity["splits"]["both"]["images"] == 12
        assert {"flips", "logits", "probabilities", "severity", "auc"} <= set(variant.parity["splits"]["test"])
    assert b.variant("fp16").parity["overflow_margin"]["times"] > 1  # type: ignore[index]
    record = b.variant("int8").calibration
    assert record is not None
    frontal = {hashlib.sha256(p.read_bytes()).hexdigest() for p in films.rglob("*frontal.jpg")}
    assert set(record["sha256"]) <= frontal and record["chosen"] == 16
    assert (record["source"], record["folder"]) == ("chexpert", "CheXpert-v1.0-small")
    found = b.manifest.raw["variants"]["int8"]["quantisation"]
    assert found["int8_operations"] + len(found["fp16_nodes"]) == found["operations"]
    assert found["int8_multiply_adds"] >= 0.9
    assert b.manifest.operating_points == before.manifest.operating_points
    assert b.manifest.raw["evaluation"] == before.manifest.raw["evaluation"]


def test_weights_are_there_once(bundle: Path, source: Path) -> None:
    assert (bundle / "weights.safetensors").read_bytes() == (source / "weights.safetensors").read_bytes()
    for variant, files in (("fp16", {"weights.safetensors"}), ("int8", {"weights.safetensors", INT8_WEIGHTS})):
        model = onnx.load(bundle / f"{variant}.onnx", load_external_data=False)
        named = {e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"}
        assert named == files
    own = [
        {t.name: [e.value for e in t.external_data] for t in model.graph.initializer if t.name.endswith(".int8")}
        for model in (onnx.load(bundle / f"{v}.onnx", load_external_data=False) for v in ("int8", "int8-cpu"))
    ]
    assert own[0] == own[1] and own[0]


def test_page_names_each_variant_and_no_path(bundle: Path, exported: Exported) -> None:
    page = (bundle / PARITY_PAGE).read_text()
    assert all(name in page for name in ("fp32", "fp16", "int8", "int8-cpu"))
    assert str(exported.data) not in page and "images/" not in page
    assert PARITY_PAGE in Bundle.open(bundle).manifest.files


@pytest.mark.parametrize("variant", ["fp32", "fp16", "int8", "int8-cpu"])
def test_every_variant_is_held_to_its_own_embedding(bundle: Path, variant: str) -> None:
    b = Bundle.open(bundle)
    spec, expected = b.variant(variant), golden.load_outputs(b, variant, "shared")
    session = OnnxRuntimeSession(b.file(spec.files["shared"]), precision=variant, threads=1, exact=True)
    found = session.run(golden.load_inputs(b))
    assert found.embedding is not None and expected.embedding is not None
    assert spec.tolerance.embedding >= {"fp32": 1e-4, "fp16": 2e-2}.get(variant, 5e-2)
    assert golden.compare(found, expected).within(spec.tolerance)
    off = 2 * spec.tolerance.embedding * float(expected.embedding.std())
    wrong = golden.compare(found._replace(embedding=found.embedding + np.float32(off)), expected)
    assert wrong.embedding > spec.tolerance.embedding and not wrong.within(spec.tolerance)
    reference = golden.load_outputs(b, "fp32", "shared").embedding
    assert reference is not None and (variant == "fp32" or not np.array_equal(expected.embedding, reference))


def test_cpu_runs_int8_past_its_golden_check(bundle: Path, fresh_cache: Path) -> None:
    sessions = open_sessions(Bundle.open(bundle), backend="onnxruntime", precision="int8", threads=1)
    assert sessions.precision == "int8"
    assert sessions.by_graph["shared"].path.name == "int8-cpu.onnx"  # type: ignore[attr-defined]


def built(path: Path) -> Any:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    compiled = builder.compile_onnx(path, backend="tensorrt-rtx", sm="86")
    return fusion(parse(compiled.lines), compiled.sources)


@pytest.mark.parametrize("variant", ["fp16", "int8"])
def test_variants_build_with_attention_fused(bundle: Path, variant: str) -> None:
    found = built(bundle / f"{variant}.onnx")
    require_fused(found, where=variant, least=1)


def test_fp32_graph_fails_the_fusion_proof(bundle: Path) -> None:
    found = built(bundle / "fp32.onnx")
    with pytest.raises(CxrVitError, match=r"encoder\.blocks\.0"):
        require_fused(found, where="fp32", least=1)


def scale_behind_softmax(model: onnx.ModelProto) -> None:
    """softmax(QK^T) d^-1/2 V: fuses as well as the right order does."""
    softmax = next(n for n in model.graph.node if n.op_type == "Softmax")
    scores = next(n for n in model.graph.node if softmax.input[0] in n.output)
    made = surgery.producers(model)
    factor = 1.0
    for i, name in enumerate(scores.input):
        product = made[name]
        assert product.op_type == "Mul"
        factor *= surgery.weights(model)[product.input[1]].item()
        scores.input[i] = product.input[0]
    context = next(n for n in model.graph.node if softmax.output[0] in n.input)
    surgery.set_weight(model, "late", np.array(factor, np.float32))
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        if node is softmax:
            nodes.append(onnx.helper.make_node("Mul", [softmax.output[0], "late"], ["late.product"], name="late.mul"))
    surgery.rewire([context], softmax.output[0], "late.product")
    surgery.replace_nodes(model, nodes)
    surgery.drop_dead(model)


def test_scale_behind_the_softmax_builds_and_fails_parity(
    bundle: Path,
    films: Path,
    records: list[Record],
    exported: Exported,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrong = surgery.copy(exported.graph)
    scale_behind_softmax(wrong)
    fp16.to_half(wrong)
    onnx.save(wrong, tmp_path / "wrong.onnx")
    require_fused(built(tmp_path / "wrong.onnx"), where="wrong", least=1)
    said: list[str] = []
    _trace_from(monkeypatch, exported, lambda model, n: scale_behind_softmax(model) if n else None)
    debug = tmp_path / "debug"
    with pytest.raises(ParityError, match="fp16: on the golden set its graph departs from"):
        export(bundle, records, tmp_path / "out", say=said.append, options=options(films, debug=debug))
    assert not (tmp_path / "out").exists()
    assert any("first layer that departs is encoder.blocks.0.attn" in line for line in said)
    assert list(debug.glob("*.csv"))


def test_outside_its_bounds_is_not_written(
    source: Path, records: list[Record], exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _trace_from(monkeypatch, exported)
    strict = Options(precisions=("fp16",), bounds={**ALL, "fp16": parity.Bounds(0, 1e-9, 1e-9, 0.0)})
    out = tmp_path / "out"
    with pytest.raises(ParityError, match=r"fp16 on .* departs from"):
        export(source, records, out, say=lambda _: None, options=strict)
    assert not out.exists()
    allowed = replace(strict, allow_failing=("fp16",))
    export(source, records, out, say=lambda _: None, options=allowed)
    record = json.loads((out / MANIFEST).read_bytes())["variants"]["fp16"]["parity"]
    assert record["allowed_failing"] and not record["within"] and record["failures"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention": "flash"}, "--attention flash: choose decomposed or op"),
        ({"precisions": ("int4",)}, "--precision int4: choose from"),
        ({"allow_failing": ("bf16",)}, "--allow-failing bf16"),
    ],
)
def test_options_that_do_not_exist(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Options(**change)


def test_int8_needs_val_images(
    source: Path,
    films: Path,
    records: list[Record],
    exported: Exported,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _trace_from(monkeypatch, exported)
    only = [r for r in records if r.split == "test"]
    with pytest.raises(UsageError, match="no image in the val split"):
        export(source, only, tmp_path / "out", say=lambda _: None, options=options(films))


def test_tampered_bundle_is_no_source(source: Path, records: list[Record], tmp_path: Path) -> None:
    folder = shutil.copytree(source, tmp_path / "bundle")
    small.replace(folder / "golden_fp32.npz", b"other")
    with pytest.raises(CxrVitError, match=r"golden_fp32\.npz: its SHA-256 is not the manifest's"):
        export(folder, records, tmp_path / "out", say=lambda _: None)


def test_float_nodes_stay_float(bundle: Path) -> None:
    model = onnx.load(bundle / "int8.onnx", load_external_data=False)
    made = surgery.producers(model)
    for node in model.graph.node:
        if node.name in quantise.FLOAT_NODES:
            assert made.get(node.input[1], node).op_type != "DequantizeLinear", node.name


@pytest.mark.slow
def test_attention_as_one_operator(source: Path, films: Path, records: list[Record], tmp_path: Path) -> None:
    """The opset-23 twin: the same outputs, and the builder takes its Attention only if a fused kernel exists."""
    out = export(source, records, tmp_path / "out", say=lambda _: None, options=options(films, attention="op"))
    b = Bundle.open(out)
    assert [v.opset for v in b.manifest.variants.values()] == [20, 23, 23, 23]
    for variant in ("fp16", "int8"):
        model = onnx.load(out / f"{variant}.onnx", load_external_data=False)
        assert [n.name for n in model.graph.node if n.op_type == "Attention"] == ["encoder.blocks.0.attn.core"]
        assert not [n for n in model.graph.node if n.op_type == "Softmax"]
        require_fused(built(out / f"{variant}.onnx"), where=variant, least=1)
