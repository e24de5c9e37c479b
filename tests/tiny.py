"""Tiny models with random parameters and sharp attention, so that every setting changes the logits."""

import math
from dataclasses import replace
from typing import Any

import torch
from tiny_families import CONFIGS

from glassformer.cache.dense import DenseCache
from glassformer.config import (
    AttentionConfig,
    EncoderConfig,
    LayerConfig,
    MLPConfig,
    ModelConfig,
    NormConfig,
    RopeConfig,
    change,
)
from glassformer.nn.attend import attend_reference
from glassformer.nn.attention import Attention
from glassformer.nn.model import Decoder, EncoderDecoder, Stack
from glassformer.nn.protocols import EncodedSource
from glassformer.nn.step import Step

FAMILIES = (
    "qwen3",
    "llama",
    "gpt2",
)  # the families that `train` offers, for tests that need not run all
TOLERANCE = 1e-5  # of the largest logit


def tiny_config(family: str, **changes) -> ModelConfig:
    """Return a family's configuration with all its features; changes are paths of `change`."""
    config = CONFIGS[family]()
    for path, value in changes.items():
        config = change(config, path, value)
    return config


def tiny(family: str, seed: int = 0, **changes) -> Decoder:
    """`tiny("qwen3")`, or with changes: `tiny("qwen3", **{"layers.1.attention.window": 3})`."""
    return randomise_sharp(Decoder(tiny_config(family, **changes)), seed)


ENCODER_DECODERS = ("post", "pre", "separate", "rms")


def encoder_decoder_config(name: str, **changes) -> ModelConfig:
    """Return the configuration of an encoder-decoder: the paper's ("post"), pre-norm ("pre"), or one of two others.

    "separate": two vocabularies and tables, learned positions, another number of encoder layers, an untied head.
    "rms": RMSNorm, no biases, the unscaled product, grouped queries, rotary positions, gated feed-forward layers.
    """
    norm, mlp = NormConfig("layer", 1e-2), MLPConfig(72, "relu", gated=False, bias=True)
    attention, rope = AttentionConfig(4, 4, 12, bias=True, out_bias=True), None
    positions = {"separate": "learned", "rms": None}.get(name, "sinusoidal")
    if name == "rms":
        norm, mlp, rope = NormConfig("rms", 1e-2), MLPConfig(72), RopeConfig(100.0)
        attention = AttentionConfig(4, 2, 12, scale=1.0, qk_norm=norm)
    norm_at, final = (("post",), None) if name == "post" else (("pre",), norm)
    shared, scale = name in ("post", "pre"), 1.0 if name == "rms" else 2.5
    cross = replace(attention, causal=False)
    decoder_layer = LayerConfig(replace(attention, rope=rope), mlp, norm, norm_at, cross)
    encoder_layer = LayerConfig(replace(cross, rope=rope), mlp, norm, norm_at)
    source_vocab, layers = (97, 2) if shared else (83, 3)
    encoder = EncoderConfig(source_vocab, 48, 64, (encoder_layer,) * layers, final, positions, scale)
    config = ModelConfig(
        "tiny", 97, 48, 64, (decoder_layer,) * 2, final, positions, tied_head=shared, embed_scale=scale,
        encoder=encoder, shared_embedding=shared,
    )  # fmt: skip
    for path, value in changes.items():
        config = change(config, path, value)
    return config


def tiny_encoder_decoder(name: str, seed: int = 0, **changes) -> EncoderDecoder:
    """Return an encoder-decoder, `tiny_encoder_decoder("post")`, with random weights and sharp attention."""
    return randomise_sharp(EncoderDecoder(encoder_decoder_config(name, **changes)), seed)


@torch.no_grad()
def encode_source(model: EncoderDecoder, sources: torch.Tensor, lengths=None, **step) -> EncodedSource:
    """Return the encoder's output."""
    return model.encode(sources, Step.of(sources, lengths, **step))


@torch.no_grad()
def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Draw every parameter: matrices preserve the scale of their input, norms are near 1, biases are not 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in module.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if p.ndim > 1:
            table = any(part in name for part in ("embed", "positions", "token_types"))
            p.copy_(noise if table else noise / math.sqrt(p.shape[-1]))
        else:
            p.copy_(1 + 0.3 * noise if name.endswith("weight") else 0.3 * noise)
    return module.eval()


@torch.no_grad()
def randomise_sharp(model: Stack, seed: int = 0) -> Any:
    """Draw random weights, then scale the queries until attention is far from uniform, but not one-hot.

    Scales self-attention of a decoder, of an encoder, and cross-attention separately.
    """
    randomise(model, seed)
    self_kind = "own" if model.config.layers[0].attention.causal else "encoder"
    kinds: dict[str, list[Attention]] = {self_kind: [block.attn for block in model.blocks]}
    if isinstance(model, EncoderDecoder):
        kinds = {"encoder": [block.attn for block in model.encoder.blocks], **kinds}
        kinds["cross"] = [block.cross for block in model.blocks]
    for _ in range(40):
        entropies = sharpness(model)
        if max(entropies.values()) < 0.45:
            break
        for attention in (
            attention for kind, modules in kinds.items() if entropies[kind] >= 0.45 for attention in modules
        ):
            norm = getattr(attention, "q_norm", torch.nn.Identity())  # latent attention has none
            query = attention.q if isinstance(norm, torch.nn.Identity) else norm
            for p in query.parameters():
                p.mul_(1.2)
    entropies = sharpness(model)
    assert entropies.keys() == kinds.keys()
    assert all(0.1 < value < 0.5 for value in entropies.values()), (
        f"attention is nearly uniform or one-hot: {entropies}"
    )
    return model


@torch.no_grad()
def sharpness(model: Stack) -> dict[str, float]:
    """Return the mean entropy of each kind of attention; 1 is uniform."""
    entropies = {}

    def attend(spec, q, kv, view, bias=None, sinks=None):
        z, _, probs = attend_reference(spec, q, kv, view, bias, sinks)
        n_visible = view.visible().sum(-1)[:, None].expand(-1, 1, q.shape[1])  # [B, 1, T]
        entropy = torch.special.entr(probs).sum(-1) / n_visible.clamp(min=2).log()
        kind = "cross" if spec.source else "own" if spec.causal else "encoder"
        entropies.setdefault(kind, []).append(entropy[(n_visible > 1).expand_as(entropy)])
        return z

    ids, source = random_ids(model.config, 2, 24), None
    if isinstance(model, EncoderDecoder):
        source = encode_source(model, random_ids(model.encoder.config, 2, 24, seed=5), attend=attend)
    model(ids, Step.of(ids, attend=attend, source=source))
    return {kind: torch.cat(values).mean().item() for kind, values in entropies.items()}


def by_definition(*args):
    """Return z of attend_reference: the definition as an attention backend."""
    return attend_reference(*args)[0]


def random_ids(config: ModelConfig | EncoderConfig, batch: int, length: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def run(model, ids: torch.Tensor, **step) -> torch.Tensor:
    """Return the logits of complete sequences, without a cache."""
    return model(ids, Step.of(ids, **step))


@torch.no_grad()
def run_cached(model, ids: torch.Tensor, chunks, cache: DenseCache, **step) -> torch.Tensor:
    """Return the logits of complete sequences, processed in chunks with a cache."""
    assert sum(chunks) == ids.shape[1]
    parts = [
        model(part, Step(cache.extend([part.shape[1]] * len(part)), cache=cache, **step))
        for part in ids.split(chunks, 1)
    ]
    return torch.cat(parts, 1)


def assert_near(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    """|actual - expected| <= tolerance * max |expected|, everywhere; and no NaN."""
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    error, size = (actual.double() - expected.double()).abs().max().item(), expected.abs().max().item()
    assert error <= tolerance * size, f"off by {error:.2e}, which is {error / size:.2e} of {size:.2e}"


def relative_change(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """max |actual - expected| / max |expected|."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()
