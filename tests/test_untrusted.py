"""Bundles made by someone who means harm: refused in words, at once, and nothing outside them is touched."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
from fakes import write_bundle
from hypothesis import given
from hypothesis import strategies as st

from cxrvit_edge import untrusted
from cxrvit_edge.bundle import MANIFEST, Bundle, default_path
from cxrvit_edge.errors import BundleError


def message(*fields: tuple[int, bytes]) -> bytes:
    """A protobuf message of length-delimited fields."""
    return b"".join(varint(number << 3 | 2) + varint(len(data)) + data for number, data in fields)


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def tensor(location: bytes) -> bytes:
    return b"\x08\x01" + message(
        (8, b"w"), (13, message((1, b"location"), (2, location))), (13, message((1, b"offset")))
    )


def nested(place: str, inner: bytes) -> bytes:
    """A model that holds a tensor in one of the places where onnx.proto allows one."""
    node = {
        "attribute": message((5, message((1, b"value"), (5, inner)))),
        "tensors": message((5, message((10, inner)))),
        "subgraph": message((5, message((6, message((5, inner)))))),
        "subgraphs": message((5, message((11, message((1, message((5, message((5, inner)))))))))),
        "sparse attribute": message((5, message((22, message((1, inner)))))),
        "sparse attributes": message((5, message((23, message((2, inner)))))),
    }
    if place in node:
        return message((7, message((1, message((4, b"Constant"))), (1, node[place]))))
    return {
        "initializer": message((7, message((5, inner)))),
        "second graph": message((7, message((2, b"name"))), (7, message((5, inner)))),
        "sparse": message((7, message((15, message((1, inner)))))),
        "function": message((25, message((7, node["attribute"])))),
        "function attribute": message((25, message((11, message((5, inner)))))),
        "training": message((20, message((1, message((5, inner)))))),
        "swapped": message((7, message((5, message((13, message((2, b"hidden.bin"), (1, b"location")))))))),
    }[place]


PLACES = (
    *("attribute", "tensors", "subgraph", "subgraphs", "sparse attribute", "sparse attributes", "initializer"),
    *("second graph", "sparse", "function", "function attribute", "training", "swapped"),
)


def with_graph(folder: Path, graph: bytes, **more: bytes) -> Path:
    """A bundle whose hashes are right and whose graph is `graph`."""
    write_bundle(folder)
    contents = {"fp32.onnx": graph, **more}
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    raw = json.loads((folder / MANIFEST).read_bytes())
    raw["files"] |= {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    raw["variants"]["fp32"]["files"] = {"shared": "fp32.onnx"}
    (folder / MANIFEST).write_text(json.dumps(raw))
    return folder


def change(folder: Path, **fields: Any) -> Path:
    raw = json.loads((folder / MANIFEST).read_bytes())
    (folder / MANIFEST).write_text(json.dumps({**raw, **fields}))
    return folder


@pytest.mark.parametrize("place", PLACES)
def test_external_data_is_found_wherever_a_tensor_may_stand(tmp_path: Path, place: str) -> None:
    bundle = Bundle.open(with_graph(tmp_path, nested(place, tensor(b"hidden.bin"))))
    (tmp_path / "hidden.bin").write_bytes(b"there, but not listed")
    with pytest.raises(BundleError, match=r"fp32\.onnx: takes data from 'hidden\.bin', which .* do not use"):
        bundle.file("fp32.onnx")


@pytest.mark.parametrize("location", ["/etc/passwd", "../weights.safetensors", "sub/../weights.safetensors", "", "."])
def test_external_data_elsewhere_is_refused(tmp_path: Path, location: str) -> None:
    bundle = Bundle.open(with_graph(tmp_path, nested("initializer", tensor(location.encode()))))
    with pytest.raises(BundleError, match="do not use this bundle"):
        bundle.file("fp32.onnx")


def test_external_data_of_the_bundle_itself_is_fine(tmp_path: Path) -> None:
    bundle = Bundle.open(with_graph(tmp_path, nested("initializer", tensor(b"weights.safetensors"))))
    assert bundle.file("fp32.onnx") == tmp_path / "fp32.onnx"


@pytest.mark.parametrize(
    "graph",
    [
        b"location\x07",
        nested("initializer", tensor(b"\xff")),
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff location",
        b"\x3a\x50location",
        b"\x3b location",
        message((7, message((5, b"\x6a\x0clocation")))),
        b"\x80" * 20 + b"location",
    ],
)
def test_a_graph_that_cannot_be_walked_is_refused(tmp_path: Path, graph: bytes) -> None:
    bundle = Bundle.open(with_graph(tmp_path, graph))
    with pytest.raises(BundleError, match="not an ONNX graph that can be read"):
        bundle.file("fp32.onnx")


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_any_bytes_end_in_locations_or_an_error(tmp_path_factory: pytest.TempPathFactory, a: bytes, b: bytes) -> None:
    path = tmp_path_factory.mktemp("graph") / "x.onnx"
    path.write_bytes(a + b"location" + b)
    with contextlib.suppress(ValueError):
        untrusted.external_data(path)


def test_subgraphs_are_walked_as_deep_as_protobuf_goes(tmp_path: Path) -> None:
    inner, graphs = message((5, tensor(b"hidden.bin"))), {}
    for depth in range(10_001):
        graphs[depth] = message((7, inner)) if depth in (30, 10_000) else b""
        inner = message((1, message((5, message((6, inner))))))
    (tmp_path / "x.onnx").write_bytes(graphs[30])
    assert untrusted.external_data(tmp_path / "x.onnx") == {"hidden.bin"}
    (tmp_path / "x.onnx").write_bytes(graphs[10_000])
    with pytest.raises(ValueError, match="messages within messages"):
        untrusted.external_data(tmp_path / "x.onnx")


def test_the_embedded_graphs_name_what_onnx_says_they_name() -> None:
    onnx = pytest.importorskip("onnx")
    for path in default_path().glob("*.onnx"):
        graph = onnx.load(path, load_external_data=False).graph
        entries = [entry for t in graph.initializer for entry in t.external_data]
        assert untrusted.external_data(path) == {e.value for e in entries if e.key == "location"} != set()


@pytest.mark.parametrize("kind", ["fifo", "socket", "device link", "link"])
@pytest.mark.parametrize("name", ["weights.safetensors", MANIFEST])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path: Path, kind: str, name: str) -> None:
    folder = write_bundle(tmp_path / "b")
    (folder / name).rename(tmp_path / "kept")
    if kind == "fifo":
        os.mkfifo(folder / name)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(os.path.relpath(folder / name))  # a socket's path has at most 107 bytes
    else:
        (folder / name).symlink_to("/dev/zero" if kind == "device link" else tmp_path / "kept")
    with pytest.raises(BundleError, match=name if name != MANIFEST else "no bundle here"):
        Bundle.open(folder)


def test_a_bundle_that_is_a_fifo(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "b")
    with pytest.raises(BundleError, match="no bundle here"):
        Bundle.open(tmp_path / "b")


def test_sizes_are_looked_at_before_anything_is_read(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "b")
    with (folder / "big.bin").open("wb") as f:
        f.truncate(untrusted.MAX_BYTES)  # a hole: it takes no room
    raw = json.loads((folder / MANIFEST).read_bytes())
    with pytest.raises(BundleError, match="over 4 GB"):
        Bundle.open(change(folder, files={**raw["files"], "big.bin": "0" * 64}))
    with (folder / MANIFEST).open("ab") as f:
        f.truncate(untrusted.MAX_MANIFEST + 1)
    with pytest.raises(BundleError, match="over 16 MB"):
        Bundle.open(folder)


@pytest.mark.parametrize("text", ["[" * 200_000, '{"schema": 1, "name": ' + "[" * 200_000, '{"schema": ' + "9" * 5000])
def test_a_manifest_that_would_break_its_parser(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(BundleError, match="not valid JSON"):
        Bundle.open(tmp_path)


def test_numbers_beyond_floats(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="of the wrong kind"):
        Bundle.open(change(write_bundle(tmp_path), temperature=10**400))


def packed(path: Path, entries: dict[str, bytes], how: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", how) as z:
        for name, data in entries.items():
            z.writestr(name, data)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(BundleError) as caught:
        Bundle.open(path)
    return str(caught.value)


def test_a_zip_of_too_many_files(tmp_path: Path, fresh_cache: Path) -> None:
    path = packed(tmp_path / "b.zip", {f"{i}": b"" for i in range(untrusted.MAX_ENTRIES + 1)}, zipfile.ZIP_STORED)
    assert "holds 10,001 files" in refusal(path)
    assert list((fresh_cache / "bundles").iterdir()) == []


def test_a_zip_packed_with_what_takes_memory_to_unpack(tmp_path: Path, fresh_cache: Path) -> None:
    for how in (zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        assert "packed neither plainly nor" in refusal(packed(tmp_path / f"{how}.zip", {MANIFEST: b"{}"}, how))


def test_a_zip_whose_directory_is_larger_than_any_of_ours(tmp_path: Path, fresh_cache: Path) -> None:
    path = packed(tmp_path / "b.zip", {MANIFEST: b"{}"})
    data = path.read_bytes()
    end = data.rindex(b"PK\5\6")
    path.write_bytes(data[:end] + b"PK\6\7" + bytes(16) + data[end:])
    assert "that of a larger zip" in refusal(path)


def test_a_bomb_unpacks_to_no_more_than_it_says(tmp_path: Path, fresh_cache: Path) -> None:
    """64 MB of zeros that call themselves 100 bytes, in the directory and before the data."""
    path = packed(tmp_path / "b.zip", {MANIFEST: b"{}", "bomb.bin": bytes(64 << 20)})
    data = bytearray(path.read_bytes())
    for mark, at in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        start = data.rindex(mark)
        data[start + at : start + at + 4] = struct.pack("<I", 100)
    path.write_bytes(data)
    refusal(path)
    assert sum(p.stat().st_size for p in fresh_cache.rglob("*") if p.is_file()) < 1 << 20


def test_a_zip_of_hundred_layers_stays_packed(tmp_path: Path, fresh_cache: Path) -> None:
    inner = zlib.compress(bytes(1 << 20))
    path = packed(tmp_path / "b.zip", {MANIFEST: b"{}", "inner.zip": inner})
    refusal(path)
    assert sum(p.stat().st_size for p in fresh_cache.rglob("*") if p.is_file()) < 1 << 20
