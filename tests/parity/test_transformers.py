"""Against `transformers`: the same logits, the same residual stream, the same files, for each family and setting."""

import contextlib
import json
from dataclasses import fields, is_dataclass, replace

import pytest
import torch
from safetensors.torch import load_file
from tiny import FAMILIES, TOLERANCE, assert_near, moved, pair_config, random_ids, randomise, run, tiny, tiny_config

from glassformer.cache.dense import DenseCache
from glassformer.config import NormConfig, RopeConfig, change
from glassformer.errors import CapacityError, ConfigError
from glassformer.families import read_config, write_config
from glassformer.nn.model import Decoder
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
    (f, {f"layers.{i}.attention.{b}": False for i in range(3) for b in ("bias", "out_bias")})
    for f in ("qwen3", "llama")
]
NAMES = [f"{f}-{' '.join(f'{k}={c[k]}' for k in list(c)[:1]) or 'as it is'}" for f, c in CASES]


def hf_blocks(hf):
    return hf.transformer.h if hasattr(hf, "transformer") else hf.model.layers


@torch.no_grad()
def hf_run(hf, ids):
    """Logits, and every block's output."""
    outs = []
    hooks = [
        b.register_forward_hook(lambda _m, _a, o: outs.append(o[0] if isinstance(o, tuple) else o))
        for b in hf_blocks(hf)
    ]
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
    """The same logits and the same residual stream after every block; what it saves again opens here, bit for bit."""
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
            p.copy_(
                torch.randn(p.shape, generator=generator) * (p.shape[-1] ** -0.5 if p.ndim > 1 else 0.5) * 1.5
                + (p.ndim == 1)
            )
    hf.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    ids = random_ids(model.config, 2, 40)
    assert_near(run(model, ids), hf_run(hf, ids)[0])


def test_gpt2_saved_without_its_head_opens(tmp_path):
    """GPT2Model's tensors have no `transformer.` prefix, as in the checkpoint that OpenAI's weights came in."""
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

# Another value for each field. Weights that keep their shape are kept; a weight that does not keep it shows the field.
RMS, LAYER = NormConfig("rms", 1e-2), NormConfig("layer", 1e-2)
OTHER = {
    "vocab_size": [96],
    "d_model": [44],
    "context_length": [63],
    "tied_head": [True, False],
    "positions": ["sinusoidal", None],
    "final_norm": [None],
    "final_norm.kind": ["rms", "layer"],
    "final_norm.eps": [0.1],
    "norm.kind": ["rms", "layer"],
    "norm.eps": [0.1],
    "norm_at": [("post",), ("out",), ("pre", "out")],
    "mlp.d_ff": [71],
    "mlp.activation": ["relu", "gelu", "gelu_tanh", "silu"],
    "mlp.gated": [True, False],
    "mlp.bias": [True, False],
    "attention.n_heads": [8],
    "attention.n_kv_heads": [2, 1],
    "attention.head_dim": [8],
    "attention.scale": [1.0, 0.1],
    "attention.bias": [True, False],
    "attention.out_bias": [True, False],
    "attention.qk_norm": [None, RMS, LAYER],
    "attention.qk_norm.kind": ["rms", "layer"],
    "attention.qk_norm.eps": [0.3],
    "attention.rope": [None, RopeConfig(100.0)],
    "attention.rope.theta": [50.0],
    "attention.window": [3, 6, None],
    "embed_scale": [2.5],
    "attention.causal": [False],
    "cross": [replace(tiny_config("gpt2").layers[0].attention, causal=False)],
    "encoder": [pair_config("post").encoder],
    "shared_embedding": [True],
}
REFUSED = {"layers.1.attention.causal", "layers.1.cross", "encoder", "shared_embedding"}  # in a decoder, each by itself
SILENT = {"family"}  # says which file format, not what is computed
NEAR = {"gelu", "gelu_tanh"}  # at most 5e-4 from one another


def leaves(config, prefix=""):
    """(path, key in OTHER, value) of every field; of the layers, the second one's."""
    for field in fields(config):
        value, path = getattr(config, field.name), prefix + field.name
        if field.name == "layers":
            yield from leaves(value[1], "layers.1.")
        elif path not in SILENT:
            key = path.removeprefix("layers.1.")
            if not is_dataclass(value) or key in OTHER:
                yield path, key, value
            if is_dataclass(value):
                yield from leaves(value, f"{path}.")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_field_matters(family):
    """Change any one field: a parameter changes its shape, or the logits move by at least 100 times the tolerance.

    `context_length` is a limit, and shows where it is one: in the table of positions, and in the cache.
    """
    model = tiny(family)
    config, state, ids = model.config, model.state_dict(), random_ids(model.config, 2, 40)
    logits, tried = run(model, ids), set()
    for path, key, old in leaves(config):
        for value in OTHER[key]:
            if value == old or (key == "context_length" and config.positions != "learned"):
                continue
            try:
                other = Decoder(change(config, path, value))
            except ConfigError:
                continue  # refused, not passed over
            tried.add(path)
            new = tiny_state(other) | {name: p for name, p in state.items() if name in other.state_dict()}
            if any(p.shape != new[name].shape for name, p in other.state_dict().items()):
                continue
            other.load_state_dict(new)
            how_far = moved(run(other, ids), logits)
            least = 1e-5 if {value, old} == NEAR else 100 * TOLERANCE
            assert how_far >= least, f"{path}: {old!r} -> {value!r} moves the logits by {how_far:.1e} only"
    untried = {path for path, *_ in leaves(config)} - tried
    assert REFUSED <= untried <= REFUSED | {"context_length", "positions", "layers.1.attention.rope"}, untried


def tiny_state(model):
    return randomise(model, 7).state_dict()


def test_the_context_is_a_limit():
    for family in FAMILIES:
        with pytest.raises(CapacityError, match="64"):
            DenseCache.of(tiny_config(family), 1, 65)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_of_config_json_is_read(family):
    """Each key that we write changes what is read, or is refused: none is passed over."""
    raw = write_config(tiny_config(family))
    config = read_config(raw, "config.json")
    for key, old in raw.items():
        if key in ("architectures", "max_window_layers"):  # the second says nothing beside layer_types
            continue
        number = isinstance(old, int | float) and not isinstance(old, bool)
        for value in (old * 2 if number else not old, "zzz", {"factor": 2}):
            with contextlib.suppress(ConfigError):
                assert read_config(raw | {key: value}, "config.json") != config, f"{key} = {value!r} is not read"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("value", [None, 0, -1, 1.5, "12", [], {}, True])
def test_a_config_json_with_a_wrong_value_is_refused(family, value):
    """Whatever stands in a key: a ConfigError, or a configuration; never a crash."""
    raw = write_config(tiny_config(family))
    for key in raw:
        with contextlib.suppress(ConfigError):
            read_config(raw | {key: value}, "config.json")
