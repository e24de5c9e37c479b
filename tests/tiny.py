"""Tiny random models that are not blind: every parameter random, attention sharp, so that every setting shows."""

import math
from dataclasses import replace

import torch

from glassformer.cache.dense import DenseCache
from glassformer.config import (
    AttentionConfig,
    LayerConfig,
    MLPConfig,
    ModelConfig,
    NormConfig,
    RopeConfig,
    change,
)
from glassformer.nn.attend import attend_math
from glassformer.nn.model import Decoder
from glassformer.nn.step import Step

FAMILIES = ("qwen3", "llama", "gpt2")
TOLERANCE = 1e-5  # of the largest logit


def tiny_config(family: str, **changes) -> ModelConfig:
    """Each family with all it can do: windows, biases, grouped queries, its own norms. Changes: paths of `change`."""
    rms, layer_norm = NormConfig("rms", 1e-2), NormConfig("layer", 1e-2)
    rope = RopeConfig(100.0)  # turns far within 64 tokens
    if family == "qwen3":
        attention = AttentionConfig(4, 2, 16, bias=True, out_bias=True, qk_norm=rms, rope=rope)
        full, sliding = (LayerConfig(a, MLPConfig(72), rms) for a in (attention, replace(attention, window=5)))
        config = ModelConfig(family, 97, 48, 64, (full, sliding, full), rms)
    elif family == "llama":
        attention = AttentionConfig(4, 1, 12, bias=True, out_bias=True, rope=rope)
        config = ModelConfig(family, 97, 48, 64, (LayerConfig(attention, MLPConfig(72, bias=True), rms),) * 3, rms)
        config = replace(config, tied_head=True)
    else:
        attention = AttentionConfig(4, 4, 12, bias=True, out_bias=True)
        mlp = MLPConfig(72, "gelu_tanh", gated=False, bias=True)
        layers = (LayerConfig(attention, mlp, layer_norm),) * 3
        config = ModelConfig(family, 97, 48, 64, layers, layer_norm, positions="learned", tied_head=True)
    for path, value in changes.items():
        config = change(config, path, value)
    return config


def tiny(family: str, seed: int = 0, **changes) -> Decoder:
    """`tiny("qwen3")`, or with changes: `tiny("qwen3", **{"layers.1.attention.window": 3})`."""
    return wake(Decoder(tiny_config(family, **changes)), seed)


@torch.no_grad()
def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Every parameter random: matrices keep the size of what they multiply, norms lie around 1, biases are not 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in module.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if p.ndim > 1:
            p.copy_(noise if "embed" in name or "positions" in name else noise / math.sqrt(p.shape[-1]))
        else:
            p.copy_(1 + 0.3 * noise if name.endswith("weight") else 0.3 * noise)
    return module.eval()


@torch.no_grad()
def wake(model: Decoder, seed: int = 0) -> Decoder:
    """Random weights, then queries scaled until attention is far from uniform, and not one-hot either."""
    randomise(model, seed)
    for _ in range(40):
        if sharpness(model) < 0.45:
            break
        for block in model.blocks:
            query = block.attn.q if isinstance(block.attn.q_norm, torch.nn.Identity) else block.attn.q_norm
            for p in query.parameters():
                p.mul_(1.2)
    assert 0.1 < sharpness(model) < 0.5, "a blind model: attention is uniform, or sees one key"
    return model


@torch.no_grad()
def sharpness(model: Decoder) -> float:
    """Mean entropy of attention, 1 where it is uniform."""
    seen = []

    def attend(spec, q, kv, view, bias=None, sinks=None):
        z, _, probs = attend_math(spec, q, kv, view, bias, sinks)
        n_visible = view.visible().sum(-1)[:, None]  # [B, 1, T]
        entropy = torch.special.entr(probs).sum(-1) / n_visible.clamp(min=2).log()
        seen.append(entropy[(n_visible > 1).expand_as(entropy)])
        return z

    ids = random_ids(model.config, 2, 24)
    model(ids, Step.of(ids, attend=attend))
    return torch.cat(seen).mean().item()


def by_definition(*args):
    """attend_math as a backend: what flows on alone."""
    return attend_math(*args)[0]


def random_ids(config: ModelConfig, batch: int, length: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def run(model, ids: torch.Tensor, **step) -> torch.Tensor:
    """Logits of whole rows, nothing kept."""
    return model(ids, Step.of(ids, **step))


@torch.no_grad()
def run_cached(model, ids: torch.Tensor, chunks, cache: DenseCache, **step) -> torch.Tensor:
    """Logits of whole rows, a chunk at a time."""
    assert sum(chunks) == ids.shape[1]
    parts = [
        model(part, Step(cache.extend([part.shape[1]] * len(part)), cache=cache, **step))
        for part in ids.split(chunks, 1)
    ]
    return torch.cat(parts, 1)


def assert_near(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    """|actual - expected| <= tolerance * max |expected|, everywhere; and no NaN."""
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} is not {tuple(expected.shape)}"
    off, size = (actual.double() - expected.double()).abs().max().item(), expected.abs().max().item()
    assert off <= tolerance * size, f"off by {off:.2e}, which is {off / size:.2e} of {size:.2e}"


def moved(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """max |actual - expected| / max |expected|."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()
