"""Checkpoints in their original layouts (Meta's Llama, nanoGPT, minGPT), compared with transformers."""

import base64
import json

import pytest
import tiktoken
import torch
import transformers

from glassformer.errors import CheckpointError, ConfigError
from glassformer.families import read_config
from glassformer.families.common.family import ConfigFields
from glassformer.families.common.original import META_LLAMA
from glassformer.models.load import load
from glassformer.nn.step import Step
from glassformer.text.files.load import load_tokenizer
from glassformer.text.patterns import LLAMA3 as LLAMA3_PATTERN
from glassformer.text.patterns import byte_alphabet

V, D, LAYERS = 102, 48, 2


def randomised(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.4 + (p.dim() == 1))
    return model.eval()


@torch.no_grad()
def assert_same_logits(ours, theirs):
    ids = torch.arange(3 * 12).view(3, 12) * 7 % ours.config.vocab_size
    wanted = theirs(ids).logits
    found = ours.model.float()(ids, Step.of(ids))
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


# ---- Meta's Llama shards

LLAMA = {
    "attention.wq": "self_attn.q_proj", "attention.wk": "self_attn.k_proj", "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj", "feed_forward.w1": "mlp.gate_proj", "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj", "attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip
SETTINGS = {"dim": D, "n_layers": LAYERS, "n_heads": 6, "n_kv_heads": 2, "vocab_size": -1, "multiple_of": 32}
SETTINGS |= {"norm_eps": 1e-5}


def interleave_rotary(weight, n_heads):
    """Convert from transformers' rotary layout (pairs half a head apart) to Meta's (pairs adjacent)."""
    halves = weight.view(n_heads, 2, -1, weight.shape[1])
    return torch.stack([halves[:, 0], halves[:, 1]], 2).reshape(weight.shape)


def original_tensors(theirs):
    named = theirs.state_dict()
    tensors = {"tok_embeddings.weight": named["model.embed_tokens.weight"], "norm.weight": named["model.norm.weight"]}
    tensors |= {"output.weight": named["lm_head.weight"], "rope.freqs": torch.ones(4)}
    for i in range(LAYERS):
        for name, hf in LLAMA.items():
            weight = named[f"model.layers.{i}.{hf}.weight"]
            heads = {"attention.wq": 6, "attention.wk": 2}.get(name)
            tensors[f"layers.{i}.{name}.weight"] = interleave_rotary(weight, heads) if heads else weight
    return tensors


def write_parts(folder, tensors, n, embed_axis=0, settings=SETTINGS):
    for k in range(n):
        part = {}
        for name, tensor in tensors.items():
            axis = 1 if ".wo." in name or ".w2." in name else embed_axis if name.startswith("tok_") else 0
            part[name] = (tensor if tensor.dim() < 2 else tensor.chunk(n, axis)[k]).clone()
        torch.save(part, folder / f"consolidated.{k:02}.pth")
    (folder / "params.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def llama():
    config = transformers.LlamaConfig(
        hidden_size=D, intermediate_size=128, num_hidden_layers=LAYERS, num_attention_heads=6, num_key_value_heads=2,
        vocab_size=V, rms_norm_eps=1e-5, rope_theta=1e4,
    )  # fmt: skip
    return randomised(transformers.LlamaForCausalLM(config))


@pytest.mark.parametrize(("n", "embed_axis"), [(1, 0), (2, 0), (2, 1)])
def test_llama_shards(llama, n, embed_axis, tmp_path):
    folder = write_parts(tmp_path, original_tensors(llama), n, embed_axis)
    ours = load(folder)
    assert_same_logits(ours, llama)
    assert ours.config.context_length == 4096
    if n == 1:
        assert_same_logits(load(folder / "consolidated.00.pth"), llama)
    ours.save(tmp_path / "hf")
    assert_same_logits(load(tmp_path / "hf"), transformers.LlamaForCausalLM.from_pretrained(tmp_path / "hf"))
    half = load(folder, dtype="bfloat16")
    assert {p.dtype for p in half.model.parameters() if p.ndim > 1} == {torch.bfloat16}


def test_inconsistent_shards_raise(llama, tmp_path):
    tensors = original_tensors(llama)
    write_parts(tmp_path, tensors, 2)
    part = torch.load(tmp_path / "consolidated.01.pth")
    del part["norm.weight"]
    part["output.weight"] = part["output.weight"][1:]
    torch.save(part, tmp_path / "consolidated.01.pth")
    with pytest.raises(
        CheckpointError, match=r"01\.pth has no norm\.weight\n.*output\.weight is \[50, 48\] in"
    ) as error:
        load(tmp_path)
    assert "output.weight is [50, 48]" in str(error.value)
    (tmp_path / "consolidated.01.pth").unlink()  # every tensor has half of its rows or columns
    with pytest.raises(
        CheckpointError, match=r"shape: layers\.0\.attention\.wq\.weight is \[24, 48\], the config needs"
    ):
        load(tmp_path)
    write_parts(tmp_path, tensors, 1, settings=SETTINGS | {"vision_chunk_size": 448})
    with pytest.raises(ConfigError, match=r"params\.json: keys this family does not understand: vision_chunk_size"):
        load(tmp_path)


LLAMA3 = {"n_kv_heads": 8, "vocab_size": 128256, "norm_eps": 1e-5, "rope_theta": 500000.0}
PUBLISHED = {  # params.json, and (d_ff, context, rotary scaling factor) of the model's config.json
    "1 7B": ({"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-6, "vocab_size": -1},
             (11008, 2048, None)),
    "2 70B": ({"dim": 8192, "multiple_of": 4096, "ffn_dim_multiplier": 1.3, "n_heads": 64, "n_kv_heads": 8,
               "n_layers": 80, "norm_eps": 1e-5, "vocab_size": -1}, (28672, 4096, None)),
    "3 8B": (LLAMA3 | {"dim": 4096, "n_layers": 32, "n_heads": 32, "multiple_of": 1024, "ffn_dim_multiplier": 1.3},
             (14336, 8192, None)),
    "3.1 8B": (LLAMA3 | {"dim": 4096, "n_layers": 32, "n_heads": 32, "multiple_of": 1024, "ffn_dim_multiplier": 1.3,
                         "use_scaled_rope": True}, (14336, 131072, 8.0)),
    "3.2 1B": (LLAMA3 | {"dim": 2048, "n_layers": 16, "n_heads": 32, "multiple_of": 256, "ffn_dim_multiplier": 1.5,
                         "use_scaled_rope": True}, (8192, 131072, 32.0)),
    "3.2 3B": (LLAMA3 | {"dim": 3072, "n_layers": 28, "n_heads": 24, "multiple_of": 256, "ffn_dim_multiplier": 1.0,
                         "use_scaled_rope": True}, (8192, 131072, 32.0)),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings(name):
    settings, (d_ff, context, factor) = PUBLISHED[name]
    raw = ConfigFields(settings, "params.json")
    config = read_config({"model_type": "llama", **META_LLAMA.read(raw, {"tok_embeddings.weight": (32000, 8)})}, "")
    raw.close()
    layer = config.layers[0]
    assert (layer.mlp.d_ff, config.context_length) == (d_ff, context)
    assert (layer.attention.rope.scaling and layer.attention.rope.scaling.factor) == factor
    assert config.vocab_size in (32000, 128256)
    assert META_LLAMA.end_token_ids(settings) == ([128001, 128008, 128009] if settings["vocab_size"] > 0 else [])


def test_llama_3_tokenizer(shared_file, llama, tmp_path):
    """tokenizer.model is a tiktoken rank file; each text starts with the BOS token."""
    to_byte = {char: byte for byte, char in byte_alphabet().items()}
    names = json.loads((shared_file("llama3-tokenizer") / "encoder.json").read_text())
    words = sorted(names, key=names.__getitem__)[:128000]
    ranks = {bytes(to_byte[char] for char in word): names[word] for word in words}
    lines = [base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()]
    (tmp_path / "tokenizer.model").write_bytes(b"".join(lines))
    ours = load_tokenizer(tmp_path)
    theirs = tiktoken.Encoding("3", pat_str=LLAMA3_PATTERN, mergeable_ranks=ranks, special_tokens={})
    for text in ("The cat sat 1234567 times.\n\n  It's  here", "吾輩は猫である 👩‍👩‍👧", "a" * 3000, ""):
        assert ours.encode(text) == [128000, *theirs.encode(text)]
        assert ours.encode(text, bare=True) == theirs.encode(text)
    assert (ours.bos_id, ours.eos_id, ours.vocab_size) == (128000, 128001, 128256)
    assert ours.encode("<|eot_id|>", parse_special=True)[1:] == [128009]


# ---- GPT-2 with PyTorch's linear layers


def gpt2(**options):
    config = transformers.GPT2Config(vocab_size=65, n_positions=32, n_embd=D, n_layer=LAYERS, n_head=4, **options)
    return randomised(transformers.GPT2LMHeadModel(config))


def linear_tensors(theirs, prefix="", buffers=False):
    """Return the weights as [out, in]; transformers' GPT-2 stores [in, out]."""
    transposed = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")
    found = {
        prefix + name: (tensor.T if name.endswith(transposed) else tensor).clone(memory_format=torch.contiguous_format)
        for name, tensor in theirs.state_dict().items()
    }
    if buffers:
        found |= {f"transformer.h.{i}.attn.bias": torch.ones(32, 32).tril()[None, None] for i in range(LAYERS)}
    return found


ARGS = {"n_layer": LAYERS, "n_head": 4, "n_embd": D, "block_size": 32, "vocab_size": 65, "dropout": 0.2}


def nano(path, tensors, **args):
    """Save a checkpoint as nanoGPT's train.py does."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))])
    torch.save(
        {
            "model": tensors, "optimizer": optimizer.state_dict(), "model_args": ARGS | args, "iter_num": 5,
            "best_val_loss": torch.tensor(1.5), "config": {"dataset": "shakespeare_char", "lr": 1e-3, "compile": True},
        },
        path,
    )  # fmt: skip
    return path


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
@pytest.mark.parametrize("bias", [True, False])
def test_nanogpt(tmp_path, prefix, bias):
    theirs = gpt2(activation_function="gelu")
    if not bias:
        with torch.no_grad():
            for name, p in theirs.named_parameters():
                if name.endswith("bias"):
                    p.zero_()
    tensors = linear_tensors(theirs, prefix)
    tensors = {name: t for name, t in tensors.items() if bias or not name.endswith("bias")}
    nano(tmp_path / "ckpt.pt", tensors, bias=bias)
    for path in (tmp_path, tmp_path / "ckpt.pt"):
        assert_same_logits(load(path), theirs)
    (tmp_path / "ckpt.pt").rename(tmp_path / "mine.pt")
    ours = load(tmp_path / "mine.pt")
    assert ours.config.context_length == 32
    ours.save(tmp_path / "hf")
    assert_same_logits(ours, transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "hf"))


def test_bad_nanogpt_checkpoint_raises(tmp_path):
    tensors = linear_tensors(gpt2())
    nano(tmp_path / "ckpt.pt", tensors, bias=True, use_rmsnorm=True)
    with pytest.raises(ConfigError, match=r"ckpt\.pt: model_args: keys this family does not understand: use_rmsnorm"):
        load(tmp_path)
    del tensors["transformer.wpe.weight"], tensors["transformer.h.0.attn.c_attn.bias"]
    tensors["transformer.h.1.ln_3.weight"] = torch.ones(D)
    nano(tmp_path / "ckpt.pt", tensors, bias=True)
    with pytest.raises(CheckpointError) as error:
        load(tmp_path)
    assert "missing: transformer.wpe.weight" in str(error.value)
    assert "missing: transformer.h.0.attn.c_attn.bias" in str(error.value), (
        "a missing bias is 0 only if model_args has bias = False"
    )
    assert "not used: transformer.h.1.ln_3.weight" in str(error.value)
    torch.save({"step": 3}, tmp_path / "ckpt.pt")
    with pytest.raises(CheckpointError, match=r"ckpt\.pt must hold model_args and model, got step"):
        load(tmp_path)


@pytest.mark.parametrize("keys", [{"model_type": None, "n_layer": LAYERS, "n_head": 4, "n_embd": D}, {"hf": True}])
def test_mingpt(tmp_path, keys):
    """A state dict and a separate config.json, in minGPT's format or in transformers'."""
    theirs = gpt2(tie_word_embeddings=False)
    torch.save(linear_tensors(theirs, buffers=True), tmp_path / "model.pt")
    if "hf" in keys:
        theirs.config.save_pretrained(tmp_path)
        assert_same_logits(load(tmp_path / "model.pt"), theirs)
        return
    pdrop = {"embd_pdrop": 0.1, "resid_pdrop": 0.1, "attn_pdrop": 0.1}
    settings = {"system": {"seed": 1}, "model": {**keys, "vocab_size": None, "block_size": None, **pdrop}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    for path in (tmp_path, tmp_path / "model.pt"):
        assert_same_logits(load(path), theirs)
    for kind, message in (
        ("gpt-odd", "unknown model_type 'gpt-odd'. Known: openai-gpt, gpt2"),
        (None, "neither model_"),
    ):
        settings["model"] |= {"model_type": kind, "n_head": None}
        (tmp_path / "config.json").write_text(json.dumps(settings))
        with pytest.raises(ConfigError, match=message):
            load(tmp_path)
