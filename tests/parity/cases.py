"""What each family is tried with: our settings, and configurations that `transformers` makes.

A change is a path of `change`; a path that begins with `*.` is of every layer.
"""

import pytest
from tiny_families import CONFIGS

transformers = pytest.importorskip("transformers")

# Settings beside the tiny model's own, each of which the other side must read from config.json and apply.
VARIANTS = {
    "qwen3": [
        {},
        {"layers.0.attention.window": 5, "layers.2.attention.window": 5},
        {"layers.1.attention.window": None},
        {"tied_head": True},
        {"*.attention.rope.theta": 50.0},
        {"*.attention.n_kv_heads": 4},
        {"*.attention.n_kv_heads": 1},
        {"*.attention.head_dim": 6},
        {"*.attention.bias": False, "*.attention.out_bias": False},
        {"*.mlp.activation": "gelu"},
        {"*.mlp.activation": "gelu_tanh"},
    ],
    "llama": [
        {},
        {"tied_head": False},
        {"*.attention.rope.theta": 50.0},
        {"*.attention.n_kv_heads": 2},
        {"*.attention.bias": False, "*.attention.out_bias": False},
        {"*.mlp.bias": False},
        {"*.mlp.activation": "gelu_tanh"},
        {"*.mlp.activation": "relu"},
    ],
    "gpt2": [
        {},
        {"tied_head": False},
        {"*.attention.scale": 1.0},
        {"*.mlp.activation": "gelu"},
        {"*.mlp.activation": "relu"},
        {"*.mlp.activation": "silu"},
    ],
}


def spelled(changes, n_layers):
    """The changes with `*` written out."""
    return {
        path.replace("*", f"layers.{i}"): value
        for path, value in changes.items()
        for i in (range(n_layers) if "*" in path else [0])
    }


CASES = [(f, spelled(v, CONFIGS[f]().n_layers)) for f in CONFIGS for v in VARIANTS[f]]
NAMES = [f"{f}-{' '.join(f'{k}={v}' for k, v in c.items())[:60] or 'as it is'}" for f in CONFIGS for c in VARIANTS[f]]

SIZES = {
    "vocab_size": 89, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 48,
}  # fmt: skip

HF_MADE = {
    "qwen3": lambda: transformers.Qwen3Config(
        **SIZES, num_key_value_heads=2, head_dim=10, use_sliding_window=True, sliding_window=6,
        max_window_layers=2, rope_parameters={"rope_type": "default", "rope_theta": 200.0}, attention_bias=True,
    ),
    "llama": lambda: transformers.LlamaConfig(**SIZES, num_key_value_heads=2, mlp_bias=True, tie_word_embeddings=True),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=89, n_embd=32, n_layer=2, n_head=4, n_positions=48, activation_function="gelu_new",
    ),
}  # fmt: skip
