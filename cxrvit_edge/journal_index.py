"""What the journal keeps in memory of a million lines, and the grammar by which it reads them."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from cxrvit_edge.errors import Status
from cxrvit_edge.findings import SCHEMA, Finding
from cxrvit_edge.radiograph import View

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_STATUSES: tuple[str, ...] = get_args(Status)
_VIEWS: tuple[str, ...] = get_args(View)
_KINDS = [(status, view) for status in _STATUSES for view in _VIEWS]
_KIND_OF = {(s.encode(), v.encode()): i for i, (s, v) in enumerate(_KINDS)}
_NONE = -(1 << 63)  # in place of a size or a time that is null
_GROWTH = bytes(8 * 4096)

# JSON as Finding.to_dict and json.dumps write it, numbers within what a float holds.
_NUMBER = r"-?(?:0|[1-9]\d{0,17})(?:\.\d{1,25})?(?:e(?:-\d{1,3}|\+\d{1,2}))?"
_TEXT = r'"[ !#-\[\]-\x7f]*(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[ !#-\[\]-\x7f]*)*"'
_PAIR = rf"\[{_NUMBER},{_NUMBER}\]"


def _object(value: str) -> str:
    return rf"\{{(?:{_TEXT}:{value}(?:,{_TEXT}:{value})*)?\}}"


def _list(value: str) -> str:
    return rf"\[(?:{value}(?:,{value})*)?\]"


_SCALAR = rf"(?:{_TEXT}|{_NUMBER}|true|false|null)"
_ANY = rf"(?:{_SCALAR}|{_object(_SCALAR)}|{_list(_SCALAR)})"
_OTHERS = rf'(?:,(?!"(?:schema|{"|".join(Finding.__dataclass_fields__)})")"[a-z0-9_]+":{_ANY})*'  # of a later version


class Entry(NamedTuple):
    """An input's last line. offset, length: of that line, in bytes, its end mark included."""

    offset: int
    length: int
    status: str
    size: int | None
    mtime_ns: int | None
    view: str


class Values(NamedTuple):
    """What the index keeps of a line."""

    file: str
    kind: int
    size: int
    mtime_ns: int


def grammar(owner: Sequence[str | int]) -> re.Pattern[bytes]:
    """Matches a whole line of `owner` (a `journal.Owner`) as it is written; for `values_of`."""
    bundle, backend, precision, sensitivity, selective = (re.escape(json.dumps(value)) for value in owner)
    fields = (
        rf'"schema":{SCHEMA}',
        rf'"file":({_TEXT})',
        rf'"status":"({"|".join(_STATUSES)})"',
        r'"sha256":(?:null|"[0-9a-f]{64}")',
        r'"size":(null|0|[1-9]\d{0,18})',
        r'"mtime_ns":(null|0|-?[1-9]\d{0,18})',
        rf'"reason":(?:null|\{{"code":{_TEXT},"message":{_TEXT}\}}|\{{"message":{_TEXT},"code":{_TEXT}\}})',
        rf'"warnings":{_list(_TEXT)}',
        rf'"view":"({"|".join(_VIEWS)})"',
        rf'"probabilities":(?:null|{_object(_NUMBER)})',
        rf'"label":(?:null|{_TEXT})',
        rf'"flags":(?:null|{_object("(?:true|false)")})',
        rf'"prediction_set":(?:null|{_list(_TEXT)})',
        rf'"severity":(?:null|\{{"score":(?:null|{_NUMBER}),"zones":(?:null|\[{_PAIR},{_PAIR},{_PAIR}\])\}})',
        rf'"priority":{_TEXT}(?:,"ood":(?:null|{_object(_NUMBER)}))?',  # older lines have none
        rf'"timings_ms":{_object(_NUMBER)}{_OTHERS}',
        f'"bundle":{bundle}',
        f'"backend":{backend}',
        f'"precision":{precision}',
        f'"sensitivity":{sensitivity}',
        f'"selective":{selective}{_OTHERS}',
    )
    return re.compile((r"\{" + ",".join(fields) + r"\}\n").encode("ascii"))


def values_of(line: re.Pattern[bytes], data: bytes) -> Values | None:
    """Values of a line that the grammar matches; None for any other."""
    match = line.fullmatch(data)
    if match is None:
        return None
    file, status, size, mtime_ns, view = match.groups()
    name = json.loads(file) if b"\\" in file else file[1:-1].decode("ascii")
    size, mtime_ns = (_NONE if text == b"null" else int(text) for text in (size, mtime_ns))
    if not -_NONE > size >= _NONE <= mtime_ns < -_NONE:
        return None
    return Values(name, _KIND_OF[status, view], size, mtime_ns)


def values_from(finding: Finding) -> Values:
    kind = _KINDS.index((finding.status, finding.view))
    size, mtime_ns = (_NONE if value is None else value for value in (finding.size, finding.mtime_ns))
    return Values(finding.file, kind, size, mtime_ns)


class Index:
    """The last line of each input, by name: a dict and 25 bytes in arrays. rows: name -> its place in them."""

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}
        self._offset, self._length, self._size, self._mtime = (array(code) for code in "qiqq")
        self._kind = array("b")

    def __len__(self) -> int:
        return len(self.rows)

    def get(self, file: str) -> Entry | None:
        row = self.rows.get(file)
        if row is None:
            return None
        status, view = _KINDS[self._kind[row]]
        size, mtime_ns = self._size[row], self._mtime[row]
        return Entry(
            self._offset[row],
            self._length[row],
            status,
            None if size == _NONE else size,
            None if mtime_ns == _NONE else mtime_ns,
            view,
        )

    def line(self, file: str) -> tuple[int, int]:
        """Offset and length of an input's last line. KeyError if it has none."""
        row = self.rows[file]
        return self._offset[row], self._length[row]

    def put(self, offset: int, length: int, values: Values) -> None:
        """Book a line. Interrupted anywhere, it can be done again."""
        file, kind, size, mtime_ns = values
        row = self.rows.get(file, len(self.rows))
        if row >= len(self._kind):
            self._grow(row)
        self._offset[row], self._length[row], self._kind[row] = offset, length, kind
        self._size[row], self._mtime[row] = size, mtime_ns
        self.rows[file] = row

    def by_offset(self) -> NDArray[np.intp]:
        """(n,) rows in the order of their lines in the file."""
        return self._view(self._offset).argsort()

    def runs(self, order: NDArray[np.intp]) -> list[tuple[int, int, int]]:
        """Offset, length and number of lines of each stretch of the file that holds nothing but last lines."""
        import numpy as np

        if not len(order):
            return []
        offsets, lengths = self._view(self._offset)[order], self._view(self._length)[order].astype(np.int64)
        breaks = np.flatnonzero(offsets[1:] != offsets[:-1] + lengths[:-1]) + 1
        first, last = np.r_[0, breaks], np.r_[breaks, len(order)]
        starts = offsets[first]
        sizes = offsets[last - 1] + lengths[last - 1] - starts
        return list(zip(starts.tolist(), sizes.tolist(), (last - first).tolist(), strict=True))

    def close_gaps(self, order: NDArray[np.intp]) -> int:
        """Offsets as they are once the lines stand one behind the other in `order`; the length of that file."""
        import numpy as np

        ends = np.cumsum(self._view(self._length)[order], dtype=np.int64)
        self._view(self._offset)[order] = ends - self._view(self._length)[order]
        return int(ends[-1]) if len(ends) else 0

    def _grow(self, row: int) -> None:
        for values in (self._offset, self._length, self._size, self._mtime, self._kind):  # the last is the one asked
            while len(values) <= row:
                values.frombytes(_GROWTH[: 4096 * values.itemsize])

    def _view(self, values: Any) -> NDArray[Any]:
        import numpy as np

        return np.frombuffer(values, dtype=values.typecode)[: len(self.rows)]
