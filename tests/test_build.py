from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import run
from engine_graphs import write_gpu_bundle
from small_bundle import another_user, reseal

from cxrvit_edge import build as build_module
from cxrvit_edge.build import Built, build, choose, decide, told
from cxrvit_edge.bundle import Bundle
from cxrvit_edge.errors import EngineError, ParityError, UsageError
from cxrvit_edge.host import Gpu, gpus
from cxrvit_edge.inspection import inspect_path
from cxrvit_edge.runtime import engines, select
from cxrvit_edge.runtime.engines import Engine

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: no engine can be compiled")
pytest.importorskip("onnx", reason="onnx is not installed: no graph can be made")

CARD = Gpu(0, "Test Card", "86", 8 << 30, "555.1")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gpu_bundle(
        tmp_path_factory.mktemp("made") / "bundle", fp16={"blocks": 1}, int8={"blocks": 1, "int8": 1}
    )


@pytest.fixture
def folder(made: Path, tmp_path: Path, fresh_cache: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "bundle"))


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """A box with a GPU, as far as `build` looks; nothing runs on it."""
    monkeypatch.setattr(build_module, "gpus", lambda: [CARD])
    monkeypatch.setattr(build_module.builder, "installed", lambda: ["tensorrt-rtx"])
    return CARD


def opened(folder: Path) -> Bundle:
    return Bundle.open(folder)


def test_six_engines_without_a_gpu_and_all_of_them_fused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    targets = [x for sm in ("sm86", "sm89", "sm120") for x in ("--target", sm)]
    assert run("build", folder, *targets, "--precision", "fp16", "--precision", "int8", "--json") == 0
    out, err = capsys.readouterr()
    made = json.loads(out)["engines"]
    assert [(e["target"], e["precision"]) for e in made] == [
        (sm, precision) for sm in ("sm86", "sm89", "sm120") for precision in ("fp16", "int8")
    ]
    assert err.splitlines() == [f"building {e['precision']} for {e['target']}" for e in made]
    for e in made:
        assert e["attention_fused"] == "1 of 1" and e["attention_precision"] == "Half" and e["built_now"]
        assert e["state"] == "built, not run: no GPU" and Path(e["path"]).is_relative_to(folder / "engines")
        assert e["convolutions"].get("Int8", 0) == (3 if e["precision"] == "int8" else 0)
        assert Path(e["path"]).stat().st_size == e["bytes"]
        shown = inspect_path(Path(e["path"]))
        assert shown["blocks"] == {"encoder.blocks.0": "fused, Half"} and f"sm{shown['sm']}" == e["target"]
    assert run("build", folder, *targets, "--json", "--quiet") == 0
    again = json.loads(capsys.readouterr().out)["engines"]
    assert not any(e["built_now"] for e in again) and [e["path"] for e in again] == [e["path"] for e in made]


def test_what_it_says_of_an_engine(folder: Path) -> None:
    built = build(opened(folder), targets=["sm86"], precisions=["int8"])
    text = "\n".join(told(built))
    assert re.match(r"int8 for sm86, shared: \d+\.\d MB, compiled in \d+\.\d s, tensorrt-rtx \d", text)
    assert "attention: 1 of 1 blocks fused in Half" in text and "convolutions: 1 in Half, 3 in Int8" in text
    assert "MatMuls: 1 in Half, 4 in Int8" in text and "only reformat" in text
    assert "built, not run: no GPU" in text and text.endswith(f"{built[0].engine.folder.name}/engine.plan")
    assert ", there already, " in "\n".join(told(build(opened(folder), targets=["86"], precisions=["int8"])))


def test_an_int8_engine_without_int8_is_told(folder: Path) -> None:
    said: list[str] = []
    (built,) = build(opened(folder), targets=["sm75"], precisions=["int8"], say=said.append)
    without = "Int8" not in built.engine.fusion.convolutions
    assert without == any("runs no convolution in INT8 on sm75" in line for line in said)
    if built.engine.key.version.startswith("1.7"):  # what this version is known to do with Turing
        assert without
    said.clear()
    build(opened(folder), targets=["sm86"], precisions=["int8"], say=said.append)
    assert said == ["building int8 for sm86"]


def test_only_what_is_stale_is_built_again_and_why_is_said(folder: Path) -> None:
    said: list[str] = []

    def go(**options: Any) -> Built:
        said.clear()
        (built,) = build(opened(folder), targets=["sm86"], precisions=["fp16"], say=said.append, **options)
        return built

    first = go()
    assert first.fresh and said == ["building fp16 for sm86"]
    assert not go().fresh and said == []
    assert not go(batch_size=2).fresh  # one for batches of up to 4 serves
    eight = go(batch_size=8)
    assert eight.fresh and said == ["rebuilding fp16 for sm86: batches of up to 4 -> 8"]
    assert eight.engine.key.profile == (1, 1, 8) and first.engine.plan.exists()
    assert go(rebuild=True).fresh
    for stored in (first, eight):
        stored.engine.plan.write_bytes(b"damaged")
    assert go().fresh and "its SHA-256 is not the sidecar's" in said[0]


def test_an_engine_of_another_graph_is_foreign(folder: Path) -> None:
    (first,) = build(opened(folder), targets=["sm86"], precisions=["fp16"])
    shutil.move(folder / "engines", folder.parent / "engines")
    write_gpu_bundle(folder, fp16={"blocks": 1, "width": 64}, int8={"blocks": 1, "int8": 1})
    shutil.move(folder.parent / "engines", folder / "engines")
    said: list[str] = []
    (second,) = build(opened(folder), targets=["sm86"], precisions=["fp16"], say=said.append)
    assert second.fresh and said == ["rebuilding fp16 for sm86: another graph"]
    assert second.engine.key.digest != first.engine.key.digest


@pytest.mark.parametrize("options", [{"dtype": np.float32}, {"attention": "exponentials"}, {"attention": "tapped"}])
def test_unfused_attention_fails_the_build(
    options: dict[str, Any], tmp_path: Path, fresh_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_gpu_bundle(tmp_path / "bundle", fp16={"blocks": 2, **options})
    assert run("build", folder, "--target", "sm86") == 2
    error = capsys.readouterr().err
    assert "encoder.blocks.1 became gemm" in error and "--no-require-fused-attention" in error
    assert not list((folder / "engines").iterdir())
    assert run("build", folder, "--target", "sm86", "--no-require-fused-attention") == 0
    assert "of 2 blocks fused" in capsys.readouterr().out
    with pytest.raises(EngineError, match="not one fused kernel"):  # nor is the engine that is there now taken
        build(opened(folder), targets=["sm86"])


def test_an_attention_block_that_is_not_even_recognised(tmp_path: Path, fresh_cache: Path) -> None:
    folder = write_gpu_bundle(tmp_path / "bundle", fp16={"blocks": 1})
    reseal(folder, {"network": {"layers": 2}})
    with pytest.raises(EngineError, match="1 attention blocks found in the graph, the network has 2"):
        build(opened(folder), targets=["sm86"])


def test_an_unsupported_operator_is_named(tmp_path: Path, fresh_cache: Path) -> None:
    folder = write_gpu_bundle(tmp_path / "bundle", fp16={"blocks": 1, "unsupported": True})
    with pytest.raises(EngineError, match=r"fp16\.onnx: .* node 'diagnosis\.unheard' \(Unheard\)"):
        build(opened(folder), targets=["sm86"])
    assert not list((folder / "engines").iterdir())


def test_precisions_that_are_not_for_gpus(folder: Path) -> None:
    bundle = opened(folder)
    assert choose(bundle, ()) == ["fp16", "int8"] and choose(bundle, ["int8", "int8"]) == ["int8"]
    with pytest.raises(UsageError, match="--precision fp32: attention does not fuse in FP32; choose fp16 or int8"):
        choose(bundle, ["fp32"])
    with pytest.raises(UsageError, match="int8-cpu: it is INT8 for processors"):
        choose(bundle, ["int8-cpu"])
    with pytest.raises(UsageError, match="no variant for GPUs"):
        choose(Bundle.open(), ()) if "fp16" not in Bundle.open().manifest.variants else choose(only_fp32(folder), ())


def only_fp32(folder: Path) -> Bundle:
    from fakes import write_bundle

    return Bundle.open(write_bundle(folder / "fp32"))


def test_without_a_gpu_the_next_step_is_a_target(folder: Path) -> None:
    if gpus():
        pytest.skip("this box has a GPU")
    with pytest.raises(EngineError, match=r"no GPU.*name a --target: sm.*sm86.*Thor \(sm110\)"):
        build(opened(folder))


def test_settings_that_make_no_sense(folder: Path) -> None:
    bundle = opened(folder)
    with pytest.raises(UsageError, match="--backend onnxruntime: it needs no engine"):
        decide(bundle, (), "onnxruntime")
    with pytest.raises(UsageError, match="GPU of its own box"):
        decide(bundle, ["sm86"], "tensorrt")
    with pytest.raises(UsageError, match="--target sm87"):
        decide(bundle, ["sm86", "sm87"], "auto")
    assert decide(bundle, ["sm86", "86"], "auto").sms == ("86",)


def test_a_gpu_that_nothing_here_compiles_for(folder: Path, monkeypatch: pytest.MonkeyPatch, card: Gpu) -> None:
    monkeypatch.setattr(build_module, "gpus", lambda: [Gpu(0, "Orin", "87", 1, "1")])
    with pytest.raises(EngineError, match=r"Orin is sm87, TensorRT for RTX has .*sm86"):
        decide(opened(folder), (), "auto")
    monkeypatch.setattr(build_module.builder, "installed", list)
    with pytest.raises(EngineError, match=r"neither TensorRT nor TensorRT for RTX is installed: pip install .*JetPack"):
        decide(opened(folder), (), "auto")


def test_engines_of_a_zip_and_of_a_read_only_bundle_go_to_the_cache(
    folder: Path, tmp_path: Path, fresh_cache: Path
) -> None:
    said: list[str] = []
    zipped = shutil.make_archive(str(tmp_path / "zipped"), "zip", folder)
    (built,) = build(Bundle.open(zipped), targets=["sm86"], precisions=["fp16"], say=said.append)
    assert built.engine.folder.parent == fresh_cache / "engines"
    assert said[0] == f"the bundle is a .zip: engines go to {fresh_cache / 'engines'}"
    bundle = opened(folder)
    folder.chmod(0o555)
    with another_user():
        place, why = engines.ahead_of_time(bundle)
    folder.chmod(0o755)
    assert (place, why) == (fresh_cache / "engines", "the bundle cannot be written to (Permission denied)")


def test_on_a_box_with_a_gpu_engines_are_proven_by_running_them(
    folder: Path, card: Gpu, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(select, "open_sessions", lambda _, **options: asked.append(options))
    made = build(opened(folder))
    assert asked == [{"backend": "tensorrt-rtx", "precision": p, "verify": True} for p in ("fp16", "int8")]
    for b in made:
        assert b.engine.folder.parent == fresh_cache / "engines" and b.engine.key.sm == "86"
        assert b.state == engines.load(b.engine.folder).sidecar["state"] == "golden check passed on Test Card"
        assert (b.engine.sidecar["gpu"], b.engine.sidecar["driver"]) == ("Test Card", "555.1")
    monkeypatch.setattr(build_module, "gpus", lambda: [Gpu(0, "Other", "89", 1, "1")])
    said: list[str] = []
    build(opened(folder), precisions=["fp16"], say=said.append)
    assert said == ["rebuilding fp16 for sm89: GPU sm86 -> sm89"]


def test_an_engine_that_departs_is_told_and_noted(
    folder: Path, card: Gpu, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def departs(_: Bundle, *, precision: str, **__: Any) -> None:
        if precision == "int8":
            raise ParityError("logits differ by 1")
        raise EngineError("cuda-python is not installed")

    monkeypatch.setattr(select, "open_sessions", departs)
    assert run("build", folder) == 3
    assert "error: logits differ by 1" in capsys.readouterr().err
    states = {}
    for precision in ("fp16", "int8"):
        found = engines.find(
            opened(folder),
            precision,
            "shared",
            backend="tensorrt-rtx",
            version=build_module.builder.version("tensorrt-rtx"),
            sm="86",
        )
        assert isinstance(found, Engine)
        states[precision] = found.sidecar["state"]
    assert states == {
        "fp16": "built, not run: cuda-python is not installed",
        "int8": "golden check failed: logits differ by 1",
    }


def test_inspect_an_engine(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (built,) = build(opened(folder), targets=["sm120"], precisions=["int8"])
    for path in (built.engine.folder, built.engine.plan, built.engine.folder / "engine.json"):
        assert run("inspect", path, "--json") == 0
        shown = json.loads(capsys.readouterr().out)
        assert shown["kind"] == "engine" and shown["verified"] is True and shown["key"] == built.engine.folder.name
        assert (shown["sm"], shown["precision"], shown["profile"]) == ("120", "int8", [1, 1, 4])
        assert shown["attention_fused"] == "1 of 1" and shown["convolutions"] == {"Half": 1, "Int8": 3}
        assert shown["not_int8"] == ["backbone.features.conv0", "diagnosis"]
        if not gpus():
            assert shown["inspector"].startswith("no driver on this box")
    assert run("inspect", built.engine.folder) == 0
    assert "encoder.blocks.0  fused, Half" in capsys.readouterr().out
    listed = f"int8 for sm120, tensorrt-rtx {built.engine.key.version}: {built.engine.folder.name}"
    assert inspect_path(folder)["engines"] == [listed]
    built.engine.plan.write_bytes(b"changed")
    assert run("inspect", built.engine.plan) == 2
    assert "its SHA-256 is not the sidecar's" in capsys.readouterr().err


def test_the_real_network_builds_fused(fresh_cache: Path) -> None:
    """The embedded bundle's own GPU variants."""
    bundle = Bundle.open()
    assert choose(bundle, ()) == ["fp16", "int8"]
    for variant in choose(bundle, ()):
        compiled = build_module.builder.compile_onnx(
            bundle.file(next(iter(bundle.variant(variant).files.values()))), backend="tensorrt-rtx", sm="86"
        )
        found = build_module.fusion.fusion(build_module.parse(compiled.lines), compiled.sources)
        assert found.fused == len(found.blocks) == bundle.manifest.raw["network"]["layers"]
