"""What is installed and what it drags in: the public names, lazy imports, dependencies, the wheel."""

from __future__ import annotations

import ast
import csv
import importlib
import importlib.metadata
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import cxrvit_edge

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "cxrvit_edge"
HEAVY = {"cv2", "gdcm", "numpy", "onnx", "onnxruntime", "pydicom", "rich", "tensorrt", "tensorrt_rtx", "torch"}
# Rooms that need an extra; everything else lives on the base dependencies.
EXTRAS = {
    "model": {"torch", "safetensors"},
    "runtime/torch.py": {"torch", "safetensors"},
    "runtime/cuda.py": {"cuda"},
    "runtime/openvino.py": {"openvino"},
    "inotify.py": {"watchfiles"},
}
PUBLIC = [
    "Bundle",
    "BundleError",
    "CxrVitError",
    "DicomError",
    "EngineError",
    "Finding",
    "InputError",
    "Limits",
    "ParityError",
    "Radiograph",
    "Reason",
    "Triage",
    "UsageError",
    "read",
]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return found


def imported_by(*arguments: str) -> set[str]:
    """Every module that a fresh interpreter imports while it runs `arguments`, which must succeed."""
    command = [sys.executable, "-X", "importtime", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = (line for line in done.stderr.splitlines() if line.startswith("import time:"))
    return {line.rsplit("|", 1)[1].strip() for line in lines}


def test_public_names() -> None:
    assert sorted(cxrvit_edge.__all__) == PUBLIC
    for name in PUBLIC:
        found = getattr(cxrvit_edge, name)
        assert found.__name__ == name
        assert found.__module__.startswith("cxrvit_edge.")
    assert set(PUBLIC) <= set(dir(cxrvit_edge))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = cxrvit_edge.no_such_name


def test_import_is_light() -> None:
    modules = imported_by("-c", "import cxrvit_edge")
    assert "cxrvit_edge" in modules
    assert not modules & HEAVY


@pytest.mark.parametrize("verb", [[], ["triage"], ["build"], ["benchmark"], ["compare"], ["inspect"], ["doctor"]])
def test_help_is_light(verb: list[str]) -> None:
    modules = imported_by("-c", "from cxrvit_edge.cli import main; main()", *verb, "--help")
    assert {"cxrvit_edge.cli", "typer"} <= modules
    assert not modules & HEAVY


@pytest.fixture(scope="module")
def distributions() -> Mapping[str, list[str]]:
    """Which distributions an import name comes from; a scan of the whole environment."""
    return importlib.metadata.packages_distributions()


def imports(path: Path) -> Iterator[str]:
    """Top-level names of what a file imports, at any depth of it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_are_declared(path: Path, project: dict[str, Any], distributions: Mapping[str, list[str]]) -> None:
    """Neither `train` nor `export`, nor a library that only comes along with another one."""
    base = {canonicalize_name(Requirement(text).name) for text in project["dependencies"]}
    room = path.relative_to(PACKAGE).as_posix()
    allowed = set[str]().union(*(names for place, names in EXTRAS.items() if room.startswith(place)))
    for name in set(imports(path)) - set(sys.stdlib_module_names) - {"cxrvit_edge"} - allowed:
        assert {canonicalize_name(d) for d in distributions.get(name, [])} & base, f"{room} imports {name}"


def test_base_dependencies_are_permissive_and_have_wheels_for_jetson(project: dict[str, Any]) -> None:
    """By benchmarks/results/aarch64_wheels.csv; run benchmarks/resolve_aarch64.py again after changing a dependency."""
    with (ROOT / "benchmarks" / "results" / "aarch64_wheels.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["python"] for row in rows} == {"3.10", "3.12"}
    for row in rows:
        assert "torch" not in row["package"]
        assert "GPL" not in row["licence"] and "GNU" not in row["licence"], row
        assert row["wheel"].endswith("any.whl") or "aarch64" in row["wheel"]
    for python in ("3.10", "3.12"):
        versions = {row["package"]: row["version"] for row in rows if row["python"] == python}
        for requirement in map(Requirement, project["dependencies"]):
            assert requirement.marker is None
            assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*command, "-w", str(folder), "."], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_wheel_holds_the_package_whole_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = {name for name in wheel.namelist() if not re.match(r"cxrvit_edge-[^/]+\.dist-info/", name)}
    files = {path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*") if path.is_file()}
    assert names == {name for name in files if "__pycache__" not in name}
    assert "cxrvit_edge/py.typed" in names
    bundle = {
        "manifest.json",
        "weights.safetensors",
        "fp32.onnx",
        "golden_inputs.npz",
        "golden_fp32.npz",
        "LICENSE-WEIGHTS.md",
    }
    assert {f"cxrvit_edge/bundles/default/{file}" for file in bundle} <= names


def test_wheel_metadata(wheel: zipfile.ZipFile, project: dict[str, Any]) -> None:
    (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    metadata: Message = message_from_bytes(wheel.read(name))
    assert metadata["Version"] == project["version"]
    assert metadata["License-Expression"] == "Apache-2.0 AND CC-BY-NC-SA-4.0"
    assert sorted(metadata.get_all("License-File", [])) == [
        "LICENSE",
        "cxrvit_edge/bundles/default/LICENSE-WEIGHTS.md",
    ]
    required = [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]
    always = {r.name for r in required if r.marker is None}
    assert always == {Requirement(text).name for text in project["dependencies"]}
    assert set(metadata.get_all("Provides-Extra", [])) == {
        *("train", "export", "tensorrt", "rtx", "openvino", "watch", "test")
    }
    entry_points = wheel.read(name.replace("METADATA", "entry_points.txt")).decode()
    assert "cxrvit-edge = cxrvit_edge.cli:main" in entry_points
