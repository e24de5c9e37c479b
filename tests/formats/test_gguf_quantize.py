"""Q4_K, Q5_K and Q6_K: our blocks, decoded by the `gguf` package, and which tensor of a file gets which type."""

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import assert_near, random_ids, relative_change, run
from tiny_gguf import gguf_model

from glassformer.errors import CheckpointError
from glassformer.formats import load_decoder
from glassformer.formats.gguf.quantize import quantize
from glassformer.formats.gguf.save import save_gguf
from glassformer.formats.gguf.tensor_types import tensor_types

TYPES = {"Q4_K": 4, "Q5_K": 5, "Q6_K": 6}
BITS = {"Q4_K": 4.5, "Q5_K": 5.5, "Q6_K": 6.5625}  # per weight


def decoded(x, kind):
    blocks = quantize(torch.from_numpy(x), Kind[kind]).numpy()
    assert blocks.nbytes == x.size * BITS[kind] / 8
    return gguf.quants.dequantize(blocks, Kind[kind])


def half(x):
    return x.astype(np.float16).astype(np.float64)


def quotient(a, b):
    return np.divide(a, b, out=np.zeros(np.broadcast_shapes(a.shape, b.shape)), where=b != 0)


def plain(x, kind):
    """Quantize without a search, in float64: the range of each group sets its scale. Returns values and steps."""
    if kind == "Q6_K":
        groups = x.reshape(-1, 16, 16).astype(np.float64)
        scale = np.abs(groups).max(-1, keepdims=True) / 31
        d = half(scale.max(1, keepdims=True) / 127)
        step = d * np.rint(quotient(scale, d)).clip(0, 127)
        values = step * np.rint(quotient(groups, step)).clip(-32, 31)
        return values.reshape(x.shape), np.broadcast_to(scale + 16 * d, groups.shape).reshape(x.shape)
    high, groups = 2 ** TYPES[kind] - 1, x.reshape(-1, 8, 32).astype(np.float64)
    minimum = -np.minimum(groups.min(-1, keepdims=True), 0)
    scale = (np.maximum(groups.max(-1, keepdims=True), 0) + minimum) / high
    d, dmin = (half(v.max(1, keepdims=True) / 63) for v in (scale, minimum))
    step, shift = d * np.rint(quotient(scale, d)).clip(0, 63), dmin * np.rint(quotient(minimum, dmin)).clip(0, 63)
    values = step * np.rint(quotient(groups + shift, step)).clip(0, high) - shift
    return values.reshape(x.shape), np.broadcast_to(scale + high * d / 2 + dmin, groups.shape).reshape(x.shape)


def rows_of(name, n=64):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, 512))
    x = {
        "normal": x,
        "heavy tails": rng.standard_t(4, x.shape),
        "uniform": rng.uniform(-1, 1, x.shape),
        "groups of other sizes": x * np.repeat(np.exp(rng.standard_normal((n, 16))), 32, 1),
        "one sign": np.abs(x),
        "shifted": x + 2,
    }[name]
    return (0.02 * x).astype(np.float32)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", ["normal", "heavy tails", "uniform", "groups of other sizes", "one sign", "shifted"])
def test_error_is_below_that_of_a_plain_quantizer(name, kind):
    x = rows_of(name)
    reference, _ = plain(x, kind)
    ours, theirs = (np.sqrt(np.square(y - x).mean()) for y in (decoded(x, kind), reference))
    assert ours < 0.97 * theirs


@st.composite
def super_blocks(draw):
    """Rows of 256 weights: of any size and sign, with groups of zeros or constants, and outliers."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = rng.standard_normal((draw(st.integers(1, 3)), 256)) * 10.0 ** draw(st.integers(-12, 3))
    x += draw(st.sampled_from([0, 0, 1, -1])) * np.abs(x).max() * draw(st.sampled_from([0.5, 2, 50]))
    for start, length in draw(st.lists(st.tuples(st.integers(0, 255), st.sampled_from([1, 16, 32, 256])), max_size=4)):
        x[:, start : start + length] = draw(st.sampled_from([0.0, 1.0, x.max(), x.min(), 20 * x.max()]))
    return x.clip(-60_000, 60_000).astype(np.float32)


@settings(max_examples=100)
@given(super_blocks(), st.sampled_from([*TYPES]))
def test_every_weight_is_within_a_step(x, kind):
    values, (reference, step) = decoded(x, kind), plain(x, kind)
    assert np.isfinite(values).all()
    tiny = 2.0**-24 * 63 * 32  # what the smallest float16 scale can be off
    assert (np.abs(values - x) <= 1.1 * step + tiny).all(), (np.abs(values - x) / (step + tiny)).max()
    ours, theirs = (np.square(y - x.astype(np.float64)).sum() for y in (values, reference))
    assert ours <= 1.02 * theirs + np.square(step / 4 + tiny).sum()  # steps of rare groups may round worse


@pytest.mark.parametrize("kind", TYPES)
def test_exact_values(kind):
    """Zeros stay zeros; weights that the format can hold exactly come back."""
    zeros = np.zeros((3, 256), np.float32)
    assert not decoded(zeros, kind).any()
    low, high, scale = (-32, 31, 1 / 64) if kind == "Q6_K" else (0, 2 ** TYPES[kind] - 1, 63 / 4096)
    x = scale * np.resize(np.arange(low, high + 1), (1, 256)).astype(np.float32)
    np.testing.assert_array_equal(decoded(x, kind), x)


@pytest.mark.parametrize("kind", [*TYPES, "Q8_0", "Q5_0", "Q4_0", "F16", "BF16", "F32"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 7e4])
def test_weights_that_cannot_be_stored(kind, bad):
    x = torch.zeros(2, 256)
    x[1, 77] = bad
    if bad == 7e4 and kind in ("BF16", "F32"):
        assert quantize(x, Kind[kind]).any()
        return
    with pytest.raises(ValueError, match="weights must be finite and at most"):
        quantize(x, Kind[kind])


def test_an_error_names_the_tensor(tmp_path):
    model = gguf_model("llama")
    with torch.no_grad():
        model.blocks[1].mlp.up.weight[0, 0] = torch.nan
    with pytest.raises(
        CheckpointError, match=r"blk\.1\.ffn_up\.weight cannot be stored as Q5_0: .* the largest is nan"
    ):
        save_gguf(model, tmp_path / "a.gguf", "Q4_K_M")
    assert not list(tmp_path.iterdir())


def metadata_of(architecture="llama", n_layers=8, **more):
    keys = {"block_count": n_layers, "attention.head_count": 8, "attention.head_count_kv": 2} | more
    return {"general.architecture": architecture} | {f"{architecture}.{key}": value for key, value in keys.items()}


PARTS = {"attn_q": 256, "attn_k": 256, "attn_v": 256, "attn_output": 256, "ffn_up": 256, "ffn_down": 768}


def shapes_of(n_layers=8, parts=PARTS, tied=False):
    shapes = {f"blk.{i}.{part}.weight": (256, width) for i in range(n_layers) for part, width in parts.items()}
    shapes |= {"token_embd.weight": (999, 256), "blk.0.attn_norm.weight": (256,), "blk.0.ffn_gate_inp.weight": (8, 256)}
    return shapes if tied else shapes | {"output.weight": (999, 256)}


def types_of(shapes, kind="Q4_K_M", **more):
    return {name: kind.name for name, kind in tensor_types(shapes, kind, metadata_of(**more)).items()}


def test_types_of_a_medium_file():
    """The layers of 8 whose attn_v and ffn_down get more bits: the first, the last, and every third between."""
    types = types_of(shapes_of())
    assert types.pop("output.weight") == "Q6_K"
    assert types.pop("blk.0.attn_norm.weight") == types.pop("blk.0.ffn_gate_inp.weight") == "F32"
    more = {f"blk.{i}.{part}.weight" for i in (0, 3, 6, 7) for part in ("attn_v", "ffn_down")}
    assert {name for name, kind in types.items() if kind == "Q6_K"} == more
    assert {kind for name, kind in types.items() if name not in more} == {"Q4_K"}
    tied = types_of(shapes_of(tied=True))
    assert tied["token_embd.weight"] == "Q6_K"
    fused = types_of({"blk.0.attn_qkv.weight": (768, 256), "blk.1.attn_qkv.weight": (768, 256)})
    assert fused == {"blk.0.attn_qkv.weight": "Q6_K", "blk.1.attn_qkv.weight": "Q4_K"}


def test_types_of_some_architectures():
    experts = types_of(shapes_of(), expert_count=8)
    assert {kind for name, kind in experts.items() if "attn_k." in name or "attn_v." in name} == {"Q8_0"}
    assert {kind for name, kind in experts.items() if "attn_output" in name} == {"Q5_K"}
    falcon = types_of(shapes_of(32), architecture="falcon", n_layers=32)
    assert falcon["output.weight"] == "Q8_0"
    found = [falcon[f"blk.{i}.ffn_down.weight"] for i in range(7)]
    assert found == ["Q6_K", "Q6_K", "Q5_K", "Q5_K", "Q4_K", "Q4_K", "Q5_K"]
    large = types_of(shapes_of(80), n_layers=80)
    assert [large[f"blk.{i}.attn_v.weight"] for i in (0, 10, 12, 79)] == ["Q6_K", "Q5_K", "Q6_K", "Q6_K"]
    assert set(types_of(shapes_of(), "Q6_K").values()) == {"Q6_K", "F32"}
    assert types_of(shapes_of(), "Q6_K", expert_count=8)["blk.2.attn_k.weight"] == "Q8_0"


@pytest.mark.parametrize(("width", "expected"), [(96, ["Q5_0", "Q8_0", "Q8_0"]), (48, ["F16", "F16", "F16"])])
def test_rows_that_are_no_multiple_of_a_super_block(width, expected):
    shapes = dict.fromkeys(("blk.1.attn_q.weight", "blk.0.ffn_down.weight", "output.weight"), (4, width))
    assert [*types_of(shapes).values()] == expected


@pytest.mark.parametrize("kind", ["Q4_K_M", "Q6_K"])
def test_a_saved_model_loads(kind, tmp_path):
    """The parameters equal those that the package decodes, and the logits are closer than those of Q4_0."""
    sizes = {"d_model": 256, "*.mlp.d_ff": 512, "*.attention.n_heads": 16}
    model = gguf_model("llama", **sizes)
    calls = []
    save_gguf(model, tmp_path / "a.gguf", kind, progress=lambda *at: calls.append(at))
    n = sum(p.numel() for p in model.parameters())
    assert calls[-1] == (n, n)
    file = gguf.GGUFReader(tmp_path / "a.gguf")
    assert file.fields["general.file_type"].contents() == {"Q4_K_M": 15, "Q6_K": 18}[kind]
    tensors = {tensor.name: tensor for tensor in file.tensors}
    types = {tensor.tensor_type.name for tensor in tensors.values()}
    assert types == ({"F32", "Q4_K", "Q6_K"} if kind == "Q4_K_M" else {"F32", "Q6_K"})
    again = load_decoder(tmp_path / "a.gguf", dtype=torch.float32)
    for name, ours in (("token_embd.weight", "embed.weight"), ("blk.1.ffn_down.weight", "blocks.1.mlp.down.weight")):
        theirs = gguf.quants.dequantize(tensors[name].data, tensors[name].tensor_type)
        np.testing.assert_array_equal(again.get_parameter(ours).detach().numpy(), theirs)
    save_gguf(model, tmp_path / "b.gguf", "Q4_0")
    ids = random_ids(model.config, 2, 30)
    logits = run(model, ids)
    ours, plainer = (relative_change(run(load_decoder(tmp_path / f), ids), logits) for f in ("a.gguf", "b.gguf"))
    assert 0 < ours < plainer
    save_gguf(again, tmp_path / "c.gguf", kind)  # quantizing again changes little
    assert_near(run(load_decoder(tmp_path / "c.gguf"), ids), run(again, ids), 0.1)
