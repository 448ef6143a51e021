"""Compiled engines on disk: what one is known by, where it lies, and whether it is whole and ours.

`<place>/engines/<key>/` holds engine.plan, as the builder gave it, and engine.json, its sidecar. The place is the
bundle for engines built ahead of time, the user's cache for those of this box.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from cxrvit_edge import lock
from cxrvit_edge.bundle import Bundle, cache_dir
from cxrvit_edge.errors import EngineError
from cxrvit_edge.runtime.builder import NAMES, RECIPE, Compiled, Profile
from cxrvit_edge.runtime.fusion import Fusion, Sources, fusion
from cxrvit_edge.runtime.layers import parse

SCHEMA = 1
PLAN, SIDECAR, FOLDER = "engine.plan", "engine.json", "engines"
NOT_RUN = "built, not run: no GPU"
ABSENT, OTHER_GPU = "not built yet", "GPU sm"  # why find() has none; the second is how it begins
_ASK_AGAIN = 0.2  # seconds between two tries for a lock


@dataclass(frozen=True)
class Key:
    """Everything that a plan depends on; the digest is its folder's name.

    weights: SHA-256 of each file of weights that the graph refers to; sm: compute capability such as "86".
    """

    graph_sha256: str
    weights: tuple[tuple[str, str], ...]
    backend: str
    version: str
    os: str
    arch: str
    sm: str
    precision: str
    profile: tuple[int, int, int]
    options: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, bundle: Bundle, variant: str, graph: str, *, backend: str, version: str, sm: str, most: int = 4) -> Key:
        """Of an engine of this bundle for this operating system; most: largest batch."""
        file = bundle.variant(variant).files[graph]
        profile = Profile(most=most)
        return cls(
            graph_sha256=bundle.manifest.files[file],
            weights=_weights(bundle, file),
            backend=backend,
            version=version,
            os=platform.system(),
            arch=platform.machine(),
            sm=sm,
            precision=variant,
            profile=(profile.least, profile.best, profile.most),
            options=tuple(sorted((name, str(value)) for name, value in RECIPE.items())),
        )

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Key:
        values = dict(raw)
        for name in ("weights", "options"):
            values[name] = tuple((str(k), str(v)) for k, v in values[name])
        least, best, most = map(int, values.pop("profile"))
        return cls(profile=(least, best, most), **values)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def digest(self) -> str:
        return hashlib.sha256(_canonical(self.to_dict())).hexdigest()[:32]


@dataclass(frozen=True)
class Engine:
    """A verified engine. sidecar: all that engine.json holds."""

    folder: Path
    key: Key
    sidecar: Mapping[str, Any]

    @property
    def plan(self) -> Path:
        return self.folder / PLAN

    @property
    def fusion(self) -> Fusion:
        """Worked out from the layer list, not taken from the summary."""
        return fusion(parse(self.sidecar["layers"]), Sources.from_dict(self.sidecar["sources"]))


def places(bundle: Bundle) -> tuple[Path, Path]:
    """Folders of engines: the bundle's, looked up first, and the user's cache."""
    return bundle.root / FOLDER, cache_dir() / FOLDER


def ahead_of_time(bundle: Bundle) -> tuple[Path, str | None]:
    """Where engines for other boxes are written, and why that is not the bundle if it is not."""
    inside, cache = places(bundle)
    if cache_dir() in bundle.root.parents:
        return cache, "the bundle is a .zip"
    try:
        inside.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=inside):
            pass
    except OSError as error:
        return cache, f"the bundle cannot be written to ({error.strerror})"
    return inside, None


def load(folder: Path) -> Engine:
    """Read and verify. EngineError says what is wrong with which file."""
    path = folder / SIDECAR
    try:
        raw = json.loads(path.read_bytes())
        stated = raw.pop("sha256")
        schema = raw["schema"]
    except OSError as error:
        raise EngineError(f"{path}: cannot be read ({error.strerror}); {_AGAIN}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineError(f"{path}: no sidecar of an engine ({error}); {_AGAIN}") from error
    if schema != SCHEMA:
        raise EngineError(f"{path}: schema {schema!r}, this version reads {SCHEMA}; {_AGAIN}")
    if hashlib.sha256(_canonical(raw)).hexdigest() != stated:
        raise EngineError(f"{path}: it was changed after it was written; do not use this engine, {_AGAIN}")
    try:
        key = Key.from_dict(raw["key"])
        expected, size = str(raw["plan"]["sha256"]), int(raw["plan"]["bytes"])
    except (KeyError, TypeError, ValueError) as error:
        raise EngineError(f"{path}: a field is missing or of the wrong kind ({error}); {_AGAIN}") from error
    if key.digest != folder.resolve().name:
        raise EngineError(f"{folder}: its name is not the key of the engine in it; do not use this engine, {_AGAIN}")
    try:
        with (folder / PLAN).open("rb") as f:
            whole = os.fstat(f.fileno()).st_size == size and _sha256(f) == expected
    except OSError as error:
        raise EngineError(f"{folder / PLAN}: cannot be read ({error.strerror}); {_AGAIN}") from error
    if not whole:
        raise EngineError(f"{folder / PLAN}: its SHA-256 is not the sidecar's: changed or damaged; {_AGAIN}")
    return Engine(folder, key, raw)


_AGAIN = "`cxrvit-edge build` makes it again"


def find(
    bundle: Bundle, variant: str, graph: str, *, backend: str, version: str, sm: str, most: int = 1
) -> Engine | str:
    """The engine for this GPU whose largest batch is at least `most`, the smallest such; else why there is none.

    Looks in the bundle, then in the cache; nothing is compiled.
    """
    wanted = Key.of(bundle, variant, graph, backend=backend, version=version, sm=sm, most=most)
    reasons: list[tuple[int, str]] = []
    for place in places(bundle):
        fitting: list[tuple[int, Path]] = []
        for folder, key in stored(place):
            differences = _differences(key, wanted)
            if not differences and key.profile[2] >= most:
                fitting.append((key.profile[2], folder))
            elif key.precision == variant and (key.graph_sha256 == wanted.graph_sha256 or place.parent == bundle.root):
                differences = differences or [f"batches of up to {key.profile[2]} -> {most}"]
                reasons.append((len(differences), ", ".join(differences)))
        for _, folder in sorted(fitting):
            if isinstance(engine := _whole(folder), Engine):
                return engine
            reasons.append((0, engine))
    return min(reasons)[1] if reasons else ABSENT


def _whole(folder: Path) -> Engine | str:
    try:
        return load(folder)
    except EngineError as error:
        return str(error)


@contextlib.contextmanager
def building(place: Path, key: Key, say: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Hold the one right to build `key` in `place`: waits while another process does, sweeps up after dead ones.

    EngineError if the place cannot be written to.
    """
    path = place / f".{key.digest}.lock"
    told = False
    while True:
        try:
            place.mkdir(parents=True, exist_ok=True)
            handle, unlocked = lock.take(path)
        except lock.Held as holder:
            if not told:
                say(f"waiting for {holder}, which builds the same engine")
                told = True
            time.sleep(_ASK_AGAIN)
            continue
        except OSError as error:
            raise EngineError(_no_room(place, error)) from error
        if unlocked or _same_file(handle, path):
            break
        os.close(handle)  # its last holder has removed it
    try:
        if not unlocked:
            for debris in place.glob(f".{key.digest}.*.part"):
                shutil.rmtree(debris, ignore_errors=True)
        yield
    finally:
        if not unlocked:
            path.unlink(missing_ok=True)
        os.close(handle)


def write(place: Path, key: Key, compiled: Compiled, about: Mapping[str, Any]) -> Engine:
    """Store a compiled engine, whole or not at all, in the stead of one under the same key. Call it within `building`.

    about: further fields of the sidecar, such as `state`, `gpu` and `bundle`. EngineError if the disk takes no more.
    """
    folder = place / key.digest
    temporary, old = place / f".{key.digest}.{os.getpid()}.part", place / f".{key.digest}.old.part"
    found = fusion(parse(compiled.lines), compiled.sources)
    sidecar = {
        "schema": SCHEMA,
        "key": key.to_dict(),
        "plan": {"sha256": hashlib.sha256(compiled.plan).hexdigest(), "bytes": compiled.plan.nbytes},
        "built": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "built_on": {"os": f"{platform.system()} {platform.release()}", "machine": platform.machine()},
        "seconds": round(compiled.seconds, 2),
        **about,
        "fusion": found.summary(),
        "sources": compiled.sources.to_dict(),
        "log": compiled.log,
        "layers": compiled.lines,
    }
    try:
        temporary.mkdir()
        _write(temporary / PLAN, compiled.plan)
        _write(temporary / SIDECAR, _sealed(sidecar))
        lock.sync_folder(temporary)
        if folder.exists():
            folder.replace(old)
        temporary.replace(folder)
        lock.sync_folder(place)
    except OSError as error:
        raise EngineError(_no_room(place, error, compiled.plan.nbytes)) from error
    finally:
        for debris in (temporary, old):
            shutil.rmtree(debris, ignore_errors=True)
    return load(folder)


def note(engine: Engine, **changes: Any) -> Engine:
    """Change fields of the sidecar, such as `state` once the engine has run; as it was where it cannot be written."""
    raw = {**engine.sidecar, **changes}
    temporary = engine.folder / f".{SIDECAR}.{os.getpid()}.part"
    try:
        _write(temporary, _sealed(raw))
        temporary.replace(engine.folder / SIDECAR)
    except OSError:
        return engine
    return Engine(engine.folder, engine.key, raw)


def stored(place: Path) -> Iterator[tuple[Path, Key]]:
    """Engines of a place, by what their sidecars say; nothing is verified."""
    try:
        folders = sorted(
            folder for folder in place.iterdir() if not folder.name.startswith(".")
        )  # those are unfinished
    except OSError:
        return
    for folder in folders:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            yield folder, Key.from_dict(json.loads((folder / SIDECAR).read_bytes())["key"])


def _differences(key: Key, wanted: Key) -> list[str]:
    """In words, old -> new; the batch profile is left out."""
    told = []
    for field in fields(Key):
        had, want = getattr(key, field.name), getattr(wanted, field.name)
        if had == want or field.name == "profile":
            continue
        if field.name == "version" and key.backend == wanted.backend:
            told.append(f"{NAMES.get(key.backend, key.backend)} {had} -> {want}")
        elif field.name == "sm":
            told.insert(0, f"{OTHER_GPU}{had} -> sm{want}")
        elif field.name in ("graph_sha256", "weights"):
            told.append("another graph" if field.name == "graph_sha256" else "other weights")
        elif field.name == "options":
            told.append("other builder options")
        elif field.name != "version":
            told.append(f"{field.name} {had} -> {want}")
    return told


def _weights(bundle: Bundle, file: str) -> tuple[tuple[str, str], ...]:
    """Files of the bundle whose names stand in the graph, as those of external data do, with their hashes."""
    graph = bundle.file(file).read_bytes()
    others = {name: sha for name, sha in bundle.manifest.files.items() if name != file and name.encode() in graph}
    return tuple(sorted(others.items()))


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


def _sealed(sidecar: Mapping[str, Any]) -> bytes:
    plain = json.loads(json.dumps(sidecar))  # tuples as lists, as they will be read
    return json.dumps({**plain, "sha256": hashlib.sha256(_canonical(plain)).hexdigest()}, indent=1).encode("ascii")


def _sha256(stream: Any) -> str:
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _write(path: Path, data: bytes | memoryview) -> None:
    with open(path, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def _same_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except OSError:
        return False


def _no_room(place: Path, error: OSError, size: int = 0) -> str:
    needed = f" ({size / 1e6:.0f} MB)" if size else ""
    return (
        f"{place}: the engine{needed} cannot be written ({error.strerror}); free some room there, or set "
        "CXRVIT_EDGE_CACHE to a folder that has it"
    )
