"""Prove that the base dependencies resolve to wheels for aarch64, on the Pythons of JetPack 6 and 7.

    python benchmarks/resolve_aarch64.py

Reads the dependencies from pyproject.toml, lets pip download them for each box (wheels only), then reads every wheel's
METADATA again: pip decides environment markers by the machine it runs on, so each requirement is decided here once more
by the target's own markers and looked for among the wheels. Prints the table and writes
benchmarks/results/aarch64_wheels.csv; exit code 1 if a box lacks a wheel. Needs Python 3.11 (tomllib), `packaging` and
about 100 MB of room for each box.
"""

from __future__ import annotations

import csv
import email
import email.message
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
CSV = ROOT / "benchmarks" / "results" / "aarch64_wheels.csv"
GLIBC_MINORS = (17, 24, 26, 27, 28, 31, 34, 35, 39)  # pip takes the platforms one by one, not "up to"


@dataclass(frozen=True)
class Box:
    name: str
    python: str
    glibc_minor: int  # of the root file system: 2.x

    @property
    def platforms(self) -> list[str]:
        newest_first = sorted((m for m in GLIBC_MINORS if m <= self.glibc_minor), reverse=True)
        return [f"manylinux_2_{minor}_aarch64" for minor in newest_first] + ["manylinux2014_aarch64"]

    @property
    def markers(self) -> dict[str, str]:
        return {
            "implementation_name": "cpython",
            "implementation_version": f"{self.python}.0",
            "os_name": "posix",
            "platform_machine": "aarch64",
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": f"{self.python}.0",
            "python_version": self.python,
            "sys_platform": "linux",
        }


BOXES = (Box("JetPack 6 (Ubuntu 22.04)", "3.10", 35), Box("JetPack 7 (Ubuntu 24.04)", "3.12", 39))


def base_dependencies() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return list(project["dependencies"])


def download(box: Box, requirements: list[str], folder: Path) -> list[Path]:
    """Wheels that pip chooses for `box`; RuntimeError with its words where it finds none."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "--dest", str(folder)]
    command += ["--implementation", "cp", "--python-version", box.python]
    for platform in box.platforms:
        command += ["--platform", platform]
    done = subprocess.run([*command, *requirements], capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise RuntimeError("\n".join(errors) or done.stderr)
    return sorted(folder.glob("*.whl"))


def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA") and n.count("/") == 1)
        return email.message_from_bytes(archive.read(name))


def licence(found: email.message.Message) -> str:
    """SPDX expression where the wheel gives one, else its classifiers, else the first line of its free text."""
    if expression := found["License-Expression"]:
        return str(expression)
    classifiers = [c.rsplit(" :: ", 1)[1] for c in found.get_all("Classifier", []) if c.startswith("License :: OSI")]
    return " / ".join(classifiers) or str(found["License"] or "unstated").splitlines()[0]


def missing(box: Box, requirements: list[str], wheels: dict[str, email.message.Message]) -> Iterator[str]:
    """Requirements of `box` that no wheel in `wheels` (canonical name -> METADATA) meets, its own markers deciding."""
    asked: set[tuple[str, str]] = set()  # (requirement, extra)
    queue = [(text, "") for text in requirements]
    while queue:
        text, extra = queue.pop()
        if (text, extra) in asked:
            continue
        asked.add((text, extra))
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({**box.markers, "extra": extra}):
            continue
        found = wheels.get(canonicalize_name(requirement.name))
        if found is None or not requirement.specifier.contains(str(found["Version"]), prereleases=True):
            yield text
            continue
        queue += [(r, e) for r in found.get_all("Requires-Dist", []) for e in ("", *requirement.extras)]


def main() -> int:
    requirements = base_dependencies()
    rows: list[dict[str, object]] = []
    failed = False
    for box in BOXES:
        with tempfile.TemporaryDirectory() as folder:
            try:
                files = download(box, requirements, Path(folder))
            except RuntimeError as error:
                print(f"{box.name}, Python {box.python}: {error}", file=sys.stderr)
                failed = True
                continue
            found = {canonicalize_name(str(m["Name"])): (f, m) for f in files for m in [metadata(f)]}
            sizes = {name: file.stat().st_size for name, (file, _) in found.items()}
        print(f"\n{box.name}: Python {box.python}, glibc 2.{box.glibc_minor}, {sum(sizes.values()) / 1e6:.0f} MB")
        for name, (file, about) in sorted(found.items()):
            print(f"  {name:24} {about['Version']!s:12} {sizes[name] / 1e6:6.1f} MB  {licence(about)}")
            rows.append(
                {
                    "box": box.name,
                    "python": box.python,
                    "package": name,
                    "version": about["Version"],
                    "wheel": file.name,
                    "bytes": sizes[name],
                    "licence": licence(about),
                }
            )
        if lacking := list(missing(box, requirements, {name: about for name, (_, about) in found.items()})):
            print(f"{box.name}, Python {box.python}: no wheel meets {', '.join(lacking)}", file=sys.stderr)
            failed = True
    if failed:
        return 1
    CSV.parent.mkdir(parents=True, exist_ok=True)
    with CSV.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"\nwritten: {CSV.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
