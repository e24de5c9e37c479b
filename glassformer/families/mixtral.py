"""Mixtral: Mistral with experts in every layer, two per token."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from glassformer.config import ModelConfig, MoEConfig
from glassformer.families import llama, mistral
from glassformer.families.common import experts
from glassformer.families.common.family import ConfigFields, Family, rule

OLD = "model.layers.{i}.block_sparse_moe"
THEIRS = {"w1": "gate", "w2": "down", "w3": "up"}
RULES = (
    *experts.without_mlp(llama.RULES),
    rule(f"{OLD}.gate.weight", "blocks.{i}.mlp.router.weight"),
    *(
        rule(f"{OLD}.experts.{{j}}.{theirs}.weight", f"blocks.{{i}}.mlp.experts.{{j}}.{ours}.weight")
        for theirs, ours in THEIRS.items()
    ),
)


def read(raw: ConfigFields) -> ModelConfig:
    moe = MoEConfig(raw.size("num_local_experts", 8), raw.size("num_experts_per_tok", 2))
    config = mistral.read(raw, theta=1e6, eps=1e-5, window=None)
    return replace(config, family="mixtral", layers=tuple(replace(layer, experts=moe) for layer in config.layers))


def write(config: ModelConfig) -> dict[str, Any]:
    _, moe, _ = experts.expert_parts(config)
    return mistral.write(config) | {"num_local_experts": moe.n_experts, "num_experts_per_tok": moe.top_k}


FAMILY = Family(
    "mixtral", "MixtralForCausalLM", read, write, rules=RULES, alternatives=(experts.ROUTER, *experts.FUSED_EXPERTS)
)
