from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_graphs import write_gpu_bundle
from small_bundle import another_user, replace, reseal

from cxrvit_edge.bundle import Bundle
from cxrvit_edge.errors import EngineError
from cxrvit_edge.runtime import engines
from cxrvit_edge.runtime.builder import RECIPE, compile_onnx, version
from cxrvit_edge.runtime.engines import PLAN, SIDECAR, Engine, Key, find, load

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: no engine can be compiled")
pytest.importorskip("onnx", reason="onnx is not installed: no graph can be made")

ROOT = Path(__file__).resolve().parents[2]
BACKEND = "tensorrt-rtx"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with one engine in it. Copy before changing it."""
    folder = write_gpu_bundle(tmp_path_factory.mktemp("made") / "bundle", fp16={"blocks": 1})
    bundle = Bundle.open(folder)
    key = key_of(bundle)
    with engines.building(folder / "engines", key):
        compiled = compile_onnx(folder / "fp16.onnx", backend=BACKEND, sm="86")
        engines.write(folder / "engines", key, compiled, {"state": engines.NOT_RUN})
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, fresh_cache: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "bundle"))


def key_of(bundle: Bundle, **changes: Any) -> Key:
    return Key.of(bundle, "fp16", "shared", **{"backend": BACKEND, "version": version(BACKEND), "sm": "86", **changes})


def search(folder: Path, **changes: Any) -> Engine | str:
    options = {"backend": BACKEND, "version": version(BACKEND), "sm": "86", **changes}
    return find(Bundle.open(folder), "fp16", "shared", **options)


def only(folder: Path) -> Path:
    (engine,) = (folder / "engines").iterdir()
    return engine


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    raw = json.loads(path.read_bytes())
    change(raw)
    path.write_text(json.dumps(raw))


def test_the_engine_is_found_whole_and_its_plan_is_plain(folder: Path) -> None:
    engine = search(folder)
    assert isinstance(engine, Engine) and engine.folder == only(folder)
    assert sorted(p.name for p in engine.folder.iterdir()) == [SIDECAR, PLAN]
    again = compile_onnx(folder / "fp16.onnx", backend=BACKEND, sm="86").plan
    assert engine.plan.read_bytes()[:8] == bytes(again[:8])  # nothing before what the builder gave
    assert abs(engine.plan.stat().st_size - again.nbytes) < 4096
    assert engine.fusion.fused == 1 and engine.sidecar["state"] == "built, not run: no GPU"
    assert engine.sidecar["fusion"] == json.loads(json.dumps(engine.fusion.summary()))
    assert Bundle.open(folder).manifest.name == "fake"  # engines beside the listed files are tolerated


def test_the_key_tells_everything_apart(folder: Path) -> None:
    bundle = Bundle.open(folder)
    keys = [key_of(bundle), key_of(bundle, sm="89"), key_of(bundle, version="1.0"), key_of(bundle, most=8)]
    keys.append(key_of(bundle, backend="tensorrt"))
    assert len({key.digest for key in keys}) == len(keys) and all(len(key.digest) == 32 for key in keys)
    assert Key.from_dict(json.loads(json.dumps(keys[0].to_dict()))) == keys[0]
    assert dict(keys[0].options) == {name: str(value) for name, value in RECIPE.items()}


def test_external_weights_are_part_of_the_key(folder: Path) -> None:
    import onnx

    model = onnx.load(folder / "fp16.onnx")
    onnx.save(model, folder / "fp16.onnx", save_as_external_data=True, location="inner.safetensors", size_threshold=64)
    shutil.rmtree(folder / "engines")
    reseal(folder)
    before = key_of(Bundle.open(folder))
    assert [name for name, _ in before.weights] == ["inner.safetensors"]
    weights = bytearray((folder / "inner.safetensors").read_bytes())
    weights[0] ^= 1
    (folder / "inner.safetensors").write_bytes(weights)
    reseal(folder)
    after = key_of(Bundle.open(folder))
    assert after.graph_sha256 == before.graph_sha256 and after.digest != before.digest
    assert compile_onnx(folder / "fp16.onnx", backend=BACKEND, sm="86").plan.nbytes > 100_000


def test_why_there_is_none(folder: Path) -> None:
    have = version(BACKEND)
    assert search(folder, version="1.8.0") == f"TensorRT for RTX {have} -> 1.8.0"
    assert search(folder, sm="89") == "GPU sm86 -> sm89"
    assert search(folder, backend="tensorrt", version="10.3.0") == "backend tensorrt-rtx -> tensorrt"
    assert search(folder, sm="89", version="2.0") == f"GPU sm86 -> sm89, TensorRT for RTX {have} -> 2.0"
    assert search(folder, most=8) == "batches of up to 4 -> 8"
    assert isinstance(search(folder, most=4), Engine)
    (folder / "fp16.onnx").write_bytes((folder / "fp16.onnx").read_bytes() + b"\x0a\x00")
    shutil.move(folder / "engines", folder.parent / "engines")
    reseal(folder)
    shutil.move(folder.parent / "engines", folder / "engines")
    assert search(folder) == "another graph"
    shutil.rmtree(folder / "engines")
    assert search(folder) == "not built yet"


def test_the_bundle_comes_before_the_cache(folder: Path, fresh_cache: Path) -> None:
    inside = only(folder)
    shutil.copytree(inside, fresh_cache / "engines" / inside.name)
    found = search(folder)
    assert isinstance(found, Engine) and found.folder == inside
    (inside / PLAN).write_bytes(b"damaged")
    found = search(folder)
    assert isinstance(found, Engine) and found.folder == fresh_cache / "engines" / inside.name
    shutil.rmtree(fresh_cache)
    assert "SHA-256 is not the sidecar's" in str(search(folder))


def test_what_was_tampered_with_is_refused(folder: Path) -> None:
    engine = only(folder)
    plan, side = (engine / PLAN).read_bytes(), (engine / SIDECAR).read_bytes()

    def refused(message: str) -> None:
        with pytest.raises(EngineError, match=message):
            load(engine)
        assert isinstance(search(folder), str)
        replace(engine / PLAN, plan)
        replace(engine / SIDECAR, side)
        load(engine)

    (engine / PLAN).write_bytes(plan[:1000] + bytes([plan[1000] ^ 1]) + plan[1001:])
    refused("SHA-256 is not the sidecar's")
    (engine / PLAN).write_bytes(plan[:-1])
    refused("SHA-256 is not the sidecar's")
    (engine / PLAN).unlink()
    refused(r"engine\.plan: cannot be read")
    edit(engine / SIDECAR, lambda raw: raw["layers"].pop())
    refused("it was changed after it was written")
    edit(engine / SIDECAR, lambda raw: raw["key"].update(sm="89"))
    refused("it was changed after it was written")
    edit(engine / SIDECAR, lambda raw: raw.update(schema=99))
    refused("schema 99, this version reads 1")
    (engine / SIDECAR).write_text("{")
    refused("no sidecar of an engine")
    (engine / SIDECAR).write_text("[]")
    refused("no sidecar of an engine")
    (engine / SIDECAR).unlink()
    refused(r"engine\.json: cannot be read")


def test_an_engine_under_the_name_of_another_is_refused(folder: Path) -> None:
    moved = only(folder).rename(folder / "engines" / ("0" * 32))
    with pytest.raises(EngineError, match="its name is not the key"):
        load(moved)


def test_a_sidecar_sealed_again_without_its_fields_is_refused(folder: Path) -> None:
    engine = load(only(folder))
    raw = {name: value for name, value in engine.sidecar.items() if name != "plan"}
    (engine.folder / SIDECAR).write_bytes(engines._sealed(raw))
    with pytest.raises(EngineError, match="a field is missing or of the wrong kind"):
        load(engine.folder)


def test_notes_are_sealed_too(folder: Path) -> None:
    engine = engines.note(load(only(folder)), state="golden check passed on X")
    assert load(engine.folder).sidecar["state"] == "golden check passed on X"
    with another_user():  # may not write there
        assert engines.note(engine, state="else").sidecar["state"] == "golden check passed on X"


def test_where_engines_for_other_boxes_go(folder: Path, fresh_cache: Path) -> None:
    assert engines.ahead_of_time(Bundle.open(folder)) == (folder / "engines", None)
    zipped = shutil.make_archive(str(folder), "zip", folder)
    assert engines.ahead_of_time(Bundle.open(zipped)) == (fresh_cache / "engines", "the bundle is a .zip")
    found = search(Path(zipped))
    assert isinstance(found, Engine)  # engines travel inside the zip


# Real processes


def command(*arguments: object) -> list[str]:
    return [sys.executable, *map(str, arguments)]


def environment(cache: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "CXRVIT_EDGE_CACHE": str(cache.parent)}


def start(cache: Path, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command(*arguments), env=environment(cache), **pipes, **options)


def stopped(process: subprocess.Popen[str]) -> None:
    assert process.stdout and process.stdout.readline() == "STOPPED\n"


def target(folder: Path) -> tuple[object, ...]:
    return "build", folder, "--target", "sm89", "--json"


def engine_of(output: str) -> dict[str, Any]:
    (engine,) = json.loads(output)["engines"]
    assert isinstance(engine, dict)
    return engine


def test_two_at_once_make_one(folder: Path, fresh_cache: Path, tmp_path: Path) -> None:
    slow, go = ROOT / "tests" / "slow_build.py", tmp_path / "go"
    first = start(fresh_cache, slow, "compile", go, *target(folder))
    stopped(first)
    second = start(fresh_cache, "-m", "cxrvit_edge", *target(folder))
    assert second.stderr and second.stderr.readline().startswith(f"waiting for process {first.pid} on ")
    go.touch()
    one, two = (engine_of(p.communicate()[0]) for p in (first, second))
    assert first.returncode == second.returncode == 0
    assert (one["built_now"], two["built_now"]) == (True, False) and one["path"] == two["path"]
    assert len(list((folder / "engines").iterdir())) == 2  # sm86 and sm89: no locks, no debris
    assert isinstance(search(folder, sm="89"), Engine)


@pytest.mark.parametrize("point", ["compile", "write"])
def test_a_build_killed_half_way_leaves_none_and_the_next_sweeps_up(
    point: str, folder: Path, fresh_cache: Path, tmp_path: Path
) -> None:
    shutil.rmtree(folder / "engines")
    killed = start(fresh_cache, ROOT / "tests" / "slow_build.py", point, tmp_path / "never", *target(folder))
    stopped(killed)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    left = sorted(p.name for p in (folder / "engines").iterdir())
    assert any(name.endswith(".part") for name in left) == (point == "write")
    assert search(folder, sm="89") == "not built yet"
    done = start(fresh_cache, "-m", "cxrvit_edge", *target(folder))
    assert engine_of(done.communicate()[0])["built_now"] and done.returncode == 0
    assert isinstance(search(folder, sm="89"), Engine) and len(list((folder / "engines").iterdir())) == 1


def test_a_rebuild_killed_half_way_keeps_the_engine_that_was_there(
    folder: Path, fresh_cache: Path, tmp_path: Path
) -> None:
    before = search(folder)
    slow = ROOT / "tests" / "slow_build.py"
    killed = start(fresh_cache, slow, "write", tmp_path / "never", "build", folder, "--target", "sm86", "--rebuild")
    stopped(killed)
    killed.kill()
    killed.communicate()
    assert search(folder) == before


def test_a_full_disk_is_named_and_leaves_nothing(folder: Path, fresh_cache: Path) -> None:
    shutil.rmtree(folder / "engines")

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    full = start(fresh_cache, "-m", "cxrvit_edge", *target(folder), preexec_fn=small_files)
    _, errors = full.communicate()
    assert full.returncode == 2
    assert f"error: {folder / 'engines'}: the engine (" in errors and "free some room there" in errors
    assert list((folder / "engines").iterdir()) == []


def test_an_interrupt_leaves_nothing(folder: Path, fresh_cache: Path, tmp_path: Path) -> None:
    shutil.rmtree(folder / "engines")
    slow = ROOT / "tests" / "slow_build.py"
    stopping = start(fresh_cache, slow, "write", tmp_path / "never", *target(folder))
    stopped(stopping)
    stopping.send_signal(signal.SIGINT)
    stopping.communicate()
    assert stopping.returncode == 130 and list((folder / "engines").iterdir()) == []
