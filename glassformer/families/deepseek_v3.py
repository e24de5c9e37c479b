"""DeepSeek-V3 and R1: DeepSeek-V2 with sigmoid expert scores and a score correction for the selection.

Published weights are block-scaled FP8 and are decoded when they are read. The additional layer after the last one, for
multi-token prediction (DeepSeek-V3, section 2.2), is not part of the model and is not read.
"""

from __future__ import annotations

from typing import Any

from glassformer.config import ModelConfig, MoEConfig
from glassformer.families import deepseek_v2
from glassformer.families.common import experts
from glassformer.families.common.family import ConfigFields, Family, rule

CORRECTION = "model.layers.{i}.mlp.gate.e_score_correction_bias"
RULES = (*deepseek_v2.RULES, rule(CORRECTION, "blocks.{i}.mlp.score_correction", float32=True))
MULTI_TOKEN_LAYER = r"layers\.{n_layers}\..*"


def read(raw: ConfigFields) -> ModelConfig:
    raw.expect("scoring_func", "sigmoid")
    raw.expect("topk_method", "noaux_tc")
    raw.expect("rope_interleave", True)
    n_groups = raw.size("n_group", 8)
    moe = MoEConfig(
        n_experts=raw.size("n_routed_experts", 256),
        top_k=raw.size("num_experts_per_tok", 8),
        scores="sigmoid",
        normed=raw.flag("norm_topk_prob", True),
        scale=raw.number("routed_scaling_factor", 2.5),
        float32_router=True,
        score_correction=True,
        n_groups=n_groups,
        top_groups=raw.size("topk_group", 4),
        group_best=2 if n_groups > 1 else 1,
    )
    return deepseek_v2.read_stack(raw, "deepseek_v3", moe, d_expert=2048, n_shared=1, n_plain=3)


def write(config: ModelConfig) -> dict[str, Any]:
    _, moe, _ = experts.expert_parts(config)
    return deepseek_v2.write_stack(config) | {
        "norm_topk_prob": moe.normed,
        "n_group": moe.n_groups,
        "topk_group": moe.top_groups,
        "num_nextn_predict_layers": 0,
    }


FAMILY = Family(
    "deepseek_v3",
    "DeepseekV3ForCausalLM",
    read,
    write,
    rules=RULES,
    ignored=(MULTI_TOKEN_LAYER,),
    alternatives=experts.FUSED_EXPERTS,
)
