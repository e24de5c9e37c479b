"""Models with packed matrices: logits, memory, the choice at load, saving, and inspection.

The independent reference of a packed model is the decoded model whose linear layers quantize their input, in float64.
"""

import copy
import json

import gguf
import numpy as np
import pytest
import torch
from generate.scripted import make_tokenizer
from gguf import GGMLQuantizationType
from test_gguf_blocks import random_rows
from tiny import random_ids, run, run_cached
from tiny_gguf import gguf_model
from torch import nn

import glassformer
from glassformer.cache.dense import DenseCache
from glassformer.cli.show import show
from glassformer.errors import CheckpointError
from glassformer.formats import load_decoder, open_checkpoint
from glassformer.formats.gguf.blocks import pack_blocks
from glassformer.formats.gguf.save import save_gguf
from glassformer.formats.load import quantized_matrices
from glassformer.formats.save import save_model
from glassformer.inspect.edits.edit import ablate
from glassformer.kernels import packed_linear
from glassformer.kernels.linear import choose_linear, prepack
from glassformer.kernels.native.library import load_library
from glassformer.kernels.packed import GROUP, product
from glassformer.kernels.packed_linear import (
    ModelWeights,
    PackedEmbedding,
    PackedLinear,
    PackedTiedLinear,
    count_weights,
    packed_modules,
    weight_chunks,
    weight_rows,
)
from glassformer.kernels.placement import Choice, QuantizedMatrices, choose_placement, choose_weights
from glassformer.models import base
from glassformer.models.language_model import LanguageModel
from glassformer.nn.linear import HeadLinear, TiedLinear

FAMILIES = ["llama", "qwen3", "gemma2", "gpt2", "phi3", "olmo", "qwen3_moe", "gpt_oss", "deepseek_v2"]
WIDE = {"d_model": 256, "*.attention.head_dim": 64, "*.mlp.d_ff": 256}


def quantized(x):
    """Return x after the quantization of activations, in float64, by the formula."""
    groups = x.detach().float().numpy().reshape(*x.shape[:-1], -1, GROUP)
    largest = np.abs(groups).max(-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        q = np.nan_to_num(np.rint(groups * (np.float32(127) / largest)))
    value = q.astype(np.float64) * (largest / np.float32(127)).astype(np.float64)
    return torch.from_numpy(value.reshape(x.shape))


@pytest.fixture
def pair(request, tmp_path):
    """Return (decoded, packed) models of one GGUF file."""
    family, kind = request.param
    path = tmp_path / "model.gguf"
    save_gguf(gguf_model(family, **(WIDE if kind in ("Q6_K", "Q4_K_M") else {})), path, kind)
    return load_decoder(path, dtype=torch.float32), load_decoder(path, dtype=torch.float32, packed=True)


def pairs(*kinds, families=FAMILIES):
    return pytest.mark.parametrize(
        "pair", [(f, kind) for f in families for kind in kinds], indirect=True, ids=lambda p: "-".join(p)
    )


@pairs("Q8_0", "Q4_0")
def test_every_product_equals_that_of_quantized_activations(pair):
    decoded, model = pair
    layers = {name: m for name, m in model.named_modules() if isinstance(m, PackedLinear | PackedTiedLinear)}
    weights = dict(decoded.named_modules())
    linear = [name for name, m in weights.items() if type(m) in (nn.Linear, TiedLinear)]
    router = [name for name in linear if name.endswith("router")]
    assert set(layers) == set(linear) - set(router)
    calls = {}
    for name, layer in layers.items():
        layer.register_forward_hook(lambda _, x, y, name=name: calls.setdefault(name, []).append((x[0], y)))
    run(model, random_ids(model.config, 2, 9))
    assert set(calls) >= {name for name in layers if ".experts." not in name}
    for name, seen in calls.items():
        w = weights[name].weight.detach().double()
        bias = 0 if layers[name].bias is None else layers[name].bias.double()
        for x, y in seen:
            exact, size = quantized(x) @ w.T + bias, x.abs().double() @ w.T.abs()
            assert ((y - exact).abs() <= 2**-18 * (size + y.abs())).all(), name
            step = x.unflatten(-1, (-1, GROUP)).abs().amax(-1).double() / 127 * (0.5 + 2**-10)
            bound = torch.einsum("...g,og->...o", step, w.abs().unflatten(-1, (-1, GROUP)).sum(-1))
            assert ((y - (x.double() @ w.T + bias)).abs() <= bound + 2**-18 * size).all(), name


@pairs("Q8_0", "Q4_0")
def test_logits_are_those_of_quantized_activations(pair):
    """A number of x at the middle of two steps may be rounded either way, which is why the tolerance is not smaller."""
    decoded, model = pair
    ids = random_ids(model.config, 4, 9)
    found, plain = run(model, ids), run(decoded, ids)
    packed_layers = {name for name, m in model.named_modules() if isinstance(m, PackedLinear | PackedTiedLinear)}
    for name, layer in decoded.named_modules():
        if name in packed_layers:
            layer.register_forward_pre_hook(lambda _, x: (quantized(x[0]).float(),))
    wanted = run(decoded, ids)
    off = (found - wanted).abs().flatten() / wanted.abs().max()
    assert off.median() <= 2e-4
    assert off.max() <= 0.03
    assert (found.argmax(-1) == wanted.argmax(-1)).float().mean() >= 0.95
    assert (found.argmax(-1) == plain.argmax(-1)).float().mean() >= 0.8
    assert (found - plain).abs().mean() <= 0.03 * plain.abs().max()
    assert not torch.equal(found, plain)


@pairs("Q4_K_M", "Q6_K", families=["llama", "gpt2"])
def test_types_with_blocks_of_256(pair):
    decoded, model = pair
    formats = {module.format for _, module in packed_modules(model)}
    assert formats & {"q4k", "q6k"}
    ids = random_ids(model.config, 2, 7)
    assert (run(model, ids) - run(decoded, ids)).abs().mean() <= 0.03 * run(decoded, ids).abs().max()
    for name, p in decoded.named_parameters():
        assert torch.equal(ModelWeights(model)[name], p), name


@pairs("Q8_0", "Q4_0")
def test_weights_are_those_of_the_decoded_model(pair, tmp_path):
    decoded, model = pair
    weights, wanted = ModelWeights(model), dict(decoded.named_parameters())
    assert set(weights) == set(wanted)
    for name, p in wanted.items():
        assert torch.equal(weights[name], p), name
        assert weights.shapes[name].shape == p.shape
    assert count_weights(model) == count_weights(decoded) == sum(p.numel() for p in decoded.parameters())
    heads = {name for name, m in decoded.named_modules() if isinstance(m, HeadLinear)}
    assert heads.isdisjoint(name for name, _ in packed_modules(model))
    assert not any(p.ndim == 2 and n.rpartition(".")[0] not in heads for n, p in model.named_parameters()
                   if not any(part in n for part in ("router", "positions")))  # fmt: skip
    save_model(model, tmp_path / "folder")
    save_gguf(model, tmp_path / "again.gguf", "F32")
    for saved in (load_decoder(tmp_path / "folder"), load_decoder(tmp_path / "again.gguf")):
        for name, p in saved.named_parameters():
            assert torch.equal(p, wanted[name]), name


@pairs("Q8_0", families=["llama", "gemma2"])
def test_cached_equals_uncached(pair):
    _, model = pair
    ids = random_ids(model.config, 2, 9)
    whole = run(model, ids)
    parts = run_cached(model, ids, [4, 1, 3, 1], DenseCache.of(model.config, 2, 9))
    off = (parts - whole).abs() / whole.abs().max()
    assert off.median() <= 1e-4
    assert off.max() <= 0.03


@pairs("Q8_0", families=["llama"])
def test_rows_of_packed_and_other_matrices(pair):
    decoded, model = pair
    for found, wanted in ((model.blocks[0].mlp.down, decoded.blocks[0].mlp.down), (model.embed, decoded.embed)):
        for rows in (3, [4, 1, 4], slice(2, 30), slice(None), torch.tensor([[1, 2], [0, 5]])):
            assert torch.equal(weight_rows(found, rows), wanted.weight[rows])
            assert torch.equal(weight_rows(wanted, rows), wanted.weight[rows])
        assert torch.equal(torch.cat(list(weight_chunks(found, 7))), wanted.weight)
    assert isinstance(model.embed, PackedEmbedding)
    assert prepack(model, 1) is model


def test_a_copied_or_moved_layer_keeps_its_matrix():
    layer = PackedLinear(pack_blocks("Q8_0", torch.from_numpy(random_rows("Q8_0", 9, 2, 0))), None)
    x = torch.randn(2, 64)
    for other in (copy.deepcopy(layer), copy.deepcopy(layer).to("cpu").double(), layer.share_memory()):
        assert other.matrix.data is other.packed
        assert torch.equal(other(x), layer(x))
    other = copy.deepcopy(layer)
    other.packed.zero_()
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))


def test_a_tied_head_multiplies_by_the_packed_embedding(tmp_path):
    save_gguf(gguf_model("gemma2"), tmp_path / "a.gguf", "Q4_0")
    model = load_decoder(tmp_path / "a.gguf", dtype=torch.float32, packed=True)
    assert isinstance(model.head, PackedTiedLinear)
    assert model.head.matrix.data is model.embed.packed
    assert sum("embed" in name or "head" in name for name in model.state_dict()) == 1
    x = torch.randn(3, model.config.d_model)
    assert torch.equal(model.head(x), product(x, model.embed.matrix))


# --- the choice


@pytest.fixture
def packs(monkeypatch):
    """Pretend that this machine runs packed matrices faster."""
    for module in (base, packed_linear):
        monkeypatch.setattr(module, "runs_packed", lambda: True)


def save_lm(path, kind="Q8_0", family="llama", **changes):
    tokenizer = make_tokenizer()
    model = gguf_model(family, vocab_size=tokenizer.vocab_size, **changes)
    LanguageModel(model, tokenizer).save_gguf(path, kind)


def n_packed(lm):
    return len(list(packed_modules(lm.model)))


def test_auto_loads_packed_where_that_is_faster(packs, tmp_path, capsys):
    save_lm(tmp_path / "a.gguf")
    lm = glassformer.load(tmp_path / "a.gguf", device="cpu")
    choices = {choice.what: choice for choice in lm.choices}
    assert choices["weights"].value == choices["linear"].value == "packed"
    assert choices["dtype"].value == "float32"
    assert f"{n_packed(lm)} Q8_0 (" in choices["weights"].because
    assert lm.dtype == torch.float32
    show(str(tmp_path / "a.gguf"), json=True)
    facts = json.loads(capsys.readouterr().out)
    shown = {choice["what"]: choice for choice in facts["choices"]}
    assert shown["weights"]["because"] == choices["weights"].because
    padding = sum(module.packed.nbytes * (-module.n_out % 8) / 8 for _, module in packed_modules(lm.model))
    in_memory = sum(tensor.nbytes for tensor in lm.model.state_dict().values())
    assert in_memory - padding <= facts["memory"]["packed"] <= in_memory
    assert facts["memory"]["packed"] < facts["memory"]["bfloat16"]
    assert lm.generate("the cat", max_tokens=4, temperature=0.0).continuations
    for dtype in ("float32", "bfloat16"):
        plain = glassformer.load(tmp_path / "a.gguf", device="cpu", dtype=dtype)
        assert n_packed(plain) == 0
        weights = next(choice for choice in plain.choices if choice.what == "weights")
        assert weights.value == "decoded"
        assert f"dtype {dtype} was requested" in weights.because


def test_elsewhere_weights_are_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "runs_packed", lambda: False)
    save_lm(tmp_path / "a.gguf")
    lm = glassformer.load(tmp_path / "a.gguf", device="cpu")
    assert n_packed(lm) == 0
    weights = next(choice for choice in lm.choices if choice.what == "weights")
    assert weights.value == "decoded"
    assert "become float32: decoded matrices run faster on this machine" in weights.because


def test_choice_names_types_that_are_decoded():
    both = [
        QuantizedMatrices("Q4_K", 9, 8_888_888, 5_000_000, True),
        QuantizedMatrices("Q2_K", 2, 4_571_428, 1_500_000, False),
    ]
    chosen = choose_weights("auto", device="cpu", quantized=both, packs=True, decoded_to="bfloat16")
    assert chosen.value == "packed"
    assert chosen.because == "9 Q4_K (5.0 MB) run as they are stored; decoded to float32: 2 Q2_K (1.5 MB)"
    chosen = choose_weights("auto", device="cpu", quantized=both[1:], packs=True, decoded_to="bfloat16")
    assert chosen.value == "decoded"
    assert chosen.because == "2 Q2_K (1.5 MB) become bfloat16: their types or layouts have no packed format"
    assert choose_weights("auto", device="cuda", quantized=both, packs=True, decoded_to="bfloat16").value == "decoded"
    found = choose_placement("cpu", "auto", stored=torch.bfloat16, n_parameters=10**9, quantized=both, packs=True)
    assert (found.packed, found.dtype) == (True, torch.float32)
    found = choose_placement("cpu", "bfloat16", stored=torch.bfloat16, n_parameters=10**9, quantized=both, packs=True)
    assert (found.packed, found.dtype) == (False, torch.bfloat16)
    found = choose_placement("cpu", "auto", stored=torch.bfloat16, n_parameters=10**9, quantized=both, packs=False)
    assert found.choices[1] == Choice("dtype", "bfloat16", "quantized matrices are decoded to it")
    found = choose_placement("cpu", "auto", stored=torch.bfloat16, n_parameters=10**9)
    assert found.choices[1] == Choice("dtype", "bfloat16", "the checkpoint is stored in it")
    assert choose_linear("cpu", torch.float32, 1, packed=True).value == "packed"


def test_quantized_matrices_of_a_file(tmp_path):
    save_gguf(gguf_model("deepseek_v2"), tmp_path / "a.gguf", "Q8_0")
    found = {one.packs: one for one in quantized_matrices(open_checkpoint(tmp_path / "a.gguf"))}
    model = load_decoder(tmp_path / "a.gguf", packed=True)
    assert found[True].n == len(list(packed_modules(model)))
    assert found[False].n == sum(isinstance(m, HeadLinear) for m in model.modules())
    save_gguf(gguf_model("llama"), tmp_path / "b.gguf", "F16")
    assert quantized_matrices(open_checkpoint(tmp_path / "b.gguf")) == ()


# --- bad input


def rewrite(source, target, change):
    """Copy a GGUF file; `change(name, type, rows)` returns the type and bytes of each tensor."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type)
    for tensor in reader.tensors:
        kind, rows = change(tensor.name, tensor.tensor_type, np.array(tensor.data))
        writer.add_tensor(tensor.name, rows, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["blk.1.ffn_down.weight", "token_embd.weight"])
def test_a_scale_that_is_not_finite_names_its_tensor(bad, name, tmp_path):
    save_gguf(gguf_model("llama"), tmp_path / "a.gguf", "Q8_0")

    def damage(tensor, kind, rows):
        if tensor == name:
            rows[5, 34:36] = np.array([bad], np.float16).view(np.uint8)
        return kind, rows

    rewrite(tmp_path / "a.gguf", tmp_path / "b.gguf", damage)
    with pytest.raises(CheckpointError, match=rf"{name}: block 1 of row 5 has a scale \(d\) that is NaN or infinite"):
        load_decoder(tmp_path / "b.gguf", packed=True)


def test_a_norm_that_is_not_finite_raises_in_the_first_forward_pass(tmp_path):
    save_gguf(gguf_model("llama"), tmp_path / "a.gguf", "Q8_0")

    def damage(tensor, kind, rows):
        return kind, np.full_like(rows, np.nan) if tensor == "blk.1.ffn_norm.weight" else rows

    rewrite(tmp_path / "a.gguf", tmp_path / "b.gguf", damage)
    model = load_decoder(tmp_path / "b.gguf", packed=True)
    with pytest.raises(CheckpointError, match=r"blocks\.1\.mlp_norm\.weight"):
        run(model, random_ids(model.config, 1, 3))


@pytest.mark.parametrize("kind", ["Q5_0", "Q5_1", "Q4_1", "IQ4_NL", "MXFP4", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "Q2_K"])
def test_a_file_of_any_type(kind, tmp_path):
    """Random blocks in place of one matrix: its rows are those of the gguf package, packed or not."""
    save_gguf(gguf_model("llama", **WIDE), tmp_path / "a.gguf", "Q8_0")
    name, wanted = "blk.0.ffn_up.weight", {}

    def replace_one(tensor, stored, rows):
        if tensor != name:
            return stored, rows
        if kind == "Q2_K":
            blocks = np.zeros((256, 84), np.uint8)
            blocks[:, :80] = 0x21
        else:
            size, nbytes = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
            blocks = random_rows(kind, 256, 256 // size, 0)
            assert blocks.shape == (256, 256 // size * nbytes)
        wanted["w"] = gguf.quants.dequantize(blocks, GGMLQuantizationType[kind])
        return GGMLQuantizationType[kind], blocks

    rewrite(tmp_path / "a.gguf", tmp_path / "b.gguf", replace_one)
    model = load_decoder(tmp_path / "b.gguf", dtype=torch.float32, packed=True)
    assert isinstance(model.blocks[0].mlp.up, PackedLinear) == (kind != "Q2_K")
    assert np.array_equal(model.blocks[0].mlp.up.weight.detach().numpy(), wanted["w"])


def test_rows_that_are_no_multiple_of_a_block_raise(tmp_path):
    save_gguf(gguf_model("llama"), tmp_path / "a.gguf", "Q8_0")
    data = bytearray((tmp_path / "a.gguf").read_bytes())
    name = b"blk.0.ffn_up.weight"
    at = data.index(name) + len(name) + 4
    assert int.from_bytes(data[at : at + 8], "little") == 64
    data[at : at + 8] = (65).to_bytes(8, "little")
    (tmp_path / "b.gguf").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"blk\.0\.ffn_up\.weight is \[96, 65\] in Q8_0, .* multiples of 32"):
        open_checkpoint(tmp_path / "b.gguf")


# --- inspection


@pytest.fixture(params=["llama", "qwen3", "gemma2", "gpt2", "qwen3_moe"])
def lms(request, packs, tmp_path):
    """Return (decoded, packed) language models of one file."""
    save_lm(tmp_path / "a.gguf", family=request.param)
    path = tmp_path / "a.gguf"
    return glassformer.load(path, device="cpu", dtype="float32"), glassformer.load(path, device="cpu")


def test_traces_views_edits_and_sweeps(lms):
    decoded, lm = lms
    assert n_packed(lm) > 0
    t, other = lm.trace("the cat sat"), lm.trace("the cat ran")
    plain = decoded.trace("the cat sat")
    assert torch.equal(t.captured.last_logits, lm.trace("the cat sat").captured.last_logits)
    probs = t["blocks.1.attn.probs"]
    assert probs.error <= 1e-5 * max(1, t["blocks.1.attn.z"].tensor.abs().max())
    # Heads go through the decoded W_o, attn.out through the product with quantized activations: the receipt says so.
    step = plain["blocks.1.attn.z"].tensor.abs().max() / 127
    rows = weight_rows(lm.model.blocks[1].attn.o, slice(None)).abs().sum(1).max()
    heads = t.heads(layer=1, position=1)
    assert 0 < heads.receipt.error <= step * rows
    assert 0 < t["blocks.1.attn.heads"].error <= step * rows
    assert "8 bits" in heads.receipt.identity
    assert "8 bits" not in plain.heads(layer=1, position=1).receipt.identity
    if load_library() is not None:  # native products and attention do not depend on the number of tokens
        assert t.cache_speed(rounds=1).receipt.error == 0
    lens = t.lens()
    assert lens.receipt.error <= 1e-4 * t.captured.last_logits.abs().max()
    qkv = t.qkv(layer=1, head=0, position=1)
    assert 0 < qkv.receipt.error <= 0.05 * qkv.q.abs().max() + 0.05
    assert np.isfinite(t.block(layer=1, position=1).receipt.error)
    assert other.sampling() is not None
    edited = lm.trace("the cat sat", edit=ablate("blocks.1.attn.heads", head=0))
    assert edited.captured.last_logits.isfinite().all()
    assert not torch.equal(edited.captured.last_logits, t.captured.last_logits)
    wanted = decoded.trace("the cat sat", edit=ablate("blocks.1.attn.heads", head=0)).captured.last_logits
    assert (edited.captured.last_logits - wanted).abs().mean() <= 0.05 * wanted.abs().max()
    assert lm.sweep(t, over="heads", op="ablate").matrix().isfinite().all()
    anatomy = lm.anatomy()
    assert anatomy.parameters == decoded.anatomy().parameters == lm.n_parameters
    assert anatomy.receipt.error == 0
    assert torch.equal(lm.embedding(token=7).row, decoded.embedding(token=7).row)
    assert lm.embedding(token=7).tables == decoded.embedding(token=7).tables
    assert lm.embedding(token=7, table="output").nearest == decoded.embedding(token=7, table="output").nearest
    assert len(lm.embedding_map(tokens=(3, 4, 5)).points) == 3


def test_saved_traces_name_their_model(lms, tmp_path):
    decoded, lm = lms
    lm.trace("the cat sat").save(tmp_path / "trace")
    lm.load_trace(tmp_path / "trace")
    with pytest.raises(CheckpointError, match="other weights"):
        decoded.load_trace(tmp_path / "trace")
