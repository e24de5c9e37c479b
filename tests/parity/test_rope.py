"""Rotary position settings: both spellings, every scaling against `transformers`, and errors."""

import json
import math

import pytest
import torch
import transformers
from tiny import assert_near, random_ids, run, tiny, tiny_config

from glassformer.config import BandScaling, LinearScaling, LongScaling, RopeConfig, YarnScaling, change
from glassformer.errors import ConfigError
from glassformer.families import read_config, write_config
from glassformer.formats import load_decoder, save_model
from glassformer.nn.model import Decoder
from glassformer.nn.rope import rotate, rotation


@pytest.mark.parametrize("spelling", ["rope_theta", "rope_parameters", "rope_scaling with rope_theta", "both"])
def test_both_spellings_of_the_rope_base(spelling):
    raw = write_config(tiny_config("qwen3"))
    for key in ("rope_theta", "rope_scaling"):
        raw.pop(key, None)
    raw |= {
        "rope_theta": {"rope_theta": 100.0},
        "rope_parameters": {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},
        "rope_scaling with rope_theta": {"rope_theta": 100.0, "rope_scaling": {"type": "default"}},
        "both": {"rope_theta": 100.0, "rope_parameters": {"rope_type": "default", "rope_theta": 100.0}},
    }[spelling]
    assert read_config(raw, "config.json") == tiny_config("qwen3")


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    "scaling",
    [
        {"type": "dynamic", "factor": 2.0, "alpha": 1000.0},
        {"type": "dynamic"},
        {"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 16},
        {"rope_type": "default", "factor": 2.0},
        {"rope_type": "linear"},
        {"rope_type": "linear", "factor": 0},
        {"rope_type": "linear", "factor": 2.0, "truncate": True},
        {"rope_type": "yarn", "factor": 4.0, "low_freq_factor": 1.0},
        LLAMA3 | {"high_freq_factor": 0.5},
        {key: value for key, value in LLAMA3.items() if key != "low_freq_factor"},
        {"rope_type": "longrope", "short_factor": [1.0] * 5, "long_factor": [1.0] * 6},
        {"rope_type": "longrope", "short_factor": [1.0] * 5, "long_factor": [1.0] * 5},
        {"rope_type": "longrope", "short_factor": [1.0] * 6, "long_factor": "12"},
        [1, 2],
        "linear",
    ],
    ids=str,
)
def test_unsupported_rope_scaling_raises(scaling):
    with pytest.raises(ConfigError, match=r"rope scaling|Scaling|factor"):
        read_config(write_config(tiny_config("llama")) | {"rope_scaling": scaling}, "config.json")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("rope.dim", 5, "rope dim must be even .* got 5"),
        ("rope.dim", 14, "rope dim must be at most head_dim 12, got 14"),
        (
            "rope",
            RopeConfig(100.0, 8, LongScaling((1.0,) * 6, (1.0,) * 6, 9)),
            "must have 4 factors, one per pair, got 6",
        ),
        ("rope", RopeConfig(100.0, 8, LongScaling((1.0,) * 4, (1.0,) * 4, 9)), "must have the same original_context"),
        ("clip", 0.0, "clip must be above 0"),
        ("softcap", -1.0, "softcap must be above 0"),
        ("qk_norm_over", "each", "'each' requires a qk_norm"),
    ],
)
def test_invalid_attention_settings_raise(path, value, message):
    with pytest.raises(ConfigError, match=message):
        change(tiny_config("phi3"), f"layers.1.attention.{path}", value)


def test_yarn_needs_a_base_above_1():
    with pytest.raises(ConfigError, match="theta must be above 1, got 1"):
        RopeConfig(1.0, scaling=YarnScaling(2.0, 16))


def test_conflicting_rope_settings_raise():
    conflicting = {"rope_scaling": LLAMA3, "rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}
    with pytest.raises(ConfigError, match="differ"):
        read_config(write_config(tiny_config("llama")) | conflicting, "config.json")


HEAD_DIM = 12  # of the tiny llama
NO_BIASES = {  # a llama without biases
    f"layers.{i}.{path}": False for i in range(3) for path in ("attention.bias", "attention.out_bias", "mlp.bias")
}
SHORT, LONG = tuple(1 + 0.1 * i for i in range(HEAD_DIM // 2)), tuple(1.5 + 0.5 * i for i in range(HEAD_DIM // 2))
SCALINGS = {
    "linear": LinearScaling(3.0),
    "llama3": BandScaling(8.0, 1.0, 4.0, 30),  # the 6 pairs include unchanged, interpolated and scaled ones
    "yarn": YarnScaling(4.0, 16, beta_fast=2.5, beta_slow=0.1, attention_factor=1.2),
    "yarn, ends within pairs": YarnScaling(4.0, 16, beta_fast=2.5, beta_slow=0.1, attention_factor=1.2, truncate=False),
    "longrope, short": LongScaling(SHORT, LONG, 40, 1.3),
    "longrope, long": LongScaling(SHORT, LONG, 39, 1.3),
}


@pytest.mark.parametrize("name", SCALINGS)
def test_rope_scaling_equals_transformers(name, tmp_path):
    """transformers opens the saved model: same logits for a text longer than the original context."""
    model = tiny("llama", **{f"layers.{i}.attention.rope.scaling": SCALINGS[name] for i in range(3)})
    save_model(model, tmp_path / "ours")
    hf = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    ids = random_ids(model.config, 2, 40)
    with torch.no_grad():
        assert_near(run(model, ids), hf(ids).logits)
    hf.save_pretrained(tmp_path / "theirs")
    assert load_decoder(tmp_path / "theirs").config == model.config


CHANGES = {
    "linear": {"factor": 3.5},
    "llama3": {"factor": 7.0, "low": 0.8, "high": 5.0, "original_context": 25},
    "yarn": {
        "factor": 5.0, "original_context": 60, "beta_fast": 0.8, "beta_slow": 0.3, "attention_factor": 1.1,
        "truncate": False,
    },
    "longrope, short": {
        "short": (*SHORT[:-1], 3.0), "original_context": 39, "attention_factor": 1.2,
    },
    "longrope, long": {"long": (*LONG[:-1], 9.0), "original_context": 40, "attention_factor": 1.2},
}  # fmt: skip


@pytest.mark.parametrize(("name", "field"), [(name, field) for name in CHANGES for field in CHANGES[name]])
def test_every_field_of_a_scaling_matters(name, field):
    rope = "layers.{}.attention.rope.scaling"
    models = [tiny("llama", **{rope.format(i): SCALINGS[name] for i in range(3)})]
    scaling = type(SCALINGS[name])(**(vars(SCALINGS[name]) | {field: CHANGES[name][field]}))
    other = tiny("llama", **{rope.format(i): scaling for i in range(3)})
    other.load_state_dict(models[0].state_dict())
    ids = random_ids(other.config, 2, 40)
    a, b = run(models[0], ids), run(other, ids)
    assert (a - b).abs().max() > 1e-3 * a.abs().max()


LONGROPE = {"rope_type": "longrope", "short_factor": list(SHORT), "long_factor": list(LONG)}


@pytest.mark.parametrize(
    "extra", [{}, {"factor": 9.0}, {"mscale": 0.7, "mscale_all_dim": 0.4}, {"mscale": 0.7}], ids=str
)
@pytest.mark.parametrize("settings", [{"rope_type": "yarn"}, LONGROPE], ids=["yarn", "longrope"])
def test_default_attention_factor_equals_transformers(settings, extra):
    """A missing factor is the context length divided by the original one; the attention factor follows from it."""
    if "mscale" in extra and settings is LONGROPE:
        pytest.skip("only yarn has mscale")
    settings = settings | extra | {"original_max_position_embeddings": 16}
    raw = write_config(tiny_config("llama")) | {"rope_scaling": settings}
    rope = read_config(raw, "config.json").layers[0].attention.rope
    theirs = transformers.LlamaConfig(**(raw | {"rope_scaling": {"factor": 2.0} | settings}))
    theirs.rope_parameters["factor"] = settings.get("factor")
    for length in (16, 17):
        kind = settings["rope_type"]
        frequencies, factor = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS[kind](theirs, None, seq_len=length)
        cos, sin = rotation(rope, HEAD_DIM, torch.arange(length)[None])
        angles = torch.arange(length)[:, None] * frequencies
        assert_near(cos[0, :, 0], angles.cos() * factor, 1e-6)
        assert_near(sin[0, :, 0], angles.sin() * factor, 1e-6)
        assert (cos - cos / factor).abs().max() > 1e-2


def test_partial_rotation_keeps_the_other_dimensions():
    x = torch.randn(1, 5, 3, 12, generator=torch.Generator().manual_seed(0))
    rotated = rotate(x, *rotation(RopeConfig(100.0, dim=8), 12, torch.arange(5)[None]))
    assert torch.equal(rotated[..., 8:], x[..., 8:])
    assert torch.equal(rotated[..., :8], rotate(x[..., :8], *rotation(RopeConfig(100.0), 8, torch.arange(5)[None])))


def test_long_factors_are_chosen_per_sequence():
    """Sequences of a batch, and documents packed in one sequence, use the factors of their own length."""
    rope = RopeConfig(100.0, scaling=SCALINGS["longrope, short"])
    positions = torch.arange(50)[None]
    long, short = rotation(rope, HEAD_DIM, positions), rotation(rope, HEAD_DIM, positions[:, :40])
    batched = rotation(rope, HEAD_DIM, torch.where(positions < torch.tensor([[50], [40]]), positions, -1))
    assert torch.equal(batched[0][0], long[0][0])
    assert torch.equal(batched[0][1, :40], short[0][0])
    assert (long[0][:, 1:40] - short[0][:, 1:]).abs().max() > 0.1
    lengths = torch.tensor([50] * 50 + [40] * 40)[None]
    packed = rotation(rope, HEAD_DIM, torch.cat([positions, positions[:, :40]], 1), lengths)
    assert torch.equal(packed[0], torch.cat([long[0], short[0]], 1))
    assert math.isclose(packed[0].max().item(), 1.3, rel_tol=1e-6)


def test_dynamic_scaling_equals_transformers_within_the_context(tmp_path):
    """It changes the angles of longer texts only, which are not processed."""
    save_model(tiny("llama"), tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | {"rope_scaling": {"type": "dynamic", "factor": 4.0}}))
    model, hf = load_decoder(tmp_path), transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert hf.config.rope_parameters["rope_type"] == "dynamic"
    ids = random_ids(model.config, 2, model.config.context_length)
    with torch.no_grad():
        assert_near(run(model, ids), hf(ids).logits)


def test_llama_with_partial_rotary_equals_phi3(tmp_path):
    """transformers has no such Llama, but Phi-3 is one with fused matrices."""
    model = tiny("llama", **{f"layers.{i}.attention.rope.dim": 8 for i in range(3)}, **NO_BIASES)
    save_model(model, tmp_path / "llama")
    assert json.loads((tmp_path / "llama/config.json").read_text())["partial_rotary_factor"] == 8 / HEAD_DIM
    assert load_decoder(tmp_path / "llama").config == model.config
    phi = Decoder(change(model.config, "family", "phi3"))
    phi.load_state_dict(model.state_dict())
    save_model(phi, tmp_path / "phi3")
    hf = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "phi3").eval()
    ids = random_ids(model.config, 2, 40)
    with torch.no_grad():
        assert_near(run(load_decoder(tmp_path / "llama"), ids), hf(ids).logits)
    assert (run(model, ids) - run(tiny("llama", **NO_BIASES), ids)).abs().max() > 0.1
