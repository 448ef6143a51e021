"""The back ends: the same numbers whatever the batch, the same from both, and one kind of error."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import small_bundle as small

from cxrvit_edge.bundle import WEIGHTS, Bundle
from cxrvit_edge.errors import EngineError
from cxrvit_edge.phantom import make_phantom
from cxrvit_edge.preprocess import PreprocessConfig, preprocess
from cxrvit_edge.radiograph import Radiograph
from cxrvit_edge.runtime import golden
from cxrvit_edge.runtime.onnxruntime import OnnxRuntimeSession
from cxrvit_edge.runtime.session import Float32, Session, joined
from cxrvit_edge.runtime.torch import TorchSession

pytestmark = pytest.mark.usefixtures("one_torch_thread")

BACKENDS = ("onnxruntime", "torch")


@pytest.fixture(scope="module")
def sessions(small_bundle: Path) -> dict[str, Session]:
    bundle = Bundle.open(small_bundle)
    return {
        "onnxruntime": OnnxRuntimeSession(bundle.file("fp32.onnx"), precision="fp32", threads=1),
        "torch": TorchSession(bundle.file(WEIGHTS), threads=1),
    }


@pytest.fixture(scope="module")
def batch(small_bundle: Path) -> Float32:
    """(6, 1, S, S): films, noise and a blank."""
    config = PreprocessConfig.from_dict(Bundle.open(small_bundle).manifest.preprocessing)
    films = [make_phantom(i, height=160, width=144, lesions=e) for i, e in ((40, 0.0), (41, 0.6), (42, 0.9))]
    rng = np.random.default_rng(0)
    images = [preprocess(Radiograph(f.pixels), config)[0] for f in films]
    shape = images[0].shape
    return np.stack([*images, rng.uniform(-2, 2, shape), rng.normal(0, 1, shape), np.zeros(shape)]).astype(np.float32)


@pytest.mark.parametrize("backend", BACKENDS)
def test_outputs_as_the_protocol_has_them(sessions: dict[str, Session], batch: Float32, backend: str) -> None:
    session = sessions[backend]
    assert (session.backend, session.precision) == (backend, "fp32")
    assert session.version == __import__(backend).__version__
    out = session.run(batch)
    half = small.SIZE // 2
    assert out.embedding is not None and out.embedding.shape == (6, small.config().width)
    assert [v.shape for v in out[:3]] == [(6, 3), (6, 1, half, half), (6, 2, half, half)]
    assert {v.dtype for v in out if v is not None} == {np.dtype(np.float32)}
    for maps in (out.severity_map, out.lung_mask):
        assert maps.min() >= 0
        assert maps.max() <= 1
        assert maps[:3].std() > 0.01
    assert np.ptp(out.logits, axis=0).min() > 0.1


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_is_its_images(sessions: dict[str, Session], batch: Float32, backend: str) -> None:
    session = sessions[backend]
    whole = session.run(batch)
    three = session.run(batch[3:])
    for name, atol in (("logits", 1e-4), ("severity_map", 1e-3), ("lung_mask", 1e-3), ("embedding", 1e-4)):
        expected = getattr(whole, name)
        np.testing.assert_allclose(getattr(three, name), expected[3:], rtol=0, atol=atol)
        for i in range(len(batch)):
            alone = getattr(session.run(batch[i : i + 1]), name)
            np.testing.assert_allclose(alone, expected[i : i + 1], rtol=0, atol=atol)
        assert np.abs(expected[0] - expected[1]).max() > 20 * atol, "films that are told apart by more than that"


def test_onnx_is_the_reference(sessions: dict[str, Session], batch: Float32) -> None:
    a, b = sessions["onnxruntime"].run(batch), sessions["torch"].run(batch)
    assert np.abs(a.logits - b.logits).max() <= 1e-4
    assert np.abs(a.severity_map - b.severity_map).max() <= 1e-3
    assert np.abs(a.lung_mask - b.lung_mask).max() <= 1e-3
    assert a.embedding is not None and b.embedding is not None
    assert np.abs(a.embedding - b.embedding).max() <= 1e-4


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bundle_older_than_the_embedding_runs_as_before(
    small_bundle: Path, sessions: dict[str, Session], batch: Float32, backend: str, tmp_path: Path, fresh_cache: Path
) -> None:
    folder = shutil.copytree(small_bundle, tmp_path / "bundle", copy_function=os.link)
    small.forget_embedding(folder)
    bundle = Bundle.open(folder)
    old = OnnxRuntimeSession(folder / "fp32.onnx", precision="fp32", threads=1)
    session: Session = old if backend == "onnxruntime" else sessions["torch"]
    assert old.run(batch).embedding is None
    for a, b in zip(session.run(batch)[:3], sessions[backend].run(batch)[:3], strict=True):
        np.testing.assert_array_equal(a, b)
    expected = golden.load_outputs(bundle, "fp32", "shared")
    assert expected.embedding is None
    assert golden.check(bundle, "fp32", "shared", session)
    two = [old.run(batch[:1]), sessions["torch"].run(batch[1:2])]
    assert joined(two).embedding is None and len(joined(two).logits) == 2
    assert two[0].rows(slice(0, 1)).embedding is None


@pytest.mark.parametrize(
    ("backend", "wrong"),
    [
        ("onnxruntime", lambda x: x[:, 0]),
        ("onnxruntime", lambda x: x[..., :-1]),
        ("onnxruntime", lambda x: np.repeat(x, 3, axis=1)),
        ("torch", lambda x: x[:, 0]),
        ("torch", lambda x: np.repeat(x, 3, axis=1)),
        ("torch", lambda x: x[..., ::-1]),
    ],
    ids=[
        "no channel",
        "narrow",
        "three channels",
        "no channel, torch",
        "three channels, torch",
        "mirrored view, torch",
    ],
)
def test_a_wrong_shape_is_an_engine_error(
    sessions: dict[str, Session], batch: Float32, backend: str, wrong: Callable[[Float32], Float32]
) -> None:
    with pytest.raises(EngineError, match="failed on a batch"):
        sessions[backend].run(wrong(batch))


def test_onnxruntime_takes_views_and_doubles(sessions: dict[str, Session], batch: Float32) -> None:
    session = sessions["onnxruntime"]
    straight = session.run(np.ascontiguousarray(batch[::2, :, ::-1])).logits
    np.testing.assert_array_equal(session.run(batch[::2, :, ::-1]).logits, straight)
    np.testing.assert_array_equal(session.run(batch[::2, :, ::-1].astype(np.float64)).logits, straight)


def _truncated(folder: Path) -> None:
    small.replace(folder / "fp32.onnx", (folder / "fp32.onnx").read_bytes()[:5000])


def _text(folder: Path) -> None:
    small.replace(folder / "fp32.onnx", b"<html>404</html>")


def _absent(folder: Path) -> None:
    (folder / "fp32.onnx").unlink()


def _no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def _short_weights(folder: Path) -> None:
    small.replace(folder / WEIGHTS, (folder / WEIGHTS).read_bytes()[:100_000])


def _unknown_operator(folder: Path) -> None:
    model = onnx.load(folder / "fp32.onnx", load_external_data=False)
    model.graph.node[5].op_type = "Chestnut"
    small.replace(folder / "fp32.onnx", model.SerializeToString())


@pytest.mark.parametrize("damage", [_truncated, _text, _absent, _no_weights, _short_weights, _unknown_operator])
def test_a_graph_that_cannot_be_loaded_is_named(
    small_bundle: Path, tmp_path: Path, damage: Callable[[Path], Any]
) -> None:
    folder = shutil.copytree(small_bundle, tmp_path / "bundle", copy_function=os.link)
    OnnxRuntimeSession(folder / "fp32.onnx", precision="fp32")
    damage(folder)
    with pytest.raises(EngineError) as caught:
        OnnxRuntimeSession(folder / "fp32.onnx", precision="fp32")
    message = str(caught.value)
    assert str(folder / "fp32.onnx") in message
    assert "cannot load it" in message
    assert "\n" not in message


def no_dot_products(monkeypatch: pytest.MonkeyPatch, *flags: str) -> None:
    monkeypatch.setattr("cxrvit_edge.runtime.onnxruntime.cpu_flags", lambda: ["avx2", "fma", *flags])


def settings(session: OnnxRuntimeSession) -> dict[str, str]:
    """What ONNX Runtime itself says it was given."""
    options = session._session.get_session_options()
    keys = ("session.x64quantprecision", "session.disable_quant_qdq")
    return {key.split(".")[1]: options.get_session_config_entry(key) for key in keys if _has(options, key)}


def _has(options: Any, key: str) -> bool:
    try:
        options.get_session_config_entry(key)
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize(
    ("precision", "flags", "exact", "given"),
    [
        ("int8", [], False, {"x64quantprecision": "1"}),
        ("int8", ["avx512f"], False, {"x64quantprecision": "1"}),
        ("int8", ["avx512_vnni"], False, {}),
        ("int8", ["avx_vnni"], False, {}),
        ("int8", ["amx_int8"], False, {}),
        ("int8", ["asimddp"], False, {}),
        ("int8", [], True, {"disable_quant_qdq": "1"}),
        ("int8", ["avx512_vnni"], True, {"disable_quant_qdq": "1"}),
        ("fp32", [], False, {}),
    ],
)
def test_int8_does_not_saturate(
    small_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    flags: list[str],
    exact: bool,
    given: dict[str, str],
) -> None:
    no_dot_products(monkeypatch, *flags)
    session = OnnxRuntimeSession(small_bundle / "fp32.onnx", precision=precision, threads=1, exact=exact)
    assert settings(session) == given
    assert session.precision == precision
    assert session.fingerprint == " ".join(f"session.{key}={value}" for key, value in given.items())


def test_a_golden_pass_is_of_these_settings(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(small_bundle)
    keys = set()
    for flags in ([], ["avx_vnni"], ["amx_int8"]):
        no_dot_products(monkeypatch, *flags)
        session = OnnxRuntimeSession(bundle.file("fp32.onnx"), precision="int8", threads=1)
        keys.add(golden.key(bundle, "fp32", "shared", session))
    assert len(keys) == 2
