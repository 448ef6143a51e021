"""Two bundles, precisions, back ends or triage runs over the same images: what they say otherwise."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cxrvit_edge.compare.differences import differences
from cxrvit_edge.compare.films import Films, Runner, read_films, truths
from cxrvit_edge.compare.page import Picture, render
from cxrvit_edge.compare.sources import Side, parse, read_side
from cxrvit_edge.compare.words import told
from cxrvit_edge.discover import StrPath, require
from cxrvit_edge.errors import UsageError
from cxrvit_edge.plain_text import printable
from cxrvit_edge.report import thumbnails
from cxrvit_edge.report.run import RESEARCH_USE
from cxrvit_edge.report.words import CAVEAT
from cxrvit_edge.summary import STATUSES, THUMBNAILS

__all__ = ["JSON", "LISTED", "PAGE", "SCHEMA", "compare", "told"]

SCHEMA = 1
JSON, PAGE = "compare.json", "compare.html"
LISTED = 12  # of the largest differences


def compare(
    a: str,
    b: str,
    *,
    data: StrPath | Iterable[StrPath] | None = None,
    split: str = "test",
    out: StrPath | None = None,
    listed: int = LISTED,
    progress: Callable[[str, float], None] = lambda *_: None,
) -> dict[str, Any]:
    """Triage the images of `data` with both and hold the results against each other; plain JSON, no NaN.

    a, b: as `sources` has them. An output folder of triage is read as it is, and two of them need no `data`: images are
    matched by SHA-256. data: files, folders, or a CSV of labels with its `split`. out: folder for compare.json and
    compare.html, with thumbnails of the `listed` largest differences; None writes nothing. progress: phase, fraction.
    UsageError, BundleError, EngineError, ParityError.
    """
    sources = parse(a), parse(b)
    if listed < 0:
        raise UsageError(f"listed is {listed}: must be 0 or more")
    if data is None and any(source.results is None for source in sources):
        run = next(source.name for source in sources if source.results is None)
        raise UsageError(
            f"{printable(run)} is to be run, and no --data names images; give --data FILES, FOLDER or FILE.csv"
        )
    films = None if data is None else read_films(data, split)
    if films is not None:
        require(films.paths, out)
    with ExitStack() as stack:
        folder = None if out is None else _folder(Path(out))
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".compare-", dir=folder)))
        runners = [
            Runner(source, films, scratch / letter) if source.results is None and films else None
            for source, letter in zip(sources, "ab", strict=True)
        ]
        at_hand = [runner.bundle for runner in runners if runner]
        sides = [
            runner.run(folder, progress) if runner else read_side(source, at_hand)
            for runner, source in zip(runners, sources, strict=True)
        ]
        report = _report(sides, films, listed)
        if folder is not None:
            _write(folder / JSON, json.dumps(report, indent=1, allow_nan=False))
            _write(folder / PAGE, render(report, _pictures(report, sides, runners)))
    return report


def _write(path: Path, text: str) -> None:
    """It appears whole or not at all. UsageError if it cannot be written."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, "utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UsageError(f"{path}: cannot be written ({error.strerror}); see to that, or give another --out") from error


def _folder(out: Path) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".{JSON}.tmp"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(
            f"--out {printable(os.fspath(out))}: cannot be written ({error.strerror}); give another"
        ) from error
    return out


def _report(sides: list[Side], films: Films | None, listed: int) -> dict[str, Any]:
    a, b = sides
    found = differences(a, b, truths(films, sides), listed)
    caveats = [side.manifest.raw.get("caveat") for side in sides]
    return {
        "schema": SCHEMA,
        "tool": {"name": "cxrvit-edge", "version": _version()},
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "research_use": RESEARCH_USE,
        "caveat": next(filter(None, caveats), CAVEAT),
        "a": _about(a),
        "b": _about(b),
        "same": _same(a, b),
        "data": None if films is None else dict(films.about),
        **found,
        "notes": [*_notes(a, b, found, films)],
    }


def _about(side: Side) -> dict[str, Any]:
    return {
        "name": side.name,
        "bundle": side.owner.bundle,
        "backend": side.owner.backend,
        "version": side.version,
        "precision": side.owner.precision,
        "results": None if side.results is None else printable(side.results.as_posix()),
        "bundle_at_hand": side.known,
        "statuses": {**dict.fromkeys(STATUSES, 0), **Counter(f.status for f in side.findings)},
        "damaged": side.damaged,
        "rule": side.owner.rule._asdict(),
        "operating_points": dict(side.owner.rule.points(side.manifest)),
    }


def _same(a: Side, b: Side) -> str | None:
    """What is to be known where A and B are one thing."""
    if a.results and b.results and os.path.realpath(a.results) == os.path.realpath(b.results):
        return "A and B are the same output folder: nothing can differ."
    if a.owner != b.owner:
        return None
    return "A and B are of one bundle, back end, precision and operating point: what differs, differs from run to run."


def _notes(a: Side, b: Side, found: Mapping[str, Any], films: Films | None) -> Iterator[str]:
    for letter, side in (("A", a), ("B", b)):
        for note in side.notes:
            yield f"{letter}: {note}"
    classes = found["classes"]
    if apart := [f"{', '.join(classes[f'only_in_{x}'])} in {x.upper()} only" for x in "ab" if classes[f"only_in_{x}"]]:
        yield f"compared on the common classes {', '.join(classes['common'])}; {'; '.join(apart)}"
    if a.owner.rule != b.owner.rule:
        yield f"A is decided at a {a.owner.rule}, B at a {b.owner.rule}: flags and priorities differ by that too"
    if a.known and b.known:
        own, other = (side.owner.rule.points(side.manifest) for side in (a, b))
        moved = [
            f"{c} {own[c]:g} and {other[c]:g}"
            for c in classes["common"]
            if c in own and c in other and own[c] != other[c]
        ]
        if moved:
            yield f"operating points are others: {'; '.join(moved)} (A and B); flags differ by that too"
        if a.manifest.priority != b.manifest.priority:
            yield "the tables of priority are others: the order of the worklist differs by that too"
    for problem in films.about["problems"] if films else ():
        first = f", such as {problem['first'][0]}" if problem["first"] else ""
        yield f"labels: {problem['count']:,} of kind {problem['kind']}{first}"


def _pictures(
    report: Mapping[str, Any], sides: Sequence[Side], runners: Sequence[Runner | None]
) -> dict[tuple[str, str], Picture]:
    """Film and overlay of the largest differences, by side (a or b) and SHA-256; what cannot be had is absent."""
    images = [image for image in report["largest"]["images"] if image["sha256"]]
    out: dict[tuple[str, str], Picture] = {}
    for letter, side, runner in zip("ab", sides, runners, strict=True):
        files = [image[letter]["file"] for image in images]
        folder = runner.pictures(files) if runner else side.results / THUMBNAILS if side.results else None
        if folder is None:
            continue
        for image in images:
            film, over = (thumbnails.load(path) for path in thumbnails.paths(folder, image["sha256"]))
            if film is not None:
                out[letter, image["sha256"]] = Picture(film, over)
    return out


def _version() -> str:
    try:
        return version("cxrvit-edge")
    except PackageNotFoundError:
        return "unknown"
