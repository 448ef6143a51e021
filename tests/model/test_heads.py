"""PCAM, the encoder and the map heads against naive loops over their own parameters."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from cxrvit_edge.model.densenet import Features
from cxrvit_edge.model.lungs import LungDecoder
from cxrvit_edge.model.pcam import PCAM
from cxrvit_edge.model.severity import MapHead, upsize
from cxrvit_edge.model.transformer import Encoder

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# --- PCAM


def naive_pcam(features: Tensor, weight: Tensor, bias: Tensor) -> tuple[list[list[float]], list[list[list[float]]]]:
    """Ye et al. 2020, section 3: p = sigmoid(w x + b) a position; e = sum p x / sum p; logit = w e + b."""
    logits, maps = [], []
    for film in features.double().tolist():
        positions = [
            [film[c][y][x] for c in range(len(film))] for y in range(len(film[0])) for x in range(len(film[0][0]))
        ]
        row, row_maps = [], []
        for w, b in zip(weight.double().tolist(), bias.double().tolist(), strict=True):
            p = [1 / (1 + math.exp(-(sum(i * j for i, j in zip(w, v, strict=True)) + b))) for v in positions]
            pooled = [sum(pi * v[c] for pi, v in zip(p, positions, strict=True)) / sum(p) for c in range(len(w))]
            row.append(sum(i * j for i, j in zip(w, pooled, strict=True)) + b)
            row_maps.append(p)
        logits.append(row)
        maps.append(row_maps)
    return logits, maps


def test_pcam_is_the_papers() -> None:
    pool = PCAM(5, 3)
    features = 2 * torch.randn(2, 5, 3, 4)
    logits, maps = pool(features)
    assert logits.shape == (2, 3)
    assert maps.shape == (2, 3, 3, 4)
    wanted, wanted_maps = naive_pcam(features, pool.classifier.weight.flatten(1), pool.classifier.bias)  # type: ignore[arg-type]
    torch.testing.assert_close(logits, torch.tensor(wanted), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(maps.flatten(2), torch.tensor(wanted_maps), rtol=1e-5, atol=1e-6)


def test_pcam_looks_where_the_finding_is() -> None:
    """One strong position among many empty ones decides: average pooling would hardly see it."""
    pool = PCAM(1, 1)
    with torch.no_grad():
        pool.classifier.weight.fill_(1.0)
        pool.classifier.bias.fill_(-5.0)  # type: ignore[union-attr]
    features = torch.zeros(1, 1, 16, 16)
    features[..., 3, 7] = 20.0
    logit = float(pool(features)[0].detach())
    assert logit > 1.0  # average pooling gives 20 / 256 - 5
    assert pool(features)[1].flatten().argmax() == 3 * 16 + 7


def test_pcam_of_vanishing_probabilities_stays_finite() -> None:
    logits, _ = PCAM(4, 2)(torch.full((1, 4, 2, 2), -1e4))
    assert torch.isfinite(logits).all()


# --- encoder


def naive_encoder(e: Encoder, corpus: Tensor) -> tuple[Tensor, Tensor]:
    """Dosovitskiy et al. 2021, equations 1 to 4, with explicit softmax, normalisation and GELU, head by head."""

    def linear(layer: nn.Linear, x: Tensor) -> Tensor:
        return x @ layer.weight.double().T + layer.bias.double()

    def layer_norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        x = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + layer.eps)
        return x * layer.weight.double() + layer.bias.double()

    tokens, classes = [], []
    for film in corpus.double():
        c, gh, gw = film.shape
        x = film.reshape(c, gh * gw).T @ e.embed.weight.double().flatten(1).T + e.embed.bias.double()  # type: ignore[union-attr]
        x = torch.cat([e.class_token[0].double(), x]) + e.position[0].double()
        width = x.shape[1]
        for block in e.blocks:
            h = layer_norm(block.norm1, x)  # type: ignore[arg-type]
            q, k, v = linear(block.attn.qkv, h).split(width, dim=1)  # type: ignore[union-attr, arg-type]
            heads = int(block.attn.heads)  # type: ignore[union-attr, arg-type]
            d, out = width // heads, []
            for i in range(heads):
                part = slice(i * d, (i + 1) * d)
                scores = q[:, part] @ k[:, part].T / math.sqrt(d)
                scores = torch.exp(scores - scores.max(1, keepdim=True).values)
                out.append(scores / scores.sum(1, keepdim=True) @ v[:, part])
            x = x + linear(block.attn.proj, torch.cat(out, 1))  # type: ignore[union-attr, arg-type]
            h = linear(block.fc1, layer_norm(block.norm2, x))  # type: ignore[arg-type]
            h = 0.5 * h * (1 + torch.erf(h / math.sqrt(2)))
            x = x + linear(block.fc2, h)  # type: ignore[arg-type]
        x = layer_norm(e.norm, x)
        classes.append(x[0])
        tokens.append(x[1:].T.reshape(width, gh, gw))
    return torch.stack(classes), torch.stack(tokens)


def encoder(grid: int = 4, layers: int = 2) -> Encoder:
    e = Encoder(channels=10, width=24, layers=layers, heads=3, mlp_ratio=4, grid=grid)
    with torch.no_grad():  # weights large enough that attention is not uniform
        for p in e.parameters():
            p.copy_(0.4 * torch.randn_like(p))
    return e.eval()


def test_encoder_is_explicit_attention() -> None:
    e, corpus = encoder(), torch.randn(2, 10, 4, 4)
    with torch.no_grad():
        token, tokens = e(corpus)
        wanted_token, wanted_tokens = naive_encoder(e, corpus)
    assert token.shape == (2, 24)
    assert tokens.shape == (2, 24, 4, 4)
    torch.testing.assert_close(token.double(), wanted_token, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(tokens.double(), wanted_tokens, rtol=1e-4, atol=1e-4)


def test_tokens_stay_where_they_were() -> None:
    """Without layers and positions a token is its own position's projection."""
    e, corpus = encoder(layers=0), torch.randn(1, 10, 4, 4)
    with torch.no_grad():
        e.position.zero_()
        _, tokens = e(corpus)
        alone = e.norm(e.embed(corpus).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(tokens, alone)


def test_the_class_token_attends_to_every_position() -> None:
    e, corpus = encoder(), torch.randn(1, 10, 4, 4)
    corpus.requires_grad_()
    e(corpus)[0].sum().backward()
    assert corpus.grad is not None
    assert (corpus.grad.abs().sum(1) > 0).all()


def test_positions_matter() -> None:
    e, corpus = encoder(), torch.randn(1, 10, 4, 4)
    with torch.no_grad():
        assert not torch.allclose(e(corpus)[0], e(corpus.flip(-1))[0], atol=1e-3)
        e.position.zero_()  # without them the class token sees a set
        torch.testing.assert_close(e(corpus)[0], e(corpus.flip(-1))[0], rtol=1e-4, atol=1e-4)


def test_positions_at_the_trained_grid_are_the_parameters() -> None:
    e = encoder(grid=4)
    assert e._positions(4, 4) is e.position


@pytest.mark.parametrize("grid", [(2, 2), (8, 8), (2, 6)])
def test_positions_of_another_grid_are_resampled(grid: tuple[int, int]) -> None:
    """The class token's stays; a constant stays constant; what grows to the right still grows to the right."""
    e = encoder(grid=4)
    with torch.no_grad():
        e.position[0, 1:] = 0.0
        e.position[0, 1:, 0] = 3.0
        e.position[0, 1:, 1] = torch.arange(4.0).repeat(4)  # column
        e.position[0, 1:, 2] = torch.arange(4.0).repeat_interleave(4)  # row
        found = e._positions(*grid)
        assert found.shape == (1, grid[0] * grid[1] + 1, 24)
        torch.testing.assert_close(found[:, 0], e.position[:, 0])
        maps = found[0, 1:].T.reshape(24, *grid)
    torch.testing.assert_close(maps[0], torch.full(grid, 3.0))
    assert (maps[1].diff(dim=1) > 0).all()
    assert (maps[2].diff(dim=0) > 0).all()
    torch.testing.assert_close(maps[1], maps[1][:1].expand(grid))
    torch.testing.assert_close(maps[2], maps[2][:, :1].expand(grid))


def test_another_grid_runs() -> None:
    e = encoder(grid=4)
    with torch.no_grad():
        token, tokens = e(torch.randn(2, 10, 2, 6))
    assert token.shape == (2, 24)
    assert tokens.shape == (2, 24, 2, 6)


# --- map heads


def test_upsizing_is_bilinear_between_pixel_centres() -> None:
    row = torch.tensor([[[[0.0, 1.0, 5.0]]]])
    torch.testing.assert_close(upsize(row)[0, 0, 0], torch.tensor([0.0, 0.25, 0.75, 2.0, 4.0, 5.0]))


@pytest.mark.parametrize("grid", [2, 4])
def test_map_head_has_four_upsizing_blocks(grid: int) -> None:
    head = MapHead(24, (16, 12, 8)).eval()
    assert [m.out_channels for m in head.modules() if isinstance(m, nn.Conv2d)] == [16, 12, 8, 1]
    with torch.no_grad():
        assert head(torch.randn(2, 24, grid, grid)).shape == (2, 1, 16 * grid, 16 * grid)


def test_map_head_answers_where_the_token_is() -> None:
    """A change of one token moves the map around it and leaves the far corner alone."""
    head = MapHead(24, (16, 12, 8)).eval()
    tokens = torch.randn(1, 24, 8, 8)
    changed = tokens.clone()
    changed[..., 0, 0] += 5.0
    with torch.no_grad():
        difference = (head(changed) - head(tokens)).abs()[0, 0]
    assert difference[:16, :16].max() > 1e-3
    assert difference[96:, 96:].max() == 0.0


def features(size: int) -> Features:
    shapes = ((256, 4), (512, 8), (1024, 16), (1024, 32))
    return Features(*(torch.randn(2, c, size // s, size // s) for c, s in shapes))


def test_lung_decoder_uses_every_stride() -> None:
    """A mask a lung at half the image's size; each of the four features moves it."""
    decoder = LungDecoder((12, 8, 6, 4)).eval()
    f = features(64)
    with torch.no_grad():
        masks = decoder(f)
        assert masks.shape == (2, 2, 32, 32)
        for name in Features._fields:
            other = f._replace(**{name: getattr(f, name) + 1.0})
            assert (decoder(other) - masks).abs().max() > 1e-3, name
