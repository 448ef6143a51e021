"""What a run tells: steps.csv and validation.csv, TensorBoard, and progress with images a second and time left."""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxrvit_edge.errors import UsageError

if TYPE_CHECKING:
    from rich.progress import Progress
    from torch.utils.tensorboard import SummaryWriter


class RunLog:
    """Into `out`; rows of steps after `start`, which an interrupted run wrote and this one will write again, go.

    quiet: nothing on the terminal (the other processes of many).
    """

    def __init__(self, out: Path, start: int, steps: int, say: Callable[[str], None], *, tensorboard: bool) -> None:
        self.out, self.steps, self.say = out, steps, say
        for name in ("steps.csv", "validation.csv"):
            _forget(out / name, start)
        self._board = _board(out / "tensorboard", start) if tensorboard else None
        self._began, self._first, self._images = time.monotonic(), start, 0
        self._bar = _bar(start, steps) if sys.stderr.isatty() else None
        self._told = time.monotonic()

    def step(self, step: int, images: int) -> None:
        """After `step` (counted from 1) of `images` images."""
        self._images += images
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=step, speed=self.images_per_second)
        elif time.monotonic() - self._told > 60:
            self._told = time.monotonic()
            self.say(f"step {step} of {self.steps}  {self.images_per_second:.1f} images/s  {self._left(step)} left")

    def losses(self, step: int, values: Mapping[str, float]) -> None:
        row = {"step": step, **{k: f"{v:.6g}" for k, v in values.items()}}
        self._write("steps.csv", {**row, "images_per_second": f"{self.images_per_second:.2f}"})
        self._scalars("train", step, values)

    def validation(self, step: int, weights: str, values: Mapping[str, float]) -> None:
        self._write("validation.csv", {"step": step, "weights": weights, **values})
        self._scalars("validation" if weights == "average" else f"validation_{weights}", step, values)
        self.say(f"step {step} of {self.steps}  {weights}  " + "  ".join(f"{k} {v:.4g}" for k, v in values.items()))

    @property
    def images_per_second(self) -> float:
        return self._images / max(1e-9, time.monotonic() - self._began)

    def close(self) -> None:
        if self._bar:
            self._bar.stop()
        if self._board:
            self._board.close()

    def _left(self, step: int) -> str:
        done = max(1, step - self._first)
        seconds = int((time.monotonic() - self._began) / done * (self.steps - step))
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"

    def _write(self, name: str, row: Mapping[str, Any]) -> None:
        path = self.out / name
        new = not path.is_file()
        with path.open("a", newline="", encoding="utf-8") as f:
            writer = csv.DictWriter(f, list(row))
            if new:
                writer.writeheader()
            writer.writerow(row)

    def _scalars(self, where: str, step: int, values: Mapping[str, float]) -> None:
        if self._board:
            for name, value in values.items():
                self._board.add_scalar(f"{where}/{name}", value, step)


def _forget(path: Path, start: int) -> None:
    if not path.is_file():
        return
    with path.open(newline="", encoding="utf-8") as f:
        reader = csv.DictReader(f)
        rows = [row for row in reader if row["step"].isdigit() and int(row["step"]) <= start]
        columns = reader.fieldnames or []
    part = path.with_suffix(".part")
    with part.open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, columns)
        writer.writeheader()
        writer.writerows(rows)
    part.replace(path)
    if not rows:
        path.unlink()


def _board(folder: Path, start: int) -> SummaryWriter:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UsageError("--tensorboard: pip install tensorboard, or leave it out; the CSVs hold the same") from None
    return SummaryWriter(str(folder), purge_step=start + 1)


def _bar(start: int, steps: int) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        *(TextColumn("step"), BarColumn(), MofNCompleteColumn()),
        *(TextColumn("{task.fields[speed]:.1f} images/s"), TimeRemainingColumn()),
    )
    bar = Progress(*columns, console=Console(stderr=True))
    bar.add_task("train", total=steps, completed=start, speed=0.0)
    bar.start()
    return bar
