"""Parity of BERT, RoBERTa, XLM-RoBERTa and DistilBERT with `transformers`, with and without heads."""

import json
import math
from dataclasses import fields, is_dataclass, replace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from test_fields import LAYER, NEAR, assert_key_is_used, count_rejected_keys
from test_fields import OTHER as COMMON
from theirs import Keep, hf_random
from tiny import TOLERANCE, assert_near, moved
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
MADE = {
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
EACH = [(family, name) for family, names in CLASSES.items() for name in names]
FAMILIES = pytest.mark.parametrize("family", CONFIGS)


@torch.no_grad()
def theirs(hf, ids, lengths=None, types=None):
    """States after every block, the embedding's first, and what the heads make, named as ours."""
    more = {} if types is None else {"token_type_ids": types}
    if lengths is not None:
        more["attention_mask"] = (torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]).long()
    made = hf.eval()(ids, output_hidden_states=True, **more)
    found = {"states": made.hidden_states[-1]}
    if made.get("pooler_output") is not None:
        found["pooled"] = made.pooler_output
    if "prediction_logits" in made:
        found |= {"logits": made.prediction_logits, "follows": made.seq_relationship_logits}
    elif "logits" in made:
        found["logits" if made.logits.ndim == 3 else "follows"] = made.logits
    return made.hidden_states, found


def assert_same(model, hf, ids, types=None):
    """The embedding, the states after every block, and all that the heads make."""
    blocks, wanted = theirs(hf, ids, types=types)
    keep = Keep(("embed.out", ".resid_post"))
    found = outputs(model, ids, tap=keep, types=types)
    assert wanted.keys() <= found.keys()
    for name, want in wanted.items():
        assert_near(found[name], want)
    assert len(blocks) == len(keep) == model.config.n_layers + 1
    for ours, want in zip(keep.values(), blocks, strict=True):
        assert_near(ours, want)
    return wanted


def types_of(config, ids):
    """Types of tokens, in turns; None where the model tells none apart."""
    return (torch.arange(ids.numel()).view_as(ids) // 3) % config.n_token_types if config.n_token_types else None


@pytest.mark.parametrize(("family", "kind"), EACH)
@pytest.mark.parametrize("pooler", [True, False])
def test_what_transformers_makes_we_open(family, kind, pooler, tmp_path):
    """Without the prefix of its names and any head, with or without a pooler; and with heads."""
    if not pooler and (not kind.endswith("Model") or family == "distilbert"):
        pytest.skip("only models without heads come with a pooler or without")
    make = getattr(transformers, kind)
    hf = hf_random(make(MADE[family]()) if pooler else make(MADE[family](), add_pooling_layer=False))
    hf.save_pretrained(tmp_path / "theirs")
    model = load_text_encoder(tmp_path / "theirs")
    ids = some_ids(model.config, 2, 40)
    wanted = assert_same(model, hf, ids, types_of(model.config, ids))
    assert (model.head is not None) == ("logits" in wanted)
    assert (model.next_sentence is not None) == ("follows" in wanted)
    assert model.pooler is not None or "pooled" not in wanted

    save_model(model, tmp_path / "ours")
    again = load_text_encoder(tmp_path / "ours")
    assert again.config == model.config
    assert json.loads((tmp_path / "ours/config.json").read_text())["architectures"] == [kind]
    a, b = (load_file(tmp_path / side / "model.safetensors") for side in ("theirs", "ours"))
    prefix = "roberta." if "roberta" in family else f"{family}."
    assert {name if name in b else prefix + name for name in a} == set(b), "a tensor was lost, or came from nowhere"
    assert all(torch.equal(value, b[name if name in b else prefix + name]) for name, value in a.items())


@FAMILIES
def test_what_we_save_transformers_opens(family, tmp_path):
    model = tiny_encoder(family, **({} if family == "bert" else {"pooler": False}))
    save_model(model, tmp_path / "ours")
    kind = json.loads((tmp_path / "ours/config.json").read_text())["architectures"][0]
    hf, info = getattr(transformers, kind).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), f"transformers complains: {info}"
    ids = some_ids(model.config, 2, 40)
    wanted = assert_same(model, hf, ids, types_of(model.config, ids))
    assert "logits" in wanted
    assert ("follows" in wanted) == (family == "bert")
    hf.save_pretrained(tmp_path / "theirs")
    again = load_text_encoder(tmp_path / "theirs")
    assert again.config == model.config
    ours, those = dict(model.named_parameters()), dict(again.named_parameters())
    assert ours.keys() == those.keys()
    assert all(torch.equal(ours[name], those[name]) for name in ours)


@FAMILIES
def test_a_batch_of_uneven_lengths_is_each_row_alone(family, tmp_path):
    """And padding is theirs: what is behind it is not compared, for nobody reads it."""
    model, lengths = tiny_encoder(family, **({} if family == "bert" else {"pooler": False})), [7, 40, 1, 23]
    ids = some_ids(model.config, 4, 40)
    for row, n in zip(ids, lengths, strict=True):
        row[n:] = max(0, model.config.position_offset - 1)
    save_model(model, tmp_path)
    kind = json.loads((tmp_path / "config.json").read_text())["architectures"][0]
    hf = getattr(transformers, kind).from_pretrained(tmp_path)
    found, (_, wanted) = outputs(model, ids, lengths), theirs(hf, ids, lengths)
    for i, n in enumerate(lengths):
        alone = outputs(model, ids[i : i + 1, :n])
        for name in found:
            mine = found[name][i] if found[name].ndim == 2 else found[name][i, :n]
            assert_near(mine, alone[name][0])
            if name in wanted:
                assert_near(mine, wanted[name][i] if mine.ndim == 1 else wanted[name][i, :n])


@FAMILIES
@pytest.mark.parametrize("headed", [True, False])
def test_places_are_compared_one_by_one(family, headed, tmp_path):
    """And the place where two part is named."""
    changes = {"pooler": False, "next_sentence": False} | ({} if headed else {"head": None})
    model = tiny_encoder(
        family, **{name: changes[name] for name in ("next_sentence", "pooler", "head") if name in changes}
    )
    save_model(model, tmp_path)
    kind = transformers.AutoModelForMaskedLM if headed else transformers.AutoModel
    hf = kind.from_pretrained(tmp_path).eval()
    ids = some_ids(model.config, 1, 40)
    places = compare(model, hf, ids)
    assert max(place.off for place in places) < TOLERANCE
    names = [place.point for place in places]
    assert {"embed.tokens", "embed.out", "blocks.1.attn.q", "blocks.2.mlp.out", "blocks.2.resid_post"} <= set(names)
    assert names[-1] == ("final.logits" if headed else "final.norm")
    with torch.no_grad():
        model.blocks[1].mlp.up.bias += 0.1
    assert next(place.point for place in compare(model, hf, ids) if place.off > TOLERANCE) == "blocks.1.mlp.up"


# ---- tensors that older checkpoints have, and those that do not fit


def rewritten(folder, change_tensors):
    tensors = load_file(folder / "model.safetensors")
    change_tensors(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.fixture
def saved(tmp_path):
    model = tiny_encoder("bert")
    save_model(model, tmp_path)
    return model, tmp_path


def test_an_older_checkpoint_has_other_names_and_copies(saved):
    """Norms with gamma and beta, a buffer of positions, the head's table and bias once more."""
    model, folder = saved

    def older(tensors):
        for name in [name for name in tensors if "LayerNorm" in name]:
            end = {"weight": "gamma", "bias": "beta"}[name.rpartition(".")[2]]
            tensors[f"{name.rpartition('.')[0]}.{end}"] = tensors.pop(name)
        tensors["bert.embeddings.position_ids"] = torch.arange(64)[None]
        tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].clone()
        tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"].clone()

    rewritten(folder, older)
    again = load_text_encoder(folder)
    assert again.config == model.config
    assert all(torch.equal(p, dict(model.named_parameters())[name]) for name, p in again.named_parameters())


@pytest.mark.parametrize("name", ["cls.predictions.decoder.weight", "cls.predictions.decoder.bias"])
def test_a_copy_that_is_none_is_refused(saved, name):
    _, folder = saved
    source = {"weight": "bert.embeddings.word_embeddings.weight", "bias": "cls.predictions.bias"}[
        name.rpartition(".")[2]
    ]
    rewritten(folder, lambda tensors: tensors.update({name: tensors[source] + 1}))
    with pytest.raises(CheckpointError, match=f"not used: {name}"):
        load_text_encoder(folder)


def test_all_that_does_not_fit_is_told_at_once(saved):
    _, folder = saved

    def spoil(tensors):
        del tensors["bert.encoder.layer.1.attention.self.key.bias"], tensors["cls.predictions.bias"]
        tensors["bert.pooler.dense.weight"] = torch.zeros(3, 48)
        tensors["classifier.weight"] = torch.zeros(2, 48)

    rewritten(folder, spoil)
    with pytest.raises(CheckpointError) as error:
        load_text_encoder(folder)
    for line in (
        r"missing: bert.encoder.layer.1.attention.self.key.bias (fills blocks.1.attn.k.bias)",
        "missing: cls.predictions.bias (fills head.output.bias)",
        "shape: bert.pooler.dense.weight is [3, 48], the config needs [48, 48]",
        "not used: classifier.weight",
    ):
        assert line in str(error.value)


def test_an_encoder_is_no_language_model_and_no_translator(saved):
    _, folder = saved
    for load in (load_decoder, load_seq2seq):
        with pytest.raises(CheckpointError, match="is an encoder-only model: use `glassformer embed`"):
            load(folder)


# ---- configurations

OTHER = {
    **COMMON, "embed_norm": [None], "final_norm": [LAYER], "n_token_types": [0, 2, 4], "pooler": [True, False],
    "next_sentence": [True, False], "head": [None, MaskedHeadConfig("silu", LAYER)],
    "activation": ["relu", "gelu", "silu"], "position_offset": [0, 1],
}  # fmt: skip
REFUSED = {  # each by itself, in an encoder
    "layers.1.attention.causal", "layers.1.attention.window", "layers.1.cross", "layers.1.parallel",
    "layers.1.shared_norm", "layers.1.mlp.limit", "layers.1.mlp.up_plus_one", "layers.1.attention.qk_norm_over",
    "layers.1.attention.rope", "relative",
}  # fmt: skip
SOMETIMES = {"layers.1.attention.latent", "pooler", "next_sentence", "positions", "position_offset"}


def leaves(config, prefix=""):
    """(path, key in OTHER, value) of every field; of the layers, the second one's."""
    for field in fields(config):
        value, path = getattr(config, field.name), prefix + field.name
        if field.name == "layers":
            yield from leaves(value[1], "layers.1.")
        elif path != "family":
            key = path.removeprefix("layers.1.")
            key = key if key in OTHER else key.removeprefix("embed_").removeprefix("head.")
            if not is_dataclass(value) or key in OTHER:
                yield path, key, value
            if is_dataclass(value):
                yield from leaves(value, f"{path}.")


@FAMILIES
def test_every_field_matters(family):
    """Change any one field: a parameter comes, goes or changes its shape, or what is made moves by 100 tolerances."""
    model = tiny_encoder(family)
    config, state, ids = model.config, model.state_dict(), some_ids(model.config, 2, 40)
    types, tried = types_of(config, ids), set()
    made = outputs(model, ids, types=types)
    for path, key, old in leaves(config):
        for value in OTHER[key]:
            if value == old:
                continue
            try:
                other = TextEncoder(change(config, path, value)).eval()
            except ConfigError:
                continue  # refused, not passed over
            tried.add(path)
            those = other.state_dict()
            if those.keys() != state.keys() or any(p.shape != state[name].shape for name, p in those.items()):
                continue
            other.load_state_dict(state)
            new = outputs(other, ids, types=types)
            far = max(moved(new[name], made[name]) for name in made)
            least = 1e-5 if {value, old} == NEAR else 100 * TOLERANCE
            assert far >= least, f"{path}: {old!r} -> {value!r} moves what is made by {far:.1e} only"
    untried = {path for path, *_ in leaves(config)} - tried
    assert REFUSED <= untried <= REFUSED | SOMETIMES, untried ^ REFUSED


@FAMILIES
def test_types_of_tokens_show(family):
    model = tiny_encoder(family)
    if not model.config.n_token_types:
        with pytest.raises(AssertionError, match="no token types"):
            outputs(model, some_ids(model.config, 1, 9), types=torch.zeros(1, 9, dtype=torch.long))
        return
    ids = some_ids(model.config, 2, 40)
    plain = outputs(model, ids)["states"]
    assert_near(outputs(model, ids, types=torch.zeros_like(ids))["states"], plain, 0.0)
    assert moved(outputs(model, ids, types=types_of(model.config, ids))["states"], plain) > 100 * TOLERANCE


BARE = {family: replace(config, pooler=False, head=None, next_sentence=False) for family, config in CONFIGS.items()}


@FAMILIES
def test_every_config_key_is_used(family):
    """Each key that is written changes the configuration or is rejected; none is ignored silently."""
    raw = write_config(BARE[family])
    assert read_config(raw, "config.json") == BARE[family]
    for key in raw.keys() - (IGNORED - {"pad_token_id"}):
        assert_key_is_used(raw, key, BARE[family])


@FAMILIES
def test_every_key_that_transformers_writes_is_read_or_refused(family, tmp_path):
    MADE[family]().save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    config = read_config(raw, "config.json")
    assert read_config(write_config(config), "config.json") == config
    with pytest.raises(ConfigError, match="not understand: a_new_key"):
        read_config(raw | {"a_new_key": 1}, "config.json")


@FAMILIES
@pytest.mark.parametrize("value", [None, 0, -1, 1.5, "12", [], {}, True, math.nan])
def test_wrong_config_value_raises_config_error(family, value):
    """Every value of every key gives a configuration or a ConfigError, and some key rejects it."""
    assert count_rejected_keys(write_config(BARE[family]), value) > 0


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [
        ("bert", "is_decoder", True), ("bert", "position_embedding_type", "relative_key"),
        ("bert", "tie_word_embeddings", False), ("roberta", "add_cross_attention", True),
        ("distilbert", "tie_weights_", False), ("bert", "num_attention_heads", 5),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused(family, key, value):
    with pytest.raises(ConfigError, match=str(value)):
        read_config(write_config(BARE[family]) | {key: value}, "config.json")


def test_what_the_format_cannot_say_is_not_written(tmp_path):
    for family, path, value in (
        ("bert", "embed_norm.eps", 0.5), ("distilbert", "n_token_types", 2), ("roberta", "head.activation", "silu"),
        ("bert", "head.norm.eps", 0.5), ("bert", "layers.1.mlp.d_ff", 71),
    ):  # fmt: skip
        model = TextEncoder(change(CONFIGS[family], path, value))
        with pytest.raises((ConfigError, AssertionError), match=r"cannot describe this model|without a rule"):
            save_model(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_head_of_pairs_reads_a_pooler():
    with pytest.raises(ConfigError, match="requires a pooler"):
        replace(CONFIGS["bert"], pooler=False)
