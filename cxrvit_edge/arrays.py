"""Small .npz files that a bundle carries, read without pickle and without trusting what they unzip to."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

UNREADABLE = (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, NotImplementedError)


def read_arrays(path: Path, most: int) -> dict[str, NDArray[Any]]:
    """Its arrays by name. One of UNREADABLE if it is no such file, or over `most` bytes as it lies or unzipped."""
    if path.stat().st_size > most:
        raise ValueError(f"over {most} bytes")
    with zipfile.ZipFile(path) as z:
        if sum(i.file_size for i in z.infolist()) > most:
            raise ValueError(f"unzips to over {most} bytes")
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}
