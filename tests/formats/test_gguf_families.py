"""Every decoder family as GGUF: round trip, the `gguf` package's decoder, and `transformers`' reader."""

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from tiny import assert_near, random_ids, relative_change, run, tiny_config
from tiny_encoders import CONFIGS as ENCODERS
from tiny_gguf import FAMILIES, REDUCED, VARIANTS, gguf_config, gguf_model

from glassformer.config import BandScaling
from glassformer.errors import CheckpointError, ConfigError
from glassformer.families import family_of, write_config
from glassformer.formats import load_decoder
from glassformer.formats.gguf.architectures import ARCHITECTURES, MUST_MATCH, SAME_AS
from glassformer.formats.gguf.file import GgufFile
from glassformer.formats.gguf.header import read_header
from glassformer.formats.gguf.metadata import gguf_family, read_metadata, write_metadata
from glassformer.formats.gguf.save import save_gguf
from glassformer.formats.gguf.tensor_names import norms_plus_one
from glassformer.formats.tensor_mapping import map_tensors

ALL = [(family, changes) for family in FAMILIES for changes in ({}, *VARIANTS.get(family, []))]
NAMES = [f"{family}{i}" for family in FAMILIES for i in range(1 + len(VARIANTS.get(family, [])))]


def save_tiny(folder, family, kind="F32", **changes):
    """Save a tiny model; return the model and its file."""
    model = gguf_model(family, **changes)
    save_gguf(model, folder / "a.gguf", kind)
    return model, folder / "a.gguf"


def test_every_family_has_an_architecture():
    assert {*ARCHITECTURES, *SAME_AS} == {*FAMILIES, *ENCODERS, "t5"}


@pytest.mark.parametrize(("family", "changes"), ALL, ids=NAMES)
def test_model_round_trips(family, changes, tmp_path):
    model, path = save_tiny(tmp_path, family, **changes)
    again = load_decoder(path)
    ids = random_ids(model.config, 2, 40)
    assert_near(run(again, ids), run(model, ids))
    save_gguf(again, tmp_path / "b.gguf", "F32")
    assert path.read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.mark.parametrize("family", FAMILIES)
def test_config_round_trips(family):
    config = gguf_config(family)
    architecture, metadata, numbers = write_metadata(config)
    present = {*ARCHITECTURES[SAME_AS.get(family, family)].true_if_present.values()}
    tensors = {*numbers} | (present - {"blk.0.attn_norm_2.weight"}) | (set() if config.tied_head else {"output.weight"})

    def read(ignore=(), **changes):
        changed = metadata | {f"{architecture}.{key}": value for key, value in changes.items()}
        return read_metadata(changed, tensors, config.vocab_size, "x", ignore, numbers.__getitem__)

    assert read().family == SAME_AS.get(family, family)
    if family != "mistral":
        assert write_metadata(read()) == (architecture, metadata, numbers)
    with pytest.raises(ConfigError, match="does not understand: wobble"):
        read(wobble=1)
    assert read(("wobble",), wobble=1) == read()
    for name in MUST_MATCH:
        if name not in ARCHITECTURES[read().family].keys:
            with pytest.raises(ConfigError, match=f"{name} = 777 is not supported"):
                read(**{name: 777})
    for name in ("block_count", "context_length", "embedding_length", "attention.head_count"):
        with pytest.raises(ConfigError):
            read_metadata({k: v for k, v in metadata.items() if not k.endswith(name)}, tensors, 9, "x")


@pytest.mark.parametrize("family", [family for family in FAMILIES if family in REDUCED])
def test_config_without_gguf_form_raises(family):
    """The complete tiny configuration has settings that the GGUF architecture lacks."""
    with pytest.raises(ConfigError, match=r"cannot describe this|needs a layer with a window"):
        write_metadata(tiny_config(family))


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("mistral", {"*.attention.window": 5}, r"layers.0.attention.window would be None"),
        ("gpt2", {"*.mlp.activation": "relu"}, r"layers.0.mlp.activation would be 'gelu_tanh'"),
        ("llama", {"*.mlp.activation": "gelu"}, r"layers.0.mlp.activation would be 'silu'"),
        ("olmo2", {"tied_head": True}, r"tied_head would be False"),
        ("gemma", {"tied_head": False}, r"tied_head would be True"),
        ("qwen2", {"*.attention.head_dim": 32}, r"rope.dimension_count = 32 is not supported, only 16"),
        ("qwen2", {"*.attention.rope.scaling": BandScaling(8.0, 1.0, 4.0, 8192)}, r"layers.0.attention.rope.scaling"),
        ("olmoe", {"*.attention.n_kv_heads": 2}, r"head_count_kv = 2 is not supported, only 4"),
        ("gpt_oss", {"*.attention.window": None}, "needs a layer with a window"),
        ("gemma2", {"*.attention.softcap": None}, r"layers.0.attention.softcap would be 50.0"),
    ],
)
def test_unsupported_setting_is_named(family, changes, message):
    with pytest.raises(ConfigError, match=message):
        write_metadata(gguf_config(family, **changes))


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("family", FAMILIES)
def test_quantized_parameters_equal_the_gguf_package(family, kind, tmp_path):
    model, path = save_tiny(tmp_path, family, kind)
    again = load_decoder(path, dtype=torch.float32)
    parameters = dict(again.named_parameters())
    entry = {
        one.tensor_name: one for one in map_tensors(gguf_family(family_of(again.config)), again.config, parameters)
    }
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert {*entry} == {name for name in found if not name.startswith("rope_")}
    exact = ("_norm.", "position_embd.", "ffn_gate_inp.", ".bias", "sinks")
    for name, one in entry.items():
        tensor = found[name]
        is_exact = any(part in name for part in exact)
        assert tensor.tensor_type.name == ("F32" if is_exact else kind), name
        theirs = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_allclose(one.join(parameters).numpy(), theirs, rtol=0 if one.offset == 0 else 1e-6, atol=1e-7)
    logits = [run(one, random_ids(model.config, 2, 30)) for one in (again, model)]
    off, most = relative_change(*logits), {"F16": 1e-2, "BF16": 5e-2, "Q8_0": 0.3, "Q4_0": 3}[kind]
    assert 0 < off < most or model.config.layers[0].experts is not None  # routing may change


def rewrite(path, to, change):
    """Copy a file with the package's writer. `change` maps a tensor (name, array) to a list of them."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(to, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            writer.add_key_value(name, field.contents(), field.types[0])
    for tensor in reader.tensors:
        for name, array in change(tensor.name, np.array(tensor.data).reshape(tensor.shape.tolist()[::-1])):
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return to


def split_experts(name, array):
    """Split a fused tensor into one tensor per expert."""
    if "_exps." not in name:
        return [(name, array)]
    return [(name.replace("_exps.", f".{i}."), expert) for i, expert in enumerate(array)]


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "olmoe"])
def test_separate_expert_tensors(family, tmp_path):
    model, path = save_tiny(tmp_path, family)
    ids = random_ids(model.config, 2, 30)
    assert torch.equal(
        run(load_decoder(rewrite(path, tmp_path / "b.gguf", split_experts)), ids), run(load_decoder(path), ids)
    )


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "olmoe"])
def test_fused_gate_and_up_experts(family, tmp_path):
    model, path = save_tiny(tmp_path, family)
    seen = {}

    def join(name, array):
        seen[name] = array
        if "_gate_exps." not in name and "_up_exps." not in name:
            return [(name, array)]
        block = ".".join(name.split(".")[:2])
        both = [seen.get(f"{block}.ffn_{part}_exps.weight") for part in ("gate", "up")]
        whole = all(one is not None for one in both)
        return [(f"{block}.ffn_gate_up_exps.weight", np.concatenate(both, 1))] if whole else []

    ids = random_ids(model.config, 2, 30)
    assert torch.equal(run(load_decoder(rewrite(path, tmp_path / "b.gguf", join)), ids), run(load_decoder(path), ids))


@pytest.mark.parametrize("family", ["phi", "qwen2", "qwen3", "stablelm", "phi3"])
def test_fused_and_split_qkv(family, tmp_path):
    model, path = save_tiny(tmp_path, family)
    seen, config = {}, model.config.layers[0].attention
    sizes = np.cumsum([config.n_heads, config.n_kv_heads])[:2] * config.head_dim

    def change(name, array):
        part = name.split(".")[-1]
        block = ".".join(name.split(".")[:2])
        if ".attn_qkv." in name:
            return zip((f"{block}.attn_{p}.{part}" for p in "qkv"), np.split(array, sizes), strict=True)
        seen[name] = array
        if not any(f".attn_{p}.{part}" in name for p in "qkv"):
            return [(name, array)]
        three = [seen.get(f"{block}.attn_{p}.{part}") for p in "qkv"]
        return [(f"{block}.attn_qkv.{part}", np.concatenate(three))] if all(t is not None for t in three) else []

    again = load_decoder(rewrite(path, tmp_path / "b.gguf", change))
    ids = random_ids(model.config, 2, 30)
    assert torch.equal(run(again, ids), run(load_decoder(path), ids))


def test_experts_in_mxfp4(tmp_path):
    """gpt-oss is published in MXFP4. The decoded values equal the package's."""
    model, path = save_tiny(tmp_path, "gpt_oss")
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(tmp_path / "b.gguf", "gpt-oss")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            writer.add_key_value(name, field.contents(), field.types[0])
    generator, decoded = np.random.default_rng(0), {}
    for tensor in reader.tensors:
        if "_exps.weight" not in tensor.name:
            writer.add_tensor(tensor.name, np.array(tensor.data).reshape(tensor.shape.tolist()[::-1]))
            continue
        shape = gguf.quants.quant_shape_to_byte_shape(tensor.shape.tolist()[::-1], Kind.MXFP4)
        packed = generator.integers(0, 256, shape, dtype=np.uint8)
        packed[..., ::17] = generator.integers(122, 125, packed[..., ::17].shape)  # scales
        decoded[tensor.name] = gguf.quants.dequantize(packed, Kind.MXFP4)
        writer.add_tensor(tensor.name, packed, raw_dtype=Kind.MXFP4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    again = load_decoder(tmp_path / "b.gguf")
    for name, theirs in decoded.items():
        _, i, projection, _ = name.split(".")
        part = projection.removeprefix("ffn_").removesuffix("_exps")
        for j, expert in enumerate(theirs):
            ours = again.get_parameter(f"blocks.{i}.mlp.experts.{j}.{part}.weight")
            np.testing.assert_array_equal(ours.detach().numpy(), expert)
    assert len(decoded) == 9
    assert torch.isfinite(run(again, random_ids(model.config, 2, 30))).all()


def test_norm_weights_are_stored_plus_one(tmp_path):
    model, path = save_tiny(tmp_path, "gemma3_text")
    stored = torch.from_numpy(
        np.array({t.name: t for t in gguf.GGUFReader(path).tensors}["blk.1.attn_q_norm.weight"].data)
    )
    torch.testing.assert_close(stored, model.get_parameter("blocks.1.attn.q_norm.weight") + 1)
    for name in ("norm.weight", "blocks.0.mlp_out_norm.weight"):
        torch.testing.assert_close(load_decoder(path, copy=True).get_parameter(name), model.get_parameter(name))
        half = load_decoder(path, dtype=torch.bfloat16).get_parameter(name)
        assert torch.equal(half, load_decoder(path).get_parameter(name).bfloat16())
    assert {rule.offset for rule in norms_plus_one(gguf_family(family_of(gguf_config("llama"))).rules)} == {0.0, 1.0}


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gemma2", "deepseek_v2", "gpt_oss"])
def test_unknown_architecture_names_the_most_similar_one(family, tmp_path):
    """By keys and tensors: "llama9" with the tensors of Gemma 2 is like Gemma 2."""
    save_gguf(gguf_model(family), tmp_path / "a.gguf", "F32")
    header = read_header(tmp_path / "a.gguf")
    known = header.metadata["general.architecture"]
    metadata = {key.replace(f"{known}.", "llama9."): value for key, value in header.metadata.items()}
    metadata["general.architecture"] = "llama9"
    with pytest.raises(ConfigError, match=rf"x: unknown architecture 'llama9'; its keys and tensors .* of '{known}'"):
        read_metadata(metadata, header.tensors.keys(), 9, "x")
    with pytest.raises(ConfigError, match=r"x: unknown architecture 'llama9'\. Known"):
        read_metadata(metadata, (), 9, "x")


@pytest.mark.parametrize("name", [None, 7, ["llama"]])
def test_missing_architecture_raises(name):
    with pytest.raises(ConfigError, match=r"x: unknown architecture .*Known: bert, deepseek2, falcon"):
        read_metadata({"general.architecture": name}, (), 9, "x")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rope.scaling.type", "dynamic", "rope.scaling.type 'dynamic' is not supported"),
        ("rope.scaling.attn_factor", 2.0, "rope.scaling.attn_factor = 2.0 is not supported"),
        ("rope.scaling.yarn_attn_factor", 3.0, "rope.scaling.yarn_attn_factor = 3.0 is not supported"),
        ("rope.scaling.yarn_ext_factor", 0.5, "rope.scaling.yarn_ext_factor = 0.5 is not supported"),
        ("rope.freq_base_swa", 5.0, "rope.freq_base_swa = 5.0 is not supported"),
        ("rope.dimension_count", 6, "rope.dimension_count = 6 is not supported, only 16"),
        ("attention.head_count", [4, 4, 4], "attention.head_count must be a whole number"),
        ("attention.sliding_window", 5, "does not understand: attention.sliding_window"),
        ("expert_weights_scale", 2.0, "does not understand: expert_weights_scale"),
    ],
)
def test_unsupported_metadata_raises(key, value, message):
    _, metadata, _ = write_metadata(gguf_config("llama"))
    with pytest.raises(ConfigError, match=message):
        read_metadata(metadata | {f"llama.{key}": value}, (), 97, "x")


def test_legacy_and_redundant_rope_keys():
    _, metadata, _ = write_metadata(gguf_config("llama"))

    def rope(**values):
        keys = {f"llama.rope.{name}": value for name, value in values.items()}
        return read_metadata(metadata | keys, (), 97, "x").layers[0].attention.rope

    assert rope(scale_linear=4.0).scaling.factor == 4.0
    assert rope(**{"scaling.type": "none", "scaling.factor": 4.0}).scaling is None
    assert rope(**{"scaling.finetuned": True}).scaling is None
    yarn = rope(**{"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.yarn_attn_factor": 1.1386294})
    assert yarn.scaling.attention_factor == pytest.approx(1 + 0.1 * np.log(4))
    assert (yarn.scaling.original_context, yarn.scaling.beta_fast) == (64, 32.0)


@pytest.mark.parametrize("pattern", [3, [True, True, False, True], [1, 1, 0, 1]])
def test_sliding_window_pattern_as_number_or_list(pattern):
    config = gguf_config("gemma3_text")
    config = type(config)(**{**vars(config), "layers": (*config.layers, config.layers[0])})
    _, metadata, _ = write_metadata(config)
    config = read_metadata(metadata | {"gemma3.attention.sliding_window_pattern": pattern}, (), 97, "x")
    assert [layer.attention.window for layer in config.layers] == [5, 5, None, 5]
    for invalid in ([True], -1, "x"):
        with pytest.raises(ConfigError, match="sliding_window_pattern must be"):
            read_metadata(metadata | {"gemma3.attention.sliding_window_pattern": invalid}, (), 97, "x")


def test_largest_gemma_has_its_own_scale():
    for family, layers in (("gemma2", 46), ("gemma3_text", 62)):
        config = gguf_config(family, **{"*.attention.head_dim": 32, "*.attention.scale": 16**-0.5})
        long = type(config)(**{**vars(config), "layers": (config.layers * 31)[:layers]})
        assert write_metadata(long).architecture == ARCHITECTURES[family].architecture  # 64 / 4 heads, not a head's 32
        with pytest.raises(ConfigError, match=r"attention\.scale would be"):
            write_metadata(config)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("block_count", "block_count is 4000000000, but the tensors allow 3"),
        ("expert_count", "expert_count is 4000000000, but the tensors allow 6"),
        ("attention.head_count", "attention.head_count is 4000000000, but the tensors allow 64"),
    ],
)
def test_counts_larger_than_the_tensors_raise(key, message, tmp_path, monkeypatch):
    _, path = save_tiny(tmp_path, "mixtral")
    file = GgufFile(path)
    monkeypatch.setattr("glassformer.formats.gguf.file.read_header", lambda path: changed)
    changed = type(header := _header(path))(header.metadata | {f"llama.{key}": 4_000_000_000}, header.tensors)
    with pytest.raises(CheckpointError, match=message):
        load_decoder(path)
    assert file.metadata[f"llama.{key}"] < 100


def _header(path):
    from glassformer.formats.gguf import header as gguf_header

    return gguf_header.read_header(path)


# The families that transformers' reader supports, without what it ignores: biases, LongRoPE factors, per-head norms.
THEIRS = {
    "falcon": {},
    "gemma2": {},
    "gemma3_text": {},
    "gpt2": {},
    "llama": {"*.attention.bias": False, "*.attention.out_bias": False, "*.mlp.bias": False},
    "phi3": {"*.attention.rope.scaling": None, "*.attention.rope.dim": None},
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": {},
    "stablelm": {"*.attention.qk_norm_over": "head", "*.attention.qk_norm": None},
}


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
@pytest.mark.parametrize("family", THEIRS)
def test_transformers_reads_saved_gguf(family, kind, tmp_path):
    import transformers
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    model = gguf_model(family, **THEIRS[family])
    size = model.config.vocab_size
    tokens = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": [chr(256 + i) for i in range(size)]}
    save_gguf(model, tmp_path / "a.gguf", kind, extra=tokens)
    config = transformers.AutoConfig.for_model(**write_config(model.config))
    hf = transformers.AutoModelForCausalLM.from_config(config).eval()
    found = load_gguf_checkpoint(str(tmp_path / "a.gguf"), return_tensors=True, model_to_load=hf)["tensors"]
    missing, unexpected = hf.load_state_dict(found, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    hf.tie_weights()
    ids = random_ids(model.config, 2, 40)
    with torch.no_grad():
        assert_near(run(load_decoder(tmp_path / "a.gguf"), ids), hf(ids).logits)
