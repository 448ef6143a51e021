"""Measuring candidates in turn, and the choice and the words that follow from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cxrvit_edge.runtime import measure


class Clock:
    """Time passes only in what is run."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order = ""

    def run(self, name: str, *seconds: float) -> Callable[[], None]:
        """Takes each of `seconds` in turn, then the last for good."""
        left = list(seconds)

        def work() -> None:
            self.order += name
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return work

    def __call__(self) -> float:
        return self.now


def test_candidates_alternate_after_a_warm_up_and_the_best_counts() -> None:
    clock = Clock()
    runs = {"a": clock.run("a", 0.01, 0.5, 0.4, 0.6), "b": clock.run("b", 0.01, 0.3, 0.35, 0.2, 0.3)}
    times = measure.interleaved(runs, seconds=2.0, clock=clock)
    assert clock.order == "ab" * 4, "warm-up, then three rounds: two do not fill the time"
    assert times == pytest.approx({"a": 0.4, "b": 0.2})


def test_a_slow_box_gets_two_rounds_and_a_fast_one_no_more_than_fifty() -> None:
    slow = Clock()
    measure.interleaved({"a": slow.run("a", 9.0), "b": slow.run("b", 9.0)}, seconds=3.0, clock=slow)
    assert slow.order == "ab" * 3
    fast = Clock()
    measure.interleaved({"a": fast.run("a", 1e-6), "b": fast.run("b", 1e-6)}, seconds=3.0, clock=fast)
    assert fast.order == "ab" * 51


@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_as_many_rounds_as_are_asked_for_whatever_the_time(seconds: float) -> None:
    clock = Clock()
    runs = {"a": clock.run("a", 1.0, 4.0, 3.0, 5.0), "b": clock.run("b", 1.0, 2.0)}
    times = measure.interleaved(runs, seconds=seconds, rounds=(3, 3), clock=clock)
    assert clock.order == "ab" * 4
    assert times == pytest.approx({"a": 3.0, "b": 2.0}), "the first round, quicker here, does not count"


@pytest.mark.parametrize(
    ("times", "chosen", "words"),
    [
        ({"fp32": 1.0, "int8": 1.04}, "fp32", ["int8 is 4 % slower here than fp32: fp32"]),
        ({"fp32": 1.0, "int8": 3.0}, "fp32", ["int8 is 200 % slower here than fp32: fp32"]),
        ({"fp32": 1.6, "int8": 1.0}, "int8", ["int8 is 1.6 times as fast as fp32 here: int8"]),
        ({"fp32": 1.1, "int8": 1.0}, "int8", ["int8 is 10 % faster here than fp32: int8"]),
        ({"fp32": 1.0, "int8": 1.001}, "fp32", ["int8 is no faster here than fp32: fp32"]),
        ({"fp32": 1.0299, "int8": 1.0}, "fp32", ["int8 is only 3 % faster here than fp32: fp32"]),
        ({"fp32": 1.0301, "int8": 1.0}, "int8", ["int8 is 3 % faster here than fp32: int8"]),
        ({"fp16": 1.0, "int8": 0.98}, "fp16", ["int8 is only 2 % faster here than fp16: fp16"]),
        ({"int8": 1.0, "fp16": 1.0}, "fp16", ["int8 is no faster here than fp16: fp16"]),
        ({"fp32": 2.0, "fp16": 1.01, "int8": 1.0}, "fp16", ["fp16 is 2.0 times as fast", "int8 is only 1 % faster"]),
        ({"fp32": 1.0}, "fp32", []),
    ],
)
def test_choice_and_words(times: dict[str, float], chosen: str, words: list[str]) -> None:
    assert measure.choose(times) == chosen
    told = measure.told(times)
    assert [sentence[: len(word)] for sentence, word in zip(told, words, strict=True)] == words
    assert all(sentence.endswith(f": {chosen}") for sentence in told)


def test_a_record_is_found_by_all_that_it_depends_on(fresh_cache: Path) -> None:
    path = measure.record(["bundle", 2])
    assert path == measure.record(["bundle", 2])
    assert len({path, measure.record(["bundle", 3]), measure.record(["bundle2"]), measure.record(["b", "undle2"])}) == 4
    assert measure.recorded(path, ["fp32", "int8"]) is None
    measure.keep(path, {"fp32": 1.0, "int8": 2.0}, bundle="b")
    assert measure.recorded(path, ["int8", "fp32"]) == {"int8": 2.0, "fp32": 1.0}
    assert measure.recorded(path, ["fp32"]) is None
    assert measure.recorded(path, ["fp32", "fp16"]) is None


def test_batches_are_those_of_triage() -> None:
    assert [measure.batch_of(name) for name in ("onnxruntime", "torch", "tensorrt", "tensorrt-rtx")] == [2, 2, 8, 8]
