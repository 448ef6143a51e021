"""A peer in a process of its own: python -m benchmarks.peer_process JOB, started by benchmarks/peers.py.

JOB is JSON: `peer` names the class ("peer_network:Eager"), `first` a film, the rest is the peer's. Once the peer has
judged that film the process says so in one line; then it answers commands, one JSON object a line, until its input
ends:

network  batch, seconds: milliseconds an image of the best run of the network alone
films    paths, out, batch: seconds from files to written results
results  the probabilities that the last `films` wrote, in the order of its paths
told     what it has to say of how it runs
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Peer(Protocol):
    told: str

    def __init__(self, job: dict[str, Any]) -> None:
        """Everything that is kept loaded between films."""

    def infer(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Preprocessed films (B, 1, S, S) -> logits (B, 3): the network alone."""
        ...

    def films(self, paths: Sequence[str], out: str, batch: int) -> list[list[float] | None]:
        """Files to results written under the folder `out`; the probabilities of each, None of one that it refused."""
        ...


class Commands:
    def __init__(self, peer: Peer, job: dict[str, Any]) -> None:
        self._peer, self._job = peer, job
        self._found: list[list[float] | None] = []
        self._warm: set[int] = set()  # batch sizes that have run

    def network(self, batch: int, seconds: float) -> float:
        import numpy as np

        tensors = np.load(self._job["tensors"])  # (N, 1, S, S) float32, preprocessed
        films = np.ascontiguousarray(tensors[np.arange(batch) % len(tensors)])
        if batch not in self._warm:
            self._peer.infer(films)
            self._warm.add(batch)
        best, over = float("inf"), perf_counter() + seconds
        while best == float("inf") or perf_counter() < over:
            start = perf_counter()
            self._peer.infer(films)
            best = min(best, perf_counter() - start)
        return best / batch * 1e3

    def films(self, paths: list[str], out: str, batch: int) -> float:
        start = perf_counter()
        self._found = self._peer.films(paths, out, batch)
        return perf_counter() - start

    def results(self) -> list[list[float] | None]:
        return self._found

    def told(self) -> str:
        return self._peer.told


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer

    def say(**line: Any) -> None:
        print(json.dumps(line), file=answers)

    try:
        job = json.loads(sys.argv[1])
        module, name = job["peer"].split(":")
        peer: Peer = getattr(import_module(f"benchmarks.{module}"), name)(job)
        peer.films([job["first"]], job["out"], 1)
        say(answer="ready")
    except Exception as error:  # each peer has its own; the table says why it is absent
        say(error=_line(error))
        return
    commands = Commands(peer, job)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            say(answer=getattr(commands, asked.pop("command"))(**asked))
        except Exception as error:
            say(error=_line(error))


def _line(error: Exception) -> str:
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:300]


if __name__ == "__main__":
    main()
