"""Which weights of a run are kept, and when it has gone long enough without gain."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class Best:
    """The best figure of a phase. phase: its index, -1 before the first; since: validations since the last gain."""

    higher: bool
    patience: int
    value: float = math.nan
    since: int = 0
    phase: int = -1

    def enter(self, phase: int) -> None:
        """Figures at another size are other figures: a new phase starts anew."""
        if phase != self.phase:
            self.value, self.since, self.phase = math.nan, 0, phase

    def judge(self, values: Mapping[str, float]) -> list[str]:
        """Names of what is to be kept, in order: each better than all before; NaN only while there is nothing else."""
        kept, gained = [], False
        for name, value in values.items():
            better = self._better(value)
            if better or math.isnan(self.value):
                kept.append(name)
            if better:
                self.value, gained = value, True
        self.since = 0 if gained else self.since + 1
        return kept

    def _better(self, value: float) -> bool:
        if math.isnan(value) or math.isnan(self.value):
            return not math.isnan(value)
        return value > self.value if self.higher else value < self.value

    @property
    def out_of_patience(self) -> bool:
        return bool(self.patience) and self.since >= self.patience

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which has no NaN."""
        return {"value": None if math.isnan(self.value) else self.value, "since": self.since, "phase": self.phase}

    def restore(self, saved: Mapping[str, Any]) -> None:
        self.value = math.nan if saved["value"] is None else float(saved["value"])
        self.since, self.phase = int(saved["since"]), int(saved["phase"])
