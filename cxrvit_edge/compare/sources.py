"""What `compare` is given, by its name, to the findings of one side.

    FOLDER              output folder of triage (it holds results.jsonl), read as it is; nothing is run
    BUNDLE              bundle folder or .zip, run as triage would run it
    PRECISION           fp32, fp16 or int8 of the embedded bundle
    BACKEND             onnxruntime, openvino, tensorrt, tensorrt-rtx or torch, with the embedded bundle
    BACKEND:PRECISION
    BUNDLE@PRECISION, BUNDLE@BACKEND, BUNDLE@BACKEND:PRECISION

`auto` stands for a back end or a precision, or for both. These words come before paths: ./int8 names a folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cxrvit_edge.bundle import MANIFEST, Bundle, Guard, Manifest, PriorityTable, default_path
from cxrvit_edge.errors import UsageError
from cxrvit_edge.findings import SCHEMA, Finding
from cxrvit_edge.journal import RESULTS, Owner, encoded, lines_of
from cxrvit_edge.journal_index import grammar, values_of
from cxrvit_edge.plain_text import printable
from cxrvit_edge.runtime.select import BACKENDS, PRECISIONS

_GRAMMAR = (
    "name a bundle, a precision (int8), BACKEND:PRECISION (openvino:int8), BUNDLE@BACKEND:PRECISION, or the output "
    "folder of a triage run"
)


class Source(NamedTuple):
    """One side as asked for. results: output folder to be read; else what to run, bundle None for the embedded one."""

    name: str
    results: Path | None = None
    bundle: str | None = None
    backend: str = "auto"
    precision: str = "auto"


@dataclass(frozen=True)
class Side:
    """One side's findings, a file each, without timings.

    manifest: of its bundle; known: whether that bundle was at hand, else the manifest holds nothing but the classes
    that were found and the usual priorities. damaged: lines of results.jsonl that were no result.
    """

    name: str
    owner: Owner
    manifest: Manifest
    findings: Sequence[Finding]
    version: str = ""
    known: bool = True
    results: Path | None = None
    damaged: int = 0
    notes: tuple[str, ...] = ()


def parse(text: str) -> Source:
    """UsageError if it is none of the kinds above, or names what is not there."""
    if how := _how(text):
        return Source(text, None, None, *how)
    if os.path.exists(text):  # noqa: PTH110  False where it may not be looked at
        return _path(text)
    head, at, tail = text.rpartition("@")
    how = _how(tail) if at and head else None
    if how is None:
        raise UsageError(f"{printable(text)}: no such file or folder, and no back end or precision; {_GRAMMAR}")
    if not os.path.exists(head):  # noqa: PTH110
        raise UsageError(f"{printable(text)}: there is no bundle {printable(head)}; check the spelling and the mount")
    source = _path(head)
    if source.results is not None:
        hint = f"leave @{printable(tail)} out, or name the bundle"
        raise UsageError(
            f"{printable(text)}: {printable(head)} holds results, which are of what they were made with; {hint}"
        )
    return Source(text, None, source.bundle, *how)


def _how(text: str) -> tuple[str, str] | None:
    """Back end and precision; None for other words."""
    first, colon, second = text.partition(":")
    if colon:
        known = first in (*BACKENDS, "auto") and second in (*PRECISIONS, "auto")
        return (first, second) if known else None
    if first in PRECISIONS:
        return "auto", first
    return (first, "auto") if first in (*BACKENDS, "auto") else None


def _path(text: str) -> Source:
    path = Path(text)
    if path.name == RESULTS and path.is_file():
        return Source(text, results=path.parent)
    if os.path.isfile(path / MANIFEST) or path.is_file():  # noqa: PTH113
        return Source(text, bundle=text)
    if os.path.isfile(path / RESULTS):  # noqa: PTH113
        return Source(text, results=path)
    raise UsageError(f"{printable(text)}: holds neither {MANIFEST} (a bundle) nor {RESULTS} (a triage run); {_GRAMMAR}")


def read_side(source: Source, at_hand: Iterable[Bundle] = ()) -> Side:
    """Side of an output folder. at_hand: bundles one of which may be the one it was made with."""
    assert source.results is not None
    owner, findings, damaged = read_results(source.results)
    manifest, known = _manifest(owner, findings, at_hand)
    notes = []
    if damaged:
        notes.append(f"damaged lines of {RESULTS}, left out: {damaged:,}; run triage again over its inputs")
    if not known:
        notes.append(f"the bundle {owner.bundle} is not at hand: its worklist is taken to be in the usual order")
    return Side(
        source.name,
        owner,
        manifest,
        findings,
        known=known,
        results=source.results,
        damaged=damaged,
        notes=tuple(notes),
    )


def read_results(folder: Path) -> tuple[Owner, list[Finding], int]:
    """Whose they are, the last finding of each input, and how many lines were damaged.

    Nothing is written and no lock is taken. A last line without its end, as a run at work or a kill leaves it, is
    passed over. UsageError if the file cannot be read, or holds no results, or those of another schema or of several
    owners.
    """
    path = folder / RESULTS
    last: dict[str, Finding] = {}
    owner: Owner | None = None
    line_of: re.Pattern[bytes] | None = None
    damaged = 0
    try:
        with open(path, "rb", buffering=1 << 20) as file:
            for line, _ in lines_of(file):
                finding = _finding(line, path)
                if finding is None:
                    damaged += 1
                    continue
                whose = Owner.of(finding)
                pattern = line_of or grammar(whose)
                if owner is not None and whose != owner:
                    raise UsageError(f"{path}: holds results of {owner}, and of {whose}; give each a folder of its own")
                if values_of(pattern, line) is None and values_of(pattern, encoded(finding)) is None:
                    damaged += 1
                    continue
                owner, line_of = whose, pattern
                last[finding.file] = finding
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); check its mode and the mount") from error
    if owner is None or not last:
        raise UsageError(f"{path}: holds no results of ours; run triage into {folder} again")
    return owner, list(last.values()), damaged


def _finding(line: bytes, path: Path) -> Finding | None:
    """None if the line is damaged."""
    try:
        raw = json.loads(line)
        schema = raw["schema"]
        if schema == SCHEMA:
            finding = Finding.from_dict({**raw, "timings_ms": {}})
            encoded(finding)
            text = (finding.file, finding.bundle, finding.backend, finding.precision)
            rule = type(finding.sensitivity) is int and type(finding.selective) is bool
            return finding if rule and all(isinstance(value, str) for value in text) else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    raise UsageError(f"{path}: results of schema {schema!r}, this version reads {SCHEMA}; run triage again")


def _manifest(owner: Owner, findings: Iterable[Finding], at_hand: Iterable[Bundle]) -> tuple[Manifest, bool]:
    """Manifest of the bundle that results were made with, and whether it was found."""
    name, _, sha256 = owner.bundle.rpartition("@")
    for bundle in at_hand:
        if sha256 and bundle.sha256.startswith(sha256) and bundle.manifest.name == name:
            return bundle.manifest, True
    embedded = default_path()
    ours = hashlib.sha256((embedded / MANIFEST).read_bytes()).hexdigest()
    if sha256 and ours.startswith(sha256):
        return Bundle.open(embedded).manifest, True
    classes = next((tuple(f.probabilities) for f in findings if f.probabilities), ())
    usual = PriorityTable()
    return (
        Manifest(
            name=name or owner.bundle,
            classes=classes,
            preprocessing={},
            operating_points={},
            temperature=1.0,
            views={},
            variants={},
            files={},
            guard=Guard(0.0, 0.0),
            golden_inputs="",
            intended_use="",
            priority=PriorityTable(tuple(c for c in usual.flagged if c in classes)),
        ),
        False,
    )
