"""The paper's Tables 4 to 10 with our figures beside them, each headed by what it was measured on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cxrvit_edge.metrics import RATES
from train import paper
from train.paper import HOSPITALS, Row, Table
from train.severity_eval import FIGURES

Evaluation = Mapping[str, Any]
CLASS_OF = {"Avg.": "mean", "Normal": "normal", "Others": "other_infection", "COVID": "covid19"}
VIEW_OF = {4: "PA", 5: "AP, all", 7: "PA", 9: "PA"}  # the others are of all views, and of severity
SIZES = {(2, 4): "2x4", (4, 8): "4x8", (12, 12): "12x12"}
PROPOSED = ("auc", *RATES, *FIGURES)  # rows of Tables 4 to 6


def tables(evaluations: Sequence[Evaluation]) -> str:
    """What evaluate_run returned, or its JSON files, as readable text.

    A run stands in the rows that its settings make it: proposed, another network, or one ablation. One with several
    ablations at once has no row and is named at the end. What the data lacks reads "not measured: needs ...".
    """
    data: dict[str, str] = {}  # what was measured on -> its letter
    out = [_table(table, evaluations, data) for table in paper.TABLES]
    legend = [f"[{letter}] {text}" for text, letter in data.items()]
    runs = [f"({n}) {_legend(e)}" for n, e in enumerate(evaluations, 1)]
    unplaced = [f"({n})" for n, e in enumerate(evaluations, 1) if not place(e)]
    unplaced += [
        f"({n}) for severity" for n, e in enumerate(evaluations, 1) if "severity" in e["with"] and not place(e, True)
    ]
    notes = [
        "Paper: Park, Kim et al., arXiv 2104.07235v1; where its text and its tables disagree, its tables.",
        "Intervals are 95 %, over patients; the AUC of one class has DeLong's.",
        "Sensitivity, specificity, accuracy: at thresholds chosen on the same images, as in the paper; (val): on val.",
        f"Radiologists against their consensus, severity MSE: {paper.RADIOLOGISTS_MSE} (section 5.3).",
        *([f"In no row, since they differ in more than one setting: {', '.join(unplaced)}."] if unplaced else []),
        *dict.fromkeys(e["caveat"] for e in evaluations),
    ]
    return "\n\n".join([*out, "\n".join([*legend, *runs]), "\n".join(notes)]).strip() + "\n"


def place(e: Evaluation, severity: bool = False) -> frozenset[str]:
    """Keys of paper.Row that the run belongs to; severity: that the run which gives the severity belongs to."""
    run = e["with"].get("severity", e["run"]) if severity else e["run"]
    graded = severity or "severity" not in e["with"]  # pooling is no setting of a run that only diagnoses
    config, options = run["config"], run["options"]
    simclr = options.get("init") == "simclr"
    if run["network"] != "cxrvit":
        return frozenset({run["network"] + (" simclr" if simclr else "")})
    size = (config["layers"], config["heads"])
    trained = {s.lower() for s in run["sources"]}
    changes = [
        key
        for key, changed in (
            (SIZES.get(size, ""), size in SIZES and size != (12, 12)),
            (config["corpus"], config["corpus"] != "before"),
            ("frozen", options.get("freeze") == "backbone"),
            ("1024", config["image_size"] == 1024),
            ("proposed simclr", simclr),
            ("average", graded and e["pooling"] == "average"),
            ("brixia only", trained == {"brixia"}),
        )
        if changed
    ]
    if changes:
        return frozenset(changes) if len(changes) == 1 else frozenset()
    rows = {*PROPOSED, "proposed", "before", "trainable", "512", "max", SIZES.get(size, "other size")}
    if "brixia" in trained and trained & {h.lower() for h in HOSPITALS}:
        rows.add("three datasets")
    return frozenset(rows)


def _table(table: Table, evaluations: Sequence[Evaluation], data: dict[str, str]) -> str:
    rows = list(table.rows)
    if table.number == 9 and (found := _other_sizes(evaluations)):
        rows.insert(3, Row("other size", f"{found} (not in the paper)", (), "Network size"))
    cells: dict[tuple[int, str], list[str]] = {}  # (row, letter or hospitals) -> lines
    letters: list[str] = []
    for r, row in enumerate(rows):
        for n, e in enumerate(evaluations, 1):
            if not _shows(table, row, e):
                continue
            for text, block in _measured(table, e):
                if lines := list(_figures(table, row, block, n)):
                    letter = data.setdefault(text, chr(ord("A") + len(data)) if len(data) < 26 else f"A{len(data)}")
                    letters += [letter] if letter not in letters else []
                    cells.setdefault((r, letter), []).extend(lines)
        cells[r, "hospitals"] = _hospitals(table, row, evaluations)
    hospitals = [c for c in table.columns if c != "Avg."]
    heads = ["", "", *(f"paper, {c}" for c in table.columns), f"ours, {', '.join(hospitals)}"]
    heads += [f"ours [{letter}]" for letter in letters]
    printed: list[list[str]] = [heads]
    group = name = ""
    for r, row in enumerate(rows):
        if row.group != group:
            printed.append([row.group])
        said = [_number(v, row) for v in row.values] or [""] * len(table.columns)
        ours = [cells[r, "hospitals"], *(cells.get((r, letter), ["no run"]) for letter in letters)]
        for k in range(max(map(len, ours))):
            head = [("  " if row.group else "") + row.name if row.name != name else "", row.part, *said]
            head = head if k == 0 else [""] * len(head)
            printed.append([*head, *(c[k] if k < len(c) else "" for c in ours)])
        group, name = row.group, row.name
    return f"Table {table.number}. {table.title}\n{aligned(printed)}"


def _shows(table: Table, row: Row, e: Evaluation) -> bool:
    """Whether the run is of the row, and learned the view that the table is of."""
    view = VIEW_OF.get(table.number)
    learned = e["run"]["options"].get("view") or "any"
    if view is not None and learned != "any" and not view.startswith(learned):
        return False
    return row.key in place(e, severity=view is None)


def _measured(table: Table, e: Evaluation) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What an evaluation was measured on that a table may show, and its figures: once a Brixia cut for severity."""
    known = {None: "training sources not recorded", True: "none of them in training", False: "also in training"}
    view = VIEW_OF.get(table.number)
    seen = known[e["external"].get("severity" if view is None else "diagnosis")]
    if view is not None:
        block = e["groups"]["view"].get(view, {}).get("diagnosis")
        if block and block["images"]:
            sources = [k[: -len(view) - 2] for k in e["groups"]["source and view"] if k.endswith(f", {view}")]
            kind = "AP and AP supine" if view == "AP, all" else view
            yield f"{e['split']} split of {', '.join(sources)}; {kind}, {block['images']} images; {seen}", block
        return
    for cut, block in e.get("severity", {}).items():
        if block["images"]:
            scored = [s for s, part in e["groups"]["source"].items() if part["severity"][cut]["images"]]
            text = f"{e['split']} split of {', '.join(scored)}; {block['images']} images with {cut}; {seen}"
            yield text, block


def _hospitals(table: Table, row: Row, evaluations: Sequence[Evaluation]) -> list[str]:
    """Our figures on the paper's own test hospitals, and which of those the data lacks."""
    lines, missing = [], []
    for hospital in (c for c in table.columns if c != "Avg."):
        found = []
        for n, e in enumerate(evaluations, 1):
            view = VIEW_OF.get(table.number)
            wanted = hospital.lower() + (f", {view.lower()}" if view else "")
            for name, block in e["groups"]["source and view" if view else "source"].items():
                if name.lower() != wanted or not _shows(table, row, e):
                    continue
                part = block.get("diagnosis") if view else block.get("severity", {}).get("brixia>=1")
                if part and part["images"]:
                    found += [f"{hospital} {line}" for line in _figures(table, row, part, n)]
        lines += found
        missing += [] if found or _has(hospital, evaluations) else [hospital]
    return lines + ([f"not measured: needs {', '.join(missing)}"] if missing else []) or ["no run"]


def _has(hospital: str, evaluations: Sequence[Evaluation]) -> bool:
    return any(hospital.lower() == s.lower() for e in evaluations for s in e["sources"])


def _figures(table: Table, row: Row, block: Mapping[str, Any], run: int) -> Iterator[str]:
    if table.number in VIEW_OF:
        part = CLASS_OF[row.part or "Avg."]
        if row.key in RATES:
            for way, note in (("own", ""), ("fixed", " (val)")):
                if block[way]:
                    yield f"{interval(block[way][part][row.key], 100)} ({run}){note}"
        else:
            yield f"{interval(block['auc'][part])} ({run})"
        return
    yield f"{interval(block[row.key if table.number == 6 else 'mse'])} ({run})"


def interval(e: Mapping[str, float | None], scale: int = 1) -> str:
    """A value and its interval for people; "not defined" without the value."""
    digits = 1 if scale == 100 else 3
    value, low, high = e["value"], e["low"], e["high"]
    if value is None:
        return "not defined"
    if low is None or high is None:
        return f"{value * scale:.{digits}f} [no interval]"
    return f"{value * scale:.{digits}f} [{low * scale:.{digits}f}, {high * scale:.{digits}f}]"


def _number(value: float, row: Row) -> str:
    return f"{value:.1f}" if row.key in RATES else f"{value:.3f}"


def _other_sizes(evaluations: Sequence[Evaluation]) -> str:
    sizes = {
        (e["run"]["config"]["layers"], e["run"]["config"]["heads"]) for e in evaluations if "other size" in place(e)
    }
    return "; ".join(f"{layers} layers and {heads} heads" for layers, heads in sorted(sizes))


def _legend(e: Evaluation) -> str:
    runs = [e["run"], *([e["with"]["severity"]] if "severity" in e["with"] else [])]
    return "; severity by ".join(map(_named, runs))


def _named(run: Mapping[str, Any]) -> str:
    """A run in words."""
    options, config = run["options"], run["config"]
    words = [f"{run['name']}: stage {run['stage']}, {run['network']}"]
    if run["network"] == "cxrvit":
        words.append(f"preset {run['preset']} ({config['layers']} layers, {config['heads']} heads)")
    words.append(f"{config['image_size']} px")
    words.append(f"starts from {options['init']} weights" if options.get("init") else "from scratch")
    if (view := options.get("view") or "any") != "any":
        words.append(f"view {view} alone")
    if run["sources"]:
        words.append("trained on " + ", ".join(f"{s} {n}" if n else s for s, n in run["sources"].items()))
    return ", ".join(words)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest cell; a row of one cell is a heading and widens nothing."""
    width: dict[int, int] = {}
    for row in rows:
        for i, cell in enumerate(row if len(row) > 1 else ()):
            width[i] = max(width.get(i, 0), len(cell))
    kept = [i for i in width if width[i]]
    lines = []
    for row in rows:
        text = row[0] if len(row) == 1 else "  ".join(row[i].ljust(width[i]) for i in kept if i < len(row))
        lines.append(text.rstrip())
    return "\n".join(lines)
