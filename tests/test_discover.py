from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cxrvit_edge import discover as module
from cxrvit_edge.discover import IMAGE_SUFFIXES, discover, require
from cxrvit_edge.errors import Reason, UsageError
from cxrvit_edge.readers import DICOM_SUFFIXES, RASTER_SUFFIXES


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def files(*paths: str | Path, **options: Any) -> list[str]:
    return [found.file for found in discover(paths, **options)]


def test_a_folder_is_walked_in_the_order_of_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "in/b.png", tmp_path / "in/a/z.dcm", tmp_path / "in/a/y", tmp_path / "in/c.txt")
    monkeypatch.chdir(tmp_path)
    assert files("in") == ["in/a/y", "in/a/z.dcm", "in/b.png", "in/c.txt"]
    assert files("./in/") == files("in")
    assert files(".") == files("in")
    assert files(tmp_path / "in")[0] == (tmp_path / "in/a/y").as_posix()


def test_paths_keep_the_order_given_and_come_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "b/1.png", tmp_path / "a/2.png", tmp_path / "a/3.png")
    monkeypatch.chdir(tmp_path)
    assert files("b", "a", "b") == ["b/1.png", "a/2.png", "a/3.png"]
    assert files("a/3.png", "a") == ["a/3.png", "a/2.png"]
    assert files("a", "a/3.png", "./a/3.png") == ["a/2.png", "a/3.png"]
    assert files(".", "a") == ["a/2.png", "a/3.png", "b/1.png"]


def test_hidden_files_droppings_and_the_output_folder_are_left_out(tmp_path: Path) -> None:
    touch(*(tmp_path / name for name in ("a.png", ".b.png", ".git/c.png", "Thumbs.db", "desktop.ini", ".DS_Store")))
    touch(tmp_path / "out/results.jsonl", tmp_path / "out/thumbnails/x.jpg", tmp_path / "deep/out/kept.png")
    assert files(tmp_path, leave_out=tmp_path / "out") == [f"{tmp_path}/a.png", f"{tmp_path}/deep/out/kept.png"]
    assert files(tmp_path / ".b.png") == [f"{tmp_path}/.b.png"]  # asked for by name


def test_links_come_once_and_cycles_end(tmp_path: Path) -> None:
    real, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    touch(real / "a.png", elsewhere / "b.png")
    (real / "again.png").symlink_to(real / "a.png")
    (real / "self").symlink_to(real)
    (real / "there").symlink_to(elsewhere)
    (real / "b_link.png").symlink_to(elsewhere / "b.png")
    assert files(real, follow_links=True) == [f"{real}/a.png", f"{real}/b_link.png"]
    assert files(elsewhere, real) == files(elsewhere, real, follow_links=True)
    assert files(elsewhere, real) == [f"{elsewhere}/b.png", f"{real}/a.png"]


def test_links_out_of_the_folder_are_told_and_not_followed(tmp_path: Path) -> None:
    real, elsewhere = tmp_path / "in", tmp_path / "in too"  # the name of one begins as the other's
    touch(real / "a.png", elsewhere / "b.png", elsewhere / "more/c.png")
    (real / "b.png").symlink_to(elsewhere / "b.png")
    (real / "more").symlink_to(elsewhere / "more")
    (real / "up").symlink_to("..")
    (real / "gone.png").symlink_to(elsewhere / "nothing.png")
    found = {f.file.removeprefix(f"{real}/"): f for f in discover([real])}
    assert list(found) == ["a.png", "b.png", "gone.png", "more", "up"]
    for name in ("b.png", "more", "up"):
        problem = found[name].problem
        assert problem is not None and problem.reason is Reason.OUTSIDE and problem.reason.status == "rejected"
        assert "--follow-links" in str(problem) and found[name].size is None
    assert found["a.png"].problem is None is found["gone.png"].problem
    assert files(real, elsewhere) == [f"{real}/{n}" for n in ("a.png", "b.png", "gone.png", "more/c.png", "up")]
    assert files(real, real / "b.png") == [f"{real}/{n}" for n in ("a.png", "gone.png", "more", "up", "b.png")]
    (tmp_path / "link").symlink_to(real)
    assert files(tmp_path / "link")[0] == f"{tmp_path}/link/a.png"  # a PATH itself is always followed
    assert files(tmp_path / "link" / "b.png") == [f"{tmp_path}/link/b.png"]


def test_loops_of_links_end(tmp_path: Path) -> None:
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "back").symlink_to(tmp_path)
    assert files(tmp_path) == [f"{tmp_path}/loop.png", f"{tmp_path}/one", f"{tmp_path}/two"]


def test_size_and_time_are_those_of_the_file(tmp_path: Path) -> None:
    touch(tmp_path / "a.png", tmp_path / "in/b.png")
    (tmp_path / "in" / "c.png").symlink_to(tmp_path / "in" / "b.png")
    for found in (*discover([tmp_path / "a.png"]), *discover([tmp_path / "in"])):
        status = Path(found.path).stat()
        assert (found.size, found.mtime_ns) == (status.st_size, status.st_mtime_ns) and found.problem is None


def test_ten_thousand_levels_are_an_input_that_failed(tmp_path: Path) -> None:
    """A path may have 4,096 bytes: what lies deeper is told, and neither files nor stack run out on the way."""
    touch(tmp_path / "a.png")
    handles = [os.open(tmp_path, os.O_RDONLY)]
    for _ in range(10_000):
        os.mkdir("d", dir_fd=handles[-1])
        handles.append(os.open("d", os.O_RDONLY, dir_fd=handles[-1]))
        os.close(handles.pop(-2))
    try:
        with os.fdopen(os.open("b.png", os.O_WRONLY | os.O_CREAT, dir_fd=handles[-1]), "wb"):
            pass
        found = list(discover([tmp_path]))
        assert [f.file for f in found[:1]] == [f"{tmp_path}/a.png"] and len(found) == 2
        assert found[1].problem is not None and found[1].problem.reason is Reason.UNREADABLE
        assert "name too long" in str(found[1].problem)
    finally:
        os.close(handles.pop())
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)  # shutil.rmtree recurses


def test_names_as_long_as_they_may_be(tmp_path: Path) -> None:
    names = ["x" * 251 + ".png", "y" * 255, "new\nline.png"]
    touch(*(tmp_path / name for name in names))
    assert sorted(files(tmp_path)) == sorted(f"{tmp_path}/{name}" for name in names)
    for path in ("a\0b", "z" * 5000):
        (found,) = discover([path])
        assert found.problem is not None and found.problem.reason is Reason.NOT_FOUND


def test_a_link_to_nothing_is_not_lost(tmp_path: Path) -> None:
    (tmp_path / "gone.dcm").symlink_to(tmp_path / "nowhere")
    assert files(tmp_path) == [f"{tmp_path}/gone.dcm"]


def test_a_folder_named_like_an_image_is_told_and_walked(tmp_path: Path) -> None:
    touch(tmp_path / "x.PNG/real.png")
    found = list(discover([tmp_path]))
    assert [f.file for f in found] == [f"{tmp_path}/x.PNG", f"{tmp_path}/x.PNG/real.png"]
    assert found[0].problem is not None and found[0].problem.reason is Reason.IS_DIRECTORY
    assert found[1].problem is None


def test_a_missing_path_beside_others_is_an_input_that_failed(tmp_path: Path) -> None:
    touch(tmp_path / "a.png")
    missing, there = discover([tmp_path / "typo", tmp_path])
    assert missing.problem is not None and missing.problem.reason is Reason.NOT_FOUND
    assert there[:4] == (f"{tmp_path}/a.png", f"{tmp_path}/a.png", None, 1)


def test_a_folder_that_cannot_be_listed_is_an_input_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "a/1.png", tmp_path / "shut/2.png", tmp_path / "z.png")
    scandir = os.scandir

    def refusing(path: str) -> object:
        if Path(path).name == "shut":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(module.os, "scandir", refusing)
    found = list(discover([tmp_path]))
    assert [f.file.removeprefix(f"{tmp_path}/") for f in found] == ["a/1.png", "shut", "z.png"]
    assert found[1].problem is not None and found[1].problem.reason is Reason.NO_PERMISSION


def test_names_of_any_bytes_and_of_one_block_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 3)
    names = [b"a\xff.png", *(f"{i}".encode() for i in range(10))]
    for name in names:
        (tmp_path / os.fsdecode(name)).write_bytes(b"x")
    found = list(discover([tmp_path]))
    assert sorted(os.fsencode(Path(f.path).name) for f in found) == sorted(names)
    assert any("\udcff" in f.file for f in found)


def test_the_first_input_comes_before_the_second_folder_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "a/1.png", tmp_path / "b/2.png")
    opened: list[str] = []
    scandir = os.scandir

    def noting(path: str) -> object:
        opened.append(Path(path).name)
        return scandir(path)

    monkeypatch.setattr(module.os, "scandir", noting)
    stream = discover([tmp_path / "a", tmp_path / "b"])
    assert next(stream).file.endswith("1.png") and opened == ["a"]
    assert next(stream).file.endswith("2.png") and opened == ["a", "b"]


def test_require_tells_a_wrong_path(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="typo: no such file or folder"):
        require([tmp_path / "typo"])
    with pytest.raises(UsageError, match="no PATH given"):
        require([])
    with pytest.raises(UsageError, match="is also a PATH"):
        require([tmp_path], tmp_path / "." / "")
    require([tmp_path / "typo", tmp_path], tmp_path / "out")


def test_suffixes_are_those_of_the_readers() -> None:
    assert set(IMAGE_SUFFIXES) == RASTER_SUFFIXES | DICOM_SUFFIXES
