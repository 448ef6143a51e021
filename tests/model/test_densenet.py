"""DenseNet-121 by its published architecture (Huang et al. 2017, table 1) and torchvision's names; public weights."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cxrvit_edge.errors import UsageError
from cxrvit_edge.model.densenet import DenseNet121, adapt_public_weights

pytestmark = pytest.mark.usefixtures("one_torch_thread")

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def published(channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """torchvision's densenet121 state dict without its classifier: names and shapes, in order."""

    def norm(name: str, n: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        for part in ("weight", "bias", "running_mean", "running_var"):
            yield f"{name}.{part}", (n,)
        yield f"{name}.num_batches_tracked", ()

    yield "features.conv0.weight", (64, channels, 7, 7)
    yield from norm("features.norm0", 64)
    width = 64
    for block, layers in enumerate((6, 12, 24, 16), 1):
        for layer in range(1, layers + 1):
            name = f"features.denseblock{block}.denselayer{layer}"
            yield from norm(f"{name}.norm1", width)
            yield f"{name}.conv1.weight", (128, width, 1, 1)
            yield from norm(f"{name}.norm2", 128)
            yield f"{name}.conv2.weight", (32, 128, 3, 3)
            width += 32
        if block < 4:
            yield from norm(f"features.transition{block}.norm", width)
            yield f"features.transition{block}.conv.weight", (width // 2, width, 1, 1)
            width //= 2
    yield from norm("features.norm5", width)


def public_weights(channels: int = 3, *, old_names: bool = False, seed: int = 0) -> dict[str, Tensor]:
    """Random weights under the published names, with batch statistics that are not 0 and 1, and a classifier."""
    g = torch.Generator().manual_seed(seed)
    out = {}
    for name, shape in published(channels):
        if name.endswith("num_batches_tracked"):
            if old_names:
                continue  # the files of that time have none
            out[name] = torch.tensor(7)
        elif name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
            out[name] = torch.rand(shape, generator=g) + 0.5
        elif len(shape) == 1:
            out[name] = 0.3 * torch.randn(shape, generator=g)
        else:
            fan = shape[1] * shape[2] * shape[3]
            out[name] = torch.randn(shape, generator=g) * (2 / fan) ** 0.5
    out["classifier.weight"], out["classifier.bias"] = torch.zeros(1000, 1024), torch.zeros(1000)
    if old_names:
        out = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", k): v for k, v in out.items()}
        assert "features.denseblock1.denselayer1.norm.1.weight" in out
    return out


def stem(weights: dict[str, Tensor], image: Tensor) -> Tensor:
    """conv0, norm0, ReLU from a state dict alone."""
    w = {k.removeprefix("features."): v for k, v in weights.items()}
    x = F.conv2d(image, w["conv0.weight"], stride=2, padding=3)
    return F.relu(normalised(x, w, "norm0"))


def normalised(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    scale = w[f"{name}.weight"] / torch.sqrt(w[f"{name}.running_var"] + 1e-5)
    shift = w[f"{name}.bias"] - w[f"{name}.running_mean"] * scale
    return x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)


def reference(weights: dict[str, Tensor], image: Tensor) -> list[Tensor]:
    """The trunk by the paper, in functions: what each block gives before its transition, and the end."""
    w = {k.removeprefix("features."): v for k, v in weights.items()}
    x = F.max_pool2d(stem(weights, image), 3, stride=2, padding=1)
    out = []
    for block, layers in enumerate((6, 12, 24, 16), 1):
        kept = [x]
        for layer in range(1, layers + 1):
            name = f"denseblock{block}.denselayer{layer}"
            y = F.relu(normalised(torch.cat(kept, 1), w, f"{name}.norm1"))
            y = F.relu(normalised(F.conv2d(y, w[f"{name}.conv1.weight"]), w, f"{name}.norm2"))
            kept.append(F.conv2d(y, w[f"{name}.conv2.weight"], padding=1))
        x = torch.cat(kept, 1)
        if block < 4:
            out.append(x)
            x = F.relu(normalised(x, w, f"transition{block}.norm"))
            x = F.avg_pool2d(F.conv2d(x, w[f"transition{block}.conv.weight"]), 2, stride=2)
    return [*out, F.relu(normalised(x, w, "norm5"))]


def test_names_and_shapes_are_torchvisions() -> None:
    found = [(k, tuple(v.shape)) for k, v in DenseNet121().state_dict().items()]
    assert found == list(published(1))


def test_parameter_count() -> None:
    """torchvision's densenet121 has 6,953,856 parameters without its classifier; one input channel saves two thirds."""
    trainable = ("weight", "bias")
    full = sum(torch.Size(s).numel() for k, s in published(3) if k.endswith(trainable))
    assert full == 6_953_856
    assert sum(p.numel() for p in DenseNet121().parameters()) == 6_953_856 - 2 * 64 * 7 * 7


def test_features_are_the_published_architectures() -> None:
    weights = adapt_public_weights(public_weights(1))
    net = DenseNet121().eval()
    net.load_state_dict(weights)
    image = torch.randn(2, 1, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found = net(image)
        wanted = reference(weights, image)
    shapes = [(2, 256, 16, 24), (2, 512, 8, 12), (2, 1024, 4, 6), (2, 1024, 2, 3)]
    for a, b, shape in zip(found, wanted, shapes, strict=True):
        assert a.shape == shape
        assert b.abs().max() > 0.1
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))


@pytest.mark.parametrize("constants", [{}, {"offset": 100.0, "scale": 50.0}, {"mean": (0.5,) * 3, "std": (0.25,) * 3}])
def test_a_three_channel_stem_is_folded_exactly(constants: dict[str, tuple[float, ...] | float]) -> None:
    """One film, gray level in [0, 1], through both normalisations: equal wherever the zero border is not seen."""
    public = public_weights(3)
    gray = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    mean = torch.tensor(constants.get("mean", MEAN), dtype=torch.float64).view(1, 3, 1, 1)
    std = torch.tensor(constants.get("std", STD), dtype=torch.float64).view(1, 3, 1, 1)
    theirs = {k: v.double() for k, v in public.items()}
    ours = adapt_public_weights(theirs, **constants)  # type: ignore[arg-type]
    assert ours["features.conv0.weight"].shape == (64, 1, 7, 7)

    wanted = stem(theirs, (gray.expand(-1, 3, -1, -1) - mean) / std)
    found = stem(ours, (255 * gray - constants.get("offset", 128.0)) / constants.get("scale", 64.0))  # type: ignore[operator]
    inside = (..., slice(2, -2), slice(2, -2))  # 7x7, stride 2, padding 3: two outputs a side see the border
    torch.testing.assert_close(found[inside], wanted[inside], rtol=1e-9, atol=1e-9)
    assert (wanted[inside] > 0).double().mean() > 0.2  # not all behind the ReLU
    assert not torch.allclose(found[..., 0, :], wanted[..., 0, :])  # and the border is where it is not exact


def test_folding_leaves_the_given_weights_alone() -> None:
    public = public_weights(3)
    before = {k: v.clone() for k, v in public.items()}
    adapt_public_weights(public)
    assert all(torch.equal(public[k], before[k]) for k in before)


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone."])
def test_old_files_load(prefix: str) -> None:
    """Names of 2017 (`norm.1`), no num_batches_tracked, a wrapper's prefix, a classifier."""
    old = {prefix + k: v for k, v in public_weights(3, old_names=True).items()}
    net = DenseNet121()
    net.load_state_dict(adapt_public_weights(old))  # strict
    new = public_weights(3)
    name = "features.denseblock3.denselayer24.conv2.weight"
    torch.testing.assert_close(net.state_dict()[name], new[name], rtol=0, atol=0)
    name = "features.denseblock4.denselayer16.norm1.running_var"
    torch.testing.assert_close(net.state_dict()[name], new[name], rtol=0, atol=0)


@pytest.mark.parametrize("channels", [1, None, 4])
def test_only_three_channels_are_folded(channels: int | None) -> None:
    if channels == 1:
        public = public_weights(1)
        adapted = adapt_public_weights(public)
        assert set(adapted) == set(public) - {"classifier.weight", "classifier.bias"}
        assert all(torch.equal(adapted[k], public[k]) for k in adapted)
        return
    weights = public_weights(4) if channels else {"conv1.weight": torch.zeros(64, 3, 7, 7)}  # a ResNet's
    with pytest.raises(UsageError, match=r"features\.conv0\.weight"):
        adapt_public_weights(weights)
