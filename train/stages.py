"""From a verb's options to a run: records, network, objective, recipe, trainer."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from cxrvit_edge.bundle import WEIGHTS, Bundle
from cxrvit_edge.errors import UsageError
from cxrvit_edge.host import keep_memory
from cxrvit_edge.model.config import BASELINES, SEGMENTERS, NetworkConfig, preset
from cxrvit_edge.model.triage_net import TriageNet
from cxrvit_edge.preprocess import PreprocessConfig
from train.augment import CONTRAST, Augmentation
from train.cache import ImageCache, open_cache
from train.choose import check, chosen
from train.data.record import Record
from train.data.split import class_counts, class_weights
from train.distributed import World, in_turn, world
from train.masks import segmented
from train.networks import build, public_weights
from train.networks.adain import AdaINSegmenter
from train.objective import Objective
from train.recipe import Recipe, changed, default, parse_schedule
from train.runs import load_run
from train.trainer import Trainer
from train.weights import start_from

if TYPE_CHECKING:
    from train.objectives.teaching import Teacher

NETWORKS = {
    "backbone": ("cxrvit", "densenet121"),
    "diagnosis": ("cxrvit", *BASELINES),
    "severity": ("cxrvit", *BASELINES),
    "lungs": ("cxrvit", *SEGMENTERS),
    "simclr": ("cxrvit", *BASELINES),
    "joint": ("cxrvit",),
}
PARTS = {  # of a cxrvit or a baseline that a stage learns; the rest stays as it is
    "backbone": ("backbone", "pcam", "findings"),
    "diagnosis": ("backbone", "encoder", "diagnosis"),
    "severity": ("backbone", "encoder", "severity"),
    "lungs": ("backbone", "lungs"),
    "simclr": ("backbone", "encoder"),
}
CALIBRATION = 64  # images that a bundle's BatchNorm is unfolded on
Say = Callable[[str], None]


def run(stage: str, values: Mapping[str, Any], say: Say) -> Path:
    """Train `stage` with the options of train/options.py; the path of the weights that are kept."""
    with world(values["device"]) as where:
        tell: Say = say if where.first else lambda _: None
        if values["threads"]:
            torch.set_num_threads(values["threads"])
        check(values)
        config = network_config(stage, values)
        for option in ("init", "weights", "lungs", "teacher"):  # before hours are spent on the cache
            given = values.get(option) or []
            for path in given if isinstance(given, list) else [given]:
                if not path.exists():
                    raise UsageError(f"--{option} {path}: no such file or folder; check the spelling")
        recipe = recipe_of(stage, values)
        teachers = _teachers(values.get("teacher") or [])
        keep_memory()
        records = chosen(stage, values, tell)
        preprocessing = PreprocessConfig(size=config.image_size)
        folder = values["cache"] or values["out"].parent / "cache"
        with in_turn(where):
            cache = open_cache(
                records,
                folder,
                preprocessing,
                broken=values["absent"],
                progress=_every(tell, "preprocessed", len(records)),
            )
        records = without_broken(records, cache, tell)
        if stage == "severity":
            with in_turn(where):
                cache = _with_lungs(records, cache, preprocessing, folder, values, where, tell)
        torch.manual_seed(recipe.seed)
        net = build.build(config)
        _freeze_rest(stage, net, config)
        if values["weights"]:
            filled = len(public_weights.initialise(net, values["weights"]))
            tell(f"{filled} tensors from {values['weights']}")
        if values["init"]:
            tell(start_from(net, values["init"], lambda: _images(records, cache, preprocessing, recipe)))
        objective = objective_of(stage, net, config, records, values, teachers)
        if values["fresh"] and where.first:
            forget(values["out"])
        where.wait()
        trainer = Trainer(
            *(objective, config, recipe, records, cache, preprocessing, values["out"]),
            where=where,
            loading=loading_of(stage, values),
            about=about(stage, values),
            tensorboard=values["tensorboard"],
            say=say,
        )
        return trainer.run()


def _freeze_rest(stage: str, net: nn.Module, config: NetworkConfig) -> None:
    if stage not in PARTS or config.network in SEGMENTERS:
        return
    weighing = ("pcam",) if config.corpus != "before" and "encoder" in PARTS[stage] else ()
    for name, part in net.named_children():
        if name not in (*PARTS[stage], *weighing):
            part.requires_grad_(False)


def network_config(stage: str, values: Mapping[str, Any]) -> NetworkConfig:
    network = values["network"]
    if stage in ("severity", "joint") and values["image_size"] >= 1024 and network == "cxrvit":
        raise UsageError(f"--image-size {values['image_size']}: an ablation of diagnosis; {stage} takes 512")
    if network not in NETWORKS[stage]:
        raise UsageError(f"--network {network}: stage {stage} trains {', '.join(NETWORKS[stage])}")
    size = values["image_size"]
    sizes = {k: values[k] for k in ("layers", "heads", "width") if values[k] is not None}
    sizes |= {"image_size": size, "trunk_size": trunk_size_of(values), "stride": stride_of(values)}
    return replace(preset(values["preset"]), **sizes, network=network, corpus=values["corpus"])


def stride_of(values: Mapping[str, Any]) -> int:
    """Pixels a token stands for: a cxrvit keeps its 16 x 16 tokens where its trunk sees 1024 pixels and more."""
    seen = min(values["image_size"], trunk_size_of(values) or values["image_size"])
    return 32 * max(1, seen // 512) if values["network"] == "cxrvit" else 32


def trunk_size_of(values: Mapping[str, Any]) -> int:
    """Pixels that the trunk sees, 0 for all of them: a cxrvit's alone."""
    if values["network"] != "cxrvit":
        return 0
    return preset(values["preset"]).trunk_size if values["trunk_size"] is None else values["trunk_size"]


def recipe_of(stage: str, values: Mapping[str, Any]) -> Recipe:
    """The preset's, with what was asked for."""
    names = (
        *(
            "optimizer",
            "lr",
            "encoder_rate",
            "momentum",
            "weight_decay",
            "decay",
            "warmup",
            "clip",
            "accumulate",
            "ema",
            "precision",
        ),
        *("freeze", "balance", "validate", "patience", "seed"),
    )
    recipe = changed(default(stage, values["preset"]), **{k: values[k] for k in names})
    if values["schedule"]:
        recipe = replace(recipe, phases=parse_schedule(values["schedule"]))
    stride = stride_of(values)
    if any(p.size % stride for p in recipe.phases):
        raise UsageError(f"--schedule: sizes are multiples of {stride} with --image-size {values['image_size']}")
    if any(p.size > values["image_size"] for p in recipe.phases):
        raise UsageError(f"--schedule asks for more than the {values['image_size']} pixels that are kept; --image-size")
    if stage == "simclr" and not values["augment"]:
        raise UsageError("--no-augment: simclr tells two augmentations of an image from all others; leave it out")
    augmentation = CONTRAST if stage == "simclr" else Augmentation()
    if stage in ("backbone", "diagnosis", "severity"):
        augmentation = replace(augmentation, negative=0.0)  # only a segmenter learns from films turned on their side
    return replace(recipe, augmentation=augmentation if values["augment"] else None)


def without_broken(records: Sequence[Record], cache: ImageCache, say: Say) -> list[Record]:
    """Rows whose file could not be read keep their place in the cache, in a split that no stage reads."""
    broken = set(cache.broken)
    if broken:
        say(f"{len(broken)} of {len(records)} images cannot be read and are left out")
    return [replace(r, split="test") if i in broken else r for i, r in enumerate(records)]


def objective_of(
    stage: str,
    net: nn.Module,
    config: NetworkConfig,
    records: Sequence[Record],
    values: Mapping[str, Any],
    teachers: Sequence[Teacher] = (),
) -> Objective:
    weight = torch.from_numpy(class_weights(class_counts(records)))
    if stage == "backbone":
        from train.objectives.backbone import Backbone

        return Backbone(net)
    if stage == "diagnosis":
        from train.objectives.diagnosis import Diagnosis

        return Diagnosis(net, weight if values["class_weight"] else torch.ones(3), values["label_smoothing"])
    if stage == "severity":
        from train.objectives.severity import Severity

        return Severity(net, values["roi"])
    if stage == "simclr":
        from train.objectives.simclr import SimCLR

        return SimCLR(net, net.embed(torch.zeros(2, 1, 64, 64)).shape[1], values["temperature"])  # type: ignore[operator]
    if stage == "lungs":
        from train.objectives.lungs import AdaINObjective, LungObjective

        return AdaINObjective(cast(AdaINSegmenter, net)) if config.network == "adain" else LungObjective(net)
    from train.objectives.joint import Joint, Weights
    from train.objectives.teaching import Teaching

    taught = Teaching(teachers) if teachers else None
    return Joint(cast(TriageNet, net), weight, Weights(side=values["side"]), taught)


def _teachers(paths: Sequence[Path]) -> list[Teacher]:
    """Each teaches what its stage learned; UsageError for one that learned neither classes nor severity."""
    from train.objectives.teaching import Teacher

    teachers = []
    for path in paths:
        run = load_run(path, "cpu")
        classes, grades = "diagnosis" in run.gives, "severity" in run.gives
        if not (classes or grades):
            raise UsageError(
                f"--teacher {path}: learned {run.stage}, and teaches neither classes nor severity; name a run of stage "
                "diagnosis, severity or joint"
            )
        teachers.append(Teacher(run.net, run.preprocessing.size, classes, grades))
    return teachers


def loading_of(stage: str, values: Mapping[str, Any]) -> dict[str, Any]:
    out = {k: values[k] for k in ("brixia_threshold", "normal_weight") if k in values}
    return {**out, "workers": values["workers"], "views": 2 if stage == "simclr" else 1}


def forget(out: Path) -> None:
    """Remove what a run writes into its folder, and nothing else that lies there."""
    for name in ("last.safetensors", "model.safetensors", "steps.csv", "validation.csv"):
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(out / "tensorboard", ignore_errors=True)


def about(stage: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """What a table needs to know of a run beside its recipe and network."""
    names = (
        "view",
        "source",
        "leave_out",
        "split_seed",
        "uncertain",
        "other",
        "positive",
        "preset",
        *OPTIONS_OF.get(stage, ()),
    )
    start = values["init"] or values["weights"]
    out = {k: values[k] for k in names}
    if values.get("teacher"):
        out["teachers"] = [_digest(weights_of(path)) for path in values["teacher"]]
    if stage == "severity":
        out["pooling"] = values["roi"]
    return {**out, "init": start_of(start) if start else None}


OPTIONS_OF = {
    "diagnosis": ("class_weight", "label_smoothing"),
    "severity": ("brixia_threshold", "normal_weight"),
    "simclr": ("temperature",),
    "joint": ("brixia_threshold", "normal_weight", "side"),
}


def start_of(path: Path) -> str:
    """The stage whose weights a run starts from; "bundle", or "public" for files of others."""
    from cxrvit_edge.errors import BundleError
    from cxrvit_edge.model import checkpoint

    if path.is_dir():
        if (path / WEIGHTS).is_file():
            return "bundle"
        path = path / "model.safetensors"
    try:
        return str(checkpoint.load(path)[2].get("stage", "bundle"))
    except BundleError:
        return "public"


def _images(records: Sequence[Record], cache: ImageCache, config: PreprocessConfig, recipe: Recipe) -> Iterator[Tensor]:
    from train.loader import Loader

    index = [i for i, r in enumerate(records) if r.split == "train"][:CALIBRATION]
    for batch in Loader(records, cache, index, config, size=recipe.phases[0].size, batch=8).epoch(0):
        yield batch.image


def _with_lungs(
    records: Sequence[Record],
    cache: ImageCache,
    preprocessing: PreprocessConfig,
    folder: Path,
    values: Mapping[str, Any],
    where: World,
    say: Say,
) -> ImageCache:
    path = weights_of(values["lungs"])
    segmenter, config, extra = build.load(path)
    if not hasattr(segmenter, "segment"):
        raise UsageError(f"--lungs {path}: a {config.network} segments nothing; name a run of stage lungs or joint")
    size = int(extra.get("preprocessing", {}).get("size", config.image_size))
    return segmented(records, cache, segmenter, preprocessing, folder, size=size, device=where.device, say=say)


def weights_of(path: Path | None) -> Path:
    """The weights' file of a run's folder, a bundle (None: the embedded one) or a checkpoint."""
    if path is None or (path.is_dir() and (path / WEIGHTS).is_file()):
        return Bundle.open(path).file(WEIGHTS)
    return path / "model.safetensors" if path.is_dir() else path


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _every(say: Say, what: str, n: int) -> Callable[[int, int], None]:
    step = max(1, n // 10)
    return lambda done, total: say(f"{what} {done} of {total}") if done % step == 0 or done == total else None
