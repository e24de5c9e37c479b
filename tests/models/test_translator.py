"""Translator: translate, align, save, load, and the errors of damaged folders."""

import json
from dataclasses import replace

import pytest
import torch
from generate.scripted import END, make_tokenizer
from safetensors.torch import load_file, save_file
from tiny import ENCODER_DECODERS, assert_near, encoder_decoder_config, randomise, randomise_sharp, tiny

import glassformer
from glassformer.config import RecurrentConfig
from glassformer.errors import CapacityError, CheckpointError, ConfigError, RequestError, TokenizerError
from glassformer.families import read_config, write_config
from glassformer.formats import load_decoder, load_seq2seq
from glassformer.generate.beam_search import BeamSearch, search
from glassformer.generate.request import TokenConstraints
from glassformer.inspect.capture.recorder import RecorderTap
from glassformer.models.language_model import LanguageModel
from glassformer.models.load import load
from glassformer.models.translator import Translator
from glassformer.nn.model import EncoderDecoder
from glassformer.nn.recurrent import RecurrentEncoderDecoder
from glassformer.nn.step import Step
from glassformer.text.tokenizer import Tokenizer

TOKENIZER = make_tokenizer()
VOCAB = TOKENIZER.vocab_size
RECURRENT = {"none": (None, False), "additive": ("additive", False), "dot": ("dot", False), "fed": ("general", True)}
TEXTS = ["the cat sat", "吾輩は猫", "the mat ate the hat", "é", "a dog"]


def transformer_config(name):
    """Return a config with an untied head, except "post": a tied head with random weights repeats one token."""
    config = replace(encoder_decoder_config(name, shared_embedding=False), family="pair", vocab_size=VOCAB)
    config = replace(config, tied_head=name == "post")
    shared = name in ("post", "pre")
    return replace(config, encoder=replace(config.encoder, vocab_size=VOCAB), shared_embedding=shared)


def recurrent_config(kind):
    attention, fed = RECURRENT[kind]
    return RecurrentConfig(
        VOCAB, VOCAB, 10, 12, 2, "lstm" if kind == "dot" else "gru", kind != "fed", attention, fed, kind == "additive"
    )


def make_translator(name):
    if name in RECURRENT:
        model = randomise(RecurrentEncoderDecoder(recurrent_config(name)))
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1.5 if p.ndim > 1 else 1.0)
    else:
        model = randomise_sharp(EncoderDecoder(transformer_config(name)))
    return Translator(model, TOKENIZER)


TRANSLATORS = {name: make_translator(name) for name in (*ENCODER_DECODERS, *RECURRENT)}
EACH = pytest.mark.parametrize("name", TRANSLATORS)


@pytest.fixture(params=["pre", "additive"])
def name(request):
    return request.param


@pytest.fixture
def folder(name, tmp_path):
    TRANSLATORS[name].save(tmp_path / "model")
    return tmp_path / "model"


def assert_equal(a, b):
    ours, theirs = dict(a.model.named_parameters()), dict(b.model.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert a.config == b.config


# ---- translating


@EACH
def test_translate_equals_search_in_input_order(name, monkeypatch):
    translator = TRANSLATORS[name]
    monkeypatch.setattr("glassformer.models.translator.BATCH", 6)  # several batches
    found = translator.translate(TEXTS, beam=3, n=2, max_tokens=7, length_penalty=1.0)
    assert [one.source for one in found] == TEXTS
    for text, one in zip(TEXTS, found, strict=True):
        ids, how = TOKENIZER.encode(text, bare=True), BeamSearch(3, 2, 7, 1.0)
        limited = TokenConstraints(vocab_size=VOCAB)
        begin = TOKENIZER.eos_id
        (best,) = search(translator.model, [ids], how, begin=begin, end=begin, constraints=limited)
        assert [target.ids for target in one.targets] == [b.ids for b in best]
        assert [target.score for target in one.targets] == pytest.approx([b.score for b in best], rel=1e-4)
        assert [target.finish for target in one.targets] == [b.finish for b in best]
        assert one.text == one.targets[0].text == TOKENIZER.decode(one.targets[0].ids, skip_special=True)
    assert translator.translate(TEXTS[0], max_tokens=5) == translator.translate([TEXTS[0]], max_tokens=5)
    assert translator.translate([]) == []


def test_translate_errors_name_the_text():
    translator = TRANSLATORS["post"]
    long = "the hat " * 40
    with pytest.raises(CapacityError, match=r"^the text has \d+ tokens, and the encoder's context holds 64"):
        translator.translate(long)
    with pytest.raises(CapacityError, match=r"^text 2 of 3: the text has"):
        translator.translate(["a", long, "b"])
    with pytest.raises(RequestError, match=r"^text 3 of 3: the text is empty"):
        translator.translate(["a", "b", ""])
    with pytest.raises(RequestError, match="n = 4 results need a beam"):
        translator.translate("a", n=4)
    with pytest.raises(CapacityError, match="max_tokens 65 does not fit"):
        translator.translate("a", max_tokens=65)
    assert TRANSLATORS["dot"].translate(long, max_tokens=3)[0].text is not None, "a recurrent model accepts any length"


# ---- alignment


@pytest.mark.parametrize("name", ENCODER_DECODERS)
@torch.no_grad()
def test_alignment_equals_cross_attention(name):
    """Recomputed probabilities equal those that a tap captures during the forward pass."""
    translator, ids = TRANSLATORS[name], TOKENIZER.encode(TEXTS[1], bare=True)
    got = translator.align(TEXTS[0], TEXTS[1])
    source, target = torch.tensor([TOKENIZER.encode(TEXTS[0], bare=True)]), torch.tensor([[TOKENIZER.eos_id, *ids]])
    model = translator.model
    tap = RecorderTap(*(f"blocks.{i}.cross.probs" for i in range(model.config.n_layers)))
    model(target, Step.of(target, source=model.encode(source, Step.of(source)), tap=tap))
    assert_near(got.probs, torch.cat([probs for (probs,) in tap.values()]))
    assert got.probs.shape == (2, 4, len(ids) + 1, source.shape[1])
    assert 0 < got.error < 1e-4
    assert_near(got.probs.sum(-1), torch.ones(got.probs.shape[:-1]), 1e-6)
    assert_near(got.mean, got.probs.flatten(0, 1).mean(0), 1e-6)


@pytest.mark.parametrize("name", [name for name in RECURRENT if name != "none"])
@torch.no_grad()
def test_alignment_equals_recurrent_attention(name):
    translator, ids = TRANSLATORS[name], TOKENIZER.encode(TEXTS[1], bare=True)
    got, tap = translator.align(TEXTS[0], TEXTS[1]), RecorderTap("rnn.probs")
    source, target = torch.tensor([TOKENIZER.encode(TEXTS[0], bare=True)]), torch.tensor([[TOKENIZER.eos_id, *ids]])
    translator.model(source, target, None, tap)
    assert_near(got.probs[0], torch.cat(tap["rnn.probs"], 1), 1e-6)
    assert got.probs.shape == (1, 1, len(ids) + 1, source.shape[1])
    assert got.error < 1e-5


def test_alignment_has_source_and_target_tokens():
    translator = TRANSLATORS["additive"]
    got = translator.align("the cat", "a hat")
    assert "".join(got.source_tokens) == "the cat"
    assert "".join(got.target_tokens) == "a hat" + END
    generated = translator.translate("the cat", max_tokens=4)[0].targets[0].ids
    assert len(translator.align("the cat", generated, ended=False).target_tokens) == len(generated)


def test_alignment_errors():
    with pytest.raises(RequestError, match="no attention"):
        TRANSLATORS["none"].align("a", "b")
    translator = TRANSLATORS["post"]
    assert len(translator.align("a", [5] * 63).target_tokens) == 64
    assert len(translator.align("a", [5] * 64, ended=False).target_tokens) == 64
    with pytest.raises(CapacityError, match="the target has 65 tokens with its end token"):
        translator.align("a", [5] * 64)
    with pytest.raises(RequestError, match=f"token id {VOCAB} is out of range"):
        translator.align("a", [VOCAB])
    with pytest.raises(RequestError, match="the text is empty"):
        translator.align("", "b")
    assert translator.align("a", "").target_tokens == (END,)


# ---- folders


@EACH
def test_saved_then_loaded_model_is_equal(name, tmp_path):
    translator = TRANSLATORS[name]
    translator.save(tmp_path)
    again = Translator.load(tmp_path)
    assert_equal(again, translator)
    assert again.path == str(tmp_path)
    assert not again.model.training
    found, want = (t.translate(TEXTS, beam=2, max_tokens=6) for t in (again, translator))
    assert [one.targets[0].ids for one in found] == [one.targets[0].ids for one in want]
    assert found[0].targets[0].logprob == pytest.approx(want[0].targets[0].logprob, rel=1e-4)
    assert set(load_file(tmp_path / "model.safetensors")) == set(dict(translator.model.named_parameters()))
    again.save(tmp_path)  # to the file that it is memory-mapped from
    assert_equal(Translator.load(tmp_path), translator)
    copied = load_seq2seq(tmp_path, copy=True, dtype=torch.bfloat16)
    assert all(p.dtype == torch.bfloat16 and not p.is_meta for p in copied.parameters())
    assert isinstance(glassformer.load(tmp_path), glassformer.Translator)


def test_run_folder_loads_its_best_checkpoint(folder, tmp_path, name):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    folder.rename(tmp_path / "run" / "checkpoints" / "best")
    assert_equal(Translator.load(tmp_path / "run"), TRANSLATORS[name])


def test_lower_precision_translates_and_aligns(folder, name):
    exact, low = TRANSLATORS[name], Translator.load(folder, dtype="bfloat16")
    assert {p.dtype for p in low.model.parameters() if p.ndim > 1} == {torch.bfloat16}
    assert low.translate(TEXTS[0], beam=2, n=2, max_tokens=4)[0].targets[0].logprob < 0
    assert_near(low.align(*TEXTS[:2]).mean, exact.align(*TEXTS[:2]).mean, 0.3)
    with pytest.raises(ConfigError, match="device 'abacus'"):
        Translator.load(folder, device="abacus")


def test_load_returns_the_class_of_the_checkpoint(folder, tmp_path):
    assert isinstance(load(folder), Translator)
    with pytest.raises(CheckpointError, match=r"LanguageModel cannot load .*, which is an? .*encoder-decoder"):
        LanguageModel.load(folder)
    with pytest.raises(CheckpointError, match="encoder-decoder: use `glassformer translate`"):
        load_decoder(folder)
    LanguageModel(tiny("qwen3", vocab_size=VOCAB), TOKENIZER).save(tmp_path / "lm")
    assert isinstance(load(tmp_path / "lm"), LanguageModel)
    with pytest.raises(CheckpointError, match="is a decoder-only language model: use `glassformer generate`"):
        Translator.load(tmp_path / "lm")


def test_all_weight_errors_are_in_one_message(folder):
    tensors = load_file(folder / "model.safetensors")
    missing, cut, retyped = sorted(tensors)[:3]
    del tensors[missing]
    tensors[cut] = tensors[cut][:-1].contiguous()
    tensors[retyped] = tensors[retyped].to(torch.int32)
    tensors["lm_head.weight"] = torch.zeros(2)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError) as error:
        Translator.load(folder)
    for what in (f"missing: {missing}", f"shape: {cut} is ", f"type: {retyped} is I32", "not used: lm_head.weight"):
        assert str(error.value).count(what) == 1
    (folder / "model.safetensors").write_bytes(b"\x08\0\0")
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        Translator.load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
        Translator.load(folder)


def test_unsuitable_tokenizers_raise(folder, name):
    model = TRANSLATORS[name].model
    layout = json.loads((folder / "tokenizer.json").read_text())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    with pytest.raises(TokenizerError, match="token that ends a text"):
        Translator(model, Tokenizer(json.dumps(layout), {}))
    layout["added_tokens"].append(layout["added_tokens"][0] | {"id": VOCAB, "content": "<|more|>"})
    (folder / "tokenizer.json").write_text(json.dumps(layout))
    with pytest.raises(CheckpointError, match=f"has {VOCAB + 1} tokens, and the model's source vocabulary {VOCAB}"):
        Translator.load(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="has no tokenizer, which a translator needs"):
        Translator.load(folder)
    (folder / "tokenizer.json").write_text("{}")
    config["bos_token"] = "nowhere"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(TokenizerError):
        Translator.load(folder)


# ---- config.json


CONFIGS = {name: transformer_config(name) for name in ENCODER_DECODERS} | {
    kind: recurrent_config(kind) for kind in RECURRENT
}


@pytest.mark.parametrize("name", CONFIGS)
def test_config_json_round_trip(name):
    raw = json.loads(json.dumps(write_config(CONFIGS[name])))
    assert read_config(raw, "config.json") == CONFIGS[name]
    assert raw["model_type"] == ("pair" if name in ENCODER_DECODERS else "recurrent_pair")
    if name in ENCODER_DECODERS:
        assert [layer["repeat"] for layer in raw["layers"]] == [2]
        layers = CONFIGS[name].layers
        changed = replace(CONFIGS[name], layers=(*layers, replace(layers[0], norm_at=("out",))))
        raw = json.loads(json.dumps(write_config(changed)))
        assert [layer["repeat"] for layer in raw["layers"]] == [2, 1]
        assert read_config(raw, "config.json") == changed


def leaves(value, path=()):
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(part, (*path, key))
    else:
        yield path


def edited(raw, path, value):
    raw = json.loads(json.dumps(raw))
    inner = raw
    for key in path[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return raw


@pytest.mark.parametrize("name", ["separate", "rms", "fed"])
def test_errors_name_each_damaged_key(name):
    raw = write_config(CONFIGS[name])
    for path in leaves(raw):
        if path[0] in ("architectures", "model_type"):
            continue
        for wrong in ({"?": 1}, "nonsense", [3]):
            with pytest.raises(ConfigError) as error:
                read_config(edited(raw, path, wrong), "FOLDER/config.json")
            assert str(error.value).startswith("FOLDER/config.json")
            owner = [str(key) for key in path if isinstance(key, str)][-1]
            assert owner in str(error.value) or "norm_at" in str(error.value)


@pytest.mark.parametrize(
    ("name", "path", "value", "message"),
    [
        ("pre", ("layers", 0, "mlp", "d_ff"), "72", r"json\.layers\[0\]\.mlp\.d_ff must be a whole number, got '72'"),
        ("pre", ("layers", 0, "mlp", "wide"), 1, r"layers\[0\]\.mlp: unknown keys for MLPConfig: wide"),
        ("pre", ("layers", 0, "mlp", "d_ff"), ..., r"layers\[0\]\.mlp: missing keys: d_ff"),
        ("pre", ("layers", 0, "repeat"), 0, r"layers\[0\]\.repeat must be a whole number from 1"),
        ("pre", ("layers",), {}, r"config\.json\.layers must be a list"),
        ("pre", ("layers", 0), 3, r"layers\[0\] must be an object, got 3"),
        ("pre", ("encoder",), None, "'encoder' is missing"),
        (
            "pre",
            ("positions",),
            "round",
            "positions must be one of 'learned', 'sinusoidal', 'sinusoidal halves', got 'round'",
        ),
        ("pre", ("d_model",), 40, "encoder and decoder must have the same d_model"),
        ("pre", ("family",), "pair", "keys this family does not understand: family"),
        ("pre", ("wobble",), 1, "unknown keys for ModelConfig: wobble"),
        ("fed", ("wobble",), 1, "unknown keys for RecurrentConfig: wobble"),
        ("fed", ("cell",), "tape", "cell must be one of 'gru', 'lstm'"),
        ("fed", ("d_hidden",), ..., "missing keys: d_hidden"),
    ],
)
def test_invalid_config_json_raises(name, path, value, message):
    with pytest.raises(ConfigError, match=message):
        read_config(edited(write_config(CONFIGS[name]), path, value), "config.json")


def test_unknown_keys_can_be_ignored(folder, name):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"wobble": 3}))
    with pytest.raises(ConfigError, match="wobble"):
        Translator.load(folder)
    assert_equal(Translator.load(folder, ignore_keys=["wobble"]), TRANSLATORS[name])
