"""Checkpoint or bundle -> bundle with its variants and their parity. Written to a side folder, then moved."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from cxrvit_edge.bundle import MANIFEST, WEIGHTS
from cxrvit_edge.errors import UsageError
from export import base, parity_page, variants
from train.data.record import Record

PARITY_PAGE = "parity.html"
Say = Callable[[str], None]


def export(
    source: Path,
    records: Sequence[Record],
    out: Path,
    *,
    name: str | None = None,
    say: Say,
    options: variants.Options | None = None,
) -> Path:
    """Checkpoint or bundle `source` -> bundle folder `out`, each variant held against the reference on val and test.

    From a checkpoint, decisions are made on the val split of `records`; from a bundle they are kept. UsageError if
    there is nothing to decide or measure on; ParityError if a variant is outside its bounds. `out` is replaced only by
    a whole bundle.
    """
    if out.exists() and not (out / MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: not empty and no bundle; name another --out")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _export(source, records, out, name, say, options or variants.Options())
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UsageError(
            f"{out}: the disk is full, nothing was written there; free some room or name another --out"
        ) from error
    return out


def _export(
    source: Path, records: Sequence[Record], out: Path, name: str | None, say: Say, options: variants.Options
) -> None:
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        work = Path(temporary) / "bundle"
        work.mkdir(mode=0o755)
        _fill(source, records, work, name, say, options)
        old = Path(temporary) / "old"  # goes with the side folder, once the new one stands
        if out.exists():
            out.replace(old)
        try:
            work.replace(out)
        except BaseException:
            if old.exists():
                old.replace(out)
            raise


def _fill(
    source: Path, records: Sequence[Record], work: Path, name: str | None, say: Say, options: variants.Options
) -> None:
    if base.is_bundle(source):
        made = base.from_bundle(source, work, name, say)
    else:
        made = base.from_checkpoint(source, records, work, name or "default", say)
    raw = made.raw
    base.write_manifest(work, raw)  # whole for a moment: what follows opens it as any bundle
    entries = variants.make(work, made.net, base.GRAPH, records, options, say)
    for variant, entry in entries.items():
        raw["variants"][variant] = {**raw["variants"].get(variant, {}), **entry}
    page = parity_page.render(
        raw["name"],
        base.sha256(work / WEIGHTS),
        {variant: entry["parity"] for variant, entry in raw["variants"].items() if entry["parity"]},
        calibration={variant: entry["calibration"] for variant, entry in raw["variants"].items()},
        caveat=raw["caveat"],
    )
    (work / PARITY_PAGE).write_text(page, encoding="utf-8")
    base.write_manifest(work, raw)
