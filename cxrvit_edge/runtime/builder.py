"""One ONNX file compiled by TensorRT (10.3 and newer) or TensorRT for RTX, which needs no GPU for that.

Strongly typed: the precision is what the graph says, on every version.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cxrvit_edge.errors import EngineError, UsageError
from cxrvit_edge.runtime import network as networks
from cxrvit_edge.runtime.fusion import Sources
from cxrvit_edge.runtime.layers import is_layer_line

MODULES: Mapping[str, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
NAMES: Mapping[str, str] = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT for RTX"}
RECIPE: Mapping[str, Any] = {"recipe": 1, "strongly_typed": True, "profiling_verbosity": "detailed"}  # part of the key
NOT_RTX = "Jetson Orin (sm87), Hopper (sm90) and Thor (sm110) are no RTX targets: build on that box, with TensorRT"
Step = Callable[[str, float], None]  # phase, fraction done of the whole
_INPUT = "image"


@dataclass(frozen=True)
class Profile:
    """Batch sizes that an engine takes; `best` is the one that it is tuned for."""

    least: int = 1
    best: int = 1
    most: int = 4


@dataclass(frozen=True)
class Compiled:
    """plan: the engine as other tools read it; lines: the compiled layer list as printed; log: its last warnings."""

    plan: memoryview
    lines: list[str]
    sources: Sources
    log: list[str]
    seconds: float
    version: str


def installed() -> list[str]:
    """Back ends that can be imported, TensorRT first."""
    return [backend for backend, module in MODULES.items() if find_spec(module) is not None]


def load(backend: str) -> Any:
    """The module of a back end. EngineError says how to install it."""
    import importlib

    how = {
        "tensorrt": "on a Jetson it comes with JetPack (make the venv with --system-site-packages), elsewhere: "
        "pip install 'cxrvit-edge[tensorrt]'",
        "tensorrt-rtx": "pip install 'cxrvit-edge[rtx]' (x86-64 only)",
    }
    try:
        return importlib.import_module(MODULES[backend])
    except ImportError as error:
        cause = "is not installed" if find_spec(MODULES[backend]) is None else f"cannot be loaded ({error})"
        raise EngineError(f"{NAMES[backend]} {cause}; {how[backend]}") from error


def targets() -> dict[str, Any]:
    """GPU generations that the installed RTX compiles for, such as "86", and its constant for each."""
    members = load("tensorrt-rtx").ComputeCapability.__members__
    return {name[2:]: value for name, value in members.items() if name.startswith("SM")}


def target(name: str) -> str:
    """ "sm86", "86" or "8.6" -> "86". UsageError names those that the installed RTX knows."""
    sm = name.strip().lower().removeprefix("sm").replace(".", "")
    known = targets()
    if sm not in known:
        listed = ", ".join(f"sm{k}" for k in known)
        raise UsageError(f"--target {name}: {NAMES['tensorrt-rtx']} {version('tensorrt-rtx')} has {listed}; {NOT_RTX}")
    return sm


def version(backend: str) -> str:
    return str(load(backend).__version__)


def compile_onnx(
    path: Path,
    *,
    backend: str,
    sm: str | None = None,
    profile: Profile | None = None,
    timing_cache: Path | None = None,
    progress: Step | None = None,
) -> Compiled:
    """Compile. sm: an RTX target such as "86"; None is this box's GPU, which TensorRT always builds for.

    timing_cache: file of TensorRT's measurements, read before and added to afterwards; RTX has none. progress is
    called from another thread. EngineError names the file, the node and the cause; an interrupt ends the compilation.
    """
    trt = load(backend)
    if backend != "tensorrt-rtx" and sm is not None:
        raise UsageError(f"--target sm{sm}: TensorRT builds for the GPU of its own box; leave --target out there")
    if not path.is_file():
        raise EngineError(f"{path}: no such file; export the bundle again")
    logger, monitor = _logger(trt), _monitor(trt, progress)

    def work() -> Compiled:
        started = time.monotonic()
        made = _builder(trt, logger, path)
        network, _parser = _parsed(trt, made, logger, path)  # the parser holds weights that the network refers to
        config = made.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        if monitor is not None:
            config.progress_monitor = monitor
        config.add_optimization_profile(_profile(made, network, profile or Profile(), path))
        if sm is not None:
            config.num_compute_capabilities = 1
            config.set_compute_capability(targets()[sm], 0)
        with _timing(config, timing_cache if backend == "tensorrt" else None):
            plan = made.build_serialized_network(network, config)
        if plan is None:
            raise EngineError(_why_not_built(path, backend, logger))
        lines = logger.lines or inspected(backend, plan)
        seconds = time.monotonic() - started
        return Compiled(
            memoryview(plan), lines, networks.sources(trt, network), list(logger.tail), seconds, trt.__version__
        )

    return _run(work, monitor)


def _builder(trt: Any, logger: Any, path: Path) -> Any:
    try:
        builder = trt.Builder(logger)
    except Exception as error:  # pybind's own: a null pointer, where CUDA cannot start
        raise EngineError(_cannot_start(path, trt, [*logger.errors, str(error)])) from error
    return builder


def _cannot_start(path: Path, trt: Any, errors: list[str]) -> str:
    cause = _short(errors[0]) if errors else "no cause given"
    return f"{path}: {trt.__name__} {trt.__version__} cannot start a build ({cause}); `cxrvit-edge doctor` says more"


def _parsed(trt: Any, builder: Any, logger: Any, path: Path) -> tuple[Any, Any]:
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # RTX and 11 know nothing else
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, logger)
    if parser.parse_from_file(os.fspath(path)) and network.num_inputs:
        return network, parser
    told = []
    for i in range(parser.num_errors):
        error = parser.get_error(i)
        at = f"node {error.node_name()!r} ({error.node_operator()}): " if error.node_operator() else ""
        unknown = "plugin not found" in error.desc().lower()
        told.append(f"{at}{'no such operator' if unknown else _short(error.desc())}")
    cause = told[0] if told else _short(logger.errors[0]) if logger.errors else "it holds no network"
    raise EngineError(
        f"{path}: {trt.__name__} {trt.__version__} cannot read the graph: {cause}; export the bundle again, "
        "or run this graph with --backend onnxruntime"
    )


def _profile(builder: Any, network: Any, profile: Profile, path: Path) -> Any:
    image = network.get_input(0)
    shape = tuple(image.shape)
    if network.num_inputs != 1 or image.name != _INPUT or len(shape) != 4 or any(n <= 0 for n in shape[1:]):
        raise EngineError(f"{path}: its input is {image.name} {shape}, not image (batch, 1, S, S); no graph of ours")
    made = builder.create_optimization_profile()
    made.set_shape(_INPUT, *((n, *shape[1:]) for n in (profile.least, profile.best, profile.most)))
    return made


def _run(work: Callable[[], Compiled], monitor: Any) -> Compiled:
    """In a thread of its own: an interrupt that lands in one of TensorRT's callbacks is lost there."""
    made: list[Compiled] = []
    failed: list[BaseException] = []
    done = threading.Event()  # Thread.join() takes a thread for ended when it is interrupted

    def caught() -> None:
        try:
            made.append(work())
        except BaseException as error:
            failed.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=caught, name="cxrvit-edge-build")
    try:
        thread.start()
        while not done.wait(0.1):
            pass
    except RuntimeError:  # no thread to be had
        raise
    except BaseException:
        if monitor is not None:
            monitor.stop = True
        done.wait()
        raise
    if failed:
        raise failed[0]
    return made[0]


def _why_not_built(path: Path, backend: str, logger: Any) -> str:
    errors = logger.errors or ["no cause given"]
    text = " ".join(errors).lower()
    start = f"{path}: {NAMES[backend]} built no engine"
    if "out of memory" in text or "outofmemory" in text or "bad_alloc" in text:
        return f"{start}: out of memory; close other programs or give a smaller --batch-size ({_short(errors[0])})"
    if "cudaerror 35" in text or "driver version is insufficient" in text or "no cuda-capable device" in text:
        return f"{start}: no GPU or no driver for it here; build for a --target, which needs none, or on the box itself"
    if "not supported by a dedicated kernel" in text:
        return f"{start}: attention cannot be fused ({_short(errors[0])}); export the bundle with attention decomposed"
    named = next((e for e in errors if "[ONNX Layer" in e or "node" in e.lower()), errors[0])
    return f"{start}: {_short(named)}; run this variant with --backend onnxruntime"


def _short(text: str) -> str:
    return " ".join(text.split())[:300].rstrip(".; ")


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):
        """Collects the layer list, the errors, and the last of what else was worth a line."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []
            self.errors: list[str] = []
            self.tail: deque[str] = deque(maxlen=40)

        def log(self, severity: Any, message: str) -> None:
            if severity == trt.ILogger.Severity.VERBOSE:
                if ", LayerType: " in message:
                    self.lines += filter(is_layer_line, message.split("\n"))
            elif severity != trt.ILogger.Severity.INFO:
                self.tail.append(f"{severity.name}: {message}")
                if severity != trt.ILogger.Severity.WARNING:
                    self.errors.append(message)

    return Logger()


def _monitor(trt: Any, progress: Step | None) -> Any:
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(trt.IProgressMonitor):
        """Nested phases as one fraction; `stop` cancels at the next step."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.stop = False
            self._phases: dict[str, list[int]] = {}  # running, outermost first: steps done, of how many
            self._fraction = 0.0

        def phase_start(self, phase: str, _parent: str | None, steps: int) -> None:
            self._phases[phase] = [0, max(steps, 1)]
            self._tell(phase)

        def step_complete(self, phase: str, step: int) -> bool:
            if phase in self._phases:
                self._phases[phase][0] = step + 1
                self._tell(phase)
            return not self.stop

        def phase_finish(self, phase: str) -> None:
            self._phases.pop(phase, None)

        def _tell(self, phase: str) -> None:
            if progress is None:
                return
            fraction = 0.0
            for done, steps in reversed(list(self._phases.values())):
                fraction = min(1.0, (done + fraction) / steps)
            self._fraction = max(self._fraction, fraction)
            progress(phase, self._fraction)

    return Monitor()


@contextlib.contextmanager
def _timing(config: Any, path: Path | None) -> Iterator[None]:
    """TensorRT's timing cache from and to a file. One that cannot be read, or written, costs time and nothing else."""
    if path is None:
        yield
        return
    config.set_timing_cache(config.create_timing_cache(_bytes(path)), False)
    yield
    cache = config.get_timing_cache()
    if cache is None:
        return
    if theirs := _bytes(path):  # another process may have added to it meanwhile
        cache.combine(config.create_timing_cache(theirs), False)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(memoryview(cache.serialize()))
        temporary.replace(path)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def inspected(backend: str, plan: Any) -> list[str]:
    """The layer list as the engine inspector gives it, one text of JSON. EngineError if the plan does not load here."""
    trt = load(backend)
    logger = _logger(trt)
    runtime = trt.Runtime(logger)  # outlives the engine
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        cause = _short(logger.errors[0]) if logger.errors else "no cause given"
        raise EngineError(f"{NAMES[backend]} {trt.__version__} does not load this engine here ({cause})")
    return [engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)]
