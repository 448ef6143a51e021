"""The input guard: python -m benchmarks.guard --data DIR [--negatives DIR] [--bundle DIR] [--record]

False rejects of real frontal films by source and split and of phantoms; rejections by kind of what is none: made of the
test split's films (turned, inverted, cut to a part), drawn (seeds that the head was not fitted on) and real, in
DIR/KIND/GROUP/image as kept aside from fitting. Rates with Wilson's 95 % interval. `lungs_only` is the share that the
check of the lung masks alone turns away. --data as for `python -m train`.
"""

from __future__ import annotations

import argparse
import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.record import record
from cxrvit_edge.bundle import Bundle
from cxrvit_edge.errors import InputError, Reason
from cxrvit_edge.findings import judge
from cxrvit_edge.guard import check_pixels, describe
from cxrvit_edge.phantom import make_phantom
from cxrvit_edge.preprocess import Float32, PreprocessConfig, preprocess
from cxrvit_edge.radiograph import Radiograph, read
from cxrvit_edge.runtime.onnxruntime import OnnxRuntimeSession
from train import guard_drawn
from train.data.manifest import REUSABLE
from train.data.sources import open_records
from train.guard_films import inverted, part, turned, vary
from train.guard_samples import eight_bits, negatives

REASONS = {"turned": Reason.ROTATED, "inverted": Reason.INVERTED, "lateral": Reason.LATERAL_VIEW}
PHANTOMS, DRAWN = 60, 20


class Case(NamedTuple):
    """fitted: the head was fitted to this image, or to others that are made alike; wanted: None to be let in."""

    kind: str
    group: str
    fitted: bool
    wanted: str | None
    radiograph: Radiograph
    sha256: str = ""


def cases(data: list[str], folder: Path | None, every: int) -> Iterator[Case]:
    for k, item in enumerate(open_records(data)):
        if k % every:
            continue
        radiograph = read(item.path)
        fitted = item.split == "train" and item.reuse in REUSABLE
        digest = hashlib.sha256(item.path.read_bytes()).hexdigest()
        split = f"{item.split}, fitted" if fitted else item.split
        yield Case("frontal", f"{item.source} {split}", fitted, None, radiograph, digest)
        if item.split != "test":
            continue
        film, rng = eight_bits(radiograph), np.random.default_rng(k)
        yield Case("turned", "film", False, "turned", Radiograph(turned(film, k % 6)))
        image = inverted(film)
        yield Case("inverted", "film", False, "inverted", Radiograph(image))
        turns = 1 + k % 3
        yield Case(
            "inverted and turned", "film", False, "any", Radiograph(np.ascontiguousarray(np.rot90(image, turns)))
        )
        yield Case("part", "film", False, "other", Radiograph(part(film, rng)))
        yield Case("frontal varied", "film", False, None, Radiograph(vary(film, rng)))
    for i in range(0, PHANTOMS, every):
        lesions = ("none", "focal", "diffuse", 0.7)[i % 4]
        phantom = make_phantom(i, lesions=lesions, view="AP" if i // 4 % 2 else "PA")  # type: ignore[arg-type]
        yield Case("frontal", "phantom", True, None, Radiograph(phantom.pixels))
    for kind in guard_drawn.KINDS:
        for i in range(0, DRAWN, every):
            drawn = Radiograph(guard_drawn.draw(kind, 1000 + i))
            yield Case(kind, "drawn", True, "lateral" if kind == "lateral" else "other", drawn)
    for path in negatives(folder)[::every]:
        assert folder is not None
        kind = path.relative_to(folder).parts[0]
        try:
            yield Case(kind, "real, kept aside", False, "other", read(path))
        except InputError:
            continue  # turned away unread


def wilson(k: int, n: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    z = 1.959964
    p, scale = k / n, 1 + z * z / n
    middle = (p + z * z / (2 * n)) / scale
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / scale
    return max(0.0, middle - half), min(1.0, middle + half)


class Guarded:
    def __init__(self, bundle: Bundle, threads: int) -> None:
        self.bundle = bundle
        self.config = PreprocessConfig.from_dict(bundle.manifest.preprocessing)
        graph = bundle.variant("fp32").files[bundle.graph_for("unknown")]
        self.session = OnnxRuntimeSession(bundle.file(graph), precision="fp32", threads=threads)

    def reasons(self, radiograph: Radiograph) -> tuple[Reason | None, Reason | None]:
        """With the head and without; None where it is let in."""
        try:
            check_pixels(radiograph)
        except InputError as error:
            return error.reason, error.reason
        tensor, geometry = preprocess(radiograph, self.config)
        outputs = self.session.run(tensor[None])

        def judged(film: Float32 | None) -> Reason | None:
            try:
                judge(outputs, 0, self.bundle, "unknown", geometry, film)
            except InputError as error:
                return error.reason
            return None

        return judged(describe(tensor, geometry)), judged(None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", required=True)
    parser.add_argument("--negatives", type=Path)
    parser.add_argument("--bundle", type=Path, help="the embedded one by default")
    parser.add_argument("--every", type=int, default=1, help="only every so many images")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/guard.csv")
    options = parser.parse_args()
    guarded = Guarded(Bundle.open(options.bundle), options.threads)
    counts: dict[tuple[str, str, bool, bool], list[int]] = {}
    for case in cases(options.data, options.negatives, options.every):
        reason, by_lungs = guarded.reasons(case.radiograph)
        key = (case.kind, case.group, case.fitted, case.wanted is None)
        right = reason is not None and (
            case.wanted == "any" or reason is REASONS.get(case.wanted or "", Reason.NOT_A_CHEST)
        )
        flags = (True, reason is not None, by_lungs is not None, right)
        counts[key] = [n + int(yes) for n, yes in zip(counts.get(key, [0] * 4), flags, strict=True)]
        if case.wanted is None and reason is not None:
            print(f"  turned away: {case.kind} {case.group} {reason.value} {case.sha256}", flush=True)
    frontal = [v for (kind, group, _, _), v in counts.items() if kind == "frontal" and group != "phantom"]
    counts["frontal", "all real films", False, True] = [sum(column) for column in zip(*frontal, strict=True)]
    rows = []
    for (kind, group, fitted, let_in), (n, away, before, right) in counts.items():
        low, high = wilson(away, n)
        row = {"kind": kind, "group": group, "fitted_on": fitted, "wanted": "let in" if let_in else "turned away"}
        row |= {
            "images": n,
            "turned_away": away,
            "rate": round(away / n, 4),
            "low": round(low, 4),
            "high": round(high, 4),
        }
        rows.append(row | {"lungs_only": round(before / n, 4), "right_reason": "" if let_in else round(right / n, 4)})
        print(
            f"{kind:20} {group:24} {n:5} turned away {away:4}, {away / n:6.1%} ({low:.1%} to {high:.1%}), "
            f"lungs alone {before / n:6.1%}" + ("" if let_in else f", right reason {right / n:.1%}")
        )
    if options.record:
        print(record("guard", rows, ("numpy", "opencv-python-headless", "onnxruntime")))


if __name__ == "__main__":
    main()
