"""Schedules and the timeline that a step's number is read off; the paper's settings are the defaults of its preset."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxrvit_edge.errors import UsageError
from train.augment import Augmentation
from train.recipe import PAPER, SHORT, Phase, Recipe, Timeline, changed, default, parse_schedule

# Schedules


def test_schedules_are_of_steps_or_epochs() -> None:
    assert parse_schedule("512:10000:16") == (Phase(512, 10000, 16),)
    assert parse_schedule("256:13e:16,512:7:8") == (Phase(256, 13, 16, epochs=True), Phase(512, 7, 8))
    assert parse_schedule("256:13e:16")[0].steps(100) == 13 * 6
    assert parse_schedule("256:13:16")[0].steps(100) == 13


@given(st.lists(st.tuples(st.integers(1, 64), st.integers(1, 999), st.integers(1, 99), st.booleans()), min_size=1))
def test_a_schedule_that_is_written_is_read_back(parts: list[tuple[int, int, int, bool]]) -> None:
    text = ",".join(f"{32 * size}:{length}{'e' * epochs}:{batch}" for size, length, batch, epochs in parts)
    assert parse_schedule(text) == tuple(Phase(32 * s, n, b, e) for s, n, b, e in parts)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "256",
        "256:1",
        "256:1:4:9",
        "256:a:4",
        "256:e:4",
        "256:1ee:4",
        "256:1:4e",
        "256:1:4,",
        "256;1;4",
        "256:1.5:4",
    ],
)
def test_schedules_that_cannot_be_read_are_shown_how(text: str) -> None:
    with pytest.raises(UsageError, match=r"write size:steps:batch or size:epochs\+e:batch, joined by commas"):
        parse_schedule(text)


@pytest.mark.parametrize("text", ["100:1:4", "0:1:4", "-64:1:4", "64:0:4", "64:0e:4", "64:1:0", "64:1:4,65:1:4"])
def test_schedules_out_of_range_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="sizes are multiples of 32, lengths and batches at least 1"):
        parse_schedule(text)


# Timeline, against loops

PHASES = st.lists(
    st.builds(Phase, st.sampled_from([64, 96]), st.integers(1, 5), st.integers(1, 6), st.booleans()),
    min_size=1,
    max_size=3,
).map(tuple)


def walk(phases: tuple[Phase, ...], images: int) -> list[tuple[int, int, int]]:
    """(phase, epoch, batch) of each step, by going through all of them."""
    out: list[tuple[int, int, int]] = []
    epoch = 0
    for number, phase in enumerate(phases):
        whole = images // phase.batch
        left = phase.length * whole if phase.epochs else phase.length
        while left:
            out += [(number, epoch, batch) for batch in range(min(whole, left))]
            left -= min(whole, left)
            epoch += 1
    return out


@given(PHASES, st.integers(6, 20), st.integers(0, 4))
def test_the_timeline_is_a_walk_through_phases_epochs_and_batches(
    phases: tuple[Phase, ...], images: int, every: int
) -> None:
    timeline, steps = Timeline(Recipe(phases, validate=every), images), walk(phases, images)
    assert timeline.steps == len(steps)
    for step, (number, epoch, batch) in enumerate(steps):
        assert timeline.phase(step) == number
        assert timeline.place(step) == (phases[number], epoch, batch)
        following = steps[step + 1] if step + 1 < len(steps) else None
        ends = following is None or following[0] != number
        assert timeline.last_of_phase(step) == ends
        new_epoch = following is not None and following[1] != epoch
        assert timeline.validates(step) == (ends or ((step + 1) % every == 0 if every else new_epoch))
    assert timeline.phase(len(steps)) == len(phases) - 1


def test_fewer_images_than_a_batch_are_refused() -> None:
    phases = parse_schedule("64:1e:4,64:1e:8")
    with pytest.raises(UsageError, match="7 training images are fewer than one batch of 8; lower the batch"):
        Timeline(Recipe(phases), 7)
    assert Timeline(Recipe(phases), 8).steps == 3


def rates(recipe: Recipe, images: int = 1000) -> list[float]:
    timeline = Timeline(recipe, images)
    return [timeline.lr(step) for step in range(timeline.steps)]


def test_the_rate_warms_up_in_equal_steps_and_then_falls_as_a_cosine() -> None:
    found = rates(Recipe((Phase(64, 104, 4),), lr=1.0, warmup=4))
    assert found[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert found[54] == pytest.approx(0.5)
    assert found[29] == pytest.approx(0.5 * (1 + 0.5**0.5))
    assert all(a >= b for a, b in itertools.pairwise(found[4:]))
    assert min(found[4:]) == 0.01  # never quite nothing


def test_step_decay_is_a_tenth_at_a_half_and_again_at_three_quarters() -> None:
    found = rates(Recipe((Phase(64, 8, 4),), lr=1.0, warmup=0, decay="step"))
    assert found == [1.0] * 4 + [0.1] * 2 + [0.01] * 2


def test_a_constant_rate_stays() -> None:
    assert set(rates(Recipe((Phase(64, 9, 4),), lr=0.5, warmup=0, decay="constant"))) == {0.5}


def test_other_batches_have_the_rate_of_their_root() -> None:
    found = rates(Recipe((Phase(64, 2, 4), Phase(96, 2, 16), Phase(96, 2, 1)), lr=1.0, warmup=0, decay="constant"))
    assert found == [1.0, 1.0, 2.0, 2.0, 0.5, 0.5]


# Recipes


def test_the_papers_settings_are_section_4_4s() -> None:
    """Backbone: Adam, 0.0001, 160,000 steps of 8, step decay. Classification: SGD, 0.9, 0.001, norm 1, 10,000 of 16,
    cosine after 500. Severity: SGD, 0.003, 12,000 of 4, constant."""
    b, d, s = PAPER["backbone"], PAPER["diagnosis"], PAPER["severity"]
    assert (b.optimizer, b.lr, b.phases, b.decay) == ("adam", 1e-4, (Phase(512, 160_000, 8),), "step")
    assert (d.optimizer, d.momentum, d.lr, d.clip) == ("sgd", 0.9, 1e-3, 1.0)
    assert (d.phases, d.decay, d.warmup) == ((Phase(512, 10_000, 16),), "cosine", 500)
    assert (s.optimizer, s.lr, s.phases, s.decay) == ("sgd", 3e-3, (Phase(512, 12_000, 4),), "constant")
    for recipe in (b, d, s):  # of none of these does it speak
        assert recipe.weight_decay == recipe.ema == 0.0
        assert recipe.accumulate == 1
    assert (b.clip, s.clip, b.warmup, s.warmup) == (0.0, 0.0, 0, 0)


def test_only_the_preset_paper_has_the_papers_settings() -> None:
    assert set(PAPER) == set(SHORT)
    for stage in PAPER:
        assert default(stage, "paper") is PAPER[stage]
        assert default(stage, "edge") is default(stage, "small") is SHORT[stage]


def test_a_value_that_is_not_given_stays() -> None:
    recipe = changed(PAPER["diagnosis"], lr=0.5, clip=0.0, seed=None, balance=False)
    assert recipe == replace(PAPER["diagnosis"], lr=0.5, clip=0.0)


def test_a_recipe_is_written_and_read_as_json() -> None:
    recipe = Recipe(parse_schedule("64:1e:4"), augmentation=Augmentation(noise=0.5))
    raw = json.loads(json.dumps(recipe.to_dict()))
    assert raw["phases"] == [{"size": 64, "length": 1, "batch": 4, "epochs": True}]
    assert raw["augmentation"]["noise"] == 0.5
    assert json.loads(json.dumps(replace(recipe, augmentation=None).to_dict()))["augmentation"] is None


@pytest.mark.parametrize(
    ("values", "option"),
    [
        ({"optimizer": "lion"}, "--optimizer lion: choose one of adam, adamw, sgd"),
        ({"decay": "linear"}, "--decay linear: choose one of constant, cosine, step"),
        ({"precision": "fp8"}, "--precision fp8: choose one of auto, fp32, bf16, fp16"),
        ({"freeze": "head"}, "--freeze head: choose one of none, batchnorm, early, backbone"),
        ({"phases": ()}, "--schedule is empty"),
        ({"accumulate": 0}, "--accumulate 0"),
        ({"accumulate": 3}, "--accumulate 3: every batch of the schedule must be a multiple of it"),
        ({"ema": 1.0}, "--ema is in 0-1"),
        ({"ema": float("nan")}, "--ema is in 0-1"),
        ({"lr": 0.0}, "--lr above 0"),
        ({"lr": float("nan")}, "--lr above 0"),
        ({"warmup": -1}, "--warmup, --validate and --patience not negative"),
        ({"validate": -1}, "--validate"),
        ({"patience": -1}, "--patience"),
        ({"encoder_rate": 0.0}, "--encoder-rate is above 0"),
        ({"encoder_rate": 1.5}, "--encoder-rate is above 0, 1 at most"),
        ({"momentum": 1.0}, "--momentum is in 0-1"),
        ({"clip": -1.0}, "--clip and --weight-decay are not negative"),
        ({"weight_decay": -0.1}, "--weight-decay"),
        ({"seed": -1}, "--seed -1"),
        ({"seed": 2**31}, "--seed 2147483648"),
    ],
)
def test_what_a_recipe_cannot_be_names_its_option(values: dict[str, Any], option: str) -> None:
    with pytest.raises(UsageError, match=option):
        Recipe(**{"phases": (Phase(64, 1, 4),), **values})
