from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxrvit_edge.ledger import LEAST, Ledger

RUN = Ledger(
    wall=100.0,
    images=256,
    workers=2,
    cores=8,
    stages={
        "queue": 900.0,
        "read": 4.0,
        "decode": 60.0,
        "preprocess": 26.0,
        "run": 70.0,
        "interpret": 9.0,
        "write": 5.0,
    },
    run=70.0,
    starved=5.0,
    blocked=60.0,
    held=1.0,
    journal=2.0,
    batches=32,
    ran=256,
    batch_size=8,
    faster=("int8",),
)
WAITED = {"run": 55.0, "starved": 41.0, "blocked": 0.0}


def host(read: float, decode: float, preprocess: float) -> dict[str, float]:
    return {**RUN.stages, "read": read, "decode": decode, "preprocess": preprocess}


@pytest.mark.parametrize(
    ("changed", "advice"),
    [
        ({}, ""),
        (
            {"run": 96.0, "starved": 2.0},
            (
                "network-bound: 96 % of the time in the network: nothing on the host side would help; "
                "--precision int8 or a GPU would"
            ),
        ),
        (
            {"run": 96.0, "starved": 2.0, "precision": "int8"},
            "network-bound: 96 % of the time in the network: nothing on the host side would help; a GPU would",
        ),
        (
            {"run": 96.0, "starved": 2.0, "faster": (), "gpu": True},
            "network-bound: 96 % of the time in the network: nothing on the host side would help",
        ),
        (
            {"run": 96.0, "starved": 2.0, "faster": (), "gpu": True, "mode": "latency"},
            "network-bound: 96 % of the time in the network: nothing on the host side would help; --throughput would",
        ),
        ({"run": 89.0}, ""),
        (
            {**WAITED, "stages": host(10.0, 120.0, 50.0)},
            "decode-bound: the network waited 41 % of the time for films: --workers 4 (this box has 8 cores)",
        ),
        (
            {**WAITED, "stages": host(10.0, 50.0, 120.0)},
            "preprocess-bound: the network waited 41 % of the time for films: --workers 4 (this box has 8 cores)",
        ),
        (
            {**WAITED, "stages": host(10.0, 120.0, 50.0), "run": 4.0, "starved": 95.0},
            "decode-bound: the network waited 95 % of the time for films: --workers 8 (this box has 8 cores)",
        ),
        (
            {"starved": 12.0, "stages": host(10.0, 120.0, 50.0), "cores": 3},
            "decode-bound: the network waited 12 % of the time for films: --workers 3 (this box has 3 cores)",
        ),
        (
            {**WAITED, "stages": host(10.0, 120.0, 50.0), "cores": 2},
            (
                "decode-bound: the network waited 41 % of the time for films: --workers is 2 already, for 2 cores; "
                "a box with more cores would help"
            ),
        ),
        (
            {**WAITED, "stages": host(150.0, 20.0, 20.0)},
            (
                "disk-bound: the network waited 41 % of the time for films, and 79 % of the readers' work was reading: "
                "copy the films to a fast local disk first"
            ),
        ),
        ({**WAITED, "stages": host(1.0, 12.0, 5.0)}, ""),  # watch mode: the readers wait for films as well
        ({**WAITED, "stages": host(10.0, 120.0, 50.0), "images": LEAST - 1}, ""),
        ({"images": 1, "run": 96.0, "starved": 2.0}, ""),
        (
            {"run": 30.0, "held": 60.0, "journal": 80.0},
            (
                "writing-bound: appending results took 80 % of the time: "
                "the output folder is slow, give an --out on a local disk"
            ),
        ),
        (
            {"run": 30.0, "held": 0.0, "journal": 80.0},  # where nobody measured what held the network up
            (
                "writing-bound: appending results took 80 % of the time: "
                "the output folder is slow, give an --out on a local disk"
            ),
        ),
        (
            {"held": 20.0, "stages": {**RUN.stages, "write": 90.0}},
            (
                "writing-bound: the network waited 20 % of the time for thumbnails: "
                "the output folder is slow, give an --out on a local disk"
            ),
        ),
        ({"held": 20.0, "stages": {**RUN.stages, "interpret": 90.0}}, ""),
        ({"run": 93.0, "starved": 4.0, "journal": 60.0, "faster": (), "gpu": True}, None),  # hidden behind the network
    ],
)
def test_advice(changed: dict[str, Any], advice: str | None) -> None:
    got = replace(RUN, **changed).advice()
    if advice is None:
        assert not any("writing" in line for line in got)
    else:
        assert got == ((advice,) if advice else ())


def test_told() -> None:
    assert RUN.told() == (
        "time: network 70 %, waiting for films 5 %, waiting for results to be taken 1 %, other 24 %",
        "2 readers: busy 45 % (read 4 %, decode 67 %, preprocess 29 %), waiting for room 30 %",
        "batches: 32, 8.0 inputs each, at most 8",
    )
    assert replace(RUN, workers=1, batches=0).told()[1].startswith("1 reader: busy 90 %")
    assert len(replace(RUN, batches=0).told()) == 2
    assert replace(RUN, images=0).told() == replace(RUN, wall=0.0).told() == ()


def test_to_dict_is_json_and_whole() -> None:
    values = json.loads(json.dumps(replace(RUN, run=96.00049, starved=2.0).to_dict(), allow_nan=False))
    assert values["run"] == 96.0
    assert values["shares"]["network"] == 0.96
    assert values["stages"]["decode"] == 60.0
    assert values["faster"] == ["int8"]
    assert len(values["advice"]) == 1


seconds = st.floats(0, 1e7) | st.sampled_from([0.0, 1e-9, 1.0])


@given(
    st.builds(
        Ledger,
        wall=seconds,
        images=st.integers(0, 10**6),
        workers=st.integers(1, 64),
        cores=st.integers(1, 64),
        stages=st.dictionaries(st.sampled_from(sorted(RUN.stages)), seconds),
        run=seconds,
        starved=seconds,
        blocked=seconds,
        held=seconds,
        journal=seconds,
        batches=st.integers(0, 10**6),
        batch_size=st.integers(1, 64),
        mode=st.sampled_from(["auto", "latency", "throughput"]),
        precision=st.sampled_from(["fp32", "fp16", "int8"]),
        faster=st.lists(st.sampled_from(["fp16", "int8"]), unique=True).map(tuple),
        gpu=st.booleans(),
    )
)
def test_shares_are_shares_and_advice_names_nothing_that_is_so(ledger: Ledger) -> None:
    shares = ledger.shares
    assert all(0 <= share <= 1 for share in shares.values())
    assert sum(shares.values()) <= 1 + 1e-9
    assert 0 <= ledger.busy <= 1
    advice = ledger.advice()
    assert not advice or ledger.images >= LEAST
    for line in advice:
        assert all(ledger.workers < int(number) <= ledger.cores for number in re.findall(r"--workers (\d+)", line))
        assert all(
            name in ledger.faster and name != ledger.precision for name in re.findall(r"--precision (\w+)", line)
        )
        assert not (ledger.gpu and "a GPU" in line)
        assert "--throughput" not in line or (ledger.mode == "latency" and ledger.gpu)
    assert len({line.partition(":")[0] for line in advice}) == len(advice)
    json.dumps(ledger.to_dict(), allow_nan=False)
    ledger.told()
