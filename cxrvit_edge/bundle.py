"""The bundle, the one thing that travels from the workshop to the edge: a folder with manifest.json, or its .zip.

Every file is verified by SHA-256 when the bundle is opened.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from cxrvit_edge import untrusted
from cxrvit_edge.errors import BundleError

SCHEMA = 1
MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
HASHING = 2  # threads: one for the weights, which are half of a bundle, one for the rest


@dataclass(frozen=True)
class Tolerance:
    """How far a session may be from the golden outputs: largest logit difference, mean map difference, RMS difference
    of the embedding over its spread (by default as much as the logits)."""

    logits: float
    maps: float
    embedding: float

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Tolerance:
        logits = float(values["logits"])
        return cls(logits, float(values["maps"]), float(values.get("embedding", logits)))


@dataclass(frozen=True)
class Variant:
    """One precision: a file for each graph of the view map, and what was recorded about it."""

    name: str
    files: Mapping[str, str]  # graph -> file in the bundle
    tolerance: Tolerance
    opset: int
    golden: str  # file with the outputs of its own exact arithmetic
    parity: Mapping[str, Any] | None = None
    calibration: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Guard:
    """Where a lung mask stops looking like a frontal chest. Areas are fractions of the radiograph.

    least_lungs: area of both lungs together; least_confidence: mean mask value inside the mask;
    least_separation: of the lungs' centres, image-right from image-left, where both are seen; head: file with the
    weights of `guard_head`, None for a bundle without; ood: the file of `ood.Familiar` under "file", and under other
    names how it was fitted and what is over its threshold, None for a bundle without.
    """

    least_lungs: float
    least_confidence: float
    least_separation: float = 0.10
    head: str | None = None
    ood: Mapping[str, Any] | None = None

    @property
    def files(self) -> list[str]:
        return [*([] if self.head is None else [self.head]), *([] if self.ood is None else [self.ood["file"]])]


@dataclass(frozen=True)
class Selective:
    """Split-conformal prediction sets of the classes with a probability of at least 1 - threshold.

    alpha: share of films whose class may be missing from their set; images: that the threshold was chosen on; method:
    lac, the least ambiguous set-valued classifier (Sadinle et al. 2019).
    """

    alpha: float
    threshold: float
    images: int
    method: str = "lac"


@dataclass(frozen=True)
class PriorityTable:
    """flagged: classes that raise the priority; urgent_score: severity score from which a flagged study is urgent.

    order: ranks of the worklist, most urgent first.
    """

    flagged: tuple[str, ...] = ("covid19", "other_infection")
    urgent_score: float = 3.0
    order: tuple[str, ...] = ("urgent", "review", "elevated", "routine")


@dataclass(frozen=True)
class Manifest:
    """What the bundle says of itself. `raw` is the whole of manifest.json.

    operating_points, sensitive_points: class -> threshold of a sensitivity of at least 80 and 95 % on val; the latter,
    and selective, are None for a bundle without.
    """

    name: str
    classes: tuple[str, ...]
    preprocessing: Mapping[str, Any]
    operating_points: Mapping[str, float]
    temperature: float
    views: Mapping[str, str]  # {"any": graph} or {"PA": graph, "AP": graph}
    variants: Mapping[str, Variant]
    files: Mapping[str, str]  # file -> SHA-256
    guard: Guard
    golden_inputs: str
    intended_use: str
    priority: PriorityTable = field(default_factory=PriorityTable)
    sensitive_points: Mapping[str, float] | None = None
    selective: Selective | None = None
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], where: str) -> Manifest:
        schema = raw.get("schema")
        if schema != SCHEMA:
            newer = isinstance(schema, int) and schema > SCHEMA
            hint = "update cxrvit-edge" if newer else "export it again"
            raise BundleError(f"{where}: schema {schema!r}, this version reads {SCHEMA}; {hint}")
        try:
            table = raw["priority"]
            manifest = cls(
                name=str(raw["name"]),
                classes=tuple(raw["classes"]),
                preprocessing=dict(raw["preprocessing"]),
                operating_points=_points(raw["operating_points"]),
                temperature=float(raw["temperature"]),
                views=dict(raw["views"]),
                variants={name: _variant(name, v) for name, v in raw["variants"].items()},
                files=dict(raw["files"]),
                guard=_guard(raw["guard"]),
                golden_inputs=str(raw["golden_inputs"]),
                intended_use=str(raw["intended_use"]),
                priority=PriorityTable(tuple(table["flagged"]), float(table["urgent_score"]), tuple(table["order"])),
                sensitive_points=None if (points := raw.get("sensitive_points")) is None else _points(points),
                selective=None if (sets := raw.get("selective")) is None else _selective(sets),
                raw=raw,
            )
            fault = next(_faults(manifest, dict(raw["weights"])), None)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise BundleError(f"{where}: a field is missing or of the wrong kind ({error}); export it again") from error
        if fault:
            raise BundleError(f"{where}: {fault}; export it again")
        return manifest


def _points(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}


def _selective(values: Mapping[str, Any]) -> Selective:
    alpha, threshold = (float(values[name]) for name in ("alpha", "threshold"))
    return Selective(alpha, threshold, int(values["images"]), str(values["method"]))


def _guard(values: Mapping[str, Any]) -> Guard:
    bounds = {name: float(value) for name, value in values.items() if name not in ("head", "ood")}
    head, ood = values.get("head"), values.get("ood")
    guard = Guard(**bounds, head=head, ood=None if ood is None else dict(ood))
    if guard.ood is not None:  # what the report tells of it
        told = [guard.ood.get("share", 0.0), *(one["over"] for one in (guard.ood.get("left_out") or {}).values())]
        if not all(math.isfinite(float(value)) for value in told):
            raise ValueError(f"guard tells shares {told}")
    for name in guard.files:
        if not (isinstance(name, str) and name):
            raise TypeError(f"guard names {name!r}, no file's name")
    return guard


def _variant(name: str, v: Mapping[str, Any]) -> Variant:
    return Variant(
        name=name,
        files=dict(v["files"]),
        tolerance=Tolerance.from_dict(v["tolerance"]),
        opset=int(v["opset"]),
        golden=str(v["golden"]),
        parity=v.get("parity"),
        calibration=v.get("calibration"),
    )


def _faults(m: Manifest, weights: Mapping[str, str]) -> Iterator[str]:
    """What the parts of a manifest say against each other."""
    if set(m.views) not in ({"any"}, {"PA", "AP"}):
        yield f"views are {sorted(m.views)}, not any, nor PA and AP"
    graphs = set(m.views.values())
    named = [m.golden_inputs, *weights.values(), *m.guard.files]
    for v in m.variants.values():
        named += [v.golden, *v.files.values()]
        if absent := graphs - set(v.files):
            yield f"variant {v.name} has no graph {sorted(absent)}"
    if absent := graphs - set(weights):
        yield f"no weights for graph {sorted(absent)}"
    if absent := set(named) - set(m.files):
        yield f"no SHA-256 for {sorted(absent)}"
    points = [m.operating_points, *([] if m.sensitive_points is None else [m.sensitive_points])]
    if any(set(p) != set(m.classes) for p in points) or not set(m.priority.flagged) <= set(m.classes):
        yield f"operating points or priority name other classes than {list(m.classes)}"
    if not (math.isfinite(m.temperature) and m.temperature > 0):
        yield f"temperature is {m.temperature}, not over 0"
    if s := m.selective:
        if s.method != Selective.method:
            yield f"its prediction sets are of method {s.method!r}, this version knows {Selective.method}"
        if not (0 < s.alpha < 1 and 0 <= s.threshold <= 1):
            yield f"its prediction sets have alpha {s.alpha} and threshold {s.threshold}, not between 0 and 1"


@dataclass(frozen=True)
class Bundle:
    """root: the folder; sha256: of manifest.json, which names every other file's, so it stands for the whole."""

    root: Path
    manifest: Manifest
    sha256: str

    @classmethod
    def open(cls, path: str | Path | None = None) -> Bundle:
        """Open and verify; None is the embedded bundle. BundleError says what is wrong with which file."""
        root = Path(path) if path is not None else default_path()
        if not (os.path.isfile(root) and zipfile.is_zipfile(root)):  # noqa: PTH113  False where it may not be looked at
            return cls._open_folder(root)
        try:
            unzipped = _unzipped(root)
            try:
                return cls._open_folder(unzipped)
            except BundleError:  # the copy in the cache may be at fault: extract again
                shutil.rmtree(unzipped, ignore_errors=True)
                return cls._open_folder(_unzipped(root))
        except BundleError as error:
            raise BundleError(f"{root}: {error}") from error

    @classmethod
    def _open_folder(cls, root: Path) -> Bundle:
        manifest_path = root / MANIFEST
        try:
            data = untrusted.read_manifest(manifest_path)
        except OSError as error:
            hint = "name a folder made by `python -m export`, or its .zip"
            raise BundleError(f"{root}: no bundle here ({manifest_path.name}: {error.strerror}); {hint}") from error
        try:
            raw = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{manifest_path}: not valid JSON ({error}); copy the bundle again") from error
        if not isinstance(raw, dict):
            raise BundleError(f"{manifest_path}: not a manifest; export the bundle again")
        manifest = Manifest.from_dict(raw, str(manifest_path))
        bundle = cls(root, manifest, hashlib.sha256(data).hexdigest())
        bundle._verify()
        return bundle

    def file(self, name: str) -> Path:
        """Path of a listed file. BundleError on any other name, and on a graph that takes data from other files."""
        if name not in self.manifest.files:
            raise BundleError(f"{self.root}: {name!r} is not listed in {MANIFEST}; export the bundle again")
        if name.endswith(".onnx") or any(name in variant.files.values() for variant in self.manifest.variants.values()):
            self._verify_graph(name)
        return self.root / name

    def variant(self, name: str) -> Variant:
        if name not in self.manifest.variants:
            have = ", ".join(self.manifest.variants)
            raise BundleError(f"{self.root}: no {name!r} variant (it has {have}); choose one of these or export it")
        return self.manifest.variants[name]

    def graph_for(self, view: str) -> str:
        """Graph of a view. Unknown in a PA/AP bundle is judged by the AP graph (and its finding marked `review`)."""
        views = self.manifest.views
        if "any" in views:
            return views["any"]
        return views["PA"] if view == "PA" else views["AP"]

    @property
    def view_matters(self) -> bool:
        return "any" not in self.manifest.views

    def _verify(self) -> None:
        root, sizes = os.path.realpath(self.root), dict[str, int]()
        for name in self.manifest.files:
            path = self.root / name
            inside = "\0" not in name and not Path(name).is_absolute()
            if not inside or os.path.realpath(path) != str(Path(root, name)):  # '..', or a symlink on the way
                raise BundleError(f"{self.root}: {MANIFEST} names {name!r}, outside the bundle; do not use this bundle")
            with suppress(OSError):  # told when it is opened
                sizes[name] = path.stat().st_size
        if sum(sizes.values()) > untrusted.MAX_BYTES:
            raise BundleError(f"{self.root}: over {untrusted.MAX_BYTES >> 30} GB; this is no bundle of ours")
        with ThreadPoolExecutor(HASHING) as pool:  # hashlib lets others run meanwhile
            list(pool.map(self._verify_file, sorted(self.manifest.files, key=lambda name: -sizes.get(name, 0))))

    def _verify_file(self, name: str) -> None:
        path = self.root / name
        try:
            with untrusted.open_regular(path) as f:
                actual = _sha256(f)
        except OSError as error:
            raise BundleError(f"{path}: cannot be read ({error.strerror}); copy the bundle again") from error
        if actual != self.manifest.files[name]:
            raise BundleError(f"{path}: its SHA-256 is not the manifest's: changed or damaged; copy the bundle again")

    def _verify_graph(self, name: str) -> None:
        """BundleError if a graph takes data from a file that is not listed."""
        path = self.root / name
        try:
            locations = _external_data(path, self.manifest.files[name])
        except (ValueError, OSError) as error:
            raise BundleError(f"{path}: not an ONNX graph that can be read ({error}); export it again") from error
        for location in sorted(locations):
            if Path(name).parent.joinpath(location).as_posix() not in self.manifest.files:
                raise BundleError(
                    f"{path}: takes data from {location!r}, which {MANIFEST} does not list; do not use this bundle"
                )


def default_path() -> Path:
    """The bundle that ships in the package."""
    return Path(__file__).parent / "bundles" / "default"


def cache_dir() -> Path:
    """This user's cache: unzipped bundles, engines, records of golden checks."""
    base = os.environ.get("CXRVIT_EDGE_CACHE") or os.environ.get("XDG_CACHE_HOME")
    home = Path(base) if base else Path.home() / ".cache"
    return home / "cxrvit-edge"


@lru_cache
def _external_data(path: Path, sha256: str) -> set[str]:  # noqa: ARG001  tells apart what the file held
    return untrusted.external_data(path)


def _sha256(stream: Any) -> str:
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _unzipped(path: Path) -> Path:
    """The zip's content in the cache, under its hash; extracted whole or not at all."""
    try:
        untrusted.check_zip(path)
        with path.open("rb") as f:
            target = cache_dir() / "bundles" / _sha256(f)[:32]
        if not (target / MANIFEST).is_file():
            _extract(path, target)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:
        raise BundleError(f"not a zip that can be read ({error}); copy it again") from error
    except OSError as error:
        raise BundleError(
            f"cannot be unzipped into {cache_dir()} ({error.strerror}); set CXRVIT_EDGE_CACHE to a folder with room "
            "or unzip it and name the folder"
        ) from error
    return target


def _extract(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path) as z, tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        untrusted.check_entries(z)
        manifests = [n for n in z.namelist() if Path(n).name == MANIFEST]
        if not manifests:
            raise BundleError(f"holds no {MANIFEST}; zip the bundle's folder again")
        z.extractall(temporary)  # zipfile itself drops absolute paths and '..'
        inner = Path(temporary) / Path(min(manifests, key=len)).parent
        try:
            inner.replace(target)
        except OSError:  # another process was first
            if not (target / MANIFEST).is_file():
                raise
