"""The table that opens the README is what the committed CSV holds, and says where others are ahead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import readme

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "benchmarks" / "results" / "peers.csv"


def row(name: str, **figures: Any) -> dict[str, str]:
    """A line as the CSV has it."""
    values = {
        "name": name,
        "kind": "network",
        "version": "1.2",
        "precision": "fp32",
        "network_ms_1": 200.0,
        "images_a_second": 4.0,
        "memory_mb": 900.0,
        "first_result_s": 3.0,
        "install_mb": 1200.0,
        "end_to_end_ratio": 2.5,
        "end_to_end_ratio_same_precision": 1.25,
        "apart": "1.0e-06",
        "films": 24,
        "images": "24 different phantom JPEG, set 0123",
        "bundle": "abcdef012345",
        "note": "",
        "date": "2026-01-02",
        "box": "Test processor, 2 cores",
    }
    return {key: str(value) for key, value in {**values, **figures}.items()}


def ours(**figures: Any) -> dict[str, str]:
    best = {"kind": "ours", "precision": "int8", "network_ms_1": 100.0, "images_a_second": 10.0, "memory_mb": 400.0}
    return row(
        "cxrvit-edge", **{**best, "first_result_s": 1.0, "install_mb": 600.0, "end_to_end_ratio": 1.0, **figures}
    )


def test_readme_holds_the_table_of_the_committed_csv() -> None:
    inside = readme.block((ROOT / "README.md").read_text(encoding="utf-8"))
    assert inside == readme.render(readme.stored()), "run: python -m benchmarks readme --write"


def test_every_measured_peer_of_the_committed_csv_is_shown() -> None:
    rows = readme.stored()
    lines = [line for line in readme.render(rows).splitlines() if line.startswith("| ")]
    assert len(lines) == 2 + sum(bool(r["images_a_second"]) for r in rows)
    assert all(float(r["images_a_second"]) > 0 for r in rows if r["images_a_second"])


def test_a_table_in_which_nobody_is_ahead_has_no_notes() -> None:
    lines = readme.render([ours(), row("Peer")]).splitlines()
    assert lines[0].startswith("Test processor, 2 cores, 2026-01-02, 24 films (24 different phantom JPEG, set 0123)")
    assert lines[-1] == "| Peer | 1.2 | 200 | 4.00 | 900 | 3.00 | 1,200 | 2.50 | 1.25 |"
    assert lines[-2].startswith("| **cxrvit-edge** (int8) | 1.2 | 100 | 10.0 | 400 | 1.00 | 600 | 1.00 |")


@pytest.mark.parametrize(
    ("figure", "value", "bold", "note"),
    [
        ("network_ms_1", 80.0, "**80.0**", "- Ahead of us in the network: Peer (1.25 times)"),
        ("images_a_second", 12.5, "**12.5**", "- Ahead of us from files to results: Peer (1.25 times)"),
        ("memory_mb", 320.0, "**320**", "- Ahead of us in memory: Peer (1.25 times)"),
        ("first_result_s", 0.8, "**0.800**", "- Ahead of us to the first result: Peer (1.25 times)"),
        ("install_mb", 480.0, "**480**", "- Ahead of us in what is installed: Peer (1.25 times)"),
    ],
)
def test_whoever_is_ahead_is_in_bold_and_in_a_note(figure: str, value: float, bold: str, note: str) -> None:
    table = readme.render([ours(), row("Peer", **{figure: value}), row("Other")])
    line = next(line for line in table.splitlines() if line.startswith("| Peer"))
    assert bold in line
    assert line.count("**") == 2
    assert [text for text in table.splitlines() if text.startswith("- ")] == [
        text for text in table.splitlines() if text.startswith(note)
    ]
    assert note in table


def test_another_setting_of_ours_is_no_peer() -> None:
    table = readme.render([ours(), row("cxrvit-edge, other", kind="ours", network_ms_1=1.0)])
    assert "Ahead" not in table


def test_arithmetic_that_departs_fewer_films_and_what_is_absent_are_told() -> None:
    departs = row("Peer, bfloat16", precision="fp32, bf16", apart="2.0e-03")
    absent = row("Absent", images_a_second="", apart="", note="absent is not installed")
    slow = row("Slow", films=2)
    table = readme.render([ours(), departs, absent, slow])
    assert "- Of fewer films, as they are slow: Slow (2)." in table
    assert "in fp32: Peer, bfloat16 0.002." in table
    assert "- Not measured: Absent (absent is not installed)." in table
    assert "| Absent" not in table


def test_a_table_without_this_project_is_refused() -> None:
    with pytest.raises(ValueError, match="no row 'cxrvit-edge'"):
        readme.render([row("Peer")])


def test_the_table_goes_between_the_markers_and_nothing_else_changes(tmp_path: Path) -> None:
    before = f"# Title\n\n{readme.BEGIN}\nold\n{readme.END}\n\nrest\n"
    after = readme.put(before, "new\n")
    assert after == f"# Title\n\n{readme.BEGIN}\nnew\n{readme.END}\n\nrest\n"
    assert readme.put(after, "new\n") == after


@pytest.mark.parametrize("text", ["", f"{readme.BEGIN}\nno end", f"{readme.BEGIN}\n{readme.END}\n" * 2])
def test_markers_that_are_not_there_once_are_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="marker"):
        readme.block(text)


def test_a_csv_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"peers.csv: no such file; python -m benchmarks peers"):
        readme.stored(tmp_path / "peers.csv")
