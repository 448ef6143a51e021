"""BIMCV COVID-19+ (de la Iglesia Vaya et al. 2020, arXiv 2006.01174), iterations 1 to 3, in its MIDS layout:

    [any folder/]sub-S03044/ses-E06211/mod-rx/sub-S03044_ses-E06211_run-1_bp-chest_vp-ap_dx.png, its .json beside it
    [any folder/]participants.tsv                        participant, gender
    [any folder/]derivatives/EHR/sil_reg_covid_posi*     participant, date, test, result (POSITIVO, ...)
    [any folder/]derivatives/labels/*.tsv                ReportID (the session), Labels

The .json is the DICOM header by tag; PNGs hold stored values, so those of MONOCHROME1 are marked inverted. Views: the
file's name and the header each may call an image lateral; then it is left out. Ours: a patient with a positive test is
covid at every visit; of the others an image whose report has the label normal and no other is normal; findings are
read from the labels as PadChest's, whose taxonomy they are.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from cxrvit_edge.errors import UsageError
from cxrvit_edge.readers.views import view_from_text
from cxrvit_edge.table import read_table
from train.data import padchest, split
from train.data.gather import Absent, Gather, day_of, first_days, sex_of
from train.data.record import Record

LOOKS_FOR = "sub-*/ses-*/mod-rx, there or a folder deeper"

_RESULTS = {"POSITIVO": True, "NEGATIVO": False, "INDETERMINADO": False}
_WITHIN = ("", "*/")  # the archives unpack into one folder, or into one each


def is_layout(path: Path) -> bool:
    return path.is_dir() and any(next(path.glob(f"{p}sub-*/ses-*/mod-rx"), None) for p in _WITHIN)


def read(
    folder: Path,
    *,
    positive: Literal["tests", "all"] = "tests",
    absent: Absent = "error",
    left_out: Counter[str] | None = None,
    seed: int = 0,
) -> list[Record]:
    """Records of the PNGs under `folder`, by name; splits are drawn by patient, a tenth val, a tenth test.

    positive: covid are the patients with a positive test (of the others' images only the normal have a label), or all,
    without the test table
    absent: what is listed is what is there, so sessions that only the labels name are no error and "skip" changes
    nothing
    left_out: takes lateral_view, unknown_view, other_body_part
    Raises UsageError: no such folder, no test table, a missing column, an unknown result (with its line).
    """
    if not is_layout(folder):
        raise UsageError(f"{folder}: holds no {LOOKS_FOR}; name the folder that the archives were unpacked into")
    if positive not in ("tests", "all"):
        raise UsageError(f"positive {positive!r}: use tests or all")
    gather = Gather(folder, absent, left_out)
    tested = _tests(folder) if positive == "tests" else {}
    sexes, labels = _sexes(folder), _labels(folder)
    images = sorted(
        (p for w in _WITHIN for p in folder.glob(f"{w}sub-*/ses-*/mod-rx/*.png")), key=lambda p: (p.name, p)
    )
    headers = [_header(path) for path in images]
    days = [day_of(header.get("StudyDate", "")) for header in headers]
    first = first_days((path.parts[-4], day) for path, day in zip(images, days, strict=True))
    for path, header, day in zip(images, headers, days, strict=True):
        patient, session = path.parts[-4], path.parts[-3]
        named = {part[:2]: part[3:] for part in path.stem.split("_") if part[2:3] == "-"}  # vp-ap, bp-chest
        views = [view_from_text(t) for t in (named.get("vp", ""), header.get("ViewPosition", ""), header["series"])]
        if named.get("bp", "chest") != "chest":
            gather.leave_out("other_body_part")
            continue
        if "lateral" in views or all(v == "unknown" for v in views):
            gather.leave_out("lateral_view" if "lateral" in views else "unknown_view")
            continue
        own = labels.get(session, set())
        gather.add(
            Record(
                path=path,
                source="bimcv",
                patient=patient,
                split=split.draw("bimcv", patient, seed=seed),
                view=next(v for v in views if v != "unknown"),
                label=2 if positive == "all" or tested.get(patient) else 0 if own == {"normal"} else None,
                findings=padchest.findings_of(own),
                day=None if day is None else float(day - first[patient]),
                reuse="terms",
                sex=sexes.get(patient, sex_of(header.get("PatientSex", ""))),
                inverted=header.get("PhotometricInterpretation") == "MONOCHROME1",
            ),
            there=True,
        )
    return gather.done()


_TAGS = {
    "00080020": "StudyDate",
    "00100040": "PatientSex",
    "00185101": "ViewPosition",
    "0008103E": "series",
    "00280004": "PhotometricInterpretation",
}


def _header(image: Path) -> dict[str, str]:
    """What the .json beside an image says; an absent or damaged one says nothing."""
    out = {"series": ""}
    try:
        tags: dict[str, Any] = json.loads(image.with_suffix(".json").read_bytes())
    except (OSError, ValueError):
        return out
    for tag, name in _TAGS.items():
        value = tags.get(tag)
        value = value.get("Value") if isinstance(value, dict) else value
        out[name] = str(value[0] if isinstance(value, list) and value else value or "").strip()
    return out


def _tables(folder: Path, pattern: str) -> Iterator[Path]:
    for within in _WITHIN:
        yield from sorted(p for p in folder.glob(f"{within}{pattern}") if p.is_file())


def _tests(folder: Path) -> dict[str, bool]:
    """Patient -> whether any test was positive."""
    out: dict[str, bool] = {}
    tables = [p for p in _tables(folder, "derivatives/EHR/*") if p.name.lower().startswith("sil_reg_covid")]
    if not tables:
        raise UsageError(
            f"{folder}: holds no derivatives/EHR/sil_reg_covid_posi.tsv, which says who tested positive; unpack "
            "covid19_posi_head.tar.gz (iteration 3: covid19_posi_derivative.tar.gz) into it, or take all as positive"
        )
    for path in tables:
        table = read_table(path, delimiter=None)
        table.require(path, ("participant", "result"))
        for line, row in table.rows:
            result = row["result"].strip().upper()
            if result not in _RESULTS:
                raise UsageError(f"{path} line {line}: result is {result!r}; use one of {', '.join(_RESULTS)}")
            patient = row["participant"].strip()
            out[patient] = out.get(patient, False) or _RESULTS[result]
    return out


def _sexes(folder: Path) -> dict[str, str]:
    out = {}
    for path in _tables(folder, "participants.tsv"):
        table = read_table(path, delimiter="\t")
        table.require(path, ("participant", "gender"))
        out.update({row["participant"].strip(): sex_of(row["gender"].strip("[]' ")) for _, row in table.rows})
    return out


def _labels(folder: Path) -> dict[str, set[str]]:
    """Session -> labels of its report."""
    out: dict[str, set[str]] = {}
    for path in _tables(folder, "derivatives/labels/*.tsv"):
        table = read_table(path, delimiter="\t", only=("reportid", "labels"))
        table.require(path, ("reportid", "labels"))
        for line, row in table.rows:
            session = row["reportid"].strip()
            session = session if session.startswith("ses-") else f"ses-{session}"
            out[session] = padchest.labels_of(row["labels"], f"{path} line {line}")
    return out
