"""What GGUF's metadata say of latent attention, and which models with it llama.cpp does not run.

To the program it is one head of keys, which are the latents with the turned key, and whose values are the latents. What
a head of the model has stands beside, in files that have it; in older ones the lengths are those of the model's heads:

    attention.   head_count_kv   key_length   value_length   key_length_mla   value_length_mla
    newer        1               C + R        C              R + N            Dv
    older        H               R + N        Dv             -                -
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from glassformer.config import ModelConfig
from glassformer.errors import ConfigError
from glassformer.formats.gguf.metadata_keys import MetadataFields

WITHOUT_Q_RANK = (26, 27)  # models of so many layers: llama.cpp looks for no `q_lora_rank`


@dataclass(frozen=True)
class LatentKeys:
    """The sizes of heads and latents. A `q_lora_rank` of 0 says, as none does, that queries are made of x itself."""

    def read(self, said: MetadataFields) -> dict[str, Any]:
        keys, n_heads = said.keys, said.keys.size("attention.head_count")
        rank, turned = keys.size("attention.kv_lora_rank"), keys.size("rope.dimension_count")
        if "attention.key_length_mla" in keys.raw or "attention.value_length_mla" in keys.raw:
            keys.expect("attention.head_count_kv", 1)
            keys.expect("attention.key_length", rank + turned)
            keys.expect("attention.value_length", rank)
            width, v_dim = keys.size("attention.key_length_mla"), keys.size("attention.value_length_mla")
        else:
            keys.expect("attention.head_count_kv", n_heads)
            width, v_dim = keys.size("attention.key_length"), keys.size("attention.value_length")
        if width <= turned:
            raise ConfigError(
                f"{keys.source}: heads {width} wide must be wider than rope.dimension_count, which is {turned}"
            )
        q_rank = keys.size("attention.q_lora_rank", 0, minimum=0)
        return {"qk_nope_head_dim": width - turned, "v_head_dim": v_dim, "q_lora_rank": q_rank or None}

    def write(self, config: ModelConfig) -> dict[str, Any]:
        attention = config.layers[0].attention
        latent = attention.latent
        assert latent is not None
        self.check(config)
        return {
            "attention.head_count_kv": 1,
            "attention.key_length": attention.cached_per_token,
            "attention.value_length": latent.rank,
            "attention.key_length_mla": attention.head_dim,
            "attention.value_length_mla": latent.v_dim,
            "attention.q_lora_rank": latent.q_rank or 0,
        }

    def check(self, config: ModelConfig) -> None:
        """ConfigError where the format can say it, and llama.cpp would make another model of it, or none."""
        latent, n_layers = config.layers[0].attention.latent, config.n_layers
        lite = n_layers in WITHOUT_Q_RANK or (n_layers, config.vocab_size) == (48, 128_256)
        cannot = f"GGUF's deepseek2 cannot describe this {config.family} model to llama.cpp, which"
        if lite and latent is not None and latent.q_rank is not None:
            raise ConfigError(f"{cannot} takes one of {n_layers} layers to have no q_rank, got {latent.q_rank}")
        for moe in (layer.experts for layer in config.layers if layer.experts is not None):
            if moe.shared_d_ff is None:
                raise ConfigError(f"{cannot} needs an expert that takes every token (shared_d_ff)")
            if moe.n_groups > 1 and moe.group_best != 2:
                raise ConfigError(f"{cannot} compares groups of experts by the best 2 of each, not {moe.group_best}")
            if moe.n_groups > 1 and moe.top_groups == moe.n_groups:
                raise ConfigError(f"{cannot} leaves out a group of experts, got top_groups = n_groups = {moe.n_groups}")
