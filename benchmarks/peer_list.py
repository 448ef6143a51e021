"""Who is in the peers' table: how each is set up, why so, and what it needs installed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cxrvit_edge.host import cores, cpu_flags

CV2 = "opencv-python-headless"  # reads and preprocesses the films in the peers' loops
TORCH = ("torch", "safetensors", CV2)
ORT = ("onnxruntime", CV2)
OPENVINO = ("openvino", CV2)
MONAI = ("monai", "pillow", "safetensors", CV2)
LOOP = "cv2.imread, the bundle's preprocessing, batches of its better size, a CSV"
SLOW = 16  # films that are enough for a loop that takes long over each
Ways = Mapping[str, dict[str, Any]]


@dataclass(frozen=True)
class Peer:
    """of: module:class in benchmarks; needs: requirements, the first gives its version; job: for the class.

    kind: ours, network (the same network, images and preprocessing), task (the same task by other means). ways:
    settings that are tried first, of which the fastest is kept. films: at most so many end to end, 0 is all. loaded:
    whether the network stays loaded, so that it can be run alone.
    """

    name: str
    of: str
    kind: str
    precision: str
    needs: tuple[str, ...]
    settings: str
    why: str
    job: dict[str, Any] = field(default_factory=dict)
    ways: Ways = field(default_factory=dict)
    films: int = 0
    loaded: bool = True


def ours(name: str, backend: str, precision: str, needs: tuple[str, ...] = ()) -> Peer:
    written = "Triage.run into a fresh folder: journal, worklist, report, thumbnails; after `cxrvit-edge build`"
    why = "what the command does" if backend == "auto" else "named, to compare in the same arithmetic"
    job = {"backend": backend, "precision": precision}
    return Peer(name, "peer_tools:Ours", "ours", precision, needs, written, why, job)


def openvino(precision: str, arithmetic: str) -> Peer:
    told = "in float32" if arithmetic else "in its own arithmetic, bfloat16 here"
    why = "its documentation: the latency hint for all cores on one request, static shapes; " + (
        "float32 as every other row" if arithmetic else "its default where the processor has it"
    )
    return Peer(
        f"OpenVINO {precision}" + ("" if arithmetic else ", bfloat16"),
        "peer_network:OpenVinoLoop",
        "network",
        precision if arithmetic else f"{precision}, bf16",
        OPENVINO,
        f"latency hint, {cores()} threads, compiled for each batch size, {told}; {LOOP}",
        why,
        {"graph": precision, "precision": precision, "arithmetic": arithmetic},
    )


def peers(openvino_here: bool, optimised: Mapping[str, Mapping[str, Any]]) -> list[Peer]:
    """optimised: what the transformer optimiser made, by its settings."""
    extra = ("openvino",) if openvino_here else ()
    found = [
        ours("cxrvit-edge", "auto", "auto", extra),
        ours("cxrvit-edge on ONNX Runtime, int8", "onnxruntime", "int8"),
        ours("cxrvit-edge on ONNX Runtime, fp32", "onnxruntime", "fp32"),
        ours("cxrvit-edge on OpenVINO, fp32", "openvino", "fp32", ("openvino",)),
        Peer(
            "PyTorch eager",
            "peer_network:Eager",
            "network",
            "fp32",
            TORCH,
            f"inference_mode, {cores()} threads; {LOOP}",
            "its tuning guide: inference mode, a thread a core, channels_last for convolutions",
            ways={"contiguous": {"channels_last": False}, "channels_last": {"channels_last": True}},
            films=SLOW,
        ),
        Peer(
            "torch.compile",
            "peer_network:Compiled",
            "network",
            "fp32",
            TORCH,
            f"channels_last, inference_mode, {cores()} threads, dynamic=False, compiled code cached on disk; {LOOP}",
            "its documentation: one compilation a shape is the fastest, freezing folds weights for inference on a CPU; "
            "max-autotune left out, it compiled for minutes a shape",
            {"channels_last": True},
            {"default": {}, "freezing": {"freezing": True}},
            films=SLOW,
        ),
        Peer(
            "ONNX Runtime fp32",
            "peer_network:OnnxRuntime",
            "network",
            "fp32",
            ORT,
            f"fp32.onnx of the bundle as exported, InferenceSession with its defaults; {LOOP}",
            "its documentation: all optimisations and a thread a physical core are the defaults",
            {"graph": "fp32"},
        ),
        Peer(
            "ONNX Runtime int8",
            "peer_network:OnnxRuntime",
            "network",
            "int8",
            ORT,
            f"int8-cpu.onnx of the bundle, InferenceSession with its defaults; {LOOP}",
            "the same with the bundle's Q/DQ graph",
            {"graph": "int8"},
        ),
        Peer(
            "ONNX Runtime, transformer optimiser",
            "peer_network:OnnxRuntime",
            "network",
            "fp32",
            ORT,
            f"fp32.onnx through onnxruntime.transformers.optimizer, InferenceSession with its defaults; {LOOP}",
            "its documentation: model_type vit for vision transformers; every optimisation level tried",
            ways={name: {"graph": made["graph"]} for name, made in optimised.items()},
        ),
        openvino("fp32", "f32"),
        openvino("int8", "f32"),
        Peer(
            "MONAI",
            "peer_network:Monai",
            "network",
            "fp32",
            MONAI,
            "LoadImage, Compose with the bundle's preprocessing, DataLoader, SimpleInferer around PyTorch eager in "
            f"channels_last, inference_mode, {cores()} threads; a CSV",
            "its tutorials; worker processes of the DataLoader where they help",
            {"channels_last": True},
            {"no workers": {"loaders": 0}, f"{cores()} workers": {"loaders": cores()}},
            films=SLOW,
        ),
        Peer(
            "MONAI Deploy style, loaded",
            "peer_tools:Deploy",
            "task",
            "fp32",
            (*MONAI, "pydicom"),
            f"re-enacted: LoadImage, Compose, TorchScript in channels_last, SimpleInferer, {cores()} threads, a JSON a "
            "study, one study at a time",
            "its example applications, without container, Holoscan and GPU; the most one could keep of it",
            films=8,
        ),
        Peer(
            "MONAI Deploy style, a process a study",
            "peer_tools:DeployProcess",
            "task",
            "fp32",
            (*MONAI, "pydicom"),
            "the same, each study in a process of its own",
            "how an application package is run; a container's start would come on top",
            films=2,
            loaded=False,
        ),
        Peer(
            "Plain script",
            "peer_tools:PlainScript",
            "task",
            "fp32",
            TORCH,
            "cv2 and PyTorch as they come, no_grad, one image at a time, a CSV at the end",
            "the manner of torchxrayvision's batch script",
            films=8,
        ),
    ]
    if set(cpu_flags()) & {"avx512_bf16", "amx_bf16"}:
        at = [peer.name for peer in found].index("OpenVINO int8") + 1
        found[at:at] = [openvino("fp32", ""), openvino("int8", "")]
    return found
