"""Fixtures shared by every test."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from small_bundle import Exported

# The same examples every run, and no clock: the boxes that run these tests are shared.
settings.register_profile(
    "shared_box", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("shared_box")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real radiographs beside the checkout; the test is skipped where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (folder / "manifest.csv").is_file():
        pytest.skip(f"{folder} is absent")
    return folder


@pytest.fixture(scope="module")
def one_torch_thread() -> Iterator[None]:
    """torch on one thread while a module runs: on a busy box its threads wait for each other longer than they work."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or fills the cache of the user who runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXRVIT_EDGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for one test; what is recorded lies in its cxrvit-edge folder."""
    monkeypatch.setenv("CXRVIT_EDGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cxrvit-edge"


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files of one test go, and nothing else."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A tiny network exported over a generated data folder, once a session: half a minute. Copy before changing it."""
    import small_bundle
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return small_bundle.make(tmp_path_factory.mktemp("exported"))
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="session")
def quantised(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the small bundle with int8-cpu, which runs and passes. Copy before changing it."""
    import int8_bundle

    return int8_bundle.make(exported, tmp_path_factory.mktemp("quantised") / "bundle")


@pytest.fixture
def both(quantised: Path, tmp_path: Path) -> Path:
    """A copy of `quantised` for one test, which may change it: fp32 and int8-cpu."""
    return shutil.copytree(quantised, tmp_path / "both", copy_function=os.link)


@pytest.fixture(scope="session")
def small_bundle(exported: Exported) -> Path:
    """Folder of a real bundle, small."""
    return exported.bundle
