"""One process or many (torchrun): rank, device and the few collectives that training needs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import torch
from torch import Tensor

from cxrvit_edge.errors import UsageError

PATIENCE = timedelta(days=2)  # the others wait while the first decodes a whole data set


@dataclass(frozen=True)
class World:
    """rank of size processes; device is this one's."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Over all processes, in place."""
        if self.size > 1:
            torch.distributed.all_reduce(values)
        return values

    def wait(self) -> None:
        if self.size > 1:
            torch.distributed.barrier()


@contextmanager
def world(device: str = "auto") -> Iterator[World]:
    """This process's place under torchrun (its environment variables), else a world of one.

    device: auto (a GPU where there is one), cpu, or cuda. UsageError for another, and for a GPU that is not there.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device {device}: choose auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no GPU here; use --device cpu, or a torch built for this GPU")
    cuda = torch.cuda.is_available() if device == "auto" else device == "cuda"
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    place = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(place)
    if size == 1:
        yield World(device=place)
        return
    torch.distributed.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE)
    try:
        yield World(rank, size, place)
    finally:
        torch.distributed.destroy_process_group()


@contextmanager
def in_turn(where: World) -> Iterator[None]:
    """The first process runs the block alone, then the others: what it wrote to disk is there for them."""
    if not where.first:
        where.wait()
    try:
        yield
    finally:
        if where.first:
            where.wait()
