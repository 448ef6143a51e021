"""Engines on a CUDA of the tests' own, and what is said where there is none."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import fake_cuda as fake
import numpy as np
import pytest
import small_bundle as small
from fake_cuda import FakeCuda, FakeEngine, FakeRtxEngine, cudaError_t
from fakes import FakeSession
from int8_bundle import add as add_variant

from cxrvit_edge.bundle import Bundle
from cxrvit_edge.errors import EngineError, ParityError
from cxrvit_edge.host import Gpu, gpus
from cxrvit_edge.runtime import candidates, engines, golden, select
from cxrvit_edge.runtime import cuda as cuda_module
from cxrvit_edge.runtime.builder import Compiled
from cxrvit_edge.runtime.fusion import Sources
from cxrvit_edge.runtime.onnxruntime import OnnxRuntimeSession
from cxrvit_edge.runtime.session import Float32, Outputs
from cxrvit_edge.runtime.tensorrt import TensorRTSession

WIDTH = small.config().width
GPU = Gpu(0, "NVIDIA Test 86", "86", 8 << 30, "999.1")
RUN = ["cudaMemcpyAsync", "cudaGraphLaunch", *["cudaMemcpyAsync"] * 3, "cudaStreamSynchronize"]
CAPTURE = ["cudaStreamBeginCapture", "execute_async_v3", "cudaStreamEndCapture"]
READY = [*CAPTURE, "cudaGraphInstantiateWithFlags", "cudaGraphDestroy"]

pytestmark = pytest.mark.usefixtures("fresh_cache")


class Box:
    """A box with one GPU: what its CUDA and its engine saw."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path) -> None:
        self.cuda = FakeCuda()
        self.plan = folder / "engine.plan"
        self.plan.write_bytes(b"plan")
        self._patch = patch
        patch.setattr(cuda_module, "runtime", lambda: self.cuda)
        patch.setattr("cxrvit_edge.runtime.tensorrt.gpus", lambda: [GPU])
        self.load(self.engine())

    def engine(self, *, most: int = 2, rtx: bool = False) -> FakeEngine:
        kind = FakeRtxEngine if rtx else FakeEngine
        return kind(self.cuda, FakeSession().run, size=64, half=256, most=most)

    def load(self, engine: FakeEngine | None) -> None:
        self.loaded = engine
        rtx = isinstance(engine, FakeRtxEngine)
        self._patch.setitem(sys.modules, "tensorrt", fake.tensorrt(engine))
        self._patch.setitem(sys.modules, "tensorrt_rtx", fake.tensorrt(engine, rtx=rtx))

    def open(self, backend: str = "tensorrt") -> TensorRTSession:
        return TensorRTSession(self.plan, backend=backend, precision="fp16")

    @property
    def held(self) -> int:
        return len(self.cuda.memory) + len(self.cuda.streams) + len(self.cuda.graphs)


@pytest.fixture
def box(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Box:
    return Box(monkeypatch, tmp_path)


def images(count: int, seed: int = 0) -> Float32:
    return np.random.default_rng(seed).uniform(-1, 1, (count, 1, 64, 64)).astype(np.float32)


def same(outputs: Outputs, batch: Float32) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(outputs, FakeSession().run(batch), strict=True))


def test_outputs_are_the_engines_whatever_the_batch(box: Box) -> None:
    session = box.open()
    assert (session.backend, session.version, session.precision) == ("tensorrt", "10.3.0", "fp16")
    kept = []
    for round_ in range(3):
        for count in (1, 2, 3, 5, 2, 1):
            batch = images(count, seed=10 * round_ + count)
            outputs = session.run(batch)
            assert same(outputs, batch)
            kept.append((outputs, batch))
    assert all(same(*pair) for pair in kept), "results are copies, not views of what is used again"
    view = images(4)[::2, :, ::-1]
    assert same(session.run(view), view)
    assert same(session.run(view.astype(np.float64)), view)


def test_each_batch_size_is_captured_once_and_then_replayed(box: Box) -> None:
    session = box.open()
    made = len(box.cuda.memory)
    for count in (2, 1):
        box.cuda.calls.clear()
        session.run(images(count))
        first = ["cudaSetDevice", "cudaMemcpyAsync", "execute_async_v3", "cudaStreamSynchronize", *READY, *RUN[1:]]
        assert box.cuda.calls == first
        for seed in range(2):
            box.cuda.calls.clear()
            assert same(session.run(images(count, seed)), images(count, seed))
            assert box.cuda.calls == ["cudaSetDevice", *RUN]
    box.cuda.calls.clear()
    session.run(images(5))
    assert box.cuda.calls == ["cudaSetDevice", *RUN * 3], "two batches of 2 and one of 1"
    assert len(box.cuda.memory) == made, "buffers are made once"
    assert box.loaded is not None and len(box.loaded.contexts) == 2
    assert len({context.scratch for context in box.loaded.contexts}) == 1, "activations are shared"
    assert list(session.batch_sizes) == [1, 2] and session.notes == []


@pytest.mark.parametrize(
    "broken", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiateWithFlags", ""]
)
def test_without_a_graph_it_runs_all_the_same_and_says_so(box: Box, broken: str) -> None:
    session = box.open()
    if broken:
        box.cuda.fail[broken] = cudaError_t.cudaErrorStreamCaptureInvalidated
    else:
        assert box.loaded is not None
        box.loaded.refuse_in_capture = True
    for seed in range(3):
        assert same(session.run(images(2, seed)), images(2, seed))
    assert "cudaGraphLaunch" not in box.cuda.calls and not box.cuda.graphs
    (note,) = session.notes
    assert note.startswith("tensorrt runs batches of 2 without a CUDA graph, so slower (")
    box.cuda.calls.clear()
    session.run(images(2))
    assert box.cuda.calls == ["cudaSetDevice", *("execute_async_v3" if c == "cudaGraphLaunch" else c for c in RUN)]


@pytest.mark.parametrize("name", ["cudaSetDevice", "cudaMemcpyAsync", "cudaStreamSynchronize", "cudaGraphLaunch"])
def test_an_error_code_while_running_is_an_engine_error(box: Box, name: str) -> None:
    session = box.open()
    session.run(images(1))
    box.cuda.fail[name] = cudaError_t.cudaErrorIllegalAddress
    with pytest.raises(EngineError, match=rf"{name} failed \(cudaErrorIllegalAddress 700: in words\)"):
        session.run(images(1))
    session.close()


@pytest.mark.parametrize("name", ["cudaMalloc", "cudaMallocHost", "cudaStreamCreateWithFlags"])
def test_opening_that_fails_gives_back_what_it_took(box: Box, name: str) -> None:
    box.cuda.fail[name] = cudaError_t.cudaErrorMemoryAllocation
    with pytest.raises(EngineError, match=rf"{name} failed \(cudaErrorMemoryAllocation 2"):
        box.open()
    assert box.held == 0


def test_everything_is_given_back_once(box: Box) -> None:
    session = box.open()
    session.run(images(3))
    assert box.held > 10
    session.close()
    assert box.held == 0
    session.close()
    with pytest.raises(EngineError, match="this session is closed"):
        session.run(images(1))
    forgotten = box.open()
    forgotten.run(images(1))
    assert box.held > 0
    del forgotten
    gc.collect()
    assert box.held == 0


def test_giving_back_to_a_gpu_that_failed_is_quiet(box: Box) -> None:
    session = box.open()
    session.run(images(1))
    for name in ("cudaSetDevice", "cudaStreamSynchronize", "cudaGraphExecDestroy", "cudaFree", "cudaFreeHost"):
        box.cuda.fail[name] = cudaError_t.cudaErrorIllegalAddress
    session.close()


def test_the_end_of_the_process_gives_back_without_a_word(tmp_path: Path) -> None:
    script = f"""
import atexit, sys
from pathlib import Path
import pytest
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_tensorrt as t
box = t.Box(pytest.MonkeyPatch(), Path({str(tmp_path)!r}))
atexit.register(lambda: print("held at exit", box.held))  # runs after the session's own, which comes later
session = box.open()
session.run(t.images(2))
print("held", box.held > 0)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False
    )
    assert (result.stdout.splitlines(), result.stderr) == (["held True", "held at exit 0"], "")


def test_an_engine_that_does_not_load_is_told_with_its_reason(box: Box) -> None:
    box.load(None)
    with pytest.raises(
        EngineError, match=r"tensorrt 10\.3\.0 cannot load .*\(built for another GPU\); run `cxrvit-edge build`"
    ):
        box.open()
    assert box.held == 0
    box.plan.unlink()
    with pytest.raises(EngineError, match=r"engine\.plan: cannot be read"):
        box.open()


@pytest.mark.parametrize(
    "change", [{"logits": None}, {"logits": ((-1, 3), np.float16)}, {"image": ((-1, 1, -1, 64), np.float32)}]
)
def test_an_engine_of_something_else_is_refused(box: Box, change: dict[str, Any]) -> None:
    assert box.loaded is not None
    for name, tensor in change.items():
        if tensor is None:
            del box.loaded.tensors[name]
        else:
            box.loaded.tensors[name] = tensor
    with pytest.raises(EngineError, match=r"engine\.plan: .*run `cxrvit-edge build` again"):
        box.open()
    assert box.held == 0


@pytest.mark.parametrize("shape", [(0, 1, 64, 64), (1, 64, 64), (1, 1, 64, 63), (2, 3, 64, 64)])
def test_a_wrong_shape_is_an_engine_error(box: Box, shape: tuple[int, ...]) -> None:
    with pytest.raises(EngineError, match="failed on a batch of shape"):
        box.open().run(np.zeros(shape, np.float32))


def test_rtx_captures_by_itself_and_keeps_what_it_compiled(box: Box, fresh_cache: Path) -> None:
    engine = box.engine(rtx=True)
    box.load(engine)
    session = box.open("tensorrt-rtx")
    assert isinstance(engine, FakeRtxEngine)
    assert engine.config.cuda_graph_strategy == "WHOLE_GRAPH_CAPTURE"
    assert engine.config.dynamic_shapes_kernel_specialization_strategy == "EAGER", (
        "no kernel is swapped after the check"
    )
    for count in (1, 2, 3, 1):
        assert same(session.run(images(count)), images(count))
    assert "cudaStreamBeginCapture" not in box.cuda.calls and box.cuda.calls.count("execute_async_v3") == 5
    (kept,) = (fresh_cache / "engines").iterdir()
    assert kept.read_bytes() == b"kernels of 2"
    session.close()
    assert box.held == 0
    for content, taken in ((b"kernels of 2", b"kernels of 2"), (b"damaged", b"")):
        kept.write_bytes(content)
        again = box.engine(rtx=True)
        box.load(again)
        box.open("tensorrt-rtx")
        assert isinstance(again, FakeRtxEngine) and again.config.cache is not None
        assert again.config.cache.content == taken


def test_an_older_rtx_is_captured_from_outside(box: Box) -> None:
    box.load(box.engine())
    session = box.open("tensorrt-rtx")
    session.run(images(1))
    assert same(session.run(images(1, 3)), images(1, 3))
    assert box.cuda.calls.count("cudaGraphLaunch") == 2


@pytest.fixture
def real(small_bundle: Path) -> tuple[Bundle, OnnxRuntimeSession]:
    return Bundle.open(small_bundle), OnnxRuntimeSession(small_bundle / "fp32.onnx", precision="fp32", threads=1)


def test_the_golden_check_runs_every_batch_size(box: Box, real: tuple[Bundle, OnnxRuntimeSession]) -> None:
    bundle, session = real
    sizes = []

    def compute(batch: Float32) -> Outputs:
        sizes.append(len(batch))
        outputs = session.run(batch)
        return outputs._replace(logits=outputs.logits + (0.5 if len(batch) == wrong else 0))

    box.load(FakeEngine(box.cuda, compute, size=small.SIZE, half=small.SIZE // 2, most=3, width=WIDTH))
    wrong = 0
    assert golden.check(bundle, "fp32", "shared", box.open())
    assert sorted(set(sizes)) == [1, 2, 3]
    assert not golden.check(bundle, "fp32", "shared", box.open()), "on record"
    wrong = 3
    with pytest.raises(ParityError, match="on this box in batches of 3: logits differ by 5"):
        golden.check(bundle, "fp32", "shared", box.open(), again=True)


def test_a_pass_is_of_this_plan_gpu_and_driver(
    box: Box, real: tuple[Bundle, OnnxRuntimeSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    def key() -> str:
        return golden.key(real[0], "fp32", "shared", box.open())

    keys = [key(), key()]
    for other in (Gpu(0, "Other", "86", 0, "999.1"), Gpu(0, GPU.name, "86", 0, "999.2")):
        with monkeypatch.context() as patch:
            patch.setattr("cxrvit_edge.runtime.tensorrt.gpus", lambda other=other: [other])
            keys.append(key())
    box.plan.write_bytes(b"another plan")
    keys.append(key())
    assert keys[0] == keys[1] and len(set(keys)) == 4


def built(bundle: Bundle, variant: str = "fp16") -> engines.Engine:
    """An engine in the cache whose plan is a word: what it does is up to the box."""
    key = engines.Key.of(bundle, variant, "shared", backend="tensorrt", version="10.3.0", sm="86", most=4)
    compiled = Compiled(memoryview(b"plan"), [], Sources((), (), {}), [], 1.0, "10.3.0")
    place = engines.places(bundle)[1]
    place.mkdir(parents=True, exist_ok=True)
    return engines.write(place, key, compiled, {"state": engines.NOT_RUN})


@pytest.fixture
def folder(small_bundle: Path, tmp_path: Path) -> Path:
    folder = shutil.copytree(small_bundle, tmp_path / "bundle", copy_function=os.link)
    add_variant(folder, "fp16")
    return folder


def test_auto_takes_the_gpu_where_an_engine_is_built(
    box: Box, folder: Path, real: tuple[Bundle, OnnxRuntimeSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "gpus", lambda: [GPU])
    monkeypatch.setattr(candidates, "find_spec", lambda name: name != "tensorrt_rtx" or None)
    bent = 0.0

    def compute(batch: Float32) -> Outputs:
        outputs = real[1].run(batch)
        return outputs._replace(logits=outputs.logits + np.float32(bent))

    box.load(FakeEngine(box.cuda, compute, size=small.SIZE, half=small.SIZE // 2, most=4, width=WIDTH))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    bundle = Bundle.open(folder)
    assert open_here(bundle) == ("onnxruntime", "fp32")
    engine = built(bundle)
    assert open_here(bundle) == ("tensorrt", "fp16")
    noted = engines.load(engine.folder).sidecar
    assert (noted["state"], noted["driver"]) == ("golden check passed on NVIDIA Test 86", "999.1")
    bent = 1.0
    assert open_here(bundle) == ("tensorrt", "fp16"), "on record"
    assert open_here(bundle, verify=True) == ("onnxruntime", "fp32")
    with pytest.raises(ParityError, match=r"tensorrt 10\.3\.0 fp16 does not reproduce"):
        select.open_sessions(bundle, precision="fp16")
    (engine.folder / engines.PLAN).write_bytes(b"tampered")
    with pytest.raises(EngineError, match="its SHA-256 is not the sidecar's"):
        select.open_sessions(bundle, backend="tensorrt")


def open_here(bundle: Bundle, **asked: Any) -> tuple[str, str]:
    sessions = select.open_sessions(bundle, **asked)
    return sessions.backend, sessions.precision


def module(name: str, **content: Any) -> ModuleType:
    made = ModuleType(name)
    vars(made).update(content)
    return made


def test_the_runtime_has_two_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cuda", "cuda.bindings", "cuda.bindings.runtime", "cuda.cudart"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EngineError, match="need cuda-python, which is not installed: pip install 'cuda-python"):
        cuda_module.runtime()
    old = module("cuda.cudart")
    monkeypatch.setitem(sys.modules, "cuda", module("cuda", cudart=old))
    assert cuda_module.runtime() is old
    new = module("cuda.bindings.runtime")
    monkeypatch.setitem(sys.modules, "cuda.bindings", module("cuda.bindings", runtime=new))
    assert cuda_module.runtime() is new


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: FakeCuda(driver=0), "cudaDriverGetVersion gives 0"),
        (lambda: FakeCuda(devices=0), "cudaErrorNoDevice 100"),
        (
            lambda: failing("cudaGetDeviceCount"),
            "cudaErrorInsufficientDriver 35: in words.*with a driver for CUDA 13000",
        ),
        (lambda: module("old"), "no attribute 'cudaDriverGetVersion'"),
    ],
    ids=["none", "no device", "too old", "another library"],
)
def test_no_driver_is_told_with_the_next_step(box: Box, made: Callable[[], Any], message: str) -> None:
    box.cuda = made()
    with pytest.raises(
        EngineError, match=rf"no CUDA driver on this box: .*{message}.*install NVIDIA's driver.*--backend onnx"
    ):
        box.open()


def failing(name: str) -> FakeCuda:
    cuda = FakeCuda()
    cuda.fail[name] = cudaError_t.cudaErrorInsufficientDriver
    return cuda


def test_no_such_device_is_told(box: Box) -> None:
    with pytest.raises(EngineError, match=r"no CUDA device 1 on this box \(it has 1\)"):
        TensorRTSession(box.plan, backend="tensorrt", precision="fp16", device=1)


def test_the_real_rtx_on_a_box_without_a_driver(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")
    if gpus():
        pytest.skip("this box has a GPU")
    (tmp_path / "engine.plan").write_bytes(b"plan")
    with pytest.raises(EngineError, match=r"cuda-python, which is not installed|no CUDA driver on this box") as caught:
        TensorRTSession(tmp_path / "engine.plan", backend="tensorrt-rtx", precision="fp16")
    assert "--backend onnxruntime" in str(caught.value)


def test_every_call_is_one_that_cuda_python_has() -> None:
    pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-python")
    real = cuda_module.runtime()
    names = [name for name in vars(FakeCuda) if name.startswith("cuda")]
    assert len(names) > 18
    assert [name for name in names if not hasattr(real, name)] == []
    for kind, members in (
        ("cudaMemcpyKind", FakeCuda.cudaMemcpyKind),
        ("cudaStreamCaptureMode", FakeCuda.cudaStreamCaptureMode),
    ):
        assert all(hasattr(getattr(real, kind), member) for member in vars(members))
