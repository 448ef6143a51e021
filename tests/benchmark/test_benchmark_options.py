from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cxrvit_edge.benchmark.options import Options
from cxrvit_edge.errors import UsageError


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"backends": ("cuda",)}, "--backend cuda: choose auto, all, onnxruntime"),
        ({"backends": ()}, "--backend: none given"),
        ({"precisions": ("fp32", "int4")}, "--precision int4: choose auto, all, fp32"),
        ({"seconds": 0.0}, "--seconds is 0"),
        ({"seconds": float("nan")}, "--seconds is nan"),
        ({"seconds": 1e9}, "at most 3600"),
        ({"images": 0}, "--images is 0: must be at least 1"),
        ({"reference": "outputs.csv"}, "name them with --data"),
        ({"data": "nowhere.csv"}, "--data nowhere.csv: no such file"),
    ],
)
def test_what_cannot_be_honoured(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Options(**asked)


def test_out_must_not_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="a file; give a folder"):
        Options(out=tmp_path / "file")


def test_the_reference_is_not_written_over(tmp_path: Path) -> None:
    """A report copied from the workstation, and --out left as it is."""
    (tmp_path / "outputs.csv").touch()
    with pytest.raises(UsageError, match="would write over the --reference"):
        Options(data=tmp_path, reference=tmp_path / "." / "outputs.csv", out=tmp_path)
    Options(data=tmp_path, reference=tmp_path / "outputs.csv", out=tmp_path / "out")


def test_as_they_come() -> None:
    assert Options().backends == ("auto",) and Options().precisions == ("auto",)
