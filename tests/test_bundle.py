"""A bundle opens whole or not at all, and says which file and why."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_bundle import another_user, replace, reseal

from cxrvit_edge import bundle as bundle_module
from cxrvit_edge.bundle import MANIFEST, Bundle, Manifest, default_path
from cxrvit_edge.errors import BundleError

FILES = (
    "LICENSE-WEIGHTS.md", "fp32.onnx", "golden_fp32.npz", "golden_inputs.npz", "parity.html", "weights.safetensors",
)  # fmt: skip
FIELDS = (
    "schema", "name", "classes", "preprocessing", "operating_points", "temperature", "views", "variants", "files",
    "guard", "golden_inputs", "intended_use", "priority", "weights",
)  # fmt: skip


@pytest.fixture
def folder(small_bundle: Path, tmp_path: Path) -> Path:
    """A bundle of this test's own; its files are hard links: put a new file in their place, never write into them."""
    return shutil.copytree(small_bundle, tmp_path / "bundle", copy_function=os.link)


@pytest.fixture
def archive(small_bundle: Path, tmp_path: Path) -> Path:
    return pack(small_bundle, tmp_path / "bundle.zip")


def pack(folder: Path, path: Path, inside: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as z:
        for file in sorted(folder.iterdir()):
            z.write(file, inside + file.name)
    return path


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    raw = json.loads((folder / MANIFEST).read_bytes())
    change(raw)
    replace(folder / MANIFEST, json.dumps(raw).encode())


def refusal(path: Path) -> str:
    with pytest.raises(BundleError) as caught:
        Bundle.open(path)
    return str(caught.value)


def test_opens_and_says_what_it_holds(small_bundle: Path) -> None:
    b = Bundle.open(str(small_bundle))
    assert (b.root, b.manifest.name) == (small_bundle, "small")
    assert b.sha256 == hashlib.sha256((small_bundle / MANIFEST).read_bytes()).hexdigest()
    assert b.manifest.classes == ("normal", "other_infection", "covid19")
    assert set(b.manifest.files) == set(FILES) == {p.name for p in small_bundle.iterdir()} - {MANIFEST}
    assert b.file("fp32.onnx").samefile(small_bundle / "fp32.onnx")
    fp32 = b.variant("fp32")
    assert (fp32.files, fp32.opset, fp32.tolerance.logits) == ({"shared": "fp32.onnx"}, 20, 1e-4)
    assert not b.view_matters
    assert {b.graph_for(view) for view in ("PA", "AP", "unknown")} == {"shared"}


def test_files_can_be_read_by_every_user_of_the_box(small_bundle: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    for path in small_bundle.iterdir():
        wanted = 0o644 if path.suffix == ".safetensors" else 0o644 & ~umask
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path.name
    assert stat.S_IMODE(small_bundle.stat().st_mode) == 0o755 & ~umask


@pytest.mark.parametrize("place", [0, 0.5, -1])
@pytest.mark.parametrize("name", FILES)
def test_one_byte_changed_is_named(folder: Path, name: str, place: float) -> None:
    data = bytearray((folder / name).read_bytes())
    data[int(place * len(data)) if place > 0 else int(place)] ^= 1
    replace(folder / name, bytes(data))
    message = refusal(folder)
    assert str(folder / name) in message
    assert "changed or damaged" in message


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_short_or_absent_is_named(folder: Path, name: str) -> None:
    replace(folder / name, (folder / name).read_bytes()[:-1])
    assert str(folder / name) in refusal(folder)
    (folder / name).unlink()
    message = refusal(folder)
    assert f"{folder / name}: cannot be read (No such file" in message
    (folder / name).mkdir()
    assert f"{folder / name}: cannot be read (Is a directory" in refusal(folder)


def test_an_unlisted_file_is_no_part_of_it(folder: Path) -> None:
    (folder / "extra.onnx").write_bytes(b"x")
    b = Bundle.open(folder)
    for name in ("extra.onnx", MANIFEST, "../bundle/fp32.onnx"):
        with pytest.raises(BundleError, match="not listed"):
            b.file(name)


def test_unknown_variant_is_told_what_there_is(small_bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"no 'fp16' variant \(it has fp32\)"):
        Bundle.open(small_bundle).variant("fp16")


@pytest.mark.parametrize(
    ("schema", "hint"), [(2, "update cxrvit-edge"), (0, "export it again"), ("1", "export it again"), (None, "again")]
)
def test_another_schema_says_which_way(folder: Path, schema: Any, hint: str) -> None:
    change_manifest(folder, lambda raw: raw.update(schema=schema, variants="of another shape"))
    message = refusal(folder)
    assert f"schema {schema!r}" in message
    assert hint in message


@pytest.mark.parametrize("text", [b"", b'{"schema": 1,', b"\xff\xfe\x00", b"[1]", b"null", b'"text"'])
def test_a_manifest_that_is_none(folder: Path, text: bytes) -> None:
    replace(folder / MANIFEST, text)
    assert str(folder / MANIFEST) in refusal(folder)


@pytest.mark.parametrize("field", FIELDS)
def test_a_missing_field_is_named(folder: Path, field: str) -> None:
    change_manifest(folder, lambda raw: raw.pop(field))
    message = refusal(folder)
    assert str(folder / MANIFEST) in message
    assert field in message


WRONG: list[tuple[str, Any]] = [
    ("classes", 3),
    ("classes", ["normal", "other_infection"]),
    ("preprocessing", [1]),
    ("operating_points", {"normal": 0.5}),
    ("operating_points", [0.5]),
    ("sensitive_points", {"normal": 0.5}),
    ("sensitive_points", [0.5]),
    ("selective", 0.9),
    ("selective", {"method": "lac", "alpha": 0.1, "images": 99}),
    ("selective", {"method": "aps", "alpha": 0.1, "threshold": 0.5, "images": 99}),
    ("selective", {"method": "lac", "alpha": 1.0, "threshold": 0.5, "images": 99}),
    ("selective", {"method": "lac", "alpha": 0.1, "threshold": float("nan"), "images": 99}),
    ("temperature", "warm"),
    ("temperature", 0),
    ("temperature", float("nan")),
    ("views", {}),
    ("views", {"PA": "shared"}),
    ("views", {"PA": "shared", "AP": "other"}),
    ("views", {"any": ["shared"]}),
    ("variants", []),
    ("variants", {"fp32": {"files": {"shared": "fp32.onnx"}}}),
    ("files", ["fp32.onnx"]),
    ("files", {}),
    ("guard", {"least_lungs": 0.1}),
    ("guard", {"least_lungs": "much", "least_confidence": 0.5}),
    ("guard", {"least_lungs": 0.1, "least_confidence": 0.5, "other": 1}),
    ("golden_inputs", "unlisted.npz"),
    ("priority", {"flagged": ["pneumonia"], "urgent_score": 3, "order": []}),
    ("priority", {"flagged": ["covid19"], "order": []}),
    ("weights", {"shared": "unlisted.safetensors"}),
    ("weights", {}),
]


@pytest.mark.parametrize(("field", "value"), WRONG, ids=lambda v: str(v)[:40])
def test_a_field_of_the_wrong_kind_is_refused(folder: Path, field: str, value: Any) -> None:
    change_manifest(folder, lambda raw: raw.update({field: value}))
    message = refusal(folder)
    assert str(folder / MANIFEST) in message
    assert "export it again" in message


def test_one_from_before_there_were_sets_opens(folder: Path) -> None:
    m = Bundle.open(folder).manifest
    assert m.sensitive_points is not None and m.selective is not None
    change_manifest(folder, lambda raw: [raw.pop(name) for name in ("sensitive_points", "selective")])
    m = Bundle.open(folder).manifest
    assert (m.sensitive_points, m.selective) == (None, None)


def test_a_changed_manifest_is_another_bundle(folder: Path) -> None:
    before = Bundle.open(folder)
    change_manifest(folder, lambda raw: raw.update(temperature=1.25))
    after = Bundle.open(folder)
    assert after.manifest.temperature == 1.25
    assert after.sha256 != before.sha256


@pytest.mark.parametrize("way", ["parent", "absolute", "link", "folder link", "nul"])
def test_a_path_outside_is_refused_though_its_hash_is_right(folder: Path, tmp_path: Path, way: str) -> None:
    outside = tmp_path / "outside" / "note.txt"
    outside.parent.mkdir()
    outside.write_bytes(b"elsewhere")
    name = {
        "parent": "../outside/note.txt",
        "absolute": str(outside),
        "link": "note.txt",
        "folder link": "sub/note.txt",
        "nul": "note\0.txt",
    }[way]
    if way == "link":
        (folder / name).symlink_to(outside)
    elif way == "folder link":
        (folder / "sub").symlink_to(outside.parent, target_is_directory=True)
    digest = hashlib.sha256(b"elsewhere").hexdigest()
    change_manifest(folder, lambda raw: raw["files"].update({name: digest}))
    message = refusal(folder)
    assert repr(name) in message
    assert "do not use this bundle" in message


def test_a_folder_inside_and_a_link_to_the_bundle_are_fine(folder: Path, tmp_path: Path) -> None:
    (folder / "engines").mkdir()
    (folder / "engines" / "note.txt").write_bytes(b"inside")
    digest = hashlib.sha256(b"inside").hexdigest()
    change_manifest(folder, lambda raw: raw["files"].update({"engines/note.txt": digest}))
    (tmp_path / "latest").symlink_to(folder, target_is_directory=True)
    assert Bundle.open(tmp_path / "latest").file("engines/note.txt").read_bytes() == b"inside"


@pytest.mark.parametrize("what", ["absent", "empty folder", "picture"])
def test_no_bundle_there(tmp_path: Path, what: str) -> None:
    path = tmp_path / "x"
    if what == "empty folder":
        path.mkdir()
    elif what == "picture":
        path.write_bytes(b"\x89PNG\r\n\x1a\n")
    message = refusal(path)
    assert f"{path}: no bundle here" in message
    assert "python -m export" in message


@pytest.mark.parametrize("name", ["fp32.onnx", MANIFEST, "."])
def test_no_permission_is_told(small_bundle: Path, name: str) -> None:
    with tempfile.TemporaryDirectory() as parent:  # tmp_path is closed to other users
        Path(parent).chmod(0o755)
        folder = shutil.copytree(small_bundle, Path(parent) / "bundle")
        mode = (folder / name).stat().st_mode
        try:
            with another_user():
                assert Bundle.open(folder).manifest.name == "small"
            (folder / name).chmod(0)
            with another_user():
                message = refusal(folder)
        finally:
            (folder / name).chmod(mode)
    assert str(folder) in message
    assert "Permission denied" in message


def test_two_views_two_graphs(folder: Path) -> None:
    def change(raw: dict[str, Any]) -> None:
        raw["views"] = {"PA": "upright", "AP": "supine"}
        raw["weights"] = dict.fromkeys(("upright", "supine"), "weights.safetensors")
        raw["variants"]["fp32"]["files"] = dict.fromkeys(("upright", "supine"), "fp32.onnx")

    change_manifest(folder, change)
    b = Bundle.open(folder)
    assert b.view_matters
    assert [b.graph_for(view) for view in ("PA", "AP", "unknown")] == ["upright", "supine", "supine"]


def test_manifest_keeps_the_whole_of_itself(small_bundle: Path) -> None:
    raw = json.loads((small_bundle / MANIFEST).read_bytes())
    assert Manifest.from_dict(raw, "here").raw == raw


def test_without_a_path_it_is_the_embedded_one(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_path() == Path(bundle_module.__file__).parent / "bundles" / "default"
    monkeypatch.setattr(bundle_module, "default_path", lambda: small_bundle)
    assert Bundle.open().root == small_bundle


@pytest.mark.parametrize("inside", ["", "bundle/", "a/b/"])
def test_a_zip_is_the_same_bundle(small_bundle: Path, tmp_path: Path, fresh_cache: Path, inside: str) -> None:
    b = Bundle.open(pack(small_bundle, tmp_path / "b.zip", inside))
    assert b.root.is_relative_to(fresh_cache)
    folder = Bundle.open(small_bundle)
    assert (b.sha256, b.manifest) == (folder.sha256, folder.manifest)
    for name in FILES:
        assert b.file(name).read_bytes() == folder.file(name).read_bytes()
    assert [p.name for p in (fresh_cache / "bundles").iterdir()] == [b.root.name], "something was left beside it"


def test_a_zip_is_extracted_once(archive: Path, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Bundle.open(archive)
    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "extractall", lambda *_: pytest.fail("extracted again"))
        assert Bundle.open(archive) == first
    (first.root / "fp32.onnx").write_bytes(b"the disk failed here")
    assert Bundle.open(archive) == first, "a damaged copy in the cache is made again"


def test_a_tampered_file_inside_a_zip_is_named(folder: Path, tmp_path: Path, fresh_cache: Path) -> None:
    replace(folder / "fp32.onnx", (folder / "fp32.onnx").read_bytes() + b"\0")
    path = pack(folder, tmp_path / "b.zip")
    message = refusal(path)
    assert message.startswith(f"{path}: ")
    assert "fp32.onnx: its SHA-256" in message


def test_a_damaged_zip_is_refused_wherever_it_is_hurt(tmp_path: Path, fresh_cache: Path) -> None:
    """Each byte of a small archive in turn, and nothing but a BundleError comes of it."""
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / MANIFEST).write_text('{"schema": 1, "name": "a manifest with fields missing"}')
    whole = pack(tmp_path / "f", tmp_path / "whole.zip").read_bytes()
    for i in range(len(whole)):
        hurt = tmp_path / f"{i}.zip"
        hurt.write_bytes(whole[:i] + bytes([whole[i] ^ 0x55]) + whole[i + 1 :])
        assert str(hurt) in refusal(hurt)


@pytest.mark.parametrize("keep", [0.5, 0.999])
def test_a_truncated_zip(archive: Path, fresh_cache: Path, keep: float) -> None:
    data = archive.read_bytes()
    archive.write_bytes(data[: int(keep * len(data))])
    assert f"{archive}: no bundle here" in refusal(archive)


def test_a_zip_that_claims_more_than_a_disk_is_refused_before_it_is_unpacked(tmp_path: Path, fresh_cache: Path) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w") as z:
        z.writestr(MANIFEST, "{}")
        z.writestr("a.onnx", "small")
        z.writestr("b.onnx", "small")
    data = bytearray(path.read_bytes())
    start = 0
    for _ in range(3):  # uncompressed size in each record of the central directory
        start = data.index(b"PK\x01\x02", start) + 1
        data[start + 23 : start + 27] = (0x7FFFFFFF).to_bytes(4, "little")
    path.write_bytes(data)
    assert f"{path}: unzips to over 4 GB" in refusal(path)
    assert list((fresh_cache / "bundles").iterdir()) == []


def test_a_zip_without_manifest(tmp_path: Path, fresh_cache: Path) -> None:
    path = tmp_path / "other.zip"
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("readme.txt", "holiday pictures")
    assert f"{path}: holds no {MANIFEST}" in refusal(path)


def test_a_zip_writes_nothing_outside_the_cache(small_bundle: Path, tmp_path: Path, fresh_cache: Path) -> None:
    path = pack(small_bundle, tmp_path / "b.zip")
    with zipfile.ZipFile(path, "a") as z:
        z.writestr("../../../../escaped.txt", "x")
        z.writestr(str(tmp_path / "absolute.txt"), "x")
    b = Bundle.open(path)
    outside = [p for p in tmp_path.rglob("*.txt") if not p.is_relative_to(b.root)]
    assert outside == []


def test_a_cache_that_cannot_be_written_is_told(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("CXRVIT_EDGE_CACHE", str(tmp_path / "file"))
    message = refusal(archive)
    assert f"{archive}: cannot be unzipped into {tmp_path / 'file'}" in message
    assert "CXRVIT_EDGE_CACHE" in message


def test_another_process_may_finish_first(archive: Path, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extract = zipfile.ZipFile.extractall
    nested: list[Bundle] = []
    started: list[bool] = []

    def extract_while_another_does(z: zipfile.ZipFile, path: str) -> None:
        if not started:
            started.append(True)
            nested.append(Bundle.open(archive))  # the other process, from start to end
        extract(z, path)

    monkeypatch.setattr(zipfile.ZipFile, "extractall", extract_while_another_does)
    assert Bundle.open(archive) == nested[0]
    assert len(list((fresh_cache / "bundles").iterdir())) == 1


def test_processes_that_unzip_at_once_all_succeed(archive: Path, fresh_cache: Path, tmp_path: Path) -> None:
    script = (
        "import sys, time, pathlib\n"
        "from cxrvit_edge.bundle import Bundle\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "print(Bundle.open(sys.argv[1]).sha256)\n"
    )
    root = Path(bundle_module.__file__).parents[1]
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", script, str(archive)],
            cwd=root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for p in started:
        assert p.stdout is not None
        assert p.stdout.readline() == "ready\n"
    for p in started:
        assert p.stdin is not None
        p.stdin.write("go\n")
        p.stdin.flush()
    answers = [p.communicate()[0].strip() for p in started]
    assert [p.returncode for p in started] == [0, 0, 0]
    assert set(answers) == {Bundle.open(archive).sha256}
    assert len(list((fresh_cache / "bundles").iterdir())) == 1


def test_resealing_makes_a_changed_bundle_whole_again(folder: Path) -> None:
    """The tests' own tool: without it, a test of a bad golden file would only see a bad hash."""
    replace(folder / "golden_fp32.npz", b"not an archive")
    assert "golden_fp32.npz" in refusal(folder)
    reseal(folder)
    assert Bundle.open(folder).file("golden_fp32.npz").read_bytes() == b"not an archive"
