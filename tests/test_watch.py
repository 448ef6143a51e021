"""Watch mode on real files and real inotify. Waits are for events, with a time-out that only a broken watch reaches."""

from __future__ import annotations

import errno
import os
import queue
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from cxrvit_edge import settle
from cxrvit_edge import watch as module
from cxrvit_edge.discover import Found
from cxrvit_edge.errors import Reason, UsageError
from cxrvit_edge.inotify import network
from cxrvit_edge.settle import PARTIAL, Settling
from cxrvit_edge.watch import Watch

SETTLE = 0.1
LONG = 30.0  # seconds after which a wait has failed
linux = pytest.mark.skipif(
    sys.platform != "linux" or find_spec("watchfiles") is None, reason="no inotify, or watchfiles is not installed"
)
both = pytest.mark.parametrize("poll", [pytest.param(None, marks=linux, id="inotify"), pytest.param(0.1, id="poll")])


class Fed:
    """A watch that runs in a thread, as the pipeline runs it, and what it has given."""

    def __init__(self, watch: Watch, settle: float) -> None:
        self.watch, self.settle = watch, settle
        self._given: queue.SimpleQueue[Found] = queue.SimpleQueue()
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            for found in self.watch:
                self._given.put(found)
        except BaseException as error:
            self.error = error

    def next(self) -> Found:
        return self._given.get(timeout=LONG)

    def files(self, count: int) -> set[str]:
        return {self.next().file for _ in range(count)}

    def until(self, true: Callable[[], bool]) -> None:
        end = time.monotonic() + LONG
        while not true():
            assert time.monotonic() < end and self.thread.is_alive(), self.error
            time.sleep(0.01)

    def idle(self) -> None:
        """Wait until it waits, all it knows of being given."""
        self.until(lambda: self.watch.idle)

    def nothing(self) -> None:
        """Nothing was given but what was taken, though everything had the time to settle and to be scanned again."""
        time.sleep(2 * self.settle)
        self.idle()
        assert self._given.empty(), self._given.get()


@contextmanager
def feeding(*paths: Path | str, settle: float = SETTLE, **options: Any) -> Iterator[Fed]:
    fed = Fed(Watch(paths, settle=settle, **options), settle)
    try:
        yield fed
    finally:
        fed.watch.stop()
        fed.thread.join(LONG)
    assert fed.error is None
    assert not fed.thread.is_alive()


def write(path: Path, data: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK", 0.1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


@both
def test_what_is_there_comes_first_in_order_then_what_is_added(folder: Path, poll: float | None) -> None:
    for name in ("b.png", "a/z.dcm", "a/y"):
        write(folder / name)
    with feeding(folder, poll=poll) as fed:
        assert [fed.next().file for _ in range(3)] == [f"{folder}/{name}" for name in ("a/y", "a/z.dcm", "b.png")]
        fed.idle()
        write(folder / "c.png")
        path, file, problem, size, mtime_ns = fed.next()
        assert (path, file, problem) == (f"{folder}/c.png", f"{folder}/c.png", None)
        assert (size, mtime_ns) == (1, (folder / "c.png").stat().st_mtime_ns)
        write(folder / "new/deep/d.png")  # folders, and a file in them before they can be watched
        assert fed.files(1) == {f"{folder}/new/deep/d.png"}
        write(folder / "new/deep/e.png")
        assert fed.files(1) == {f"{folder}/new/deep/e.png"}
        fed.nothing()


@linux
def test_names_are_those_of_discover(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    write(folder / "sub/a.png")
    with feeding(".") as fed:
        assert fed.next()[:2] == ("./sub/a.png", "sub/a.png")
        write(folder / "sub/b.png")
        write(folder / "new/c.png")
        assert {fed.next()[:2], fed.next()[:2]} == {("./sub/b.png", "sub/b.png"), ("./new/c.png", "new/c.png")}
        fed.nothing()


@linux
def test_a_slow_writer_is_waited_for(folder: Path) -> None:
    with feeding(folder, settle=1.0) as fed:
        fed.idle()
        with open(folder / "slow.dcm", "wb", buffering=0) as file:
            for _ in range(6):
                file.write(bytes(1000))
                time.sleep(0.2)
        assert fed.next().size == 6000


def test_settled_is_told_by_size_and_time_over_the_own_clock(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(settle, "monotonic", lambda: clock[0])
    settling = Settling([], 2.0)
    path = write(folder / "slow.dcm", b"1")
    os.utime(path, ns=(0, 4 * 10**18))  # the share's clock is a century ahead
    settling.meet(Found(str(path), "slow.dcm"))
    for _ in range(5):
        assert settling.due == pytest.approx(clock[0] + 2)
        clock[0] += 1.9
        assert not list(settling.settled())
        with open(path, "ab") as file:
            file.write(b"1")
        os.utime(path, ns=(0, 4 * 10**18))  # by its size alone
        clock[0] += 0.1
        assert not list(settling.settled())
        assert len(settling) == 1
    os.utime(path, ns=(0, 0))  # by its time alone: a clock set back
    clock[0] += 2
    assert not list(settling.settled())
    clock[0] += 1
    settling.meet(Found(str(path), "slow.dcm"))  # a scan meets it: no news
    clock[0] += 0.9
    settling.meet(Found(str(path), "slow.dcm"), touched=True)  # an event: written in place
    clock[0] += 1.9
    assert not list(settling.settled())
    clock[0] += 0.1
    assert [(found.size, found.mtime_ns) for found in settling.settled()] == [(6, 0)]
    settling.meet(Found(str(path), "slow.dcm"), touched=True)
    assert len(settling) == 0


@both
def test_a_partial_name_comes_when_it_is_renamed(folder: Path, poll: float | None) -> None:
    names = [f"film{suffix}" for suffix in PARTIAL] + ["FILM.PART", "~film.dcm", ".film.dcm"]
    for name in names:
        write(folder / name)
    with feeding(folder, poll=poll) as fed:
        write(folder / "later.dcm.part")
        fed.nothing()
        (folder / "later.dcm.part").rename(folder / "later.dcm")
        (folder / ".film.dcm").rename(folder / "film.dcm")
        assert fed.files(2) == {f"{folder}/later.dcm", f"{folder}/film.dcm"}
        fed.nothing()
        assert f"{len(names) - 1} files" in "".join(fed.watch.notes)  # the hidden one is left out, as discover does
    with feeding(folder / "FILM.PART", poll=poll) as fed:  # given by name
        assert fed.next().file == f"{folder}/FILM.PART"


@both
def test_a_file_comes_again_when_it_is_rewritten_or_replaced_and_only_then(folder: Path, poll: float | None) -> None:
    path = write(folder / "a.png", b"first")
    with feeding(folder, poll=poll) as fed:
        fed.next()
        fed.idle()
        path.write_bytes(b"second")
        assert fed.next().path == str(path)
        (folder.parent / "other").write_bytes(b"third, by rename")
        (folder.parent / "other").rename(path)
        assert fed.next().path == str(path)
        before = path.stat()
        path.read_bytes()
        path.chmod(0o600)
        away = path.rename(folder.parent / "away")
        fed.nothing()
        shutil.copy2(away, path)
        assert path.stat().st_mtime_ns == before.st_mtime_ns
        fed.nothing()  # back, and as it was given
        os.utime(path, ns=(0, 0))  # a clock that jumped back
        assert fed.next().path == str(path)


@linux
def test_what_is_removed_before_it_settled_never_comes(folder: Path) -> None:
    with feeding(folder, settle=0.5) as fed:
        fed.idle()
        path = write(folder / "gone.png")
        fed.until(lambda: fed.watch.pending() == 1)
        path.unlink()
        fed.nothing()
        assert fed.watch.pending() == 0


@both
def test_a_burst_comes_whole(folder: Path, poll: float | None) -> None:
    with feeding(folder, poll=poll) as fed:
        fed.idle()
        names = [f"{folder}/{index % 7}/{index}.png" for index in range(200)]
        for name in names:
            write(Path(name), b"x" * 10)
        assert fed.files(200) == set(names)
        fed.nothing()


@both
def test_what_stands_is_passed_over_once_until_it_changes(folder: Path, poll: float | None) -> None:
    old, new = write(folder / "old.png"), write(folder / "new.png")
    sizes = {str(old): 1}
    passed: list[str] = []
    with feeding(
        folder,
        poll=poll,
        stands=lambda found: sizes.get(found.path) == Path(found.path).stat().st_size,
        passed=lambda found: passed.append(found.path),
    ) as fed:
        assert fed.files(1) == {str(new)}
        fed.nothing()
        assert passed == [str(old)]
        old.write_bytes(b"changed")
        assert fed.files(1) == {str(old)}
        assert passed == [str(old)]


@linux
def test_the_output_folder_and_hidden_ones_are_left_out_of_events_too(folder: Path) -> None:
    out = folder / "out"
    out.mkdir()
    with feeding(folder, leave_out=out) as fed:
        fed.idle()
        for name in ("out/results.jsonl", "out/thumbnails/a.jpg", ".git/b.png", "sub/Thumbs.db", "sub/.hidden"):
            write(folder / name)
        write(folder / "outer.png")
        assert fed.files(1) == {f"{folder}/outer.png"}
        fed.nothing()


@linux
def test_each_file_comes_by_one_name(folder: Path) -> None:
    named = write(folder / "sub/named.png")
    with feeding(named, folder, folder / "sub") as fed:
        assert fed.next().path == str(named)
        write(folder / "sub/a.png")
        assert fed.next().path == f"{folder}/sub/a.png"
        named.write_bytes(b"changed")
        assert fed.next().path == str(named)
        (folder / "link.png").symlink_to(named)
        (folder / "loop").symlink_to(folder)
        fed.nothing()


def test_a_named_file_that_is_replaced_comes_again(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png")
    with feeding(path) as fed:
        fed.next()
        write(tmp_path / "b.png", b"other").rename(path)
        assert fed.next()[:2] == (str(path), str(path))


@linux
def test_a_folder_that_goes_and_comes_back_is_watched_again(folder: Path) -> None:
    write(folder / "a.png")
    with feeding(folder) as fed:
        fed.next()
        away = folder.rename(folder.parent / "away")  # as an unmounted share: the folder is gone, or another one
        fed.until(lambda: "is not there" in "".join(fed.watch.notes))
        fed.nothing()
        away.rename(folder)
        fed.until(lambda: "came back" in "".join(fed.watch.notes))
        fed.nothing()  # a.png is as it was
        write(folder / "b.png")
        assert fed.files(1) == {f"{folder}/b.png"}


def test_what_cannot_be_read_comes_once_with_its_problem(folder: Path) -> None:
    (folder / "broken.png").symlink_to(folder / "nothing")
    write(folder / "like.dcm/inside.png")
    missing = folder.parent / "missing.png"
    with feeding(folder, missing, poll=0.1) as fed:
        got = {(found := fed.next()).file: found.problem for _ in range(4)}
        assert set(got) == {f"{folder}/broken.png", f"{folder}/like.dcm", f"{folder}/like.dcm/inside.png", str(missing)}
        problems = {name: problem.reason for name, problem in got.items() if problem}
        assert problems == {f"{folder}/like.dcm": Reason.IS_DIRECTORY, str(missing): Reason.NOT_FOUND}
        fed.nothing()
        write(folder / "nothing")  # the link leads somewhere now; discover gives the file by its first name
        fed.next()
        write(missing)
        assert fed.files(1) == {str(missing)}


@linux
def test_a_name_that_is_not_utf8_comes_and_watching_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL", 0.3)
    with feeding(folder) as fed:
        fed.idle()
        with open(os.fsencode(folder) + b"/r\xf6ntgen.png", "wb") as file:
            file.write(b"x")
        assert os.fsencode(fed.next().path).endswith(b"r\xf6ntgen.png")
        write(folder / "next.png")
        assert fed.files(1) == {f"{folder}/next.png"}


@pytest.mark.parametrize(
    ("error", "said"), [(ImportError(), "pip install watchfiles"), (OSError(28, "No space left on device"), "No space")]
)
def test_without_inotify_it_scans_and_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    watchfiles = type(sys)("watchfiles")

    def watch(*paths: str, **options: object) -> Iterator[set[object]]:
        raise error
        yield set()

    watchfiles.watch = watch  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "watchfiles", watchfiles)
    monkeypatch.setattr(module, "POLL", 0.1)
    with feeding(folder) as fed:
        fed.idle()
        write(folder / "a.png")
        fed.next()
        (note,) = fed.watch.notes
        assert said in note and "scanned every" in note


def test_what_inotify_missed_is_found_by_the_scan(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.Inotify, "take", lambda self: (set(), False, None))
    monkeypatch.setattr(module, "RESCAN", 0.3)
    with feeding(folder) as fed:
        fed.idle()
        write(folder / "a.png")
        assert fed.files(1) == {f"{folder}/a.png"}


def test_a_consumer_that_waits_bounds_nothing_but_the_order(folder: Path) -> None:
    for index in range(50):
        write(folder / f"{index:02}.png")
    source = iter(Watch([folder], settle=SETTLE))
    first = next(source)
    write(folder / "late.png")
    time.sleep(2 * SETTLE)  # the pipeline is full
    rest = [next(source).file for _ in range(50)]
    assert [first.file, *rest] == [*(f"{folder}/{index:02}.png" for index in range(50)), f"{folder}/late.png"]
    source.close()  # type: ignore[attr-defined]


@both
def test_stop_ends_the_wait(folder: Path, poll: float | None) -> None:
    write(folder / "a.png")
    with feeding(folder, poll=poll) as fed:
        fed.next()
        fed.idle()
        fed.watch.stop()
        fed.thread.join(LONG)
        assert not fed.thread.is_alive()
    assert not [thread for thread in threading.enumerate() if thread.name == "cxrvit-edge-inotify"]
    assert list(fed.watch) == []


@pytest.mark.parametrize("options", [{"settle": 0.0}, {"settle": -1.0}, {"poll": 0.0}, {"settle": float("nan")}])
def test_seconds_that_make_no_sense_are_refused(folder: Path, options: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="above 0 seconds"):
        Watch([folder], **options)  # type: ignore[arg-type]


MOUNTS = r"""21 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 21 0:30 / /mnt rw - autofs systemd-1 rw
31 30 0:31 / /mnt/pacs rw,relatime shared:1 master:2 - nfs4 server:/films rw
32 31 0:32 / /mnt/pacs/local rw - xfs /dev/sdb rw
33 21 0:33 / /mnt/with\040blank\134 rw - cifs //server/share rw
34 21 0:34 / /over rw - cifs //server/share rw
35 34 0:35 / /over rw - overlay overlay rw
36 21 0:36 / /ssh rw - fuse.sshfs box:/ rw
37 21 0:37 / /usb rw - fuseblk /dev/sdc1 rw
38 21 0:38 / /vm rw - 9p host rw
damaged line
"""


@pytest.mark.parametrize(
    ("path", "remote"),
    [
        ("/home/a", False),
        ("/mnt/pacs", True),
        ("/mnt/pacs/a/b", True),
        ("/mnt/pacs2", False),
        ("/mnt/pacs/local/a", False),
        ("/mnt/with blank\\/a", True),
        ("/over/a", False),
        ("/ssh/a", True),
        ("/usb/a", False),
        ("/vm", True),
    ],
)
def test_shares_are_known_by_their_mounts(tmp_path: Path, path: str, remote: bool) -> None:
    (tmp_path / "mountinfo").write_text(MOUNTS)
    assert network(path, tmp_path / "mountinfo") is remote
    assert not network(path, tmp_path / "none")


def test_a_share_is_scanned_and_never_asked_for_events(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "network", lambda path: True)
    monkeypatch.setattr(module, "POLL", 0.1)
    monkeypatch.setattr(module, "Inotify", None)
    write(folder / "a.png")
    with feeding(folder) as fed:
        assert fed.files(1) == {f"{folder}/a.png"}
        write(folder / "b.png")
        assert fed.files(1) == {f"{folder}/b.png"}
        fed.nothing()


def until_settled(settling: Settling) -> Found:
    end = time.monotonic() + LONG
    while time.monotonic() < end:
        for found in settling.settled():
            return found
        time.sleep(0.01)
    raise AssertionError("nothing settled")


def test_on_a_share_the_server_is_believed_not_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(folder / "a.png", b"old")
    cached = path.stat()
    path.write_bytes(b"grown meanwhile")
    settling = Settling([], 0.01)
    settling.shared = True
    with monkeypatch.context() as patch:
        patch.setattr(settle.os, "stat", lambda *_, **__: cached)
        settling.meet(Found(str(path), "a.png", None, cached.st_size, cached.st_mtime_ns))
        found = until_settled(settling)
    assert found.size == len(b"grown meanwhile")


def test_a_share_that_stumbles_takes_no_result_away(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = write(folder / "old.png"), write(folder / "new.png")

    def stumble(path: str) -> os.stat_result:
        raise OSError(errno.ESTALE, "Stale file handle")

    settling = Settling([], 0.01)
    settling.meet(Found(str(old), "old.png"))
    assert until_settled(settling).size == 1
    with monkeypatch.context() as patch:
        patch.setattr(settle.os, "stat", stumble)
        settling.meet(Found(str(old), "old.png"))
        settling.meet(Found(str(new), "new.png"))
        assert until_settled(settling) == Found(str(new), "new.png")  # never read so far: it gets its failure
        assert not len(settling)
    settling.meet(Found(str(old), "old.png"))
    settling.meet(Found(str(new), "new.png"))
    assert until_settled(settling).file == "new.png"
    assert not len(settling)


def test_links_out_of_the_folder_are_as_discover_has_them(folder: Path) -> None:
    film = write(folder.parent / "elsewhere/film.png")
    (folder / "link.png").symlink_to(film)
    with feeding(folder, poll=0.1) as fed:
        problem = fed.next().problem
        assert problem is not None and problem.reason is Reason.OUTSIDE
        fed.nothing()
    with feeding(folder, poll=0.1, follow_links=True) as fed:
        assert fed.next()[:3] == (f"{folder}/link.png", f"{folder}/link.png", None)
        film.write_bytes(b"changed")
        assert fed.next().size == len(b"changed")
        fed.nothing()
