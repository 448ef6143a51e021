"""Half precision on a CPU: every result is a half, overflow stays visible, and the margin is the peak's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import small_bundle as small
import torch
from numpy.typing import NDArray
from torch import nn

from cxrvit_edge.errors import EngineError
from cxrvit_edge.model import checkpoint
from cxrvit_edge.runtime.torch import TorchSession
from export.half import HALF_MAX, HalfSession, overflow_margin

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def weights(small_bundle: Path) -> Path:
    return small_bundle / "weights.safetensors"


@pytest.fixture(scope="module")
def images(small_bundle: Path) -> NDArray[np.float32]:
    with np.load(small_bundle / "golden_inputs.npz") as stored:
        before = stored["inputs"]
    return ((before[:, None].astype(np.float32) - 128) / 64).astype(np.float32)  # (4, 1, S, S)


def harmed(weights: Path, folder: Path, name: str, factor: float) -> Path:
    tensors, config, extra = checkpoint.load(weights)
    tensors[name] = tensors[name].float() * factor
    checkpoint.save(folder / "harmed.safetensors", tensors, config, extra)
    return folder / "harmed.safetensors"


def test_it_is_close_to_the_reference_and_not_equal(weights: Path, images: NDArray[np.float32]) -> None:
    session = HalfSession(weights)
    found, expected = session.run(images), TorchSession(weights).run(images)
    assert (session.backend, session.precision, session.version) == ("torch", "fp16", torch.__version__)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == np.float32
        assert a.shape == b.shape
        assert 0 < np.abs(a - b).max() < 0.1 * b.std()  # random weights magnify rounding
        np.testing.assert_array_equal(a, a.astype(np.float16))


def test_every_result_inside_is_a_half(weights: Path, images: NDArray[np.float32]) -> None:
    """Of all modules, and of what they are given: functional results (ReLU, sums, concatenations) are their inputs."""
    session = HalfSession(weights)
    seen: set[str] = set()

    def look(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: tuple[torch.Tensor, ...], outputs: object) -> None:
            for v in (*inputs, *(outputs if isinstance(outputs, tuple) else (outputs,))):
                if isinstance(v, torch.Tensor):
                    seen.add(name)
                    assert torch.equal(v, v.half().float()), name

        return hook

    for name, module in session._net.named_modules():
        module.register_forward_hook(look(name))
    session.run(images[:1])
    assert {"backbone.features.conv0", "encoder.blocks.0.norm1", "encoder.blocks.0.attn", "lungs.out"} <= seen


def test_attention_is_one_operation(weights: Path, images: NDArray[np.float32]) -> None:
    """Against float64: rounded once at the end, it is the half nearest to the exact value of its inputs."""
    session = HalfSession(weights)
    net, kept = session._net, {}
    attention = net.encoder.blocks[0].attn
    assert isinstance(attention, nn.Module)
    attention.qkv.register_forward_hook(lambda _m, _i, out: kept.update(qkv=out))  # type: ignore[union-attr]
    attention.proj.register_forward_hook(lambda _m, inputs, _o: kept.update(context=inputs[0]))  # type: ignore[union-attr]
    session.run(images[:1])
    b, t, _ = kept["qkv"].shape
    q, k, v = kept["qkv"].reshape(b, t, 3, 2, 24).permute(2, 0, 3, 1, 4).double()
    exact = ((q @ k.transpose(-2, -1)) / 24**0.5).softmax(-1) @ v
    exact = exact.transpose(1, 2).reshape(b, t, 48)
    unit = torch.finfo(torch.float16).eps * exact.abs().clamp_min(2**-14)
    assert bool(((kept["context"] - exact).abs() <= 0.5001 * unit + 1e-6).all())


def test_margin_is_that_of_the_largest_value(weights: Path, images: NDArray[np.float32]) -> None:
    """Against hooks on the float32 network: convolutions and linear layers give what they computed."""
    session = HalfSession(weights)
    session.run(images)
    tensors, config, _ = checkpoint.load(weights)
    net = checkpoint.network(tensors, config)
    peaks: dict[str, float] = {}
    for name, module in net.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(
                lambda _m, _i, out, name=name: peaks.update({name: float(out.abs().max())})  # type: ignore[misc]
            )
    with torch.inference_mode():
        net(torch.from_numpy(images))
    peaks.pop("pcam.classifier", None)
    for name, peak in peaks.items():
        assert session.peaks[name] == pytest.approx(peak, rel=0.02), name
    margin, name = overflow_margin(session)
    assert margin == pytest.approx(HALF_MAX / session.peaks[name])
    assert session.peaks[name] >= max(peaks.values()) * 0.98
    assert not name.endswith(".scores")
    assert session.peaks["encoder.blocks.0.attn.scores"] > 0


def test_peaks_grow_over_runs_and_never_shrink(weights: Path, images: NDArray[np.float32]) -> None:
    session = HalfSession(weights)
    session.run(images[:1])
    first = dict(session.peaks)
    session.run(2 * images[:1])
    second = dict(session.peaks)
    session.run(images[:1])
    assert session.peaks == second
    assert second["backbone.features.conv0"] > 1.5 * first["backbone.features.conv0"]


def test_overflow_is_seen_in_the_outputs_and_its_place_named(
    weights: Path, images: NDArray[np.float32], tmp_path: Path
) -> None:
    """A scale that float32 does not mind: ONNX Runtime's CPU would give a finite result."""
    other = harmed(weights, tmp_path, "encoder.blocks.0.fc2.bias", 1e6)
    assert np.isfinite(TorchSession(other).run(images).logits).all()
    session = HalfSession(other)
    with np.errstate(all="ignore"):
        found = session.run(images)
    assert not np.isfinite(found.logits).any()
    margin, _ = overflow_margin(session)
    assert margin == 0
    finite = {k: v for k, v in session.peaks.items() if HALF_MAX < v < float("inf")}
    assert set(finite) <= {"encoder.blocks.0.fc2", "encoder.blocks.0"}
    assert overflow_margin(HalfSessionWith({"encoder.blocks.0.fc2": 131008.0})) == (0.5, "encoder.blocks.0.fc2")


class HalfSessionWith(HalfSession):
    def __init__(self, peaks: dict[str, float]) -> None:
        self.peaks = peaks


def test_variance_that_half_does_not_hold(weights: Path, images: NDArray[np.float32], tmp_path: Path) -> None:
    """It is scale and shift that are rounded, as in the exported graph."""
    tensors, config, extra = checkpoint.load(weights)
    norm = "backbone.features.norm5"
    for name in (f"{norm}.weight", f"{norm}.running_var"):
        tensors[name] = tensors[name] * (1e6 if name.endswith("var") else 1e3)
    checkpoint.save(tmp_path / "w.safetensors", tensors, config, extra)
    assert float(tensors[f"{norm}.running_var"].max()) > HALF_MAX
    found, expected = HalfSession(tmp_path / "w.safetensors").run(images), TorchSession(tmp_path / "w.safetensors")
    gap = np.abs(found.logits - expected.run(images).logits).max()
    assert gap < 0.1, "an infinite variance would leave the shift alone: logits 0.9 apart"


def test_wrong_input_is_an_engine_error_and_leaves_it_usable(weights: Path, images: NDArray[np.float32]) -> None:
    session = HalfSession(weights)
    with pytest.raises(EngineError, match="torch failed on a batch of shape"):
        session.run(np.zeros((1, 3, small.SIZE, small.SIZE), np.float32))
    session.peaks.clear()
    again = session.run(images[:1])
    assert set(session.peaks) >= {"diagnosis", "network"}
    np.testing.assert_array_equal(again.logits, HalfSession(weights).run(images[:1]).logits)
