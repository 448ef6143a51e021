"""The description of a network that travels with its weights."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from cxrvit_edge.errors import UsageError
from cxrvit_edge.model.config import CLASSES, FINDINGS, PRESETS, NetworkConfig, preset


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_config_survives_a_header(name: str) -> None:
    config = preset(name)
    assert config.preset == name
    assert NetworkConfig.from_json(config.to_json()) == config
    assert hash(NetworkConfig.from_json(config.to_json())) == hash(config)  # tuples come back as tuples


def test_presets_are_the_papers_and_ours() -> None:
    sizes = {name: (c.layers, c.heads, c.width, c.mlp_ratio, c.grid) for name, c in PRESETS.items()}
    assert sizes.pop("edge") == (2, 6, 384, 4, 4)
    assert sizes == {"paper": (12, 12, 768, 4, 16), "medium": (4, 8, 768, 4, 16), "small": (2, 4, 768, 4, 16)}
    assert [c.trunk_size for c in PRESETS.values()] == [128 if name == "edge" else 0 for name in PRESETS]
    assert PRESETS["edge"].width // PRESETS["edge"].heads == 64
    assert CLASSES == ("normal", "other_infection", "covid19")
    assert len(set(FINDINGS)) == 10


def test_an_unknown_preset_is_named_with_the_choice() -> None:
    with pytest.raises(UsageError, match=r"'huge'.*paper, edge, medium, small"):
        preset("huge")


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"heads": 5}, "heads 5"),
        ({"heads": 0}, "heads 0"),
        ({"image_size": 500}, "image_size 500"),
        ({"stride": 16}, "stride 16"),
        ({"stride": 48}, "stride 48"),
        ({"trunk_size": 100}, "trunk_size 100 is not a multiple of 32"),
        ({"trunk_size": -32}, "trunk_size -32"),
        ({"trunk_size": 96}, "trunk_size 96 does not divide image_size 512"),
        ({"corpus": "after-2"}, "corpus 'after-2'.*before, after-1"),
        ({"network": "vgg"}, "network 'vgg'.*cxrvit, densenet121"),
    ],
)
def test_what_cannot_be_built_is_refused(wrong: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        replace(PRESETS["edge"], **wrong)


@pytest.mark.parametrize(("trunk_size", "image_size", "seen"), [(0, 512, 512), (128, 512, 128), (128, 64, 64)])
def test_a_trunk_sees_no_more_than_its_size(trunk_size: int, image_size: int, seen: int) -> None:
    config = replace(PRESETS["edge"], trunk_size=trunk_size, image_size=image_size)
    assert (config.seen(image_size), config.grid) == (seen, seen // 32)


def test_a_config_from_before_trunk_size_sees_the_whole_image() -> None:
    values = json.loads(PRESETS["edge"].to_json())
    del values["trunk_size"]
    assert NetworkConfig.from_json(json.dumps(values)).grid == 16


def test_unknown_fields_are_named() -> None:
    values = json.loads(PRESETS["edge"].to_json()) | {"rope": True}
    with pytest.raises(UsageError, match=r"\['rope'\]"):
        NetworkConfig.from_json(json.dumps(values))
