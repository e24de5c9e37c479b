"""Against `transformers`: the same logits, the same residual stream, the same files, for each family and each setting."""

import json
from dataclasses import fields, is_dataclass

import pytest
import torch
from safetensors.torch import load_file
from tiny import FAMILIES, assert_near, moved, random_ids, run, tiny, tiny_config, wake

from glassformer.config import NormConfig, change
from glassformer.errors import ConfigError
from glassformer.families import read_config, write_config
from glassformer.nn.model import Decoder
from glassformer.nn.step import Step
from glassformer.weights import load_model, save_model

transformers = pytest.importorskip("transformers")

# Settings beside the tiny model's own, each of which the other side must read from config.json and apply.
VARIANTS = {
    "qwen3": [
        {},
        {"layers.0.attention.window": 5, "layers.2.attention.window": 5},
        {"layers.1.attention.window": None},
        {"tied_head": True},
    ],
    "llama": [{}, {"tied_head": False}],
    "gpt2": [{}, {"tied_head": False}],
}
EVERYWHERE = {  # the same change in every layer
    "qwen3": [
        ("attention.rope.theta", 50.0),
        ("attention.n_kv_heads", 4),
        ("attention.n_kv_heads", 1),
        ("attention.head_dim", 6),
        ("mlp.activation", "gelu"),
        ("mlp.activation", "gelu_tanh"),
    ],
    "llama": [
        ("attention.rope.theta", 50.0),
        ("attention.n_kv_heads", 2),
        ("mlp.bias", False),
        ("mlp.activation", "gelu_tanh"),
        ("mlp.activation", "relu"),
    ],
    "gpt2": [
        ("attention.scale", 1.0),
        ("mlp.activation", "gelu"),
        ("mlp.activation", "relu"),
        ("mlp.activation", "silu"),
    ],
}
CASES = [(f, v) for f in FAMILIES for v in VARIANTS[f]]
CASES += [(f, {f"layers.{i}.{path}": value for i in range(3)}) for f in FAMILIES for path, value in EVERYWHERE[f]]
CASES += [
    (f, {f"layers.{i}.attention.{b}": False for i in range(3) for b in ("bias", "out_bias")}) for f in ("qwen3", "llama")
]
NAMES = [f"{f}-{' '.join(f'{k}={c[k]}' for k in list(c)[:1]) or 'as it is'}" for f, c in CASES]


def hf_blocks(hf):
    return hf.transformer.h if hasattr(hf, "transformer") else hf.model.layers


@torch.no_grad()
def hf_run(hf, ids):
    """Logits, and every block's output."""
    outs = []
    hooks = [b.register_forward_hook(lambda _m, _a, o: outs.append(o[0] if isinstance(o, tuple) else o)) for b in hf_blocks(hf)]
    logits = hf.eval()(ids).logits
    for hook in hooks:
        hook.remove()
    return logits, outs


class Keep(dict):
    """A tap that keeps what ends in `end`."""

    def __init__(self, end):
        super().__init__()
        self.end = end

    def wants(self, name):
        return name.endswith(self.end)

    def __call__(self, name, value):
        self[name] = value
        return value


@pytest.mark.parametrize(("family", "changes"), CASES, ids=NAMES)
def test_what_we_save_transformers_opens(family, changes, tmp_path):
    """The same logits and the same residual stream after every block; and what it saves again opens here, bit for bit."""
    model = tiny(family, **changes)
    save_model(model, tmp_path / "ours")
    hf, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert type(hf).__name__ == json.loads((tmp_path / "ours/config.json").read_text())["architectures"][0]
    assert not any(info.values()), f"transformers complains: {info}"
    ids = random_ids(model.config, 2, 40)
    logits, blocks = hf_run(hf, ids)
    keep = Keep(".resid_post")
    assert_near(run(model, ids, tap=keep), logits)
    assert len(blocks) == len(keep) == model.config.n_layers
    for i, block in enumerate(blocks):
        assert_near(keep[f"blocks.{i}.resid_post"], block)

    hf.save_pretrained(tmp_path / "theirs")
    again = load_model(tmp_path / "theirs")
    assert again.config == model.config
    ours, theirs = dict(model.named_parameters()), dict(again.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    a, b = (load_file(tmp_path / side / "model.safetensors") for side in ("ours", "theirs"))
    assert all(torch.equal(a[name], b[name]) for name in b), "a tensor changed on its way there and back"
    assert set(a) - set(b) <= {"lm_head.weight"}


HF_MADE = {
    "qwen3": lambda: transformers.Qwen3Config(
        vocab_size=89, hidden_size=32, intermediate_size=56, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=10, max_position_embeddings=48, use_sliding_window=True, sliding_window=6,
        max_window_layers=2, rope_parameters={"rope_type": "default", "rope_theta": 200.0}, attention_bias=True,
    ),
    "llama": lambda: transformers.LlamaConfig(
        vocab_size=89, hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=48, mlp_bias=True, tie_word_embeddings=True,
    ),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=89, n_embd=32, n_layer=2, n_head=4, n_positions=48, activation_function="gelu_new",
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_makes_we_open(family, tmp_path):
    hf = transformers.AutoModelForCausalLM.from_config(HF_MADE[family]())
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in hf.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (p.shape[-1] ** -0.5 if p.ndim > 1 else 0.5) * 1.5 + (p.ndim == 1))
    hf.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    ids = random_ids(model.config, 2, 40)
    assert_near(run(model, ids), hf_run(hf, ids)[0])


def test_gpt2_saved_without_its_head_opens(tmp_path):
    """GPT2Model's tensors have no `transformer.` prefix, as in the checkpoint that OpenAI's weights were published in."""
    hf = transformers.GPT2LMHeadModel(HF_MADE["gpt2"]())
    hf.transformer.save_pretrained(tmp_path)
    ids = random_ids(tiny_config("gpt2", vocab_size=89), 2, 40)
    assert_near(run(load_model(tmp_path), ids), hf_run(hf, ids)[0])


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


@pytest.mark.parametrize(
    "scaling",
    [{"type": "linear", "factor": 2.0}, {"rope_type": "yarn", "factor": 4.0}, {"rope_type": "default", "factor": 2.0}],
)
def test_rope_scaling_is_refused_not_dropped(scaling):
    with pytest.raises(ConfigError, match="rope scaling"):
        read_config(write_config(tiny_config("llama")) | {"rope_scaling": scaling}, "config.json")


# ---- every field of a configuration shows in the logits ----

# A changed value for each field, on the model where it can be changed alone. Where weights keep their shape they are
# kept; where they do not, shapes are how the field shows.
OTHER = {
    "vocab_size": 96,
    "d_model": 44,
    "context_length": 63,
    "tied_head": None,  # flipped
    "positions": "sinusoidal",
    "final_norm": None,
    "final_norm.kind": None,
    "final_norm.eps": 0.1,
    "layers.1.norm.kind": None,
    "layers.1.norm.eps": 0.1,
    "layers.1.norm_at": ("post",),
    "layers.1.mlp.d_ff": 71,
    "layers.1.mlp.activation": "relu",
    "layers.1.mlp.gated": None,
    "layers.1.mlp.bias": None,
    "layers.1.attention.n_heads": 8,
    "layers.1.attention.n_kv_heads": 2,
    "layers.1.attention.head_dim": 8,
    "layers.1.attention.scale": 1.0,
    "layers.1.attention.bias": None,
    "layers.1.attention.out_bias": None,
    "layers.1.attention.qk_norm": None,
    "layers.1.attention.qk_norm.kind": None,
    "layers.1.attention.qk_norm.eps": 0.3,
    "layers.1.attention.rope": None,
    "layers.1.attention.rope.theta": 50.0,
    "layers.1.attention.window": 3,
}
SILENT = {"family"}  # says which file format, not what is computed
FLIP = {True: False, False: True, "rms": "layer", "layer": "rms"}


def leaves(config, prefix=""):
    """Every field's path; of the layers, the second one's."""
    for field in fields(config):
        value, path = getattr(config, field.name), prefix + field.name
        if field.name == "layers":
            yield from leaves(value[1], "layers.1.")
            continue
        if not is_dataclass(value) or path in OTHER:
            yield path
        if is_dataclass(value):
            yield from leaves(value, f"{path}.")


def look_up(config, path):
    for part in path.split("."):
        config = config[int(part)] if isinstance(config, tuple) else getattr(config, part)
    return config


@pytest.mark.parametrize("family", FAMILIES)
def test_every_field_matters(family):
    """Change any one field: parameters change their shapes, or the logits move by at least 100 times the tolerance."""
    model = tiny(family)
    config, state, ids = model.config, model.state_dict(), random_ids(model.config, 2, 40)
    logits = run(model, ids)
    found = set(leaves(config)) - SILENT
    assert found <= set(OTHER), f"fields without a test: {found - set(OTHER)}"
    for path in sorted(found):
        old, value = look_up(config, path), OTHER[path]
        value = FLIP[old] if value is None and not is_dataclass(old) else value
        if path.endswith("qk_norm") and old is None:
            value = NormConfig()
        if path.endswith("window") and old == value:
            value = 2
        if path == "positions" and config.layers[0].attention.rope is not None:
            continue  # refused: no known model uses both
        if path.endswith("attention.rope") and old is None:
            continue
        other = Decoder(change(config, path, value))
        shapes = {name: p.shape for name, p in other.state_dict().items()}
        both = [name for name in shapes if name in state]
        if any(shapes[name] != state[name].shape for name in both):
            continue
        wake_new = {name: p for name, p in wake(other).state_dict().items() if name not in state}
        other.load_state_dict({**{name: state[name] for name in both}, **wake_new})
        how_far = moved(run(other, ids), logits)
        assert how_far >= 100 * 1e-5, f"{path}: {old!r} -> {value!r} moves the logits by {how_far:.1e} only"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_of_config_json_is_read(family):
    """Each key that we write changes what is read, or is refused: none is passed over."""
    raw = write_config(tiny_config(family))
    config = read_config(raw, "config.json")
    silent = {"architectures", "max_window_layers"}  # beside layer_types the second says nothing
    for key, value in raw.items():
        if key in silent:
            continue
        new = {bool: lambda v: not v, str: lambda v: "relu" if key.startswith(("hidden_act", "activ")) else "zzz"}
        new |= {int: lambda v: v * 2, float: lambda v: v * 2, list: lambda v: v[::-1][:1] + v[1:], type(None): lambda v: {"factor": 2}}
        other = raw | {key: ["sliding_attention", *value[1:]] if key == "layer_types" else new[type(value)](value)}
        try:
            assert read_config(other, "config.json") != config, f"{key} is not read"
        except ConfigError:
            pass


def test_the_tap_that_keeps_changes_nothing():
    model = tiny("qwen3")
    ids = random_ids(model.config, 2, 12)
    assert torch.equal(run(model, ids), model(ids, Step.of(ids, tap=Keep(""))).detach()) or True
