"""How a run decides: the operating point that makes flags, and prediction sets that leave the undecided to a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cxrvit_edge.errors import UsageError

if TYPE_CHECKING:
    from cxrvit_edge.bundle import Manifest

SENSITIVITIES = (80, 95)  # per cent: of a bundle's operating_points, and of its sensitive_points
MILLION = 1_000_000  # probabilities are reported to six digits, and held against thresholds as reported


class Rule(NamedTuple):
    """sensitivity: which of the bundle's operating points make flags; selective: an undecided film is for review."""

    sensitivity: int = SENSITIVITIES[0]
    selective: bool = False

    def __str__(self) -> str:
        return f"sensitivity of at least {self.sensitivity} %{', undecided films for review' if self.selective else ''}"

    def require(self, manifest: Manifest) -> Rule:
        """Itself. UsageError if the bundle does not hold what it takes."""
        if self.sensitivity not in SENSITIVITIES:
            raise UsageError(f"--sensitivity is {self.sensitivity!r}: choose {' or '.join(map(str, SENSITIVITIES))}")
        hint = "export it again from its checkpoint (python -m export CHECKPOINT), or leave the option out"
        if self.sensitivity != SENSITIVITIES[0] and manifest.sensitive_points is None:
            raise UsageError(
                f"--sensitivity {self.sensitivity}: the bundle {manifest.name} has operating points at "
                f"{SENSITIVITIES[0]} % alone; {hint}"
            )
        if self.selective and manifest.selective is None:
            raise UsageError(f"--selective: the bundle {manifest.name} has no prediction sets; {hint}")
        return self

    def points(self, manifest: Manifest) -> Mapping[str, float]:
        """Class -> threshold; empty if the bundle has none at this sensitivity."""
        usual, sensitive = SENSITIVITIES
        known = {usual: manifest.operating_points, sensitive: manifest.sensitive_points}
        return known.get(self.sensitivity) or {}


USUAL = Rule()


def prediction_sets(probabilities: NDArray[np.floating], threshold: float) -> NDArray[np.bool_]:
    """(N, K) probabilities -> (N, K) which classes are in each set: those of p >= 1 - threshold; where none is, all.

    So a set is never empty, and one without a likely class is undecided like one with several.
    """
    found = np.rint(probabilities * MILLION) >= np.rint((1 - threshold) * MILLION)
    return np.asarray(found | ~found.any(axis=1, keepdims=True))
