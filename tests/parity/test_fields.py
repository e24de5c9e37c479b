"""Every field of a configuration affects the logits, and every key of a config.json is read."""

import json
from dataclasses import fields, is_dataclass, replace

import pytest
from cases import HF_CONFIGS
from tiny import TOLERANCE, encoder_decoder_config, random_ids, randomise, relative_change, run, tiny, tiny_config
from tiny_families import DECODERS

from glassformer.cache.dense import DenseCache
from glassformer.config import (
    LatentConfig,
    LinearScaling,
    ModelConfig,
    MoEConfig,
    NormConfig,
    RelativeConfig,
    RopeConfig,
    change,
)
from glassformer.errors import CapacityError, ConfigError
from glassformer.families import read_config, write_config
from glassformer.families.common.config_json import from_json, to_json
from glassformer.families.common.family import IGNORED
from glassformer.nn.model import Decoder

# Other values of each field. A field has an effect if a parameter changes its shape, or else the logits change.
RMS, LAYER = NormConfig("rms", 1e-2), NormConfig("layer", 1e-2)
OTHER_VALUES = {
    "vocab_size": [96],
    "d_model": [44],
    "context_length": [63],
    "tied_head": [True, False],
    "head_bias": [True, False],
    "logit_softcap": [None, 3.0],
    "positions": ["sinusoidal", "sinusoidal halves", "learned", None],
    "final_norm": [None, RMS],
    "final_norm.kind": ["rms", "layer"],
    "final_norm.eps": [1.0],
    "final_norm.scale": [None, "weight", "float32 1+"],
    "norm.kind": ["rms", "layer"],
    "norm.eps": [1.0],
    "norm.scale": [None, "weight", "float32 1+"],
    "norm_at": [("post",), ("out",), ("pre", "out")],
    "parallel": [True, False],
    "shared_norm": [True, False],
    "mlp.d_ff": [71],
    "mlp.activation": ["relu", "gelu", "gelu_tanh", "quick_gelu", "silu"],
    "mlp.gated": [True, False],
    "mlp.limit": [None, 0.3],
    "mlp.up_plus_one": [True, False],
    "mlp.bias": [True, False],
    "experts": [None, MoEConfig(6, 2)],
    "experts.n_experts": [4, 8, 12],
    "experts.top_k": [1, 4],
    "experts.scores": ["softmax", "sigmoid"],
    "experts.normed": [True, False],
    "experts.scale": [1.5],
    "experts.router_bias": [True, False],
    "experts.score_correction": [True, False],
    "experts.n_groups": [1, 2, 3],
    "experts.top_groups": [1, 2],
    "experts.group_best": [1, 2],
    "experts.shared_d_ff": [None, 16],
    "attention.n_heads": [8, 6],
    "attention.n_kv_heads": [2, 1],
    "attention.head_dim": [8, 18],
    "attention.scale": [1.0, 0.1],
    "attention.bias": [True, False],
    "attention.out_bias": [True, False],
    "attention.qk_norm": [None, RMS, LAYER],
    "attention.qk_norm.kind": ["rms", "layer"],
    "attention.qk_norm.eps": [0.3],
    "attention.qk_norm.scale": [None, "weight", "float32 1+"],
    "attention.qk_norm_over": ["head", "each", "width"],
    "attention.clip": [None, 0.5],
    "attention.sinks": [True, False],
    "attention.softcap": [None, 1.5],
    "attention.rope": [None, RopeConfig(100.0)],
    "attention.rope.theta": [50.0],
    "attention.rope.dim": [2, None],
    "attention.rope.scaling": [None, LinearScaling(3.0)],
    "attention.window": [3, 6, None],
    "attention.latent": [None, LatentConfig(20, 10)],
    "attention.latent.rank": [12],
    "attention.latent.v_dim": [7],
    "attention.latent.q_rank": [None, 9],
    "attention.latent.eps": [0.3],
    "embed_norm": [RMS, None],
    "embed_norm.kind": ["rms", "layer"],
    "embed_norm.eps": [1.0],
    "embed_norm.scale": [None, "weight", "float32 1+"],
    "position_offset": [1, 0],
    "relative": [RelativeConfig(), None],
    "relative.n_buckets": [8],
    "relative.max_distance": [50],
    "head_scale": [1.5],
    "embed_scale": [2.5],
    "attention.causal": [True, False],
    "cross": [replace(tiny_config("gpt2").layers[0].attention, causal=False)],
    "encoder": [encoder_decoder_config("post").encoder],
    "shared_embedding": [True, False],
}
REJECTED = {"layers.1.attention.causal", "layers.1.cross", "encoder", "shared_embedding"}  # in a decoder
SOMETIMES_REJECTED = {  # rejected together with other settings of some families
    "context_length", "positions", "head_bias", "tied_head", "layers.1.attention.rope", "layers.1.parallel",
    "layers.1.attention.rope.dim",
    "position_offset", "relative",
    "layers.1.shared_norm", "layers.1.norm_at", "layers.1.attention.qk_norm_over", "layers.1.norm.kind",
    "layers.1.norm.scale", "final_norm.kind", "final_norm.scale", "layers.1.attention.qk_norm",
    "layers.1.attention.qk_norm.kind", "layers.1.attention.qk_norm.scale", "layers.1.experts.top_groups",
    "layers.1.mlp.gated", "layers.1.mlp.limit", "layers.1.mlp.up_plus_one",
    "layers.1.experts.group_best", *(f"layers.1.attention.{name}" for name in (
        "n_heads", "n_kv_heads", "window", "clip", "softcap", "sinks", "latent",
    )),
}  # fmt: skip
NO_FLOAT32_EFFECT = {  # the first names the file format; the others have an effect in lower precision only
    "family", "round_embed_scale", "layers.1.experts.float32_router",
}  # fmt: skip
SIMILAR_ACTIVATIONS = {"gelu", "gelu_tanh"}  # at most 5e-4 apart


def float32_equivalent(value):
    """Return the value that computes the same in float32."""
    if isinstance(value, NormConfig):
        return replace(value, scale=float32_equivalent(value.scale)) if value.kind == "rms" else value
    return {"weight": "float32", "float32": "weight"}.get(value, value) if isinstance(value, str) else value


def config_fields(config, prefix=""):
    """Yield (path, key in OTHER_VALUES, value) of every field, with an encoder's; for layers, of the second layer."""
    for field in fields(config):
        value, path = getattr(config, field.name), prefix + field.name
        if field.name == "layers":
            yield from config_fields(value[1], f"{prefix}layers.1.")
        elif path.removeprefix("encoder.") not in NO_FLOAT32_EFFECT:
            key = path.removeprefix("encoder.").removeprefix("layers.1.").replace("cross.", "attention.")
            if not is_dataclass(value) or key in OTHER_VALUES:
                yield path, key, value
            if is_dataclass(value) and key != "attention.rope.scaling":  # test_rope tests these
                yield from config_fields(value, f"{path}.")


@pytest.mark.parametrize("family", DECODERS)
def test_every_field_matters(family):
    """Change any one field: a parameter changes its shape, or or the logits by at least 100 tolerances.

    `context_length` is only a limit: it changes a table of learned positions, and the capacity of the cache.
    """
    model = tiny(family)
    config, state, ids = model.config, model.state_dict(), random_ids(model.config, 2, 40)
    logits, tried = run(model, ids), set()
    for path, key, old in config_fields(config):
        for value in OTHER_VALUES[key]:
            if value in (old, float32_equivalent(old)) or (key == "context_length" and config.positions != "learned"):
                continue
            try:
                other = Decoder(change(config, path, value))
            except ConfigError:
                continue  # rejected, not ignored
            tried.add(path)
            new = random_state(other) | {name: p for name, p in state.items() if name in other.state_dict()}
            if any(p.shape != new[name].shape for name, p in other.state_dict().items()):
                continue
            other.load_state_dict(new)
            difference = relative_change(run(other, ids), logits)
            minimum = 1e-5 if {value, old} == SIMILAR_ACTIVATIONS else 100 * TOLERANCE
            assert difference >= minimum, f"{path}: {old!r} -> {value!r} changes the logits by only {difference:.1e}"
    untried = {path for path, *_ in config_fields(config)} - tried
    assert REJECTED <= untried <= REJECTED | SOMETIMES_REJECTED, untried


def random_state(model):
    return randomise(model, 7).state_dict()


def test_cache_longer_than_the_context_raises():
    for family in DECODERS:
        with pytest.raises(CapacityError, match="64"):
            DenseCache.of(tiny_config(family), 1, 65)


def assert_key_is_used(raw, key, config):
    """Give a key of config.json other values: each changes the configuration or raises an error that names the file."""
    old = raw[key]
    number = isinstance(old, int | float) and not isinstance(old, bool)
    for value in (old * 2 if number else not old, "zzz", {"factor": 2}):
        try:
            changed = read_config(raw | {key: value}, "config.json")
        except ConfigError as error:
            assert str(error).startswith("config.json: "), error  # noqa: PT017
        else:
            assert changed != config, f"{key} = {value!r} has no effect"


def count_rejected_keys(raw, value):
    """Give every key of config.json one value; return how many keys raise an error, which must name the file."""
    count = 0
    for key in raw:
        try:
            read_config(raw | {key: value}, "config.json")
        except ConfigError as error:
            assert str(error).startswith("config.json: "), error  # noqa: PT017
            count += 1
    return count


@pytest.mark.parametrize("family", DECODERS)
def test_every_config_key_is_used(family):
    """Each key that is written changes the configuration or is rejected; none is ignored silently."""
    raw = write_config(tiny_config(family))
    config = read_config(raw, "config.json")
    for key in raw.keys() - IGNORED:  # IGNORED has max_window_layers, which layer_types overrides
        assert_key_is_used(raw, key, config)


@pytest.mark.parametrize("family", DECODERS)
def test_every_key_that_transformers_writes_is_read_or_rejected(family, tmp_path):
    """The same for a config.json written by transformers; IGNORED lists the keys that have no effect."""
    HF_CONFIGS[family]().save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text()) | {"architectures": ["of a model"]}
    config = read_config(raw, "config.json")
    assert read_config(write_config(config), "config.json") == config
    with pytest.raises(ConfigError, match="not understand: a_new_key"):
        read_config(raw | {"a_new_key": 1}, "config.json")


@pytest.mark.parametrize("family", DECODERS)
def test_config_round_trips_as_plain_json(family):
    """As for models of our own kinds; rope scalings are a union of several classes."""
    written = json.loads(json.dumps(to_json(tiny_config(family))))
    assert from_json(ModelConfig, written, "config.json") == tiny_config(family)


def test_unknown_rope_scaling_raises():
    written = to_json(tiny_config("phi3"))
    written["layers"][0]["attention"]["rope"]["scaling"] = {"factor": 2.0, "slope": 1.0}
    with pytest.raises(
        ConfigError, match=r"scaling must be an object with the keys of one of: LinearScaling \(factor\)"
    ):
        from_json(ModelConfig, written, "config.json")


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("value", [None, 0, -1, 1.5, "12", [], {}, True])
def test_wrong_config_value_raises_config_error(family, value):
    """Every value of every key gives a configuration or a ConfigError, and some key rejects it."""
    assert count_rejected_keys(write_config(tiny_config(family)), value) > 0
