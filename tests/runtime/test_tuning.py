"""Tuned sessions: measured by build, proven, recorded, used from then on; what is stale or damaged is passed over."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cxrvit_edge import build as build_module
from cxrvit_edge.build import TunedHere, build, told
from cxrvit_edge.bundle import Bundle
from cxrvit_edge.doctor import examine
from cxrvit_edge.errors import EngineError, ParityError, UsageError
from cxrvit_edge.runtime import golden, measure, search, select, tuning
from cxrvit_edge.runtime.onnxruntime import OPTIMISED, OnnxRuntimeSession, Settings
from cxrvit_edge.runtime.select import open_sessions
from cxrvit_edge.runtime.session import Float32, Outputs

pytestmark = pytest.mark.usefixtures("one_torch_thread", "fresh_cache")
ORT = "onnxruntime"
SIZES = {1: 1.0, 2: 2.0, 4: 4.0, 8: 8.0}


@pytest.fixture(scope="module")
def bundle(quantised: Path) -> Bundle:
    return Bundle.open(quantised)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rounds of each measurement, on a box without a GPU."""
    monkeypatch.setattr(search, "SECONDS", 0.0)
    monkeypatch.setattr(search, "FILM", 64)
    monkeypatch.setattr(measure, "SECONDS", 0.0)
    monkeypatch.setattr(build_module, "gpus", list)
    monkeypatch.setattr(build_module, "_installed", lambda: [ORT])
    monkeypatch.setattr("cxrvit_edge.runtime.candidates.gpus", list)


def tune(bundle: Bundle, variant: str = "fp32", precision: str = "fp32") -> tuning.Tuned:
    return search.tune(bundle, ORT, precision, variant, seconds=0.0)


def only(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def opened(bundle: Bundle) -> OnnxRuntimeSession:
    session = open_sessions(bundle, backend=ORT, precision="fp32")["shared"]
    assert isinstance(session, OnnxRuntimeSession)
    return session


def prefer(monkeypatch: pytest.MonkeyPatch, settings: Settings, sizes: Mapping[int, float]) -> None:
    """Times as of a box where each choice of `settings` halves the time, and batches take `sizes`."""

    def times(runs: Mapping[Any, Any], **_: object) -> dict[Any, float]:
        def seconds(name: Any) -> float:
            if not isinstance(name, Settings):
                return sizes[name]
            return float(0.5 ** sum(value == vars(settings)[key] for key, value in vars(name).items()))

        return {name: seconds(name) for name in runs}

    monkeypatch.setattr(measure, "interleaved", times)


def test_what_was_measured_is_used(bundle: Bundle, fresh_cache: Path) -> None:
    before = opened(bundle)
    found = tune(bundle)
    assert set(found.seconds) >= set(tuning.BATCHES[:-1]) and all(value > 0 for value in found.seconds.values())
    assert tuning.find(bundle, ORT, "fp32") == found
    sessions = open_sessions(bundle, backend=ORT, precision="fp32")
    session = sessions["shared"]
    assert isinstance(session, OnnxRuntimeSession)
    assert sessions.batch_size == found.batch_size
    assert session.path.is_relative_to(fresh_cache / "optimised") and "optimised=" in session.fingerprint
    films = golden.load_inputs(bundle)
    for ours, plain in zip(session.run(films), before.run(films), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=0, atol=1e-4)


def test_settings_that_win_are_kept_and_the_golden_check_is_theirs(
    bundle: Bundle, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = Settings(threads=1, spinning=False, memory="system", level="extended")
    prefer(monkeypatch, wanted, {1: 1.0, 2: 1.5, 4: 2.8, 8: 5.5})
    found = tune(bundle)
    assert (found.settings, found.batch_size) == (wanted, 4), "8 is under 3 % faster an image"
    assert found.gain == 16.0
    session = opened(bundle)
    assert "level=extended" in session.fingerprint
    options = session._session.get_session_options()
    assert (options.intra_op_num_threads, options.enable_cpu_mem_arena, options.enable_mem_pattern) == (1, False, False)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert len(list((fresh_cache / "golden").iterdir())) == 1, "tuning proved it, opening took the record"


def test_what_wins_too_little_leaves_the_default(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def times(runs: Mapping[Any, Any], **_: object) -> dict[Any, float]:
        return {
            name: 1.0 if name in (Settings(), 1) else 0.98 * (name if isinstance(name, int) else 1) for name in runs
        }

    monkeypatch.setattr(measure, "interleaved", times)
    found = tune(bundle)
    assert (found.settings, found.batch_size, found.gain) == (Settings(), 1, 1.0)


def test_threads_by_name_come_before_those_measured(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    prefer(monkeypatch, Settings(threads=1), SIZES)
    assert tune(bundle).settings.threads == 1
    session = open_sessions(bundle, backend=ORT, precision="fp32", threads=2)["shared"]
    assert isinstance(session, OnnxRuntimeSession)
    assert session._session.get_session_options().intra_op_num_threads == 2


@pytest.mark.parametrize("name", OPTIMISED)
@pytest.mark.parametrize("fault", ["changed", "cut", "gone"])
def test_a_damaged_optimised_graph_is_passed_over(
    bundle: Bundle, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch, name: str, fault: str
) -> None:
    prefer(monkeypatch, Settings(), SIZES)
    tune(bundle)
    path = only(fresh_cache / "optimised") / name
    data = path.read_bytes()
    if fault == "gone":
        path.unlink()
    else:
        path.write_bytes(data[: len(data) // 2] if fault == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
    session = opened(bundle)
    assert session.path == bundle.file("fp32.onnx") and "optimised" not in session.fingerprint


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        {"settings": {"threads": 1, "unknown": 2}},
        {"settings": {"threads": 4000}},
        {"settings": {"threads": "1"}},
        {"settings": {"level": "9"}},
        {"batch_size": 3},
        {"batch_size": [2]},
        {"seconds": {}},
        {"seconds": {"1": 0.0, "2": 0.0, "4": 0.0, "8": 0.0}},
        {"graphs": {"shared": 5}},
    ],
    ids=str,
)
def test_a_damaged_record_is_as_none(
    bundle: Bundle, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | dict[str, Any]
) -> None:
    prefer(monkeypatch, Settings(), SIZES)
    tune(bundle)
    path = only(fresh_cache / "tuned")
    changed = content if isinstance(content, bytes) else json.dumps(json.loads(path.read_text()) | content).encode()
    path.write_bytes(changed)
    assert tuning.find(bundle, ORT, "fp32") is None
    assert opened(bundle).path == bundle.file("fp32.onnx")
    assert open_sessions(bundle, backend=ORT, precision="fp32").batch_size == measure.batch_of(ORT)


@pytest.mark.parametrize("what", ["version", "processor", "cores", "cpu_flags"])
def test_another_box_or_version_is_not_this_one(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    prefer(monkeypatch, Settings(), SIZES)
    tune(bundle)
    other = {"version": lambda _: "0.1", "processor": lambda: "other", "cores": lambda: 64, "cpu_flags": lambda: ["x"]}
    monkeypatch.setattr(tuning, what, other[what])
    assert tuning.find(bundle, ORT, "fp32") is None


def test_what_departs_is_not_recorded(bundle: Bundle, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prefer(monkeypatch, Settings(), SIZES)
    tune(bundle)
    run = OnnxRuntimeSession.run

    def bent(session: OnnxRuntimeSession, batch: Float32) -> Outputs:
        outputs = run(session, batch)
        return outputs._replace(logits=outputs.logits + 1)

    monkeypatch.setattr(OnnxRuntimeSession, "run", bent)
    with pytest.raises(ParityError):
        tune(bundle)
    assert tuning.find(bundle, ORT, "fp32") is None
    assert not list((fresh_cache / "tuned").iterdir()) and not list((fresh_cache / "optimised").iterdir())


def test_a_cache_that_cannot_be_written_loses_only_the_record(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("CXRVIT_EDGE_CACHE", str(tmp_path / "file"))
    prefer(monkeypatch, Settings(), SIZES)
    found = tune(bundle)
    assert found.graphs == {} and tuning.find(bundle, ORT, "fp32") is None
    assert opened(bundle).path == bundle.file("fp32.onnx")


def test_build_without_a_gpu_tunes_both_precisions(bundle: Bundle) -> None:
    said: list[str] = []
    made = build(bundle, say=said.append)
    assert [(b.precision, b.fresh) for b in made if isinstance(b, TunedHere)] == [("fp32", True), ("int8", True)]
    text = "\n".join(told(made))
    assert "images a second in batches of" in text and "golden check passed on this box" in text
    assert any("fp32" in note and "int8" in note for note in said), "the choice among them is told"
    assert json.loads(json.dumps([b.to_dict() for b in made]))[1]["target"] == "cpu"
    chosen = open_sessions(bundle, threads=0)
    precisions = [b.tuned.batch_size for b in made if isinstance(b, TunedHere) and b.precision == chosen.precision]
    assert [chosen.batch_size] == precisions
    again = build(bundle, backend=ORT, precisions=["int8"])
    assert [(b.precision, b.fresh) for b in again if isinstance(b, TunedHere)] == [("int8", False)]
    (fresh,) = build(bundle, backend=ORT, precisions=["fp32"], rebuild=True)
    assert isinstance(fresh, TunedHere) and fresh.fresh


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"backend": ORT, "targets": ["sm86"]}, UsageError, "onnxruntime runs on this box's processor"),
        ({"backend": ORT, "precisions": ["fp16"]}, UsageError, "--precision fp16: onnxruntime runs fp32 or int8"),
    ],
    ids=str,
)
def test_what_cannot_be_built_is_told(
    bundle: Bundle, asked: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        build(bundle, **asked)


def test_doctor_says_what_the_box_will_do(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cxrvit_edge.doctor.gpus", list)
    (line,) = examine(bundle.root)["speed"]
    assert "not measured yet: run `cxrvit-edge build" in line
    prefer(monkeypatch, Settings(), SIZES)
    found = tune(bundle)
    (line,) = examine(bundle.root)["speed"]
    assert line.startswith(f"onnxruntime fp32: about {found.images_a_second:.1f} images a second in batches of")


def test_openvino_is_taken_only_where_it_was_measured_faster(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "find_spec", lambda _: object())
    monkeypatch.setattr(tuning, "version", lambda _: "1.0")
    assert select._order(bundle, "auto") == select.AUTO
    base = tuning.Tuned(Settings(), 2, {1: 1.0, 2: 2.0, 4: 4.0, 8: 8.0})
    tuning.keep(bundle, "openvino", "fp32", "fp32", base)
    assert select._order(bundle, "auto") == select.AUTO, "nothing to hold it against"
    for theirs, expected in ((1.02, False), (1.05, True)):
        tuning.keep(bundle, ORT, "fp32", "fp32", replace(base, seconds={1: 1.0, 2: 2 * theirs, 4: 4.0, 8: 8.0}))
        assert ("openvino" in select._order(bundle, "auto")) == expected
    assert select._order(bundle, "int8") == select.AUTO


class OtherArithmetic:
    """In OpenVINO's place: ONNX Runtime, with logits that bfloat16 moves by `apart`."""

    backend, batch_sizes, notes, apart = "openvino", (), (), 0.0

    def __init__(self, path: Path, *, precision: str, arithmetic: str = "f32", **_: object) -> None:
        self._session = OnnxRuntimeSession(path, precision=precision)
        self.version, self.precision, self.fingerprint = "1.0", precision, arithmetic

    def run(self, batch: Float32) -> Outputs:
        outputs = self._session.run(batch)
        return outputs._replace(logits=outputs.logits + (self.apart if self.fingerprint == "bf16" else 0.0))


@pytest.mark.parametrize(
    ("flags", "half", "apart", "expected"),
    [
        (["avx2", "amx_bf16"], 0.5, 0.0, "bf16"),
        (["avx2", "amx_bf16"], 0.5, 1.0, "f32"),  # outside the golden bounds
        (["avx2", "amx_bf16"], 0.99, 0.0, "f32"),  # not worth it
        (["avx2"], 0.5, 0.0, "f32"),  # emulated
    ],
)
def test_openvino_takes_bfloat16_where_it_is_faster_and_golden(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, flags: list[str], half: float, apart: float, expected: str
) -> None:
    def times(runs: Mapping[Any, Any], **_: object) -> dict[Any, float]:
        return {name: {"f32": 1.0, "bf16": half}.get(name, 1.0) for name in runs}

    monkeypatch.setattr(OtherArithmetic, "apart", apart)
    monkeypatch.setattr(measure, "interleaved", times)
    monkeypatch.setattr(search, "cpu_flags", lambda: flags)
    monkeypatch.setattr("cxrvit_edge.runtime.openvino.installed", lambda: "1.0")
    for module in (search, tuning):
        monkeypatch.setattr(module, "OpenVinoSession", OtherArithmetic)
    said: list[str] = []
    found = search.tune(bundle, "openvino", "int8", "int8-cpu", seconds=0.0, say=said.append)
    assert found.arithmetic == expected and found.gain == (2.0 if expected == "bf16" else 1.0)
    assert tuning.find(bundle, "openvino", "int8-cpu") == found
    assert open_sessions(bundle, backend="openvino", precision="int8")["shared"].fingerprint == expected
    assert any("not in bfloat16: " in line for line in said) == (apart > 0)
    text = "\n".join(told([TunedHere("openvino", "1.0", "int8", found, True)]))
    assert ("100 % faster, golden check passed with it" in text) == (expected == "bf16")


def test_openvino_that_is_not_installed_is_told(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> str:
        raise EngineError("openvino is not installed; pip install openvino")

    monkeypatch.setattr("cxrvit_edge.runtime.openvino.installed", absent)
    with pytest.raises(EngineError, match="pip install openvino"):
        open_sessions(bundle, backend="openvino")


@pytest.mark.parametrize(("precision", "variant"), [("fp32", "fp32"), ("int8", "int8-cpu")])
def test_openvino_reproduces_the_golden_outputs(
    bundle: Bundle, fresh_cache: Path, precision: str, variant: str
) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    found = search.tune(bundle, "openvino", "fp32", "fp32", seconds=0.0)
    sessions = open_sessions(bundle, backend="openvino", precision="fp32")
    assert (sessions.backend, sessions.precision, sessions.batch_size) == ("openvino", "fp32", found.batch_size)
    films = golden.load_inputs(bundle)
    first = sessions["shared"].run(films[:1])
    kept = [values.copy() for values in first]
    sessions["shared"].run(films[1:2])
    for values, before in zip(first, kept, strict=True):
        np.testing.assert_array_equal(values, before)
    with pytest.raises(EngineError, match="OpenVINO failed on a batch of 1"):
        sessions["shared"].run(np.zeros((1, 3, 8, 8), np.float32))


@pytest.mark.slow
def test_openvino_reproduces_the_default_bundle_in_int8() -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    default = Bundle.open()
    session = open_sessions(default, backend="openvino", precision="int8")["shared"]
    assert golden.check(default, "int8-cpu", "shared", session, again=True)
