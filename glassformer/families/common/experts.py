"""Tensor names of experts: one tensor per expert, or one tensor for all experts."""

from __future__ import annotations

from glassformer.config import LayerConfig, MLPConfig, ModelConfig, MoEConfig
from glassformer.errors import ConfigError
from glassformer.families.common.family import ConfigFields, TensorRule, linear, rule

ROUTER = rule("model.layers.{i}.mlp.gate.weight", "blocks.{i}.mlp.router.weight")
EXPERTS = tuple(
    rule(f"model.layers.{{i}}.mlp.experts.{{j}}.{part}_proj.weight", f"blocks.{{i}}.mlp.experts.{{j}}.{part}.weight")
    for part in ("gate", "up", "down")
)
FUSED_EXPERTS = (  # [E, 2F, D] and [E, D, F]
    rule(
        "model.layers.{i}.mlp.experts.gate_up_proj",
        "blocks.{i}.mlp.experts.{j}.gate.weight",
        "blocks.{i}.mlp.experts.{j}.up.weight",
    ),
    rule("model.layers.{i}.mlp.experts.down_proj", "blocks.{i}.mlp.experts.{j}.down.weight"),
)
SHARED_EXPERTS = tuple(
    one
    for part in ("gate", "up", "down")
    for one in linear(f"model.layers.{{i}}.mlp.shared_experts.{part}_proj", f"blocks.{{i}}.mlp.shared.{part}")
)


def without_mlp(rules: tuple[TensorRule, ...]) -> tuple[TensorRule, ...]:
    """Return a family's rules without those of its feed-forward layers."""
    return tuple(one for one in rules if ".mlp." not in one.parameter_names[0])


def read_n_experts(raw: ConfigFields, name: str, other: str, default: int) -> int:
    """Return the number of experts, under the key `name` of older files or `other` of newer ones."""
    n_experts = raw.size(other, default)
    return raw.size(name, n_experts)


def expert_parts(config: ModelConfig) -> tuple[LayerConfig, MoEConfig, MLPConfig]:
    """Return the first layer with experts, its experts, and the MLP of the layers without (or else an expert's)."""
    plain = next((layer.mlp for layer in config.layers if layer.experts is None), None)
    for layer in config.layers:
        if layer.experts is not None:
            return layer, layer.experts, plain or layer.mlp
    raise ConfigError(f"a model of family {config.family!r} must have experts, but this one has none")
