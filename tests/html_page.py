"""A page as a test reads it, and as a browser does."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

VOID = {"meta", "link", "img", "input", "br", "wbr", "col"}
EMPTY_SVG = {"path", "rect", "circle"}

needs_browser = pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")


class Page(HTMLParser):
    """Fails on a tag that is closed out of turn, and on an attribute that is given twice.

    attributes: (tag, name, value). rows: texts of the cells of every row; body: of those in a tbody; images: what the
    pictures in each of these load. parts: text by the id of its section, "head" for what stands in none.
    """

    apart: tuple[str, ...] = ()  # tags that part words within a cell

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.ids: list[str] = []
        self.rows: list[list[str]] = []
        self.body: list[list[str]] = []
        self.images: list[list[str]] = []
        self.parts: dict[str, str] = {}
        self._section = ""
        self.feed(text)
        self.close()
        assert self.open == []

    @property
    def text(self) -> str:
        return "".join(self.parts.values())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self._section = dict(attrs).get("id") or ""
        elif tag == "tr":
            self.rows.append([])
            if "tbody" in self.open:
                self.body.append(self.rows[-1])
                self.images.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag in self.apart and "tr" in self.open and self.rows[-1]:
            self.rows[-1][-1] += " "
        elif tag == "img" and "tbody" in self.open:
            self.images[-1].append(dict(attrs).get("src") or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in EMPTY_SVG
        self._note(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> inside {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open[-1:] in (["script"], ["style"]):
            return
        part = self._section if "section" in self.open else "head"
        self.parts[part] = self.parts.get(part, "") + data
        if "tr" in self.open and self.rows[-1]:
            self.rows[-1][-1] += data

    def _note(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs)
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]


def browsed(folder: Path, html: str, *options: str) -> str:
    """What chromium prints of a page; fails if it cannot, or complains, as of what the page's own policy refuses."""
    (folder / "page.html").write_text(html, encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
    flags += (
        f" --disable-component-update --disable-sync --user-data-dir={folder / 'profile'} --enable-logging=stderr --v=0"
    )
    done = subprocess.run(
        ["chromium", *flags.split(), *options, str(folder / "page.html")],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line or "Refused to" in line]
    return done.stdout
