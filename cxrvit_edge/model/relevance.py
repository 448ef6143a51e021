"""Relevance of each patch to one class, propagated through the encoder (Chefer, Gur and Wolf 2020, arXiv 2012.09838).

Relevance starts as 1 at the class's logit (section 3.1) and is handed back layer by layer, each rule keeping its sum:

- linear layers: eq. 5, over the contributions x_j w_ji that are positive; a bias gets none;
- sums of two tensors and products of two tensors: section 3.2, each operand its share, normalised as in Lemma 2, for
  a product gives the whole to either operand;
- GELU, LayerNorm, softmax and the scale of the scores: passed through, as in the authors' experiments.

Each attention matrix keeps its relevance R and its gradient G of the logit (section 3.3): A' = I + mean over heads of
the positive part of G * R (eq. 13); the map is the class token's row of the product of all A', last block first
(eq. 14). Normalisation is by image, so that an image does not see its neighbours in the batch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cxrvit_edge.errors import UsageError
from cxrvit_edge.model.transformer import Attention, Block, Encoder
from cxrvit_edge.model.triage_net import TriageNet


class BlockTrace(NamedTuple):
    """What a block computed on its way; T tokens, h heads of d."""

    x: Tensor  # (B, T, D) into the block
    normed: Tensor  # (B, T, D) after norm1
    q: Tensor  # (B, h, T, d)
    k: Tensor
    v: Tensor
    scores: Tensor  # (B, h, T, T) before the softmax
    attention: Tensor  # (B, h, T, T)
    mixed: Tensor  # (B, T, D) heads side by side
    attended: Tensor  # (B, T, D) what attention adds to x
    middle: Tensor  # (B, T, D) after that
    normed2: Tensor  # (B, T, D) after norm2
    hidden: Tensor  # (B, T, 4 D) after GELU
    added: Tensor  # (B, T, D) what the MLP adds to middle


class Propagated(NamedTuple):
    """gradients and attention by block, first block first; tokens: relevance of what the first block saw."""

    logits: Tensor  # (B, classes)
    attention: list[Tensor]  # (B, h, T, T): relevance of each attention matrix
    gradients: list[Tensor]  # (B, h, T, T): gradient of the class's logit
    tokens: Tensor  # (B, T, D)


def relevance(net: TriageNet, image: Tensor, class_index: int | Tensor) -> Tensor:
    """image (B, 1, H, W) and a class, or one an image (B,) -> relevance of each patch (B, g, g), 0 or more.

    It has no unit: compare within a map. float32 of the network's own device; UsageError for a class there is not.
    """
    with torch.inference_mode(False), torch.no_grad():
        features = net.features(image).s32
    return relevance_of(net, features, class_index)


def relevance_of(net: TriageNet, features: Tensor, class_index: int | Tensor) -> Tensor:
    """The same from the trunk's last features (B, C, H/32, W/32)."""
    with torch.inference_mode(False), torch.no_grad():
        patches = net.encoder.embed(net.corpus(features))  # (B, D, g, g)
    out = propagate(net.encoder, net.diagnosis, patches, class_index)
    layers = [(g * r).clamp_min(0).mean(1) for g, r in zip(out.gradients, out.attention, strict=True)]
    return class_row(layers).unflatten(1, patches.shape[2:])


def class_row(layers: list[Tensor]) -> Tensor:
    """(B, T, T) a block, first block first -> row of the class token of the product of all (I + layer): (B, T - 1)."""
    row = F.one_hot(torch.zeros_like(layers[0][:, 0, 0], dtype=torch.long), layers[0].shape[-1]).to(layers[0])
    for layer in reversed(layers):
        row = row + (row[:, None] @ layer)[:, 0]
    return row[:, 1:]


def propagate(encoder: Encoder, head: nn.Linear, patches: Tensor, class_index: int | Tensor) -> Propagated:
    """Embedded patches (B, D, g, g) -> relevance and gradient of every attention matrix, for the class's logit."""
    with torch.inference_mode(False), torch.enable_grad():
        sequence = encoder.sequence(patches.detach()).detach().requires_grad_()
        out, traces = trace(encoder, sequence)
        token = out[:, 0]
        logits = head(token)
        start = _one_hot(logits, class_index)
        gradients = torch.autograd.grad((logits * start).sum(), [t.attention for t in traces])
    with torch.inference_mode(False), torch.no_grad():
        r = torch.zeros_like(out)
        r[:, 0] = linear_rule(token, head.weight, start)
        attention: list[Tensor] = []
        for block, seen in zip(reversed(list(encoder.blocks)), reversed(traces), strict=True):
            assert isinstance(block, Block)
            r, of_attention = _through(block, seen, r)
            attention.insert(0, of_attention)
    return Propagated(logits.detach(), attention, list(gradients), r)


def trace(encoder: Encoder, sequence: Tensor) -> tuple[Tensor, list[BlockTrace]]:
    """encoder.sequence(...) (B, T, D) -> output of the encoder (B, T, D) as by its fused forward, and each block's."""
    x, traces = sequence, []
    for block in encoder.blocks:
        assert isinstance(block, Block)
        traces.append(_trace_block(block, x))
        x = traces[-1].middle + traces[-1].added
    return encoder.norm(x), traces


def _trace_block(block: Block, x: Tensor) -> BlockTrace:
    normed = block.norm1(x)
    q, k, v = _split(block.attn, block.attn.qkv(normed))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    attention = scores.softmax(-1)
    mixed = (attention @ v).transpose(1, 2).flatten(2)
    attended = block.attn.proj(mixed)
    middle = x + attended
    normed2 = block.norm2(middle)
    hidden = F.gelu(block.fc1(normed2))
    added = block.fc2(hidden)
    return BlockTrace(x, normed, q, k, v, scores, attention, mixed, attended, middle, normed2, hidden, added)


def _split(attn: Attention, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    b, t, d = qkv.shape
    q, k, v = qkv.view(b, t, 3, attn.heads, d // (3 * attn.heads)).permute(2, 0, 3, 1, 4)
    return q, k, v


def _through(block: Block, seen: BlockTrace, r: Tensor) -> tuple[Tensor, Tensor]:
    """Relevance of a block's output (B, T, D) -> of its input (B, T, D) and of its attention matrix (B, h, T, T)."""
    skip, branch = add_rule(seen.middle, seen.added, r)
    branch = linear_rule(seen.hidden, block.fc2.weight, branch)
    r = skip + linear_rule(seen.normed2, block.fc1.weight, branch)
    skip, branch = add_rule(seen.x, seen.attended, r)
    branch = linear_rule(seen.mixed, block.attn.proj.weight, branch)
    heads = branch.unflatten(2, (block.attn.heads, -1)).transpose(1, 2)  # (B, h, T, d)
    of_attention, of_v = product_rule(seen.attention, seen.v, heads)
    of_q, of_k = product_rule(seen.q, seen.k.transpose(-1, -2), of_attention)
    qkv = torch.stack([of_q, of_k.transpose(-1, -2), of_v], 2)  # (B, h, 3, T, d)
    return skip + linear_rule(seen.normed, block.attn.qkv.weight, qkv.permute(0, 3, 2, 1, 4).flatten(2)), of_attention


def linear_rule(x: Tensor, weight: Tensor, r: Tensor) -> Tensor:
    """x (..., I), weight (O, I), relevance r (..., O) -> relevance of x (..., I): eq. 5.

    An output to which nothing contributes positively hands nothing back.
    """
    x_up, x_down, w_up, w_down = x.clamp_min(0), x.clamp_max(0), weight.clamp_min(0), weight.clamp_max(0)
    share = _divide(r, F.linear(x_up, w_up) + F.linear(x_down, w_down))
    return x_up * (share @ w_up) + x_down * (share @ w_down)


def add_rule(u: Tensor, v: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """u + v with relevance r, all (B, ...) -> relevance of u and of v; their sums have no other sign than r's sum."""
    share = _divide(r, u + v)
    return _normalised(u * share, v * share, r)


def product_rule(a: Tensor, b: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """a (B, ..., M, K) @ b (B, ..., K, N) with relevance r (B, ..., M, N) -> relevance of a and of b."""
    share = _divide(r, a @ b)
    return _normalised(a * (share @ b.transpose(-1, -2)), b * (a.transpose(-1, -2) @ share), r)


def _normalised(of_u: Tensor, of_v: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """Section 3.2, Lemma 2: each sum becomes its magnitude's share of the sum of r, image by image."""
    sum_u, sum_v, total = _sum(of_u), _sum(of_v), _sum(r)
    whole = sum_u.abs() + sum_v.abs()
    return (
        of_u * _across(_divide(total * sum_u.sign(), whole), of_u),
        of_v * _across(_divide(total * sum_v.sign(), whole), of_v),
    )


def _sum(x: Tensor) -> Tensor:
    return x.flatten(1).sum(1)  # (B,)


def _across(factor: Tensor, x: Tensor) -> Tensor:
    return factor.view(-1, *[1] * (x.ndim - 1))


def _divide(a: Tensor, b: Tensor) -> Tensor:
    """a / b, 0 where b is 0."""
    none = b == 0
    return (a / b.masked_fill(none, 1)).masked_fill(none, 0)


def _one_hot(logits: Tensor, class_index: int | Tensor) -> Tensor:
    """(B, classes) of 0 and 1."""
    index = torch.as_tensor(class_index, device=logits.device).expand(len(logits)).long()
    if bool(((index < 0) | (index >= logits.shape[1])).any()):
        raise UsageError(f"class {class_index}: the network has classes 0 to {logits.shape[1] - 1}")
    return F.one_hot(index, logits.shape[1]).to(logits)
