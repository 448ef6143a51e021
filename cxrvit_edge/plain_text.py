"""Plain values as text for people: what can be printed, how many, nested values as indented lines, columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

LONG = 80  # a list of texts that is longer goes on a line each


def printable(text: str) -> str:
    """Text, such as a file's name, that any terminal and any encoding can print: what cannot be seen is a ?."""
    return "".join(c if c.isprintable() else "?" for c in text)


def escaped(text: str) -> str:
    """Text in which what cannot be seen (controls, direction marks, lone surrogates) is its Python escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def count(number: int, what: str, several: str | None = None) -> str:
    """1 image, 1,200 images; several: the plural where it is not `what` with an s."""
    return f"{number:,} {what if number == 1 else several or what + 's'}"


def lines(values: Mapping[str, Any], indent: int = 0) -> Iterator[str]:
    """`name: value` a line, nested values indented under their name; True and False are yes and no."""
    width = max((len(name) for name, value in values.items() if not _nested(value)), default=0)
    for name, value in values.items():
        start = " " * indent + printable(str(name))
        if isinstance(value, Mapping) and value:
            yield start
            yield from lines(value, indent + 2)
        elif _nested(value):
            yield start
            for entry in value:
                first, *rest = lines(entry, indent + 4) if isinstance(entry, Mapping) else [printable(str(entry))]
                yield " " * (indent + 2) + "- " + first.lstrip()
                yield from rest
        else:
            yield f"{start.ljust(width + indent)}  {printable(_plain(value))}".rstrip()


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of as many cells each: the first column to the left, the others, numbers, to the right."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    aligned = ((row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])) for row in rows)
    return ["  ".join(cells).rstrip() for cells in aligned]


def _nested(value: Any) -> bool:
    if not value or isinstance(value, Mapping):
        return bool(value)
    if not isinstance(value, (list, tuple)):
        return False
    return isinstance(value[0], Mapping) or sum(len(str(entry)) + 2 for entry in value) > LONG


def _plain(value: Any) -> str:
    if value is None or (isinstance(value, (list, tuple, dict)) and not value):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value))
    return f"{value:,}" if isinstance(value, int) else str(value)
