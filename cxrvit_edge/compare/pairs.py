"""The same image on both sides: matched by content, and what is said of it otherwise."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from cxrvit_edge.findings import Finding

KINDS = ("label", "flags", "priority", "status", "severity")
MEASURE = (
    "the larger of the largest difference of a probability and a sixth of the difference of the score (0-6); 1 where "
    "one side alone gave a finding or a score"
)


class Pair(NamedTuple):
    """One image as A and as B have it. Called by A's file name."""

    a: Finding
    b: Finding

    @property
    def file(self) -> str:
        return self.a.file

    @property
    def sha256(self) -> str | None:
        return self.a.sha256 or self.b.sha256

    @property
    def judged(self) -> bool:
        return judged(self.a) and judged(self.b)

    def changes(self, classes: Iterable[str]) -> dict[str, Any]:
        """Kind -> [A's, B's] of what is said otherwise, flags as class -> [A's, B's]; empty if nothing is."""
        a, b = self
        out: dict[str, Any] = {}
        if self.judged:
            if a.label != b.label:
                out["label"] = [a.label, b.label]
            own, other = a.flags or {}, b.flags or {}
            held = ((name, own.get(name), other.get(name)) for name in classes)
            if flags := {name: [x, y] for name, x, y in held if x is not None and y is not None and x != y}:
                out["flags"] = flags
            if (score(a) is None) != (score(b) is None):
                out["severity"] = [score(a), score(b)]
        if a.priority != b.priority:
            out["priority"] = [a.priority, b.priority]
        if standing(a) != standing(b):
            out["status"] = [standing(a), standing(b)]
        return out

    def distance(self, classes: Iterable[str]) -> float:
        """MEASURE, 0 to 1; 0 for an image that neither side judged."""
        if not (judged(self.a) or judged(self.b)):
            return 0.0
        x, y = score(self.a), score(self.b)
        if not self.judged or (x is None) != (y is None):
            return 1.0
        gaps = [
            abs(q - p) for p, q in (self.probabilities(name) for name in classes) if p is not None and q is not None
        ]
        if x is not None and y is not None:
            gaps.append(abs(y - x) / 6)
        return min(max(gaps, default=0.0), 1.0)

    def probabilities(self, name: str) -> tuple[float | None, float | None]:
        return (self.a.probabilities or {}).get(name), (self.b.probabilities or {}).get(name)

    @property
    def identical(self) -> bool:
        """Whether both say the same in every field that is not of the run itself."""
        return _said(self.a) == _said(self.b)


def judged(finding: Finding) -> bool:
    return finding.status == "ok" and finding.probabilities is not None


def score(finding: Finding) -> float | None:
    return finding.severity.score if finding.severity else None


def standing(finding: Finding) -> str:
    """ok, or the code of the reason why not."""
    return "ok" if finding.status == "ok" else (finding.reason or {}).get("code", finding.status)


def _said(finding: Finding) -> tuple[Any, ...]:
    f = finding
    return standing(f), f.status, f.view, f.probabilities, f.label, f.flags, f.severity, f.priority


def match(a: Sequence[Finding], b: Sequence[Finding]) -> tuple[list[Pair], list[Finding], list[Finding]]:
    """Pairs of one content, by A's file name, and what is in A and in B alone.

    Files of the same content are paired by name first, then in the order of their names; a file that a side could not
    read has no hash there and is found by its name.
    """
    pairs: list[Pair] = []
    alone, left = sorted(a, key=lambda f: f.file), {f.file: f for f in sorted(b, key=lambda f: f.file, reverse=True)}
    for key in (_content_and_name, _content, _name):
        held: defaultdict[Any, list[Finding]] = defaultdict(list)
        for finding in left.values():
            held[key(finding)].append(finding)  # from last to first: the first is popped
        unmatched = []
        for finding in alone:
            candidates = held.get(key(finding)) or []
            other = candidates.pop() if candidates else None
            if other is None or not _one(finding, other, by_name=key is _name):
                unmatched.append(finding)
                continue
            pairs.append(Pair(finding, other))
            del left[other.file]
        alone = unmatched
    return sorted(pairs, key=lambda p: p.file), alone, sorted(left.values(), key=lambda f: f.file)


def _content_and_name(finding: Finding) -> tuple[str | None, str]:
    return finding.sha256, finding.file


def _content(finding: Finding) -> str | None:
    return finding.sha256


def _name(finding: Finding) -> str:
    return finding.file


def _one(a: Finding, b: Finding, by_name: bool) -> bool:
    """By name only where a hash is missing; by content only where there is one."""
    return (None in (a.sha256, b.sha256)) if by_name else a.sha256 is not None
