"""The journal when the disk is full, the share is gone, another program meddles, or the process is interrupted."""

from __future__ import annotations

import errno
import json
import os
import resource
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_journal import OWNER, finding, lines

from cxrvit_edge import journal as module
from cxrvit_edge.errors import UsageError
from cxrvit_edge.findings import Finding, Severity
from cxrvit_edge.journal import LOCK, RESULTS, SYNC_LINES, Journal, Owner
from cxrvit_edge.journal_index import grammar, values_from, values_of


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """A write beyond `size` bytes of a file is cut there, and the next one fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Disk:
    """A journal's file on which chosen calls fail, after what they were to do or before it."""

    def __init__(self, journal: Journal, **failures: tuple[BaseException, int]) -> None:
        """failures: call -> (error, bytes that are written nevertheless)."""
        self._real, self._failures = journal._file, failures
        journal._file = self  # type: ignore[assignment]

    def write(self, data: bytes) -> int:
        error, count = self._failures.get("write", (None, 0))
        written: int = self._real.write(data[:count] if error else data)
        if error:
            raise error
        return written

    def truncate(self, size: int) -> int:
        if "truncate" in self._failures:
            raise self._failures["truncate"][0]
        return self._real.truncate(size)

    def heal(self) -> None:
        self._failures = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def names(folder: Path) -> list[object]:
    return [line["file"] for line in lines(folder)]


def test_a_disk_full_at_any_byte_of_a_line(tmp_path: Path) -> None:
    with Journal(tmp_path, OWNER) as journal:
        journal.append(finding("a"))
        first = (tmp_path / RESULTS).stat().st_size
        for size in range(first, 2 * first):
            with files_end_at(size), pytest.raises(OSError, match="File too large"):
                journal.append(finding("b"))
            assert (tmp_path / RESULTS).stat().st_size == first
            assert journal.get("b") is None
        with files_end_at(2 * first):
            journal.append(finding("b"))
        assert [f.file for f in journal.findings()] == ["a", "b"]
    assert names(tmp_path) == ["a", "b"]


def test_a_disk_full_at_any_byte_of_the_compacted_file(tmp_path: Path) -> None:
    with Journal(tmp_path, OWNER) as journal:
        for name in "abcab":
            journal.append(finding(name))
        before = (tmp_path / RESULTS).read_bytes()
        for size in range(0, len(before) * 3 // 5, 29):
            with files_end_at(size), pytest.raises(OSError, match="File too large"):
                journal.compact()
            assert (tmp_path / RESULTS).read_bytes() == before
            assert sorted(os.listdir(tmp_path)) == [LOCK, RESULTS]  # noqa: PTH208  the room is given back
        assert [f.file for f in journal.findings()] == ["c", "a", "b"]
        journal.compact()
    assert names(tmp_path) == ["c", "a", "b"]


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ENOSPC])
def test_a_share_that_goes_before_what_was_begun_can_be_taken_back(tmp_path: Path, code: int) -> None:
    gone = OSError(code, os.strerror(code))
    with Journal(tmp_path, OWNER) as journal:
        journal.append(finding("a"))
        disk = Disk(journal, write=(gone, 40), truncate=(gone, 0))
        with pytest.raises(OSError, match=os.strerror(code)):
            journal.append(finding("b"))
        with pytest.raises(OSError, match=os.strerror(code)):
            journal.append(finding("c"))
        disk.heal()
        journal.append(finding("c"))
        assert names(tmp_path) == ["a", "c"] == [f.file for f in journal.findings()]


@pytest.mark.parametrize("written", [0, 40, 10_000])
def test_an_interrupt_within_a_write_loses_nothing_that_was_written(tmp_path: Path, written: int) -> None:
    with Journal(tmp_path, OWNER) as journal:
        journal.append(finding("a"))
        disk = Disk(journal, write=(KeyboardInterrupt(), written))
        with pytest.raises(KeyboardInterrupt):
            journal.append(finding("b"))
        disk.heal()
        journal.append(finding("c"))
        journal.compact()
        expected = ["a", "b", "c"] if written > 1000 else ["a", "c"]
        assert names(tmp_path) == expected == [f.file for f in journal.findings()]


def test_an_fsync_that_fails_is_told_and_the_lines_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = True

    def fsync(_: int) -> None:
        if failing:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    with Journal(tmp_path, OWNER) as journal:
        for i in range(SYNC_LINES - 1):
            journal.append(finding(str(i)))
        with pytest.raises(OSError, match="Input/output"):
            journal.append(finding("last"))
        with pytest.raises(OSError, match="Input/output"):
            journal.compact()
        failing = False
        journal.append(finding("0"))
        failing = True
        before = (tmp_path / RESULTS).read_bytes()
        with pytest.raises(OSError, match="Input/output"):
            journal.compact()
        assert (tmp_path / RESULTS).read_bytes() == before and len(journal) == SYNC_LINES
        failing = False
        journal.compact()
        assert len(lines(tmp_path)) == SYNC_LINES
        journal.append(finding("x"))
        failing = True
        with pytest.raises(OSError, match="Input/output"):
            journal.close()
        failing = False
    with Journal(tmp_path, OWNER) as journal:  # the lock was given back all the same
        assert len(journal) == SYNC_LINES + 1


def test_file_systems_without_fsync_are_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(_: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", fsync)
    with Journal(tmp_path, OWNER) as journal:
        journal.append(finding("a"))
        journal.append(finding("a"))
        journal.compact()
    assert names(tmp_path) == ["a"]


def test_a_rename_that_fails_leaves_the_old_file_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Journal(tmp_path, OWNER) as journal:
        for name in "aab":
            journal.append(finding(name))
        before = (tmp_path / RESULTS).read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ESTALE, "Stale file handle")))
            with pytest.raises(OSError, match="Stale"):
                journal.compact()
        assert (tmp_path / RESULTS).read_bytes() == before
        journal.append(finding("c"))
        assert names(tmp_path) == ["a", "a", "b", "c"]
        with monkeypatch.context() as patch:
            patch.setattr(module.lock, "sync_folder", lambda _: (_ for _ in ()).throw(OSError(errno.EIO, "gone")))
            with pytest.raises(OSError, match="gone"):
                journal.compact()
        journal.append(finding("d"))
        assert names(tmp_path) == ["a", "b", "c", "d"] == [f.file for f in journal.findings()]


def test_the_part_that_a_killed_compaction_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / f"{RESULTS}.part").write_bytes(b"half of a line")
    with Journal(tmp_path, OWNER) as journal:
        journal.append(finding("a"))
    assert sorted(os.listdir(tmp_path)) == [LOCK, RESULTS]  # noqa: PTH208


@pytest.mark.parametrize("way", ["removed", "folder removed", "replaced", "emptied", "written to"])
def test_another_program_that_meddles_is_told(tmp_path: Path, way: str) -> None:
    folder = tmp_path / "out"
    with pytest.raises(OSError), Journal(folder, OWNER) as journal:
        journal.append(finding("a"))
        path = folder / RESULTS
        if way in ("emptied", "written to"):
            with path.open("ab") as f:
                f.truncate(0) if way == "emptied" else f.write(b"x")
        else:
            path.unlink()
        if way == "folder removed":
            (folder / LOCK).unlink()
            folder.rmdir()
        if way == "replaced":
            path.write_bytes(b"")
        for i in range(SYNC_LINES):
            journal.append(finding(str(i)))
        raise AssertionError("64 lines were written to nowhere")


@pytest.mark.parametrize("kind", ["folder", "fifo", "device"])
def test_results_that_are_no_file_are_left_alone(tmp_path: Path, kind: str) -> None:
    path = tmp_path / RESULTS
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/full")
    with pytest.raises((UsageError, IsADirectoryError), match=RESULTS):
        Journal(tmp_path, OWNER)
    assert os.path.lexists(path)


@pytest.mark.parametrize(
    "damage",
    [
        b"[" * 100_000,
        b"x" * (module.MAX_LINE + 5),
        b"x" * (3 * module.MAX_LINE - 1),
        b'{"schema":1,"file":"b","size":' + b"9" * 5000 + b"}",
        b"\0" * 4096,
    ],
    ids=["nested", "long", "longer", "number", "zeros"],
)
def test_damage_of_any_kind_costs_its_line_alone(tmp_path: Path, damage: bytes) -> None:
    with Journal(tmp_path, OWNER) as journal:
        journal.append(finding("a"))
        journal.append(finding("b"))
    a, b = (tmp_path / RESULTS).read_bytes().splitlines(keepends=True)
    (tmp_path / RESULTS).write_bytes(a + damage + b"\n" + b + damage)
    with Journal(tmp_path, OWNER) as journal:
        assert [f.file for f in journal.findings()] == ["a", "b"] and journal.damaged == 1
        journal.compact()
    assert (tmp_path / RESULTS).read_bytes() == a + b


TEXT = st.text(st.characters(), max_size=12)  # lone surrogates too, as file names have them
NUMBER = st.one_of(st.integers(0, 2**53), st.floats(0, 1), st.floats(allow_nan=False, allow_infinity=False))
FINDING = st.builds(
    Finding,
    file=TEXT,
    status=st.sampled_from(["ok", "rejected", "failed"]),
    sha256=st.one_of(st.none(), st.text("0123456789abcdef", min_size=64, max_size=64)),
    size=st.one_of(st.none(), st.integers(0, 2**63 - 1)),
    mtime_ns=st.one_of(st.none(), st.integers(-(2**63) + 1, 2**63 - 1)),
    reason=st.one_of(st.none(), st.fixed_dictionaries({"code": TEXT, "message": TEXT})),
    warnings=st.lists(TEXT, max_size=2).map(tuple),
    view=st.sampled_from(["PA", "AP", "lateral", "unknown"]),
    probabilities=st.one_of(st.none(), st.dictionaries(TEXT, st.floats(0, 1), max_size=3)),
    label=st.one_of(st.none(), TEXT),
    flags=st.one_of(st.none(), st.dictionaries(TEXT, st.booleans(), max_size=3)),
    prediction_set=st.one_of(st.none(), st.lists(TEXT, max_size=3).map(tuple)),
    severity=st.one_of(
        st.none(),
        st.builds(Severity),
        st.builds(Severity, st.floats(0, 6), st.tuples(*[st.tuples(st.floats(0, 1), st.floats(0, 1))] * 3)),
    ),
    priority=TEXT,
    timings_ms=st.dictionaries(TEXT, st.floats(0, 1e9), max_size=3),
    bundle=st.just(OWNER.bundle),
    backend=st.just(OWNER.backend),
    precision=st.just(OWNER.precision),
)


@given(FINDING)
def test_the_grammar_reads_every_line_that_is_written(found: Finding) -> None:
    line = module.encoded(found)
    assert values_of(grammar(OWNER), line) == values_from(found)
    assert Finding.from_dict(json.loads(line)) == found


@given(FINDING, st.data())
def test_what_the_grammar_takes_the_parser_takes_alike(found: Finding, data: st.DataObject) -> None:
    """A line in which a byte is replaced, left out or put in: the same values both ways, or none by the grammar."""
    line = bytearray(module.encoded(found))
    at = data.draw(st.integers(0, len(line) - 2))
    length, other = data.draw(st.integers(0, 2)), data.draw(st.sampled_from(b'0123456789.-e+"\\,:[]{}nul\0\xffx '))
    line[at : at + length] = bytes([other])
    values = values_of(grammar(OWNER), bytes(line))
    if values is not None:
        parsed = Finding.from_dict(json.loads(bytes(line)))
        assert values_from(parsed) == values
        assert values_of(grammar(OWNER), module.encoded(parsed)) == values
        assert Owner.of(parsed) == OWNER


def test_lines_laid_out_otherwise_are_read_too(tmp_path: Path) -> None:
    found = [finding('q"\udcff.png'), finding("b", "rejected"), finding("c", "failed")]
    texts = [json.dumps(f.to_dict(), sort_keys=i > 0) for i, f in enumerate(found)]
    texts[1] = json.dumps({**found[1].to_dict(), "of_a_later_version": {"a": 1}, "another": [1, "x"]})
    (tmp_path / RESULTS).write_bytes(b"".join(f"{text}\r\n".encode() for text in texts))
    with Journal(tmp_path, OWNER) as journal:
        assert list(journal.findings()) == found and journal.damaged == 0
        entry = journal.get("b")
        assert entry is not None and (entry.status, entry.size) == ("rejected", 1)


def test_fields_of_a_later_version_are_read_fast(tmp_path: Path) -> None:
    values = finding("a").to_dict()
    owner = {name: values.pop(name) for name in Owner._fields}
    for more in ({"queue_ms": 1.5}, {"x": None, "y": [True], "z": {"a": "b"}}):
        for line in ({**values, **more, **owner}, {**values, **owner, **more}):
            assert values_of(grammar(OWNER), json.dumps(line, separators=(",", ":")).encode() + b"\n") is not None
    twice = module.encoded(finding("a")).replace(b',"bundle"', b',"file":"b","bundle"')
    assert values_of(grammar(OWNER), twice) is None


def test_hashes_are_read_when_asked_for(tmp_path: Path) -> None:
    with Journal(tmp_path, OWNER) as journal:
        journal.append(Finding("a", "ok", sha256="0" * 64, **OWNER._asdict()))
        journal.append(finding("b"))
        assert [journal.sha256(name) for name in "abc"] == ["0" * 64, None, None]


def test_an_input_takes_no_more_memory_than_is_said(tmp_path: Path) -> None:
    count, line = 20_000, module.encoded(finding("n" * 40))
    with (tmp_path / RESULTS).open("wb") as f:
        f.writelines(line.replace(b"n" * 40, f"{i:040}".encode()) for i in range(count))
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        with Journal(tmp_path, OWNER) as journal:
            assert len(journal) == count
            used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert used / count < 250 + 89  # 89: a name of 40 letters
