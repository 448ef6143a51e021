"""Scenarios on a clock of our own: order, percentiles, histogram, energy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxrvit_edge.benchmark import scenarios
from cxrvit_edge.benchmark.candidates import Contender
from cxrvit_edge.benchmark.scenarios import Film, histogram, in_blocks, percentile
from cxrvit_edge.benchmark.sensors import Sensors
from cxrvit_edge.errors import EngineError
from cxrvit_edge.runtime.session import Float32, Outputs

SECONDS = st.lists(st.floats(1e-4, 10, allow_nan=False), min_size=1, max_size=400)


class Clock:
    """Time passes only in what is run. blocks: who ran in each, told apart by the rests between them."""

    def __init__(self) -> None:
        self.now = self.joules = 0.0
        self.blocks: list[set[str]] = [set()]

    def run(self, name: str, seconds: float, watts: float = 10.0) -> Callable[[int], None]:
        def step(number: int) -> None:
            self.blocks[-1].add(name)
            self.now += seconds
            self.joules += watts * seconds

        return step

    def rest(self, seconds: float) -> None:
        self.blocks.append(set())

    def __call__(self) -> float:
        return self.now


def timed(clock: Clock, steps: Mapping[str, Callable[[int], object]], **asked: Any) -> dict[str, scenarios.Timed]:
    return in_blocks(steps, clock=clock, rest=clock.rest, **asked)


def test_candidates_take_turns_and_the_one_that_begins_changes() -> None:
    clock = Clock()
    found = timed(clock, {"a": clock.run("a", 0.125), "b": clock.run("b", 0.25)}, seconds=2.0)
    assert clock.blocks == [{"a", "b"}, {"a"}, {"b"}, {"b"}, {"a"}, {"a"}, {"b"}, {"b"}, {"a"}], "first the warm-up"
    assert {name: t.seconds for name, t in found.items()} == {"a": [0.125] * 16, "b": [0.25] * 8}


def test_all_go_on_until_the_slowest_has_enough_samples() -> None:
    clock = Clock()
    found = timed(clock, {"a": clock.run("a", 1 / 64), "b": clock.run("b", 0.25)}, seconds=2.0, least=16)
    assert len(found["b"].seconds) == 16
    assert sum(found["a"].seconds) == 4.0, "as long as b, so that a drift hits both"


def test_a_slow_candidate_ends_before_its_least_samples() -> None:
    clock = Clock()
    found = timed(clock, {"a": clock.run("a", 2.0)}, seconds=1.0, least=64)
    assert len(found["a"].seconds) == scenarios.MOST / 2
    assert clock.now == pytest.approx(2.0 * (3 + 3)), "three more for warming up"


def test_one_that_fails_stops_and_the_others_go_on() -> None:
    clock = Clock()

    def fails(number: int) -> None:
        clock.now += 0.1
        if number == 7:
            raise EngineError("out of memory")

    def never(number: int) -> None:
        raise EngineError("no such kernel")

    found = timed(clock, {"never": never, "fails": fails, "good": clock.run("good", 0.1)}, seconds=3.0)
    assert (found["never"].error, found["fails"].error) == ("no such kernel", "out of memory")
    assert sum(found["good"].seconds) >= 3.0 and found["good"].error is None


def test_energy_is_counted_in_the_own_blocks_only() -> None:
    clock = Clock()
    steps = {"a": clock.run("a", 0.125), "b": clock.run("b", 0.125, watts=30.0)}
    found = timed(clock, steps, seconds=2.0, joules=lambda _: clock.joules)
    assert [t.joules for t in found.values()] == pytest.approx([20.0, 60.0])
    gone = timed(clock, steps, seconds=2.0, joules=lambda name: None if name == "b" else clock.joules)
    assert gone["a"].joules == pytest.approx(20.0) and gone["b"].joules is None


def test_progress_rises_to_one() -> None:
    clock, seen = Clock(), list[float]()
    timed(clock, {"a": clock.run("a", 0.1)}, seconds=2.0, least=64, progress=seen.append)
    assert seen == sorted(seen) and seen[0] == 0.0 and seen[-1] == 1.0


@given(SECONDS, st.sampled_from([0.5, 0.9, 0.99, 0.995, 1.0]))
def test_percentile_is_the_least_value_that_so_many_do_not_exceed(values: list[float], share: float) -> None:
    slow = next(v for v in sorted(values) if sum(w <= v for w in values) >= share * len(values) - 1e-9)
    assert percentile(sorted(values), share) == slow


@given(SECONDS)
def test_every_sample_is_in_the_histogram_once(values: list[float]) -> None:
    found = histogram(values)
    edges, counts = found["edges_ms"], found["counts"]
    assert sum(counts) == len(values) and len(edges) == len(counts) + 1
    assert edges == sorted(edges) and edges[0] == min(values) and edges[-1] >= max(values)
    assert len(counts) in (scenarios.BINS, scenarios.BINS + 1)
    if len(counts) > scenarios.BINS:
        assert counts[-1] == sum(v > percentile(sorted(values), 0.995) for v in values) <= 0.005 * len(values)


def contender(name: str, batch_size: int, seconds: float, clock: Clock, fails: bool = False) -> Contender:
    class Session(fakes.FakeSession):
        def run(self, batch: Float32) -> Outputs:
            if fails and len(batch) > 1:
                raise EngineError("a batch of more than one does not fit")
            clock.now += seconds * len(batch) ** 0.5
            return super().run(batch)

    sessions = fakes.sessions(Session())
    object.__setattr__(sessions, "batch_size", batch_size)
    return Contender(name, "fp32", sessions, {})


def test_figures_of_candidates(tmp_path: Path) -> None:
    clock = Clock()
    films = [Film("shared", np.zeros((1, 8, 8), np.float32)) for _ in range(5)]
    several = [
        contender("one", 4, 0.01, clock),
        contender("two", 1, 0.02, clock),
        contender("bad", 2, 0.01, clock, True),
    ]
    with Sensors(root=tmp_path, tegrastats="no-such-command") as sensors:
        figures, failed = scenarios.measure(several, films, sensors, seconds=0.5, clock=clock, rest=lambda _: None)
    assert failed == {"bad": "a batch of more than one does not fit"} and list(figures) == ["one", "two"]
    one, two = figures["one"], figures["two"]
    assert one["single_stream"]["p50_ms"] == one["single_stream"]["best_ms"] == pytest.approx(10.0)
    assert one["single_stream"]["samples"] >= scenarios.LEAST
    assert one["offline"]["batch_size"] == 4
    assert one["offline"]["images_a_second"] == pytest.approx(4 / 0.02, rel=1e-3)
    assert one["ratio"] == 1.0 and two["ratio"] == pytest.approx(4.0), "20 ms against 5 ms in batches of four"
    assert one["energy"] is None
    assert math.isclose(sum(one["single_stream"]["histogram"]["counts"]), one["single_stream"]["samples"])


def test_few_samples_are_told(tmp_path: Path) -> None:
    clock = Clock()
    slow = contender("slow", 1, 2.0, clock)
    film = Film("shared", np.zeros((1, 8, 8), np.float32))
    with Sensors(root=tmp_path, tegrastats="no-such-command") as sensors:
        figures, _ = scenarios.measure([slow], [film], sensors, seconds=1.0, clock=clock, rest=lambda _: None)
    assert figures["slow"]["single_stream"]["samples"] == 3
    assert "3 samples in single-stream: too few" in slow.to_dict()["notes"][0]


def test_batches_are_of_one_graph() -> None:
    seen: list[tuple[str, int]] = []

    class Session(fakes.FakeSession):
        def __init__(self, graph: str) -> None:
            super().__init__()
            self.graph = graph

        def run(self, batch: Float32) -> Outputs:
            seen.append((self.graph, int(batch[:, 0, 0, 0].min())))
            assert batch.min() == batch.max(), "films of the other graph are among them"
            return super().run(batch)

    sessions = fakes.sessions({"front": Session("front"), "back": Session("back")})
    films = [Film(graph, np.full((1, 4, 4), at, np.float32)) for at, graph in ((0, "front"), (1, "back"), (0, "front"))]
    step = scenarios._offline(Contender("x", "fp32", sessions, {}), films)
    for number in range(4):
        step(number)
    assert set(seen) == {("front", 0), ("back", 1)}
