"""Text encoders as GGUF: vectors against `transformers`; names, types and keys against the `gguf` package."""

import json
from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch
import transformers
from tiny import assert_near
from tiny_encoders import LAYER, TOKENIZERS, bytes_of_roberta, embedder, wordpieces

from glassformer.cli import main
from glassformer.config import DenseConfig, PoolingConfig
from glassformer.errors import CheckpointError, ConfigError, TokenizerError
from glassformer.formats import load_text_encoder
from glassformer.formats.gguf.metadata import write_metadata
from glassformer.formats.gguf.save import left_out, save_gguf
from glassformer.formats.gguf.tokenizer_read import tokenizer_from_gguf
from glassformer.formats.gguf.tokenizer_write import tokenizer_to_gguf
from glassformer.models.embedder import Embedder
from glassformer.text.tokenizer import Tokenizer

TEXTS = ["the cat sat on the mat.", "a dog", "the kittens ate the hat, the cat sat on it. a dog?", "query: a hat"]
FAMILIES = pytest.mark.parametrize("family", TOKENIZERS)
MEAN = PoolingConfig(after=("normalize",))


@pytest.fixture(scope="module", params=TOKENIZERS)
def saved(request, tmp_path_factory):
    """Return a model and a folder that holds it as `hf` (safetensors) and as `a.gguf`."""
    path, original = tmp_path_factory.mktemp(request.param), embedder(request.param)
    original.save(path / "hf")
    original.save_gguf(path / "a.gguf", "F32")
    return original, path


@torch.no_grad()
def test_vectors_equal_transformers(saved):
    original, path = saved
    loaded = Embedder.load(path / "a.gguf")
    assert_near(loaded.embed(TEXTS), original.embed(TEXTS))
    assert_near(loaded.embed(TEXTS), Embedder.load(path / "hf").embed(TEXTS))
    model = transformers.AutoModel.from_pretrained(path / "hf").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path / "hf")
    for text in TEXTS:
        theirs = model(tokenizer(text, return_tensors="pt")["input_ids"]).last_hidden_state[0]
        assert_near(loaded.states(text), theirs)
    pair = loaded.encode_pair("the cat", "a dog")
    assert pair == original.encode_pair("the cat", "a dog")
    assert loaded.max_tokens == original.config.context_length
    heads = {"bert": ["pooler", "next_sentence", "head"], "distilbert": ["head"]}
    assert left_out(original.model) == heads.get(original.config.family, ["pooler", "head"])


def test_names_types_and_keys_match_the_gguf_package(saved):
    original, path = saved
    known = {gguf.TENSOR_NAMES[tensor] for tensor in gguf.MODEL_TENSORS[gguf.MODEL_ARCH.BERT]}
    reader = gguf.GGUFReader(path / "a.gguf")
    names = {tensor.name.rpartition(".")[0] for tensor in reader.tensors}
    assert {".".join("{bid}" if part.isdigit() else part for part in name.split(".")) for name in names} <= known
    metadata = {key: field.contents() for key, field in reader.fields.items()}
    assert metadata["general.architecture"] == "bert"
    assert metadata["bert.attention.causal"] is False
    assert metadata[gguf.Keys.Tokenizer.TOKEN_TYPE_COUNT] == (original.config.n_token_types or 1)
    assert metadata["bert.context_length"] == original.config.context_length
    tables = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    offset = original.config.position_offset
    np.testing.assert_array_equal(tables["position_embd.weight"], original.model.positions.weight.detach()[offset:])
    assert ("token_types.weight" in tables) == (original.config.family != "distilbert")


def test_round_trip(saved, tmp_path):
    """A loaded model saves to the same bytes, and to a folder that `transformers` opens."""
    original, path = saved
    loaded = Embedder.load(path / "a.gguf")
    assert loaded.config.family == ("distilbert" if original.config.family == "distilbert" else "bert")
    loaded.save_gguf(tmp_path / "b.gguf", "F32")
    assert (tmp_path / "b.gguf").read_bytes() == (path / "a.gguf").read_bytes()
    loaded.save(tmp_path / "hf")
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "hf").eval()
    ids = torch.tensor([loaded.tokenizer.encode(TEXTS[0])])
    with torch.no_grad():
        assert_near(loaded.states(TEXTS[0]), theirs(ids).last_hidden_state[0])


@pytest.mark.parametrize(("kind", "near"), [("F16", 2e-3), ("BF16", 2e-2), ("Q8_0", 2e-2)])
@FAMILIES
def test_quantized(family, kind, near, tmp_path):
    original = embedder(family)
    original.save_gguf(tmp_path / "a.gguf", kind)
    loaded = Embedder.load(tmp_path / "a.gguf", dtype="float32")
    off = (loaded.embed(TEXTS) - original.embed(TEXTS)).abs().max() / original.embed(TEXTS).abs().max()
    assert 0 < off < near
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    assert kinds["blk.1.attn_q.weight"] == kinds["token_embd.weight"] == kind
    assert {kinds[name] for name in kinds if "norm" in name or "bias" in name or "types" in name} == {"F32"}


@FAMILIES
def test_fused_qkv_tensor(family, tmp_path):
    original = embedder(family)
    original.save_gguf(tmp_path / "a.gguf", "F32")
    reader, tensors = gguf.GGUFReader(tmp_path / "a.gguf"), {}
    writer = gguf.GGUFWriter(tmp_path / "b.gguf", "bert")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            writer.add_key_value(name, field.contents(), field.types[0])
    for tensor in reader.tensors:
        tensors[tensor.name] = np.array(tensor.data)
        block, _, part = tensor.name.rpartition(".attn_")
        if part[:2] not in ("q.", "k.", "v."):
            writer.add_tensor(tensor.name, tensors[tensor.name])
        elif part[0] == "v":
            three = [tensors[f"{block}.attn_{p}{part[1:]}"] for p in "qkv"]
            writer.add_tensor(f"{block}.attn_qkv{part[1:]}", np.concatenate(three))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert torch.equal(Embedder.load(tmp_path / "b.gguf").embed(TEXTS), Embedder.load(tmp_path / "a.gguf").embed(TEXTS))


# ---- pooling


@pytest.mark.parametrize(("pool", "number"), [("mean", 1), ("cls", 2), ("lasttoken", 3)])
@pytest.mark.parametrize("after", [(), ("normalize",)])
def test_pooling(pool, number, after, tmp_path):
    """pooling_type is the package's number. Vectors are normalized, as programs that run GGUF files do."""
    if (pool, after) == ("mean", ()):
        return  # the default, which has no key
    original = embedder("bert", PoolingConfig(pools=(pool,), after=after))
    original.save_gguf(tmp_path / "a.gguf", "F32")
    stored = gguf.GGUFReader(tmp_path / "a.gguf").fields["bert.pooling_type"].contents()
    assert stored == number == gguf.PoolingType[{"lasttoken": "LAST"}.get(pool, pool.upper())]
    loaded = Embedder.load(tmp_path / "a.gguf")
    vectors = original.embed(TEXTS)
    assert_near(loaded.embed(TEXTS), vectors / vectors.norm(dim=-1, keepdim=True))
    assert_near(loaded.similarity(loaded.embed(TEXTS), loaded.embed(TEXTS)), original.similarity(vectors, vectors))


def test_default_pooling_has_no_key(saved):
    assert "bert.pooling_type" not in gguf.GGUFReader(saved[1] / "a.gguf").fields


@pytest.mark.parametrize(
    ("sentence", "message"),
    [
        (PoolingConfig(("max",)), "the pooling max"),
        (PoolingConfig(("cls", "mean")), r"the pooling cls \+ mean"),
        (PoolingConfig(after=(DenseConfig(64, 32),)), "layers after the pooling"),
        (PoolingConfig(similarity="dot"), "vectors compared by dot"),
        (replace(MEAN, prompts={"q": "query: "}, prompt="q"), "the prompt 'q' before every text"),
        (replace(MEAN, with_prompt=False), "a prompt that is not pooled"),
        (replace(MEAN, dimensions=8), "the first 8 numbers of a vector"),
    ],
)
def test_unsupported_pooling_settings_raise(sentence, message, tmp_path):
    with pytest.raises(ConfigError, match=f"GGUF cannot describe .*{message}"):
        embedder("bert", sentence).save_gguf(tmp_path / "a.gguf")
    assert not (tmp_path / "a.gguf").exists()


def test_unsupported_metadata_raises(tmp_path):
    original = embedder("bert", PoolingConfig(pools=("cls",)))

    def load_with(**keys):
        words = tokenizer_to_gguf(original.tokenizer, original.config.vocab_size)
        save_gguf(
            original.model, tmp_path / "a.gguf", "F32", extra=words | {f"bert.{key}": v for key, v in keys.items()}
        )
        return Embedder.load(tmp_path / "a.gguf")

    assert load_with(pooling_type=0).sentence.config == PoolingConfig()
    with pytest.raises(ConfigError, match=r"bert.pooling_type = 4 is not supported, only 1 \(mean\), 2 \(cls\)"):
        load_with(pooling_type=4)
    with pytest.raises(ConfigError, match=r"does not understand: classifier.output_labels"):
        load_with(**{"classifier.output_labels": ["a", "b"]})
    save_gguf(original.model, tmp_path / "a.gguf", extra={"tokenizer.ggml.token_type_count": 5})
    with pytest.raises(CheckpointError, match=r"shape: token_types.weight is \[3, 64\], the config needs \[5, 64\]"):
        load_text_encoder(tmp_path / "a.gguf")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": (LAYER,) * 3, "d_model": 48}, "layers.0.mlp.activation would be 'gelu'"),
        ({"embed_norm": None}, "embed_norm"),
    ],
)
def test_config_without_gguf_form_raises(changes, message):
    with pytest.raises(ConfigError, match=rf"cannot describe this bert model.*{message}"):
        write_metadata(replace(embedder("bert").config, **changes))


# ---- tokenizers


@pytest.mark.parametrize(("lowercase", "accents"), [(True, None), (False, None), (True, False), (False, True)])
def test_normalizer_flags_round_trip(lowercase, accents):
    layout = json.loads(wordpieces().backend.json)
    layout["normalizer"] |= {"lowercase": lowercase, "strip_accents": accents}
    tokenizer = Tokenizer(json.dumps(layout), wordpieces().config)
    metadata = tokenizer_to_gguf(tokenizer)
    again = tokenizer_from_gguf(metadata)
    for text in ("The CAT sät", "the cat", "Ünï é"):
        assert again.encode(text) == tokenizer.encode(text)
    flags = {key for key in metadata if ".normalizer." in key}
    assert flags == {f"tokenizer.ggml.normalizer.{key}" for key in (
        (["lowercase"] if not lowercase else []) + (["strip_accents"] if accents not in (None, lowercase) else [])
    )}  # fmt: skip
    layout["normalizer"]["handle_chinese_chars"] = False
    with pytest.raises(TokenizerError, match="does not split Chinese characters"):
        tokenizer_to_gguf(Tokenizer(json.dumps(layout)))


def test_roberta_tokenizer_round_trips():
    """`roberta-bpe`; BOS and EOS around one text, and two EOS between two texts."""
    tokenizer = bytes_of_roberta()
    metadata = tokenizer_to_gguf(tokenizer, 270)
    flags = {key: metadata[f"tokenizer.ggml.{key}"] for key in ("model", "pre", "add_bos_token", "add_eos_token")}
    assert flags == {"model": "gpt2", "pre": "roberta-bpe", "add_bos_token": True, "add_eos_token": True}
    again = tokenizer_from_gguf(metadata)
    assert again.encode("the th") == tokenizer.encode("the th")
    assert again.encode_pairs([("a", "the")]) == tokenizer.encode_pairs([("a", "the")])
    assert (again.prefix_ids, again.suffix_ids) == ([0], [2])
    del metadata["tokenizer.ggml.add_sep_token"]
    assert tokenizer_from_gguf(metadata).encode_pairs([("a", "b")]) == tokenizer.encode_pairs([("a", "b")])
    single = tokenizer_from_gguf(metadata | {"tokenizer.ggml.add_sep_token": False})
    assert len(single.encode_pairs([("a", "b")])[0][0]) == len(tokenizer.encode_pairs([("a", "b")])[0][0]) - 1
    assert tokenizer_to_gguf(single)["tokenizer.ggml.add_sep_token"] is False


# ---- the command line


def test_convert_round_trip(saved, tmp_path, capsys):
    original, path = saved
    main(["convert", str(path / "hf"), str(tmp_path / "a.gguf"), "--to", "F32"])
    output = capsys.readouterr()
    assert "left out, because GGUF cannot store it: " + ", ".join(left_out(original.model)) in output.out + output.err
    assert (tmp_path / "a.gguf").read_bytes() == (path / "a.gguf").read_bytes()
    main(["convert", str(tmp_path / "a.gguf"), str(tmp_path / "hf")])
    assert_near(Embedder.load(tmp_path / "hf").embed(TEXTS), original.embed(TEXTS))
    for verb in ("show", "verify"):
        main([verb, str(tmp_path / "a.gguf")])


def test_convert_preserves_pooling(tmp_path):
    original = embedder("bert", PoolingConfig(pools=("cls",), after=("normalize",)))
    original.save(tmp_path / "hf")
    main(["convert", str(tmp_path / "hf"), str(tmp_path / "a.gguf"), "--to", "F32"])
    main(["convert", str(tmp_path / "a.gguf"), str(tmp_path / "again")])
    for one in ("a.gguf", "again"):
        assert_near(Embedder.load(tmp_path / one).embed(TEXTS), original.embed(TEXTS))
    assert left_out(Embedder.load(tmp_path / "a.gguf").model) == []
