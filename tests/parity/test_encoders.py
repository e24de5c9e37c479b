"""Parity of BERT, RoBERTa, XLM-RoBERTa and DistilBERT with `transformers`, with and without heads."""

import json
import math
from dataclasses import fields, is_dataclass, replace

import pytest
import torch
import transformers
from hf_models import CaptureTap, hf_random
from safetensors.torch import load_file, save_file
from test_fields import LAYER, SIMILAR_ACTIVATIONS, assert_key_is_used, count_rejected_keys
from test_fields import OTHER_VALUES as DECODER_VALUES
from tiny import TOLERANCE, assert_near, relative_change
from tiny_encoders import CONFIGS, outputs, some_ids, tiny_encoder

from glassformer.config import MaskedHeadConfig, change
from glassformer.errors import CheckpointError, ConfigError
from glassformer.families import read_config, write_config
from glassformer.families.common.family import IGNORED
from glassformer.formats import load_decoder, load_seq2seq, load_text_encoder, save_model
from glassformer.inspect.capture.compare import compare
from glassformer.nn.encoder import TextEncoder

SIZES = {
    "vocab_size": 89, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 48,
}  # fmt: skip
SMALL = {"vocab_size": 89, "dim": 32, "hidden_dim": 56, "n_layers": 3, "n_heads": 4, "max_position_embeddings": 48}
HF_CONFIGS = {
    "bert": lambda: transformers.BertConfig(**SIZES, hidden_act="gelu_new", layer_norm_eps=1e-3),
    "roberta": lambda: transformers.RobertaConfig(**SIZES, hidden_act="relu", layer_norm_eps=1e-3),
    "xlm-roberta": lambda: transformers.XLMRobertaConfig(**SIZES, type_vocab_size=1),
    "distilbert": lambda: transformers.DistilBertConfig(**SMALL, activation="relu"),
}
CLASSES = {
    "bert": ("BertModel", "BertForMaskedLM", "BertForPreTraining", "BertForNextSentencePrediction"),
    "roberta": ("RobertaModel", "RobertaForMaskedLM"),
    "xlm-roberta": ("XLMRobertaModel", "XLMRobertaForMaskedLM"),
    "distilbert": ("DistilBertModel", "DistilBertForMaskedLM"),
}
CASES = [(family, name) for family, names in CLASSES.items() for name in names]
each_family = pytest.mark.parametrize("family", CONFIGS)


@torch.no_grad()
def hf_outputs(hf, ids, lengths=None, types=None):
    """Return the states after the embedding and every block, and the outputs of the heads under our names."""
    kwargs = {} if types is None else {"token_type_ids": types}
    if lengths is not None:
        kwargs["attention_mask"] = (torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]).long()
    result = hf.eval()(ids, output_hidden_states=True, **kwargs)
    named = {"states": result.hidden_states[-1]}
    if result.get("pooler_output") is not None:
        named["pooled"] = result.pooler_output
    if "prediction_logits" in result:
        named |= {"logits": result.prediction_logits, "follows": result.seq_relationship_logits}
    elif "logits" in result:
        named["logits" if result.logits.ndim == 3 else "follows"] = result.logits
    return result.hidden_states, named


def assert_same(model, hf, ids, types=None):
    """Compare the embedding, the states after every block, and the outputs of all heads."""
    blocks, expected = hf_outputs(hf, ids, types=types)
    captured = CaptureTap(("embed.out", ".resid_post"))
    actual = outputs(model, ids, tap=captured, types=types)
    assert expected.keys() <= actual.keys()
    for name, value in expected.items():
        assert_near(actual[name], value)
    assert len(blocks) == len(captured) == model.config.n_layers + 1
    for ours, value in zip(captured.values(), blocks, strict=True):
        assert_near(ours, value)
    return expected


def token_types(config, ids):
    """Return alternating token types, or None if the model has none."""
    return (torch.arange(ids.numel()).view_as(ids) // 3) % config.n_token_types if config.n_token_types else None


@pytest.mark.parametrize(("family", "kind"), CASES)
@pytest.mark.parametrize("pooler", [True, False])
def test_model_of_transformers_opens(family, kind, pooler, tmp_path):
    """The bare model, without a prefix of its names, with and without a pooler; and models with heads."""
    if not pooler and (not kind.endswith("Model") or family == "distilbert"):
        pytest.skip("only models without heads have an optional pooler")
    model_class = getattr(transformers, kind)
    hf = hf_random(
        model_class(HF_CONFIGS[family]()) if pooler else model_class(HF_CONFIGS[family](), add_pooling_layer=False)
    )
    hf.save_pretrained(tmp_path / "hf_outputs")
    model = load_text_encoder(tmp_path / "hf_outputs")
    ids = some_ids(model.config, 2, 40)
    expected = assert_same(model, hf, ids, token_types(model.config, ids))
    assert (model.head is not None) == ("logits" in expected)
    assert (model.next_sentence is not None) == ("follows" in expected)
    assert model.pooler is not None or "pooled" not in expected

    save_model(model, tmp_path / "ours")
    reloaded = load_text_encoder(tmp_path / "ours")
    assert reloaded.config == model.config
    assert json.loads((tmp_path / "ours/config.json").read_text())["architectures"] == [kind]
    a, b = (load_file(tmp_path / side / "model.safetensors") for side in ("hf_outputs", "ours"))
    prefix = "roberta." if "roberta" in family else f"{family}."
    assert {name if name in b else prefix + name for name in a} == set(b), "a tensor was lost or added"
    assert all(torch.equal(value, b[name if name in b else prefix + name]) for name, value in a.items())


@each_family
def test_transformers_opens_saved_model(family, tmp_path):
    model = tiny_encoder(family, **({} if family == "bert" else {"pooler": False}))
    save_model(model, tmp_path / "ours")
    kind = json.loads((tmp_path / "ours/config.json").read_text())["architectures"][0]
    hf, info = getattr(transformers, kind).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), f"transformers complains: {info}"
    ids = some_ids(model.config, 2, 40)
    expected = assert_same(model, hf, ids, token_types(model.config, ids))
    assert "logits" in expected
    assert ("follows" in expected) == (family == "bert")
    hf.save_pretrained(tmp_path / "hf_outputs")
    reloaded = load_text_encoder(tmp_path / "hf_outputs")
    assert reloaded.config == model.config
    ours, hf_outputs = dict(model.named_parameters()), dict(reloaded.named_parameters())
    assert ours.keys() == hf_outputs.keys()
    assert all(torch.equal(ours[name], hf_outputs[name]) for name in ours)


@each_family
def test_uneven_batch_equals_single_sequences(family, tmp_path):
    """Padding as in transformers; padded positions are not compared."""
    model, lengths = tiny_encoder(family, **({} if family == "bert" else {"pooler": False})), [7, 40, 1, 23]
    ids = some_ids(model.config, 4, 40)
    for sequence, n in zip(ids, lengths, strict=True):
        sequence[n:] = max(0, model.config.position_offset - 1)
    save_model(model, tmp_path)
    kind = json.loads((tmp_path / "config.json").read_text())["architectures"][0]
    hf = getattr(transformers, kind).from_pretrained(tmp_path)
    batched, (_, expected) = outputs(model, ids, lengths), hf_outputs(hf, ids, lengths)
    for i, n in enumerate(lengths):
        alone = outputs(model, ids[i : i + 1, :n])
        for name in batched:
            actual = batched[name][i] if batched[name].ndim == 2 else batched[name][i, :n]
            assert_near(actual, alone[name][0])
            if name in expected:
                assert_near(actual, expected[name][i] if actual.ndim == 1 else expected[name][i, :n])


@each_family
@pytest.mark.parametrize("has_head", [True, False])
def test_compare_finds_the_first_difference(family, has_head, tmp_path):
    """`compare` covers every tap point in order; after a change, the first difference is the changed layer."""
    changes = {"pooler": False, "next_sentence": False} | ({} if has_head else {"head": None})
    model = tiny_encoder(
        family, **{name: changes[name] for name in ("next_sentence", "pooler", "head") if name in changes}
    )
    save_model(model, tmp_path)
    kind = transformers.AutoModelForMaskedLM if has_head else transformers.AutoModel
    hf = kind.from_pretrained(tmp_path).eval()
    ids = some_ids(model.config, 1, 40)
    comparisons = compare(model, hf, ids)
    assert max(comparison.off for comparison in comparisons) < TOLERANCE
    names = [comparison.point for comparison in comparisons]
    assert {"embed.tokens", "embed.out", "blocks.1.attn.q", "blocks.2.mlp.out", "blocks.2.resid_post"} <= set(names)
    assert names[-1] == ("final.logits" if has_head else "final.norm")
    with torch.no_grad():
        model.blocks[1].mlp.up.bias += 0.1
    assert (
        next(comparison.point for comparison in compare(model, hf, ids) if comparison.off > TOLERANCE)
        == "blocks.1.mlp.up"
    )


# ---- tensors of older checkpoints, and tensors that do not fit


def rewrite_tensors(folder, change_tensors):
    tensors = load_file(folder / "model.safetensors")
    change_tensors(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.fixture
def saved(tmp_path):
    model = tiny_encoder("bert")
    save_model(model, tmp_path)
    return model, tmp_path


def test_older_checkpoint_with_other_names_and_copies_opens(saved):
    """Norms named gamma and beta, a buffer of positions, and copies of the head's table and bias."""
    model, folder = saved

    def older(tensors):
        for name in [name for name in tensors if "LayerNorm" in name]:
            suffix = {"weight": "gamma", "bias": "beta"}[name.rpartition(".")[2]]
            tensors[f"{name.rpartition('.')[0]}.{suffix}"] = tensors.pop(name)
        tensors["bert.embeddings.position_ids"] = torch.arange(64)[None]
        tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].clone()
        tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"].clone()

    rewrite_tensors(folder, older)
    reloaded = load_text_encoder(folder)
    assert reloaded.config == model.config
    assert all(torch.equal(p, dict(model.named_parameters())[name]) for name, p in reloaded.named_parameters())


@pytest.mark.parametrize("name", ["cls.predictions.decoder.weight", "cls.predictions.decoder.bias"])
def test_copy_that_differs_raises(saved, name):
    _, folder = saved
    source = {"weight": "bert.embeddings.word_embeddings.weight", "bias": "cls.predictions.bias"}[
        name.rpartition(".")[2]
    ]
    rewrite_tensors(folder, lambda tensors: tensors.update({name: tensors[source] + 1}))
    with pytest.raises(CheckpointError, match=f"not used: {name}"):
        load_text_encoder(folder)


def test_all_problems_are_in_one_error(saved):
    _, folder = saved

    def corrupt(tensors):
        del tensors["bert.encoder.layer.1.attention.self.key.bias"], tensors["cls.predictions.bias"]
        tensors["bert.pooler.dense.weight"] = torch.zeros(3, 48)
        tensors["classifier.weight"] = torch.zeros(2, 48)

    rewrite_tensors(folder, corrupt)
    with pytest.raises(CheckpointError) as error:
        load_text_encoder(folder)
    for line in (
        r"missing: bert.encoder.layer.1.attention.self.key.bias (fills blocks.1.attn.k.bias)",
        "missing: cls.predictions.bias (fills head.output.bias)",
        "shape: bert.pooler.dense.weight is [3, 48], the config needs [48, 48]",
        "not used: classifier.weight",
    ):
        assert line in str(error.value)


def test_other_loaders_reject_an_encoder_only_model(saved):
    _, folder = saved
    for load in (load_decoder, load_seq2seq):
        with pytest.raises(CheckpointError, match="is an encoder-only model: use `glassformer embed`"):
            load(folder)


# ---- configurations

OTHER_VALUES = {
    **DECODER_VALUES, "embed_norm": [None], "final_norm": [LAYER], "n_token_types": [0, 2, 4], "pooler": [True, False],
    "next_sentence": [True, False], "head": [None, MaskedHeadConfig("silu", LAYER)],
    "activation": ["relu", "gelu", "silu"], "position_offset": [0, 1],
}  # fmt: skip
REJECTED = {  # in an encoder, when changed alone
    "layers.1.attention.causal", "layers.1.attention.window", "layers.1.cross", "layers.1.parallel",
    "layers.1.shared_norm", "layers.1.mlp.limit", "layers.1.mlp.up_plus_one", "layers.1.attention.qk_norm_over",
    "layers.1.attention.rope", "relative",
}  # fmt: skip
SOMETIMES_REJECTED = {"layers.1.attention.latent", "pooler", "next_sentence", "positions", "position_offset"}


def config_fields(config, prefix=""):
    """Yield (path, key in OTHER_VALUES, value) of every field; for layers, of the second layer."""
    for field in fields(config):
        value, path = getattr(config, field.name), prefix + field.name
        if field.name == "layers":
            yield from config_fields(value[1], "layers.1.")
        elif path != "family":
            key = path.removeprefix("layers.1.")
            key = key if key in OTHER_VALUES else key.removeprefix("embed_").removeprefix("head.")
            if not is_dataclass(value) or key in OTHER_VALUES:
                yield path, key, value
            if is_dataclass(value):
                yield from config_fields(value, f"{path}.")


@each_family
def test_every_field_matters(family):
    """Change any one field: the parameters or their shapes change, or an output by at least 100 tolerances."""
    model = tiny_encoder(family)
    config, state, ids = model.config, model.state_dict(), some_ids(model.config, 2, 40)
    types, tried = token_types(config, ids), set()
    baseline = outputs(model, ids, types=types)
    for path, key, old in config_fields(config):
        for value in OTHER_VALUES[key]:
            if value == old:
                continue
            try:
                other = TextEncoder(change(config, path, value)).eval()
            except ConfigError:
                continue  # rejected, not ignored
            tried.add(path)
            other_state = other.state_dict()
            if other_state.keys() != state.keys() or any(
                p.shape != state[name].shape for name, p in other_state.items()
            ):
                continue
            other.load_state_dict(state)
            changed = outputs(other, ids, types=types)
            difference = max(relative_change(changed[name], baseline[name]) for name in baseline)
            minimum = 1e-5 if {value, old} == SIMILAR_ACTIVATIONS else 100 * TOLERANCE
            assert difference >= minimum, f"{path}: {old!r} -> {value!r} changes the outputs by only {difference:.1e}"
    untried = {path for path, *_ in config_fields(config)} - tried
    assert REJECTED <= untried <= REJECTED | SOMETIMES_REJECTED, untried ^ REJECTED


@each_family
def test_token_types_change_the_states(family):
    model = tiny_encoder(family)
    if not model.config.n_token_types:
        with pytest.raises(AssertionError, match="no token types"):
            outputs(model, some_ids(model.config, 1, 9), types=torch.zeros(1, 9, dtype=torch.long))
        return
    ids = some_ids(model.config, 2, 40)
    plain = outputs(model, ids)["states"]
    assert_near(outputs(model, ids, types=torch.zeros_like(ids))["states"], plain, 0.0)
    assert relative_change(outputs(model, ids, types=token_types(model.config, ids))["states"], plain) > 100 * TOLERANCE


HEADLESS = {family: replace(config, pooler=False, head=None, next_sentence=False) for family, config in CONFIGS.items()}


@each_family
def test_every_config_key_is_used(family):
    """Each key that is written changes the configuration or is rejected; none is ignored silently."""
    raw = write_config(HEADLESS[family])
    assert read_config(raw, "config.json") == HEADLESS[family]
    for key in raw.keys() - (IGNORED - {"pad_token_id"}):
        assert_key_is_used(raw, key, HEADLESS[family])


@each_family
def test_every_key_that_transformers_writes_is_read_or_rejected(family, tmp_path):
    HF_CONFIGS[family]().save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    config = read_config(raw, "config.json")
    assert read_config(write_config(config), "config.json") == config
    with pytest.raises(ConfigError, match="not understand: a_new_key"):
        read_config(raw | {"a_new_key": 1}, "config.json")


@each_family
@pytest.mark.parametrize("value", [None, 0, -1, 1.5, "12", [], {}, True, math.nan])
def test_wrong_config_value_raises_config_error(family, value):
    """Every value of every key gives a configuration or a ConfigError, and some key rejects it."""
    assert count_rejected_keys(write_config(HEADLESS[family]), value) > 0


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("bert", "is_decoder", True), ("bert", "position_embedding_type", "relative_key"),
        ("bert", "tie_word_embeddings", False), ("roberta", "add_cross_attention", True),
        ("distilbert", "tie_weights_", False), ("bert", "num_attention_heads", 5),
    ],
)  # fmt: skip
def test_unsupported_setting_raises_config_error(family, key, value):
    with pytest.raises(ConfigError, match=str(value)):
        read_config(write_config(HEADLESS[family]) | {key: value}, "config.json")


def test_model_that_the_format_cannot_describe_is_not_saved(tmp_path):
    for family, path, value in (
        ("bert", "embed_norm.eps", 0.5), ("distilbert", "n_token_types", 2), ("roberta", "head.activation", "silu"),
        ("bert", "head.norm.eps", 0.5), ("bert", "layers.1.mlp.d_ff", 71),
    ):  # fmt: skip
        model = TextEncoder(change(CONFIGS[family], path, value))
        with pytest.raises((ConfigError, AssertionError), match=r"cannot describe this model|without a rule"):
            save_model(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_next_sentence_head_requires_a_pooler():
    with pytest.raises(ConfigError, match="requires a pooler"):
        replace(CONFIGS["bert"], pooler=False)
