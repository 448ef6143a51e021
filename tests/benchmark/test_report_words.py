"""The report in a few lines."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from report_builder import CANDIDATES, build

from cxrvit_edge.benchmark.words import told
from cxrvit_edge.plain_text import columns


@given(st.lists(st.tuples(st.text("ab1.", max_size=6), st.text("ab1.", max_size=6)), min_size=1))
def test_columns_line_up(rows: list[tuple[str, str]]) -> None:
    lines = columns(rows)
    assert [line.split() for line in lines] == [[cell for cell in row if cell] for row in rows]
    assert len({len(line) for line, row in zip(lines, rows, strict=True) if row[1]}) <= 1


def test_every_candidate_has_its_speed_its_accuracy_and_its_parity() -> None:
    report = build(flips=3)
    lines = told(report)
    for name in CANDIDATES:
        row = next(line for line in lines if line.startswith(name) and ":" not in line).removeprefix(name).split()
        single, offline = (report["latency"][name][key] for key in ("single_stream", "offline"))
        assert row[:3] == [f"{single[key]:.1f}" for key in ("p50_ms", "p90_ms", "p99_ms")]
        assert row[3] == f"{offline['images_a_second']:.2f}"
        assert row[4] == f"{report['end_to_end'][name]['images_a_second']:.2f}"
        mean = report["accuracy"]["by_candidate"][name]["auc"]["mean"]["value"]
        assert any(line.startswith(f"{name}: mean AUC {mean:.3f} [") for line in lines)
    for name in CANDIDATES[1:]:
        (parity,) = [line for line in lines if line.startswith(f"{name} against {CANDIDATES[0]}: ")]
        assert "3 of 200 images changed" in parity and "% of its mean AUC (99 %: " in parity
    assert lines[-1] == report["research_use"] and lines[-2] == report["caveat"]


def test_what_is_lacking_is_said() -> None:
    report = build(data=False, parity=False, end_to_end=False)
    report["latency"].pop(CANDIDATES[2])  # it failed while it was measured
    lines = told(report)
    assert next(line for line in lines if line.startswith(CANDIDATES[2])).split()[2:] == ["none"] * 6
    assert any(line.startswith("passed over: tensorrt int8: no NVIDIA driver") for line in lines)
    assert not any("AUC" in line for line in lines[: len(CANDIDATES) + 2])
    one_class = told(build(classes=(0,), parity=False))
    assert any(": no AUC: " in line for line in one_class)
