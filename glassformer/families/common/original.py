"""Checkpoints without a config.json, in the formats of the programs that trained them.

Settings are converted to the keys of config.json, so that each family's own reader reads them. The formats:

    params.json, consolidated.00.pth, .01 ...      Meta's Llama: every file has a slice of each matrix, for one GPU
    ckpt.pt                                        nanoGPT: {"model": tensors, "model_args": settings, ...}
    config.json with "model", model.pt             minGPT: tensors by name
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from glassformer.errors import ConfigError
from glassformer.families import gpt2
from glassformer.families.common.family import ConfigFields, Family, TensorRule, linear, rule

Shapes = Mapping[str, tuple[int, ...]]


def _unsharded(name: str, shape: tuple[int, ...], raw: Mapping[str, Any]) -> int | None:
    return None


@dataclass(frozen=True)
class OriginalFormat:
    """One format.

    Attributes:
        weights: a glob of the tensor files.
        read: converts all settings, and the tensors' shapes, to keys of config.json.
        settings: the file of the settings; None if the tensor file holds them.
        key: the key of the settings in their file.
        tensors: the key of the tensors, if their file holds the settings too.
        shard_axis: the axis along which the files split a tensor; None: every file holds all of it.
        end_token_ids: the ids of the tokens that end a text.
        prefix: a prefix that all tensor names may have.
        bias_setting: the setting that is false if biases are not stored and are 0.
    """

    family: str
    weights: str
    read: Callable[[ConfigFields, Shapes], dict[str, Any]]
    rules: tuple[TensorRule, ...]
    settings: str | None = None
    key: str | None = None
    tensors: str | None = None
    ignored: tuple[str, ...] = ()
    shard_axis: Callable[[str, tuple[int, ...], Mapping[str, Any]], int | None] = _unsharded
    end_token_ids: Callable[[Mapping[str, Any]], list[int]] = lambda raw: []
    prefix: str = ""
    bias_setting: str | None = None

    def apply_to(self, family: Family, bare: bool = False) -> Family:
        """Return the family with this format's tensor rules; `bare`: missing biases are 0."""
        rules = tuple(replace(one, zeros_if_missing=bare and one.tensor_name.endswith(".bias")) for one in self.rules)
        return replace(family, rules=rules, ignored=self.ignored or family.ignored, alternatives=())


# ---- Llama

EMBED, HEAD = "tok_embeddings.weight", "output.weight"


def _read_params(raw: ConfigFields, shapes: Shapes) -> dict[str, Any]:
    """Read params.json, which lacks the context length: it is inferred from the rotary base and epsilon."""
    width, n_heads, eps = raw.size("dim"), raw.size("n_heads"), raw.number("norm_eps")
    theta, multiple = raw.number("rope_theta", 10_000.0), raw.size("multiple_of", 256)
    d_ff = int(raw.number("ffn_dim_multiplier", 1.0) * int(8 * width / 3))
    n_rows = raw.take("vocab_size", -1)
    config_json: dict[str, Any] = {
        "hidden_size": width,
        "num_attention_heads": n_heads,
        "num_key_value_heads": raw.size("n_kv_heads", n_heads),
        "num_hidden_layers": raw.size("n_layers"),
        "intermediate_size": -(-d_ff // multiple) * multiple,
        "rms_norm_eps": eps,
        "rope_theta": theta,
        "vocab_size": shapes.get(EMBED, (0,))[0] if n_rows == -1 else n_rows,
        "tie_word_embeddings": HEAD not in shapes,
    }
    context = {10_000.0: 2048 if eps < 1e-5 else 4096, 500_000.0: 8192}.get(theta, 16_384)  # 1 and 2, 3, Code Llama
    scaled = raw.flag("use_scaled_rope", False)
    factor = raw.number("rope_scaling_factor", 32.0 if width < 4096 else 8.0)  # the two small models of 3.2; all others
    if scaled:
        context = 131_072
        bands = {"low_freq_factor": 1.0, "high_freq_factor": raw.number("rope_high_freq_factor", 4.0)}
        bands |= {"factor": factor, "original_max_position_embeddings": 8192}
        config_json["rope_scaling"] = {"rope_type": "llama3", **bands}
    config_json["max_position_embeddings"] = raw.size("max_seq_len", context)
    raw.take("max_batch_size", None)
    return config_json


def _params_axis(name: str, shape: tuple[int, ...], raw: Mapping[str, Any]) -> int | None:
    """Return the split axis: output rows, or input columns for matrices that project to the residual stream."""
    if len(shape) < 2:
        return None
    if name == EMBED:  # columns in Llama 1 and 2, rows since Llama 3
        return 0 if shape[1] == raw.get("dim") else 1
    return 1 if name.endswith((".wo.weight", ".w2.weight")) else 0


def _params_ends(raw: Mapping[str, Any]) -> list[int]:
    """Return the ids of <|end_of_text|>, <|eom_id|> and <|eot_id|> of Llama 3; empty for older models."""
    return [128_001, 128_008, 128_009] if raw.get("vocab_size") == 128_256 else []


META_LLAMA = OriginalFormat(
    "llama",
    "consolidated*.pth",
    _read_params,
    (
        rule(EMBED, "embed.weight"),
        *linear("layers.{i}.attention.wq", "blocks.{i}.attn.q", interleaved_rope=True),
        *linear("layers.{i}.attention.wk", "blocks.{i}.attn.k", interleaved_rope=True),
        *linear("layers.{i}.attention.wv", "blocks.{i}.attn.v"),
        *linear("layers.{i}.attention.wo", "blocks.{i}.attn.o"),
        *linear("layers.{i}.feed_forward.w1", "blocks.{i}.mlp.gate"),
        *linear("layers.{i}.feed_forward.w3", "blocks.{i}.mlp.up"),
        *linear("layers.{i}.feed_forward.w2", "blocks.{i}.mlp.down"),
        rule("layers.{i}.attention_norm.weight", "blocks.{i}.attn_norm.weight"),
        rule("layers.{i}.ffn_norm.weight", "blocks.{i}.mlp_norm.weight"),
        rule("norm.weight", "norm.weight"),
        rule(HEAD, "head.weight"),
    ),
    settings="params.json",
    ignored=(r"rope\.freqs", r"layers\.\d+\.attention\.inner_attention\.rope\.freqs"),
    shard_axis=_params_axis,
    end_token_ids=_params_ends,
)


# ---- GPT-2's names, with PyTorch's linear layers, [out, in]

LINEAR = tuple(replace(one, transposed=False) for one in gpt2.RULES)
C_ATTN = "transformer.h.0.attn.c_attn.weight"
SIZES = ("n_layer", "n_head", "n_embd")
MINGPT_SIZES = {  # minGPT's model types: n_layer, n_head, n_embd
    "openai-gpt": (12, 12, 768), "gpt2": (12, 12, 768), "gpt2-medium": (24, 16, 1024), "gpt2-large": (36, 20, 1280),
    "gpt2-xl": (48, 25, 1600), "gopher-44m": (8, 16, 512), "gpt-mini": (6, 6, 192), "gpt-micro": (4, 4, 128),
    "gpt-nano": (3, 3, 48),
}  # fmt: skip


def _read_nano(raw: ConfigFields, shapes: Shapes) -> dict[str, Any]:
    raw.flag("bias", True)  # biases are detected from the tensors
    raw.take("dropout", None)
    sizes = {name: raw.size(name) for name in SIZES}
    tables = {"vocab_size": raw.size("vocab_size"), "n_positions": raw.size("block_size")}
    return sizes | tables | {"activation_function": "gelu", "tie_word_embeddings": True}


def _read_min(raw: ConfigFields, shapes: Shapes) -> dict[str, Any]:
    """Read minGPT's settings. They are written before the data is known, so the tensors give missing table sizes."""
    kind = raw.take("model_type", None)
    if kind is not None and kind not in MINGPT_SIZES:
        raise ConfigError(f"{raw.source}: unknown model_type {kind!r}. Known: {', '.join(MINGPT_SIZES)}")
    known = dict(zip(SIZES, MINGPT_SIZES[kind], strict=True)) if kind else {}
    config_json: dict[str, Any] = {name: raw.optional(name) or known.get(name) for name in SIZES}
    for key, name, table in (("vocab_size", "vocab_size", "wte"), ("n_positions", "block_size", "wpe")):
        config_json[key] = raw.optional(name) or shapes.get(f"transformer.{table}.weight", (None,))[0]
    for name in ("embd_pdrop", "resid_pdrop", "attn_pdrop"):
        raw.take(name, None)
    if missing := [name for name in SIZES if config_json[name] is None]:
        raise ConfigError(f"{raw.source}: neither model_type nor {', '.join(missing)} is given")
    return config_json | {"activation_function": "gelu_new", "tie_word_embeddings": False}


NANOGPT = OriginalFormat(
    "gpt2", "ckpt.pt", _read_nano, LINEAR, key="model_args", tensors="model", prefix="_orig_mod.", bias_setting="bias"
)
MINGPT = OriginalFormat("gpt2", "model.pt", _read_min, LINEAR, settings="config.json", key="model")

ORIGINALS = (META_LLAMA, NANOGPT, MINGPT)


def detect_linear_layout(family: Family, shapes: Shapes) -> Family:
    """Return the family without transposition if the tensors have PyTorch's layout instead of GPT-2's."""
    shape = shapes.get(C_ATTN, ())
    untransposed = family.rules == gpt2.RULES and len(shape) == 2 and shape[0] == 3 * shape[1]
    return replace(family, rules=LINEAR) if untransposed else family
