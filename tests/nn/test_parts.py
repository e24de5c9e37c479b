"""Norms, feed-forward, rotary and added positions, blocks: against torch's modules, or the formula in float64."""

import cmath
import math

import pytest
import torch
import torch.nn.functional as F
from tiny import assert_near, randomise, run, tiny
from torch import nn

from glassformer.config import AttentionConfig, LayerConfig, MLPConfig, ModelConfig, NormConfig, RopeConfig
from glassformer.nn.block import Block
from glassformer.nn.mlp import MLP
from glassformer.nn.model import Decoder
from glassformer.nn.norm import make_norm
from glassformer.nn.position import LearnedPositions, SinusoidalPositions
from glassformer.nn.rope import rotate, rotation
from glassformer.nn.step import Step
from glassformer.training.init import init_weights

NORMS = {"pre": "norm", "out": "out_norm", "post": "post_norm"}  # parameter names of the norms at each position
STEP = Step(torch.arange(5)[None]).layer(0)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_layer_norm_equals_torch():
    ours, theirs = randomise(make_norm(NormConfig("layer", 1e-2), 12)), nn.LayerNorm(12, 1e-2)
    theirs.load_state_dict(ours.state_dict())
    x = randn(3, 5, 12)
    assert torch.equal(ours(x), theirs(x))


def test_rms_norm_equals_torch_and_formula():
    ours, theirs = randomise(make_norm(NormConfig("rms", 1e-2), 12)), nn.RMSNorm(12, 1e-2)
    theirs.load_state_dict(ours.state_dict())
    x = randn(3, 5, 12)
    assert_near(ours(x), theirs(x), 1e-6)
    x64 = x.double()
    assert_near(ours(x), x64 / (x64.square().mean(-1, keepdim=True) + 1e-2).sqrt() * ours.weight, 1e-6)


def test_rms_norm_computes_in_float32():
    norm, x = randomise(make_norm(NormConfig("rms"), 256)).bfloat16(), randn(4, 256).bfloat16()
    normed = (x.float() / (x.float().square().mean(-1, keepdim=True) + 1e-6).sqrt()).bfloat16()
    assert torch.equal(norm(x), normed * norm.weight)


ACTIVATIONS = {
    "relu": lambda x: x.clamp(min=0),
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "quick_gelu": lambda x: x / (1 + torch.exp(-1.702 * x)),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_mlp_equals_formula(activation, gated, bias):
    mlp = randomise(MLP(MLPConfig(20, activation, gated, bias), 12))
    x = randn(3, 5, 12)
    w = {name: p.double() for name, p in mlp.named_parameters()}
    assert len(w) == (3 if gated else 2) * (2 if bias else 1)

    def linear(name, value):
        return value @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)

    act, up = ACTIVATIONS[activation], linear("up", x.double())
    hidden = act(linear("gate", x.double())) * up if gated else act(up)
    assert_near(mlp(x, STEP), linear("down", hidden), 1e-6)


@pytest.mark.parametrize("theta", [10_000.0, 100.0])
def test_rotary_equals_complex_multiplication(theta):
    """x[i] + i x[i + R] times e^(i position theta^(-2i/Dh)), element by element in float64."""
    d, at = 8, torch.tensor([[0, 1, 5, 1000], [7, 7, 2, 31]])
    x = randn(2, 4, 3, d)
    rotated = rotate(x, *rotation(RopeConfig(theta), d, at))
    for b, t, h, i in [(b, t, h, i) for b in range(2) for t in range(4) for h in range(3) for i in range(d // 2)]:
        pair = complex(x[b, t, h, i], x[b, t, h, i + d // 2])
        want = pair * cmath.exp(1j * at[b, t].item() * theta ** (-2 * i / d))
        got = complex(rotated[b, t, h, i], rotated[b, t, h, i + d // 2])
        assert abs(got - want) < 1e-4 * abs(pair)  # float32 represents an angle of 1000 to 6e-5


def test_rotary_products_depend_on_distance_only():
    q, k = randn(1, 1, 1, 16), randn(1, 1, 1, 16, seed=1)

    def product(t, s):
        a, b = (rotate(x, *rotation(RopeConfig(100.0), 16, torch.tensor([[p]]))) for x, p in ((q, t), (k, s)))
        return (a * b).sum()

    assert abs(product(9, 4) - product(25, 20)) < 1e-4 < abs(product(9, 4) - product(9, 5))


def test_sinusoidal_positions_equal_the_paper():
    found = SinusoidalPositions(10)(torch.arange(50)[None])[0]
    for position in range(50):
        for i in range(5):
            angle = position / 10_000 ** (2 * i / 10)
            assert abs(found[position, 2 * i] - math.sin(angle)) < 1e-5
            assert abs(found[position, 2 * i + 1] - math.cos(angle)) < 1e-5


def test_learned_positions_with_padding():
    table = randomise(LearnedPositions(6, 4))
    assert torch.equal(table(torch.tensor([[0, 5, -1]])), table.weight[None, [0, 5, 0]])


@pytest.mark.parametrize("norm_at", ["pre", "post"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_block_equals_torch_encoder_layer(norm_at, activation):
    """Post-norm is the block of the 2017 paper, pre-norm that of GPT-2. torch has both."""
    d, heads, d_ff = 24, 3, 40
    theirs = nn.TransformerEncoderLayer(
        d, heads, d_ff, 0.0, activation, 1e-2, batch_first=True, norm_first=norm_at == "pre"
    )
    randomise(theirs, 5)
    attention = AttentionConfig(heads, heads, d // heads, bias=True, out_bias=True)
    layer = LayerConfig(attention, MLPConfig(d_ff, activation, False, True), NormConfig("layer", 1e-2), (norm_at,))
    ours, w = Block(layer, d), theirs.state_dict()
    q, k, v = (dict(zip(("weight", "bias"), parts, strict=True)) for parts in zip(
        w["self_attn.in_proj_weight"].chunk(3), w["self_attn.in_proj_bias"].chunk(3), strict=True))  # fmt: skip
    pairs = {
        **{f"attn.{n}.{p}": t[p] for n, t in (("q", q), ("k", k), ("v", v)) for p in t},
        **{f"attn.o.{p}": w[f"self_attn.out_proj.{p}"] for p in ("weight", "bias")},
        **{
            f"mlp.{a}.{p}": w[f"{b}.{p}"]
            for a, b in (("up", "linear1"), ("down", "linear2"))
            for p in ("weight", "bias")
        },
        **{
            f"{a}_{NORMS[norm_at]}.{p}": w[f"norm{n}.{p}"]
            for n, a in ((1, "attn"), (2, "mlp"))
            for p in ("weight", "bias")
        },
    }
    ours.load_state_dict(pairs)
    x = randn(2, 9, d)
    step = Step(torch.arange(9)[None])
    mask = nn.Transformer.generate_square_subsequent_mask(9)
    with torch.no_grad():
        want = theirs.train()(x, src_mask=mask, is_causal=True)  # train mode avoids torch's fused path
        assert_near(ours(x, step.layer(0)), want, 2e-6)
        other = Block(LayerConfig(attention, layer.mlp, layer.norm, ("post" if norm_at == "pre" else "pre",)), d)
        here, there = f"_{NORMS[norm_at]}.", f"_{NORMS['post' if norm_at == 'pre' else 'pre']}."
        other.load_state_dict({name.replace(here, there): t for name, t in pairs.items()})
        assert (other(x, step.layer(0)) - want).abs().max() > 0.1, "the position of the norm has no effect"


@pytest.mark.parametrize("norm_at", [("pre", "out"), ("out",), ("pre", "post"), ("pre", "out", "post")])
def test_block_equals_its_equation(norm_at):
    """The block is x -> post(x + out(f(pre(x))))."""
    layer = LayerConfig(AttentionConfig(2, 2, 6), MLPConfig(20), NormConfig("rms", 1e-2), norm_at)
    block, x = randomise(Block(layer, 12)), randn(2, 5, 12)
    step = Step(torch.arange(5)[None]).layer(0)
    norms = {at: getattr(block, f"attn_{name}") if at in norm_at else (lambda y: y) for at, name in NORMS.items()}
    middle = norms["post"](x + norms["out"](block.attn(norms["pre"](x), step)))
    norms = {at: getattr(block, f"mlp_{name}") if at in norm_at else (lambda y: y) for at, name in NORMS.items()}
    want = norms["post"](middle + norms["out"](block.mlp(norms["pre"](middle), step)))
    assert torch.equal(block(x, step), want)
    names = [name for name, module in block.named_modules() if "attn_" in name and isinstance(module, nn.Identity)]
    assert names == [f"attn_{name}" for at, name in NORMS.items() if at not in norm_at]


def test_unscaled_attention():
    model = tiny("llama")
    ids = torch.arange(12)[None]
    other = Decoder(tiny("llama", **{f"layers.{i}.attention.scale": 1 / math.sqrt(12) for i in range(3)}).config)
    other.load_state_dict(model.state_dict())
    assert torch.equal(run(model, ids), run(other, ids))
    unscaled = Decoder(tiny("llama", **{f"layers.{i}.attention.scale": 1.0 for i in range(3)}).config)
    unscaled.load_state_dict(model.state_dict())
    with torch.no_grad():
        for block in model.blocks:  # sqrt(Dh) on the queries undoes the scale
            block.attn.q.weight *= math.sqrt(12)
            block.attn.q.bias *= math.sqrt(12)
    assert_near(run(model, ids), run(unscaled, ids), 1e-5)


def test_init_weights_as_gpt2():
    layer = LayerConfig(AttentionConfig(4, 4, 16, bias=True, out_bias=True), MLPConfig(256, bias=True, gated=False))
    config = ModelConfig("gpt2", 500, 64, 128, (layer,) * 8, positions="learned")
    a, b, c = (init_weights(Decoder(config), seed) for seed in (0, 0, 1))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.embed.weight, c.embed.weight)
    for name, p in a.named_parameters():
        if p.ndim == 1:
            assert (p == ("weight" in name)).all(), name  # norms 1, biases 0
        else:
            std = 0.02 / math.sqrt(16) if name.endswith(("o.weight", "down.weight")) else 0.02
            assert abs(p.std() / std - 1) < 0.05, name
            assert abs(p.mean()) < std / 10, name
    loss = F.cross_entropy(run(a, torch.arange(100)[None] * 5)[0], torch.arange(100))
    assert abs(loss - math.log(500)) < 0.1
