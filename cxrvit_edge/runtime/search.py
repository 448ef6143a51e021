"""The search for how ONNX Runtime, or OpenVINO, runs a variant fastest here: what `build` does where there is no GPU.

Measured as triage runs it, beside threads that decode and preprocess as many films as are in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from time import perf_counter
from typing import Any

import numpy as np

from cxrvit_edge.bundle import Bundle
from cxrvit_edge.errors import ParityError
from cxrvit_edge.host import cores, cpu_flags
from cxrvit_edge.runtime import golden, measure, tuning
from cxrvit_edge.runtime.onnxruntime import LEVELS, OnnxRuntimeSession, Settings
from cxrvit_edge.runtime.openvino import ARITHMETICS, OpenVinoSession
from cxrvit_edge.runtime.session import Float32, Session
from cxrvit_edge.runtime.tuning import BATCHES, Tuned

WORTH = 1.03  # what wins less is not worth leaving what is there
SECONDS = 3.0  # of measuring one setting's choices, or half of the batch sizes; a slow box takes what two rounds take
FILM = 2048  # rows and columns of what is decoded beside a session
BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}  # instruction sets that multiply it
REST = 0.01  # seconds before each run: threads that spin after one would take from the next
Say = Callable[[str], None]


def tune(
    bundle: Bundle,
    backend: str,
    precision: str,
    variant: str,
    *,
    seconds: float | None = None,
    say: Say = lambda _: None,
) -> Tuned:
    """Measure, prove and record. ParityError or EngineError, and no record, if what was found does not pass.

    backend onnxruntime: a search along one setting after another, each choice against the best so far, then the batch
    size. backend openvino: the arithmetic of what int8 leaves in float32, then the batch size.
    """
    seconds = SECONDS if seconds is None else seconds
    graphs = sorted(set(bundle.manifest.views.values()))
    tuning.forget(bundle, backend, variant)
    with _Load(bundle) as load:
        best, gain, arithmetic = Settings(), 1.0, ARITHMETICS[0]
        if backend == "onnxruntime":
            best, gain = _settings(bundle, variant, precision, load, seconds, say)
        elif precision == "int8":
            arithmetic, gain = _arithmetic(bundle, variant, precision, load, seconds, say)
        plain = Tuned(best, BATCHES[0], dict.fromkeys(BATCHES, 1.0), arithmetic=arithmetic)
        session = tuning.open_session(bundle, backend, variant, graphs[0], precision, 0, plain)
        by_size = _sizes(session, load, seconds)
    found = Tuned(best, _batch(by_size), by_size, gain, arithmetic=arithmetic)
    if backend == "onnxruntime":
        digests = {graph: tuning.optimise(bundle, variant, graph, precision, best) for graph in graphs}
        found = replace(found, graphs={graph: pair for graph, pair in digests.items() if pair})
    film = golden.load_inputs(bundle)[:1]
    start = perf_counter()
    opened = {graph: tuning.open_session(bundle, backend, variant, graph, precision, 0, found) for graph in graphs}
    opened[graphs[0]].run(film)
    found = replace(found, first_seconds=perf_counter() - start)
    try:
        for graph in graphs:
            golden.check(bundle, variant, graph, opened[graph], again=True)
    except Exception:
        tuning.forget(bundle, backend, variant)
        raise
    tuning.keep(bundle, backend, variant, precision, found)
    rate = f"{found.images_a_second:.2f} images a second in batches of {found.batch_size}"
    say(f"{backend} {precision}: {rate}")
    return found


def _settings(
    bundle: Bundle, variant: str, precision: str, load: _Load, seconds: float, say: Say
) -> tuple[Settings, float]:
    """The fastest, and how many times as fast as ONNX Runtime's own they are."""
    path = bundle.file(bundle.variant(variant).files[min(bundle.manifest.views.values())])
    at = measure.batch_of("onnxruntime")

    def times(tried: list[Settings]) -> dict[Settings, float]:
        runners = {
            settings: load.runner(OnnxRuntimeSession(path, precision=precision, settings=settings), at)
            for settings in dict.fromkeys(tried)
        }
        return measure.interleaved(runners, seconds=seconds, rest=REST)

    default = best = Settings()
    for choices in _coordinates():
        best = _worth_it(times([best, *(replace(best, **choice) for choice in choices)]), best)
        say(f"onnxruntime {precision}: {best.told()}")
    if best == default:
        return default, 1.0
    both = times([default, best])
    gain = both[default] / both[best]
    return (best, gain) if gain >= WORTH else (default, 1.0)  # several small wins that are none together


def _arithmetic(
    bundle: Bundle, variant: str, precision: str, load: _Load, seconds: float, say: Say
) -> tuple[str, float]:
    """bf16, and how many times as fast it is, where the processor has it, it wins, and the golden outputs of the
    variant are reproduced with it: they allow for the rounding of int8, which is coarser."""
    plain, half = ARITHMETICS
    if not BFLOAT16 & set(cpu_flags()):
        return plain, 1.0
    paths = {graph: bundle.file(bundle.variant(variant).files[graph]) for graph in set(bundle.manifest.views.values())}
    path = paths[min(paths)]
    tried = {name: OpenVinoSession(path, precision=precision, arithmetic=name) for name in ARITHMETICS}
    size = measure.batch_of("openvino")
    times = measure.interleaved(
        {name: load.runner(session, size) for name, session in tried.items()}, seconds=seconds, rest=REST
    )
    gain = times[plain] / times[half]
    if gain < WORTH:
        return plain, 1.0
    try:
        for graph, path in paths.items():
            session = OpenVinoSession(path, precision=precision, arithmetic=half)
            golden.check(bundle, variant, graph, session, again=True)
    except ParityError as error:
        say(f"openvino {precision}: not in bfloat16: {error}")
        return plain, 1.0
    say(f"openvino {precision}: bfloat16 where the graph has float32")
    return half, gain


class _Load:
    """What runs beside a session in triage: each film of a batch is decoded from JPEG and preprocessed in a thread."""

    def __init__(self, bundle: Bundle) -> None:
        import cv2

        from cxrvit_edge.preprocess import PreprocessConfig

        self._config = PreprocessConfig.from_dict(bundle.manifest.preprocessing)
        self._films: Float32 = golden.load_inputs(bundle)  # (N, 1, S, S)
        film = np.clip(self._films[0, 0] * 64 + 128, 0, 255).astype(np.uint8)
        large = cv2.resize(film, (FILM, FILM), interpolation=cv2.INTER_LINEAR)
        self._jpeg = cv2.imencode(".jpg", large)[1]
        self._pool = ThreadPoolExecutor(cores(), thread_name_prefix="cxrvit-edge-tuning")

    def __enter__(self) -> _Load:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def _decode(self) -> None:
        import cv2

        from cxrvit_edge.preprocess import preprocess
        from cxrvit_edge.radiograph import Radiograph

        pixels = cv2.imdecode(self._jpeg, cv2.IMREAD_GRAYSCALE)
        preprocess(Radiograph(np.asarray(pixels, np.uint8)), self._config)

    def runner(self, session: Session, size: int) -> Callable[[], None]:
        """A batch of `size` through the session, and as many films decoded meanwhile; done when both are."""
        batch = self._films[np.arange(size) % len(self._films)]

        def run() -> None:
            waiting = [self._pool.submit(self._decode) for _ in range(size)]
            session.run(batch)
            for future in waiting:
                future.result()

        return run


def _coordinates() -> Iterator[list[dict[str, Any]]]:
    """Choices for one setting after another, the one that matters most first."""
    count = cores()
    threads = sorted({1, count, *(n for n in (2, 4, 8, 16, 32, count // 2, count - 1) if 1 < n < count)})
    yield [{"threads": n} for n in threads]
    yield [{"spinning": True}, {"spinning": False}]
    yield [{"memory": "arena"}, {"memory": "arena without pattern"}, {"memory": "system"}]
    yield [{"level": level} for level in LEVELS]


def _worth_it(times: Mapping[Settings, float], so_far: Settings) -> Settings:
    fastest = min(times, key=lambda settings: times[settings])
    return fastest if times[so_far] > times[fastest] * WORTH else so_far


def _sizes(session: Session, load: _Load, seconds: float) -> dict[int, float]:
    """Seconds of batches; the largest is left out where the one before it gained nothing."""

    def times(sizes: tuple[int, ...]) -> dict[int, float]:
        return measure.interleaved({size: load.runner(session, size) for size in sizes}, seconds=seconds, rest=REST)

    found = times(BATCHES[:-1])
    return found if _batch(found) != BATCHES[-2] else {**found, **times(BATCHES[-2:])}


def _batch(seconds: Mapping[int, float]) -> int:
    """The smallest size that is within 3 % of the best an image: the rest only takes memory."""
    limit = min(value / size for size, value in seconds.items()) * WORTH
    return min(size for size, value in seconds.items() if value / size <= limit)
