"""A small generated data set, as a folder and as a cache in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from train_files import Folder, draw, make_folder

from train.cache import ImageCache
from train.data.record import Record


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return make_folder(tmp_path / "data")


@pytest.fixture(scope="session")
def drawn() -> tuple[list[Record], ImageCache]:
    return draw()
