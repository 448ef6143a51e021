"""How long, how fast and how carefully: the settings of a run, with the paper's as defaults of preset `paper`."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cxrvit_edge.errors import UsageError
from train.augment import Augmentation

OPTIMIZERS = ("adam", "adamw", "sgd")
DECAYS = ("constant", "cosine", "step")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Phase:
    """`length` steps, or epochs, at `size` pixels with `batch` images a step over all processes."""

    size: int
    length: int
    batch: int
    epochs: bool = False

    def steps(self, images: int) -> int:
        return self.length * self.steps_per_epoch(images) if self.epochs else self.length

    def steps_per_epoch(self, images: int) -> int:
        """Whole batches only: a short one upsets BatchNorm."""
        return images // self.batch


def parse_schedule(text: str) -> tuple[Phase, ...]:
    """'512:10000:16' (steps) or '256:13e:16,384:3e:12' (epochs): size:length:batch. UsageError on anything else."""
    phases = []
    for part in text.split(","):
        try:
            size, length, batch = part.split(":")
            epochs = length.endswith("e")
            phases.append(Phase(int(size), int(length.removesuffix("e")), int(batch), epochs))
        except ValueError:  # noqa: PERF203
            raise UsageError(
                f"schedule {text!r}: write size:steps:batch or size:epochs+e:batch, joined by commas, "
                "as 512:10000:16 or 256:13e:16,512:1e:8"
            ) from None
    if any(p.size % 32 or min(p.size, p.length, p.batch) < 1 for p in phases):
        raise UsageError(f"schedule {text!r}: sizes are multiples of 32, lengths and batches at least 1")
    return tuple(phases)


@dataclass(frozen=True)
class Recipe:
    """phases: what is trained for how long at which size.

    lr: peak learning rate at the first phase's batch; scaled by the root of the batch in the others
    encoder_rate: what the encoder's lr is of that of the rest
    decay: of lr after `warmup` steps of linear rise; "step" is a tenth at a half and again at three quarters
    clip: largest gradient norm, 0 for none; accumulate: micro-batches a step, each weighed by itself
    ema: decay of the weights' average, 0 off
    precision: of the arithmetic under autocast; auto is bf16 or fp16 on a GPU, fp32 on a CPU
    validate: steps between validations, 0 for each epoch; patience: validations without gain before it stops, 0 never
    freeze: "none", "batchnorm" (its statistics), "early" (weights and statistics of the trunk's first layers, whose
        filters public weights bring; half the time of a step) or "backbone" (of all of it)
    balance: classes drawn equally often
    """

    phases: tuple[Phase, ...]
    optimizer: str = "adamw"
    lr: float = 3e-4
    encoder_rate: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 0.05
    decay: str = "cosine"
    warmup: int = 60
    clip: float = 1.0
    accumulate: int = 1
    ema: float = 0.0
    precision: str = "auto"
    validate: int = 0
    patience: int = 0
    freeze: str = "none"
    balance: bool = False
    seed: int = 0
    augmentation: Augmentation | None = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        choices = (
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("decay", self.decay, DECAYS),
            ("precision", self.precision, PRECISIONS),
            ("freeze", self.freeze, ("none", "batchnorm", "early", "backbone")),
        )
        for option, value, allowed in choices:
            if value not in allowed:
                raise UsageError(f"--{option} {value}: choose one of {', '.join(allowed)}")
        if not self.phases:
            raise UsageError("--schedule is empty; write size:steps:batch")
        if self.accumulate < 1 or any(p.batch % self.accumulate for p in self.phases):
            raise UsageError(f"--accumulate {self.accumulate}: every batch of the schedule must be a multiple of it")
        if not 0 <= self.ema < 1 or not self.lr > 0 or min(self.warmup, self.validate, self.patience) < 0:
            raise UsageError("--ema is in 0-1, --lr above 0, --warmup, --validate and --patience not negative")
        if not 0 < self.encoder_rate <= 1:
            raise UsageError("--encoder-rate is above 0, 1 at most")
        if not 0 <= self.momentum < 1 or min(self.clip, self.weight_decay) < 0:
            raise UsageError("--momentum is in 0-1, --clip and --weight-decay are not negative")
        if not 0 <= self.seed < 2**31:
            raise UsageError(f"--seed {self.seed}: from 0 to 2147483647")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


# Section 4.4; ours where it says nothing: severity's momentum, the places of the backbone's step decay, the diagnosis's
# class weights, lungs, SimCLR.
PAPER = {
    "backbone": Recipe(
        parse_schedule("512:160000:8"), "adam", 1e-4, decay="step", weight_decay=0.0, warmup=0, clip=0.0
    ),
    "diagnosis": Recipe(parse_schedule("512:10000:16"), "sgd", 1e-3, weight_decay=0.0, warmup=500),
    "severity": Recipe(
        parse_schedule("512:12000:4"), "sgd", 3e-3, decay="constant", weight_decay=0.0, warmup=0, clip=0.0
    ),
    "lungs": Recipe(parse_schedule("512:20000:8"), "adam", 1e-4, weight_decay=0.0, decay="constant", warmup=0),
    "simclr": Recipe(parse_schedule("512:20000:64"), "adamw", 3e-4, warmup=1000),
    "joint": Recipe(parse_schedule("512:20000:16"), "adamw", 3e-4, warmup=500, ema=0.999),
}
# Ours: what two CPU cores or a small GPU can pay for.
SHORT = {
    "backbone": Recipe(parse_schedule("256:8e:16"), lr=8e-4),
    "diagnosis": Recipe(parse_schedule("256:8e:16"), lr=5e-4, ema=0.99),
    "severity": Recipe(parse_schedule("256:20e:8"), lr=5e-4, ema=0.99),
    "lungs": Recipe(parse_schedule("256:30e:8"), lr=1e-3, ema=0.99),
    "simclr": Recipe(parse_schedule("192:10e:32"), lr=8e-4),
    "joint": Recipe(parse_schedule("256:13e:16,384:3e:12,512:1e:8"), lr=8e-4, ema=0.99),
}


def default(stage: str, preset: str) -> Recipe:
    """The paper's for preset `paper`, ours for the others."""
    return (PAPER if preset == "paper" else SHORT)[stage]


class Timeline:
    """Where a step lies: everything that happens at it follows from its number, so a resumed run needs no more."""

    def __init__(self, recipe: Recipe, images: int) -> None:
        short = [p for p in recipe.phases if p.steps_per_epoch(images) == 0]
        if short:
            raise UsageError(f"{images} training images are fewer than one batch of {short[0].batch}; lower the batch")
        self.recipe = recipe
        self._lengths = [p.steps(images) for p in recipe.phases]
        self._per_epoch = [p.steps_per_epoch(images) for p in recipe.phases]
        self.steps = sum(self._lengths)

    def phase(self, step: int) -> int:
        """Index of the phase of `step`; that of the last one at the end."""
        for i, length in enumerate(self._lengths):
            if step < length:
                return i
            step -= length
        return len(self._lengths) - 1

    def place(self, step: int) -> tuple[Phase, int, int]:
        """Phase of `step`, number of its epoch over the whole run, number of the batch in that epoch."""
        i = self.phase(step)
        before = sum(math.ceil(n / e) for n, e in zip(self._lengths[:i], self._per_epoch[:i], strict=True))
        within = step - sum(self._lengths[:i])
        epoch, batch = divmod(within, self._per_epoch[i])
        return self.recipe.phases[i], before + epoch, batch

    def last_of_phase(self, step: int) -> bool:
        return step + 1 == self.steps or self.phase(step + 1) != self.phase(step)

    def validates(self, step: int) -> bool:
        """Whether weights are judged after `step`: as often as asked, and at the end of each phase."""
        if self.last_of_phase(step):
            return True
        every = self.recipe.validate
        return (step + 1) % every == 0 if every else self.place(step + 1)[2] == 0

    def lr(self, step: int) -> float:
        r = self.recipe
        phase = r.phases[self.phase(step)]
        lr = r.lr * (phase.batch / r.phases[0].batch) ** 0.5
        if step < r.warmup:
            return lr * (step + 1) / r.warmup
        done = (step - r.warmup) / max(1, self.steps - r.warmup)
        if r.decay == "cosine":
            return lr * max(0.01, 0.5 * (1 + math.cos(math.pi * done)))
        if r.decay == "step":
            return lr * (0.01 if done >= 0.75 else 0.1 if done >= 0.5 else 1.0)
        return lr


def changed(recipe: Recipe, **values: Any) -> Recipe:
    """With every value that is not None."""
    return replace(recipe, **{k: v for k, v in values.items() if v is not None})
