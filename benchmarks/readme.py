"""The README's table from results/peers.csv: python -m benchmarks readme [--write]

Prints it; with --write puts it between the markers `<!-- table: peers -->` and `<!-- /table -->` of README.md. What is
ahead of this project is in bold, and the notes below the table say where and why.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.record import RESULTS

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN, END = "<!-- table: peers -->", "<!-- /table -->"
OURS = "cxrvit-edge"
SHOWN = ("name", "version", "network_ms_1", "images_a_second", "memory_mb", "first_result_s", "install_mb")
HEAD = ("", "version", "network, ms", "files to results, images/s", "memory, MB", "first result, s", "install, MB")
RATIOS = {"end_to_end_ratio": "ours is so many times as fast", "end_to_end_ratio_same_precision": "in its precision"}
MORE_IS_AHEAD = {"images_a_second"}
LABELS = {
    "network_ms_1": "in the network",
    "images_a_second": "from files to results",
    "memory_mb": "in memory",
    "first_result_s": "to the first result",
    "install_mb": "in what is installed",
}
WHY = {
    "network_ms_1": "the same graph in a session of the same kind; 3 % is the spread of such a measurement",
    "images_a_second": "a loop writes a line a film; ours hashes, guards and judges each, and writes journal, page and "
    "pictures",
    "memory_mb": "a network and a loop hold less than readers, a journal and a report that run beside the network",
    "first_result_s": "nothing is verified before, and no worklist, report or thumbnail is written",
    "install_mb": "ours counts its bundle of weights, the decoders of DICOM and the command, the others no weights",
}
Row = Mapping[str, str]


def stored(path: Path = RESULTS / "peers.csv") -> list[dict[str, str]]:
    """The rows of the CSV. SystemExit if there is none."""
    if not path.is_file():
        raise SystemExit(f"{path}: no such file; python -m benchmarks peers writes it")
    with path.open(newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def render(rows: Sequence[Row]) -> str:
    """Markdown: where and on what, the table, who is ahead in what. ValueError if this project has no row."""
    ours = next((row for row in rows if row["name"] == OURS), None)
    if ours is None:
        raise ValueError(f"no row {OURS!r}: the table compares the others with it")
    measured = [row for row in rows if row["images_a_second"]]
    where = f"{ours['box']}, {ours['date']}, {ours['films']} films ({ours['images']}), bundle {ours['bundle']}."
    lines = [
        f"{where} In the network: one image at a time. **Bold: ahead of us.**",
        "",
        _line([*HEAD, *RATIOS.values()]),
        _line(["---", "---", *["---:"] * (len(HEAD) - 2 + len(RATIOS))]),
        *(_line(_cells(row, ours)) for row in measured),
        "",
        *notes(rows, ours),
    ]
    return "\n".join(lines).rstrip() + "\n"


def notes(rows: Sequence[Row], ours: Row) -> list[str]:
    """A line a figure in which others are ahead, one for arithmetic that departs, one for what was not measured."""
    found = []
    for figure, label in LABELS.items():
        names = [f"{row['name']} ({_times(row, ours, figure)})" for row in rows if is_ahead(row, ours, figure)]
        if names:
            why = f": {WHY[figure]}" if WHY[figure] else ""
            found.append(f"- Ahead of us {label}: {', '.join(names)}{why}.")
    bfloat16 = [row for row in rows if "bf16" in row["precision"] and row["apart"]]
    if bfloat16:
        apart = ", ".join(f"{row['name']} {float(row['apart']):.2g}" for row in bfloat16)
        how = (
            "OpenVINO rounds to bfloat16 by itself on such a processor; ours lets it where int8 passes its golden check"
        )
        largest = "Largest difference of a probability from ours in fp32"
        found.append(f"- {how}, and asks for float32 where the variant is fp32. {largest}: {apart}.")
    fewer = [
        f"{row['name']} ({row['films']})" for row in rows if row["images_a_second"] and row["films"] != ours["films"]
    ]
    if fewer:
        found.append(f"- Of fewer films, as they are slow: {', '.join(fewer)}.")
    absent = [f"{row['name']} ({row['note']})" for row in rows if not row["images_a_second"]]
    if absent:
        found.append(f"- Not measured: {'; '.join(absent)}.")
    return found


def is_ahead(row: Row, ours: Row, figure: str) -> bool:
    """Whether a peer, not another setting of ours, has the better figure."""
    if row["kind"] == "ours" or not row[figure] or not ours[figure]:
        return False
    theirs, own = float(row[figure]), float(ours[figure])
    return theirs > own if figure in MORE_IS_AHEAD else theirs < own


def _times(row: Row, ours: Row, figure: str) -> str:
    theirs, own = float(row[figure]), float(ours[figure])
    ratio = theirs / own if figure in MORE_IS_AHEAD else own / theirs
    return f"{ratio:.2f} times" if ratio >= 1.005 else "even"


def _cells(row: Row, ours: Row) -> list[str]:
    cells = []
    for name in SHOWN:
        text = _number(row[name]) if name in LABELS else row[name]
        bold = name in LABELS and is_ahead(row, ours, name)
        cells.append(f"**{text}**" if bold or row["name"] == OURS == text else text)
    if row["name"] == OURS:
        cells[0] = f"**{OURS}** ({row['precision']})"
    return [*cells, *(_number(row[name]) for name in RATIOS)]


def _number(text: str) -> str:
    """Three digits are all that such a measurement holds."""
    if not text:
        return ""
    value = float(text)
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def block(readme: str) -> str:
    """What stands between the markers. ValueError if they are not there once each, in this order."""
    if readme.count(BEGIN) != 1:
        raise ValueError(f"README.md has not one marker {BEGIN}")
    _, _, rest = readme.partition(BEGIN + "\n")
    inside, found, _ = rest.partition(END)
    if not found:
        raise ValueError(f"README.md has no marker {END} after {BEGIN}")
    return inside


def put(readme: str, table: str) -> str:
    """The README with the table between its markers."""
    return readme.replace(f"{BEGIN}\n{block(readme)}{END}", f"{BEGIN}\n{table}{END}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks readme", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="into README.md")
    options = parser.parse_args(argv)
    table = render(stored())
    if not options.write:
        print(table, end="")
        return 0
    try:
        README.write_text(put(README.read_text(encoding="utf-8"), table), encoding="utf-8")
    except ValueError as error:
        print(f"{error}; put them where the table should stand", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
