"""T5 as GGUF: round trip, logits against `transformers`, names of the `gguf` package; and unsupported families."""

from dataclasses import replace
from itertools import pairwise

import gguf
import numpy as np
import pytest
import torch
from text.test_sentencepiece import trained
from tiny import assert_near, change, randomise_sharp
from tiny_translators import CONFIGS

from glassformer.cli import main
from glassformer.errors import CheckpointError, ConfigError
from glassformer.families import family_of
from glassformer.formats import load_seq2seq, save_model
from glassformer.formats.gguf.metadata import gguf_family, read_metadata, write_metadata
from glassformer.formats.gguf.pooling import POOLS
from glassformer.formats.gguf.save import save_gguf
from glassformer.models.translator import Translator
from glassformer.nn.model import EncoderDecoder
from glassformer.nn.step import Step
from glassformer.text.sentencepiece.tokenizer import SentencePieceTokenizer
from glassformer.text.special_tokens import AddedToken
from glassformer.text.tokenizer import Tokenizer

T5S = pytest.mark.parametrize("name", ["t5", "flan"])
TEXTS = ["the cat sat on the mat", "a dog", "it is <extra_id_0> here"]


def t5_tokenizer():
    """Return a Unigram tokenizer with two sentinel tokens."""
    core = SentencePieceTokenizer(trained("unigram"))
    first = max(core.vocab.values()) + 1
    added = [AddedToken(first + i, f"<extra_id_{1 - i}>", special=True) for i in range(2)]
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 2, "add_bos_token": False, "add_eos_token": True}
    return Tokenizer(SentencePieceTokenizer(trained("unigram"), added), settings)


def t5(name):
    """Return a tiny T5 that GGUF can describe: max_distance 128, and rows divisible into blocks of 32."""
    tokenizer, config = t5_tokenizer(), CONFIGS[name]()
    sizes = {"d_model": 64, "vocab_size": tokenizer.vocab_size + 2}

    def side(stack, **more):
        relative = replace(stack.relative, max_distance=128)
        wide = {"attention.head_dim": 16, "mlp.d_ff": 96}
        layers = []
        for layer in stack.layers:
            for path, value in wide.items():
                layer = change(layer, path, value)
            layers.append(layer if layer.cross is None else change(layer, "cross.head_dim", 16))
        return replace(stack, relative=relative, layers=tuple(layers), **sizes, **more)

    scale = 64**-0.5 if config.tied_head else 1.0
    config = side(config, encoder=side(config.encoder), head_scale=scale)
    return Translator(
        randomise_sharp(EncoderDecoder(config)),
        tokenizer,
        generation_config={"decoder_start_token_id": 0, "eos_token_id": 2},
    )


def logits(model, source, target):
    with torch.no_grad():
        return model(target, Step.of(target, source=model.encode(source, Step.of(source))))


def sample_ids(config, length, seed):
    return torch.randint(3, config.vocab_size, (2, length), generator=torch.Generator().manual_seed(seed))


@T5S
def test_round_trip(name, tmp_path):
    original = t5(name)
    original.save_gguf(tmp_path / "a.gguf", "F32")
    found = Translator.load(tmp_path / "a.gguf")
    assert found.config == original.config
    constraints = replace(original.constraints, vocab_size=found.constraints.vocab_size)  # GGUF pads the vocabulary
    assert (found.begin_id, found.end_id, found.constraints) == (original.begin_id, original.end_id, constraints)
    inputs = sample_ids(original.config, 9, 1), sample_ids(original.config, 7, 2)
    assert torch.equal(logits(found.model, *inputs), logits(original.model, *inputs))
    for special in (False, True):
        assert found.encode(TEXTS[2], special=special) == original.encode(TEXTS[2], special=special)
    assert found.translate(TEXTS, max_tokens=12) == original.translate(TEXTS, max_tokens=12)
    found.save_gguf(tmp_path / "b.gguf", "F32")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@T5S
def test_logits_equal_transformers(name, tmp_path):
    """transformers opens the folder converted from the GGUF file."""
    import transformers

    t5(name).save_gguf(tmp_path / "a.gguf", "F32")
    found = load_seq2seq(tmp_path / "a.gguf")
    save_model(found, tmp_path / "hf")
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "hf").eval()
    source, target = sample_ids(found.config, 50, 1), sample_ids(found.config, 40, 2)
    with torch.no_grad():
        expected = theirs(input_ids=source, decoder_input_ids=target).logits
    assert_near(logits(found, source, target), expected)


@T5S
def test_names_types_and_keys_match_the_gguf_package(name, tmp_path):
    original = t5(name)
    original.save_gguf(tmp_path / "a.gguf", "Q8_0")
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    known = {gguf.TENSOR_NAMES[tensor] for tensor in gguf.MODEL_TENSORS[gguf.MODEL_ARCH.T5]}
    names = {tensor.name.rpartition(".")[0] for tensor in reader.tensors}
    assert {".".join("{bid}" if part.isdigit() else part for part in one.split(".")) for one in names} <= known
    gated, tied = original.config.layers[0].mlp.gated, original.config.tied_head
    assert len(names) == 3 * (8 + gated) + 2 * (13 + gated) + 2 + 3 + (not tied)  # biases; norms and table; head
    metadata = {key: field.contents() for key, field in reader.fields.items()}
    assert metadata[gguf.Keys.LLM.DECODER_BLOCK_COUNT.format(arch="t5")] == 2
    assert metadata[gguf.Keys.LLM.DECODER_START_TOKEN_ID.format(arch="t5")] == 0
    assert metadata[gguf.Keys.Attention.REL_BUCKETS_COUNT.format(arch="t5")] == 16
    assert metadata["t5.attention.layer_norm_epsilon"] == metadata["t5.attention.layer_norm_rms_epsilon"]
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    np.testing.assert_array_equal(
        np.array(tensors["dec.blk.0.attn_rel_b.weight"].data), original.model.relative_positions.weight.detach()
    )
    assert tensors["enc.blk.2.attn_q.weight"].tensor_type.name == "Q8_0"
    loaded = load_seq2seq(tmp_path / "a.gguf", dtype=torch.float32)
    theirs = gguf.quants.dequantize(tensors["dec.blk.1.cross_attn_q.weight"].data, gguf.GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(loaded.blocks[1].cross.q.weight.detach().numpy(), theirs)


def test_unused_cross_attention_bias_is_ignored(tmp_path):
    """T5 checkpoints hold a relative bias of cross-attention that no layer uses."""
    original = t5("t5")
    save_gguf(original.model, tmp_path / "a.gguf", "F32")
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    writer = gguf.GGUFWriter(tmp_path / "b.gguf", "t5")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            writer.add_key_value(name, field.contents(), field.types[0])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data))
    writer.add_tensor("dec.blk.0.cross_attn_rel_b.weight", np.ones((16, 3), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    inputs = sample_ids(original.config, 9, 1), sample_ids(original.config, 7, 2)
    assert torch.equal(logits(load_seq2seq(tmp_path / "b.gguf"), *inputs), logits(original.model, *inputs))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("relative.max_distance", 64, "relative.max_distance would be 128"),
        ("encoder.relative.max_distance", 64, "encoder.relative.max_distance would be 128"),
        ("layers.0.mlp.activation", "gelu", "layers.0.mlp.activation would be 'relu'"),
        ("encoder.context_length", 32, "encoder.context_length would be 64"),
        ("encoder.layers.0.mlp.d_ff", 32, "encoder.layers.0.mlp.d_ff would be 96"),
    ],
)
def test_config_without_gguf_form_raises(path, value, message):
    with pytest.raises(ConfigError, match=rf"GGUF's t5 cannot describe this t5 model: .*{message}"):
        write_metadata(change(t5("t5").config, path, value))


def test_unsupported_metadata_raises():
    config = t5("t5").config
    metadata = write_metadata(config).metadata
    for key, value, message in (
        ("attention.layer_norm_epsilon", 0.5, "attention.layer_norm_epsilon = 0.5 is not supported, only 0.01"),
        ("attention.wobble", 1, "does not understand: attention.wobble"),
        ("decoder_block_count", 0, "must be a whole number from 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_metadata(metadata | {f"t5.{key}": value}, (), config.vocab_size, "x")
    defaults = {key: value for key, value in metadata.items() if key != "t5.decoder_block_count"}
    assert read_metadata(defaults, (), config.vocab_size, "x").n_layers == config.encoder.n_layers


def test_forced_or_banned_tokens_raise(tmp_path):
    original = t5("t5")
    for special in ({"forced_bos_token_id": 5}, {"bad_words_ids": [[4]]}, {"eos_token_id": 7}):
        one = Translator(original.model, original.tokenizer, generation_config=original.generation_config | special)
        with pytest.raises(ConfigError, match="GGUF has no fields for forced or banned tokens"):
            one.save_gguf(tmp_path / "a.gguf")


def test_min_length_and_no_repeat_ngram(tmp_path):
    """They constrain generation and survive saving, but GGUF has no keys for them."""
    constraints = {"min_length": 9, "no_repeat_ngram_size": 2}
    original = t5("flan")
    Translator(original.model, original.tokenizer, generation_config=original.generation_config | constraints).save(
        tmp_path
    )
    found = Translator.load(tmp_path)
    assert (found.constraints.min_length, found.constraints.no_repeat_ngram) == (9, 2)
    for text in TEXTS[:2]:
        ids = [found.begin_id, *found.translate(text, max_tokens=20)[0].targets[0].ids]
        assert len(ids) >= 9
        pairs = list(pairwise(ids))
        assert len(set(pairs)) == len(pairs)
    with pytest.raises(ConfigError, match="GGUF has no fields for forced or banned tokens"):
        found.save_gguf(tmp_path / "a.gguf")
    for name, value in (("min_length", -1), ("no_repeat_ngram_size", 2.0), ("min_length", True)):
        with pytest.raises(CheckpointError, match=rf"{name} must be a whole number of at least 0, got {value}"):
            Translator(original.model, original.tokenizer, generation_config={name: value})


@pytest.mark.parametrize("name", ["bart", "marian"])
def test_family_without_gguf_form_raises(name):
    with pytest.raises(ConfigError, match=rf"(?i){name} cannot be stored as GGUF: llama.cpp, .* not {name}"):
        gguf_family(family_of(CONFIGS[name]()))


@T5S
def test_convert_round_trip(name, tmp_path):
    original = t5(name)
    original.save(tmp_path / "hf")
    main(["convert", str(tmp_path / "hf"), str(tmp_path / "a.gguf"), "--to", "F32"])
    main(["convert", str(tmp_path / "a.gguf"), str(tmp_path / "again")])
    for one in ("a.gguf", "again"):
        assert Translator.load(tmp_path / one).translate(TEXTS, max_tokens=9) == original.translate(TEXTS, max_tokens=9)
    main(["show", str(tmp_path / "a.gguf")])


def test_pooling_numbers_match_the_gguf_package():
    assert {number: gguf.PoolingType(number).name[:4] for number in POOLS} == {1: "MEAN", 2: "CLS", 3: "LAST"}
