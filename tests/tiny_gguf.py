"""Tiny models that GGUF can describe: all features that llama.cpp supports, and rows divisible into blocks of 32."""

import math
from dataclasses import replace

from tiny import randomise_sharp, tiny_config
from tiny_families import DECODERS

from glassformer.config import (
    BandScaling,
    LatentConfig,
    LinearScaling,
    LongScaling,
    ModelConfig,
    MoEConfig,
    YarnScaling,
    change,
)
from glassformer.nn.model import Decoder

BARE = {"*.attention.bias": False, "*.attention.out_bias": False}
NO_WINDOW = {"*.attention.window": None}
FAMILIES = DECODERS
WIDTH, HIDDEN, HEAD_DIM = 64, 96, 16

# Latent attention: llama.cpp's norms and biases, 8 rotated and 32 unrotated dimensions per head, a scale set by YaRN.
YARN_SCALE = (0.1 * 1.3 * math.log(4.0) + 1) ** 2 / math.sqrt(40)
NO_Q_RANK = {"*.attention.latent": LatentConfig(32, 24)}
MLA = BARE | {
    "*.norm.eps": 1e-6,
    "final_norm.eps": 1e-6,
    "*.attention.head_dim": 40,
    "*.attention.latent": LatentConfig(32, 24, q_rank=64),
    "*.attention.scale": YARN_SCALE,
}

# Removes the features of a family's tiny model that llama.cpp lacks.
REDUCED = {
    "deepseek_v2": MLA
    | {"*.experts": MoEConfig(6, 3, normed=False, scale=1.7, float32_router=True, shared_d_ff=2 * HIDDEN)},
    "deepseek_v3": MLA | {"*.experts.shared_d_ff": HIDDEN},
    "falcon": BARE | {"*.mlp.bias": False},
    "gemma": BARE,
    "gemma2": BARE | {"*.attention.scale": HEAD_DIM**-0.5},
    "gemma3_text": BARE | {"*.attention.scale": HEAD_DIM**-0.5},
    "gpt_oss": {"*.mlp.limit": 7.0},
    "mistral": NO_WINDOW,
    "mixtral": NO_WINDOW,
    "olmo": BARE,
    "olmo2": BARE,
    "olmoe": BARE | {"*.attention.n_kv_heads": 4},
    "phi": {"*.attention.qk_norm": None},
    "qwen2": NO_WINDOW,
    "qwen3": BARE | NO_WINDOW,
    "qwen3_moe": BARE | NO_WINDOW | {"*.experts.normed": True},
    "smollm3": BARE | NO_WINDOW | {"*.mlp.bias": False},
}

# Further settings that GGUF can describe.
BAND = {"*.attention.rope.theta": 5e5, "*.attention.rope.scaling": BandScaling(8.0, 1.0, 4.0, 8192)}
OTHER_BAND = {"*.attention.rope.scaling": BandScaling(4.0, 1.0, 3.0, 24)}
YARN = {"*.attention.rope.scaling": YarnScaling(4.0, 16, attention_factor=1.3)}
FACTORS = (1.0, 1.1, 1.3, 1.2, 1.5, 2.0, 2.5, 4.0)
LONG = {"*.attention.rope.scaling": LongScaling(FACTORS, FACTORS[::-1], 24, 1.2)}
LINEAR = {"*.attention.rope.scaling": LinearScaling(3.0)}
PLAIN = {"*.attention.rope.scaling": None, "*.attention.scale": None}
UNSCALED = {"*.attention.rope.scaling": YarnScaling(4.0, 16), "*.attention.scale": None}
ONE_GROUP = {
    "*.experts": MoEConfig(6, 3, "sigmoid", scale=1.7, float32_router=True, score_correction=True, shared_d_ff=HIDDEN)
}
OTHER_SCALE = {"*.attention.rope.scaling": YarnScaling(40.0, 16), "*.attention.scale": 0.3}
VARIANTS = {
    "deepseek_v2": [NO_Q_RANK, PLAIN, OTHER_SCALE, {"tied_head": True}],
    "deepseek_v3": [NO_Q_RANK, UNSCALED, ONE_GROUP],
    "falcon": [{"tied_head": False}, {"*.attention.n_kv_heads": 4}],
    "gemma2": [{"layers.1.attention.window": 5, "layers.2.attention.window": None}, {"logit_softcap": 5.0}],
    "gemma3_text": [{"logit_softcap": None, "tied_head": False}],
    "gpt2": [{"tied_head": False}],
    "gpt_neox": [{"*.parallel": False}, {"*.attention.rope.dim": None}],
    "gpt_oss": [{"layers.1.attention.window": 5, "layers.2.attention.window": None}],
    "llama": [BAND, OTHER_BAND, LONG, LINEAR, BARE | {"*.mlp.bias": False, "*.attention.head_dim": 32}],
    "mistral": [{"*.attention.window": 64}, YARN],
    "olmo": [{"*.attention.clip": None, "tied_head": True}],
    "olmo2": [YARN],
    "phi": [{"*.attention.rope.dim": None}],
    "phi3": [{"*.attention.window": None, "*.attention.rope.scaling": None}, {"tied_head": True}],
    "qwen2": [YARN, LINEAR, {"tied_head": True}],
    "qwen3_moe": [{"tied_head": True, "*.attention.head_dim": 32}],
    "smollm3": [YARN, {"tied_head": False}],
    "stablelm": [
        {"*.shared_norm": False, "*.parallel": False},
        {"*.attention.qk_norm_over": "head", "*.attention.qk_norm": None, "*.attention.bias": False},
    ],
}


def with_changes(config: ModelConfig, changes: dict) -> ModelConfig:
    """Apply several changes at once, because each alone may be invalid. `*.` means every layer."""

    def change_layer(layer):
        for path, value in changes.items():
            if path.startswith("*.experts") and layer.experts is None:
                continue
            if path.startswith("*.") and "rope." not in path:
                layer = change(layer, path.removeprefix("*."), value)
        for path, value in changes.items():
            if path.startswith("*.") and "rope." in path and layer.attention.rope is not None:
                layer = change(layer, path.removeprefix("*."), value)
        return layer

    config = replace(config, layers=tuple(change_layer(layer) for layer in config.layers))
    for path, value in changes.items():
        config = config if path.startswith("*.") else change(config, path, value)
    return config


def gguf_config(family: str, **changes) -> ModelConfig:
    """Return a tiny configuration that GGUF can describe."""
    config = tiny_config(family)
    if family == "qwen3_moe":  # experts everywhere
        config = replace(config, layers=config.layers[:1] * 3)
    if family == "smollm3":  # every fourth layer has no positions
        config = replace(config, layers=(*config.layers[:1] * 3, config.layers[2]))
    sizes = {"d_model": WIDTH, "*.attention.head_dim": HEAD_DIM, "*.mlp.d_ff": HIDDEN}
    if config.embed_scale != 1:
        sizes["embed_scale"] = WIDTH**0.5
    return with_changes(config, sizes | REDUCED.get(family, {}) | changes)


def gguf_model(family: str, seed: int = 0, **changes) -> Decoder:
    """Return the model of `gguf_config` with random weights and non-uniform attention."""
    return randomise_sharp(Decoder(gguf_config(family, **changes)), seed)
