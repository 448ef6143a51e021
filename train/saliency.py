"""Saliency methods side by side, and the pointing game that judges them (P8).

Each method takes the trunk's last features, net.features(image).s32 (B, C, H/32, W/32), so that they share its cost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cxrvit_edge.errors import UsageError
from cxrvit_edge.metrics import Estimate, cluster_bootstrap
from cxrvit_edge.model import relevance as propagation
from cxrvit_edge.model.triage_net import TriageNet

Map = NDArray[np.float32]
Method = Callable[[TriageNet, Tensor, int], Tensor]


def relevance(net: TriageNet, features: Tensor, class_index: int) -> Tensor:
    """Relevance propagation (Chefer, Gur and Wolf 2020) -> (B, g, g)."""
    return propagation.relevance_of(net, features, class_index)


def grad_cam(net: TriageNet, features: Tensor, class_index: int) -> Tensor:
    """Grad-CAM (Selvaraju et al. 2017) at the feature corpus -> (B, H/32, W/32), 0 or more.

    Channels weighed by the mean gradient of the class's logit, summed, negative values cut off.
    """
    with torch.enable_grad():
        features = features.detach().requires_grad_()
        logit = net.diagnosis(net.encoder(net.corpus(features))[0])[:, class_index]
        (gradient,) = torch.autograd.grad(logit.sum(), features)
    return (gradient.mean((2, 3), keepdim=True) * features.detach()).sum(1).clamp_min(0)


def raw_attention(net: TriageNet, features: Tensor) -> Tensor:
    """The class token's row of the last block's attention, mean of the heads -> (B, g, g). Not specific to a class."""
    attention, grid = _attention(net, features)
    return attention[-1].mean(1)[:, 0, 1:].unflatten(1, grid)


def rollout(net: TriageNet, features: Tensor) -> Tensor:
    """Attention rollout (Abnar and Zuidema 2020) -> (B, g, g). Not specific to a class.

    Product over the blocks of (I + attention) / 2, heads averaged; the constant factors are left out.
    """
    attention, grid = _attention(net, features)
    return propagation.class_row([a.mean(1) for a in attention]).unflatten(1, grid)


def token_logit(net: TriageNet, features: Tensor, class_index: int) -> Tensor:
    """The diagnosis head on each patch's token -> (B, g, g), the class's probability there. Forward only."""
    with torch.no_grad():
        tokens = net.encoder(net.corpus(features))[1]
        return net.diagnosis(tokens.permute(0, 2, 3, 1)).softmax(-1)[..., class_index]


METHODS: Mapping[str, Method] = {
    "relevance": relevance,
    "grad-cam": grad_cam,
    "raw attention": lambda net, features, _: raw_attention(net, features),
    "attention rollout": lambda net, features, _: rollout(net, features),
    "diagnosis head on tokens": token_logit,
}


def _attention(net: TriageNet, features: Tensor) -> tuple[list[Tensor], tuple[int, int]]:
    """(B, h, T, T) a block, and the grid of the patches."""
    with torch.no_grad():
        patches = net.encoder.embed(net.corpus(features))
        _, traces = propagation.trace(net.encoder, net.encoder.sequence(patches))
    return [t.attention for t in traces], (patches.shape[2], patches.shape[3])


@dataclass(frozen=True)
class Pointing:
    """Of maps against masks; intervals from a cluster bootstrap over patients.

    accuracy: share of maps whose maximum lies in the mask; energy: share of a map's sum that lies in it, mean over the
    maps that have any; chance: what a random point or an even map would get, the masks' mean share of the image.
    """

    images: int
    patients: int
    accuracy: Estimate
    energy: Estimate
    chance: float


def pointing_game(
    maps: Sequence[Map],
    masks: Sequence[NDArray[np.bool_]],
    patients: Sequence[str],
    *,
    tolerance: int = 0,
    draws: int = 2000,
    seed: int = 0,
) -> Pointing:
    """maps (h, w), 0 or more, over the same field as their masks (H, W), resized to them -> Pointing.

    tolerance: pixels of the mask by which a maximum may miss it (Zhang et al. 2016 allowed 15); it widens chance too.
    A map with several maxima gets the share of them inside, so that an even map gets chance and no corner.
    UsageError for lists of other lengths, an empty mask, or a map with a value that is negative or not finite.
    """
    if not len(maps) == len(masks) == len(patients) or not maps:
        raise UsageError(
            f"pointing game: {len(maps)} maps, {len(masks)} masks, {len(patients)} patients; give one each"
        )
    points = [_point(values, mask, tolerance) for values, mask in zip(maps, masks, strict=True)]
    hits, energies, chances = np.array(points).T
    accuracy = cluster_bootstrap(lambda i: float(hits[i].mean()), patients, draws=draws, seed=seed)
    energy = cluster_bootstrap(lambda i: _mean(energies[i]), patients, draws=draws, seed=seed)
    return Pointing(len(maps), len(set(patients)), accuracy, energy, float(chances.mean()))


def _mean(values: NDArray[np.float64]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")


def _point(values: Map, mask: NDArray[np.bool_], tolerance: int) -> tuple[float, float, float]:
    """Hit, energy inside (NaN for a map of zeros) and chance of one image."""
    if not mask.any():
        raise UsageError("pointing game: a mask is empty; leave its image out")
    if not np.isfinite(values).all() or values.min() < 0:
        raise UsageError("pointing game: a map has values that are negative or not finite; shift or clip it first")
    if values.shape != mask.shape:
        tensor = torch.from_numpy(np.ascontiguousarray(values, np.float32))[None, None]
        values = F.interpolate(tensor, mask.shape, mode="bilinear", align_corners=False)[0, 0].numpy()
    near = _widened(mask, tolerance) if tolerance else mask
    total = float(values.sum(dtype=np.float64))
    energy = float(values[mask].sum(dtype=np.float64)) / total if total > 0 else float("nan")
    most = values >= values.max() * (1 - 1e-5)  # resizing an even map rounds
    return float(near[most].mean()), energy, float(near.mean())


def _widened(mask: NDArray[np.bool_], by: int) -> NDArray[np.bool_]:
    import cv2

    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * by + 1, 2 * by + 1))
    return np.asarray(cv2.dilate(mask.astype(np.uint8), disc) > 0)
