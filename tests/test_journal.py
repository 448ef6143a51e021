from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrvit_edge.errors import UsageError
from cxrvit_edge.findings import Finding, Severity
from cxrvit_edge.journal import LOCK, RESULTS, Journal, Owner

OWNER = Owner("fake@0123456789ab", "fake", "fp32")


def finding(file: str, status: str = "ok", size: int = 1, owner: Owner = OWNER) -> Finding:
    return Finding(
        file=file,
        status=status,  # type: ignore[arg-type]
        size=size,
        mtime_ns=size * 1000,
        severity=Severity(1.5, ((0.5, 0.0), (0.5, 0.0), (0.5, 0.0))) if status == "ok" else None,
        timings_ms={"read": 0.5},
        bundle=owner.bundle,
        backend=owner.backend,
        precision=owner.precision,
    )


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / RESULTS).read_bytes().splitlines()]


def test_a_line_is_in_the_file_when_append_returns(tmp_path: Path) -> None:
    with Journal(tmp_path / "new" / "out", OWNER) as journal:
        journal.append(finding("a.png"))
        (line,) = lines(tmp_path / "new" / "out")
        assert line["schema"] == 1 and line["file"] == "a.png" and line["severity"]["score"] == 1.5  # type: ignore[index]


def test_results_come_back_as_they_were_written(tmp_path: Path) -> None:
    odd = finding('\udcff, "quoted"\n\t\u2028 name.png')
    with Journal(tmp_path, OWNER) as journal:
        journal.append(odd)
    with Journal(tmp_path, OWNER) as journal:
        assert list(journal.findings()) == [odd]
        entry = journal.get(odd.file)
        assert entry is not None and (entry.status, entry.size, entry.mtime_ns) == ("ok", 1, 1000)
        assert journal.get("other") is None


def test_findings_come_in_the_order_asked_for(tmp_path: Path) -> None:
    with Journal(tmp_path, OWNER) as journal:
        for name in "abc":
            journal.append(finding(name))
        found = journal.findings(["c", "a"])
        assert [f.file for f in found] == ["c", "a"] and found[1].file == "a" and found[:1][0].file == "c"
        assert len(found) == 2


def test_the_last_line_of_an_input_wins_and_compacting_keeps_it_alone(tmp_path: Path) -> None:
    with Journal(tmp_path, OWNER) as journal:
        journal.append(finding("a", "failed"))
        journal.append(finding("b"))
        journal.append(finding("a", "ok", size=7))
        assert len(lines(tmp_path)) == 3
        journal.compact()
        assert [(line["file"], line["size"]) for line in lines(tmp_path)] == [("b", 1), ("a", 7)]
        assert [f.file for f in journal.findings()] == ["b", "a"]
        journal.append(finding("c"))
        assert [f.file for f in journal.findings()] == ["b", "a", "c"]
    assert sorted(os.listdir(tmp_path)) == [LOCK, RESULTS]  # noqa: PTH208


def test_a_last_line_cut_at_any_byte_loses_only_itself(tmp_path: Path) -> None:
    with Journal(tmp_path, OWNER) as journal:
        journal.append(finding("a"))
        journal.append(finding("b"))
    whole = (tmp_path / RESULTS).read_bytes()
    first = whole.index(b"\n") + 1
    for cut in (*range(0, len(whole), 13), first - 1, first, first + 1, len(whole) - 2, len(whole) - 1):
        (tmp_path / RESULTS).write_bytes(whole[:cut])
        with Journal(tmp_path, OWNER) as journal:
            assert [f.file for f in journal.findings()] == (["a"] if cut >= first else [])
            journal.append(finding("c"))
        assert [line["file"] for line in lines(tmp_path)] == (["a", "c"] if cut >= first else ["c"])


def test_zeros_that_a_power_cut_left_are_dropped(tmp_path: Path) -> None:
    with Journal(tmp_path, OWNER) as journal:
        journal.append(finding("a"))
    with (tmp_path / RESULTS).open("ab") as f:
        f.write(b"\0" * 4096)
    with Journal(tmp_path, OWNER) as journal:
        assert [f.file for f in journal.findings()] == ["a"]


@pytest.mark.parametrize("damage", [b"{}", b"null", b"[1]", b"\xff\xfe", b'{"schema":1,"file":3,"status":"ok"}', b""])
def test_a_damaged_line_in_the_middle_is_counted_and_dropped(tmp_path: Path, damage: bytes) -> None:
    with Journal(tmp_path, OWNER) as journal:
        journal.append(finding("a"))
        journal.append(finding("b"))
    a, b = (tmp_path / RESULTS).read_bytes().splitlines()
    (tmp_path / RESULTS).write_bytes(a + b"\n" + damage + b"\n" + b + b"\n")
    with Journal(tmp_path, OWNER) as journal:
        assert journal.damaged == 1
        journal.compact()
    assert [line["file"] for line in lines(tmp_path)] == ["a", "b"]


@pytest.mark.parametrize(
    "other",
    [
        *(OWNER._replace(bundle="x@0"), OWNER._replace(backend="torch"), OWNER._replace(precision="int8")),
        *(OWNER._replace(sensitivity=95), OWNER._replace(selective=True)),
    ],
)
def test_the_folder_of_another_owner_needs_fresh(tmp_path: Path, other: Owner) -> None:
    with Journal(tmp_path, OWNER) as journal:
        journal.append(finding("a", "rejected"))
    before = (tmp_path / RESULTS).read_bytes()
    with pytest.raises(UsageError, match="--fresh"):
        Journal(tmp_path, other)
    assert (tmp_path / RESULTS).read_bytes() == before
    with Journal(tmp_path, other, fresh=True) as journal:
        assert len(journal) == 0


@pytest.mark.parametrize("content", [b"hello\n", b"something else", b'{"a": 1}\n{"b": 2}\n', b'{"schema":2}\n'])
def test_a_file_that_is_not_ours_is_left_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / RESULTS).write_bytes(content)
    with pytest.raises(UsageError, match="--fresh"):
        Journal(tmp_path, OWNER)
    assert (tmp_path / RESULTS).read_bytes() == content


def test_a_second_process_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from cxrvit_edge.journal import Journal, Owner\n"
        "with Journal(Path(sys.argv[1]), Owner('b', 'c', 'd')): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    root = Path(__file__).resolve().parents[1]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(UsageError, match=f"in use by process {holder.pid} on "):
            Journal(tmp_path, OWNER, fresh=True)
        holder.kill()
    with Journal(tmp_path, OWNER):  # the lock died with its process
        pass


def test_a_write_that_fails_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Journal(tmp_path, OWNER) as journal:
        journal.append(finding("a"))
        real = journal._file

        class Full:
            def write(self, data: bytes) -> int:
                if len(data) < 100:
                    raise OSError(28, "No space left on device")
                return real.write(data[:50])

            def __getattr__(self, name: str) -> object:
                return getattr(real, name)

        monkeypatch.setattr(journal, "_file", Full())
        with pytest.raises(OSError, match="No space"):
            journal.append(finding("b"))
        monkeypatch.setattr(journal, "_file", real)
    assert [line["file"] for line in lines(tmp_path)] == ["a"]


@settings(max_examples=30)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(["ok", "rejected", "failed"])), max_size=12))
def test_any_sequence_of_runs_ends_with_each_input_once(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    expected: dict[str, tuple[str, int]] = {}
    for number, (name, status) in enumerate(steps):
        with Journal(folder, OWNER) as journal:
            journal.append(finding(name, status, size=number))
            if number % 3 == 2:
                journal.compact()
        expected[name] = (status, number)
    with Journal(folder, OWNER) as journal:
        journal.compact()
        assert {f.file: (f.status, f.size) for f in journal.findings()} == expected
    assert len(lines(folder)) == len(expected)
