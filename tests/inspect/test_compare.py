"""Find the first point at which two implementations of a model differ, for each family."""

import pytest
import torch
import transformers
from tiny import FAMILIES, TOLERANCE, random_ids, randomise_sharp, tiny
from tiny_translators import CONFIGS, SEQ2SEQ_FAMILIES

from glassformer.config import change
from glassformer.formats import load_decoder, load_seq2seq, save_model
from glassformer.inspect.capture.compare import compare
from glassformer.nn.model import Decoder, EncoderDecoder

COMPARED = ["attn.x", "attn.q", "attn.k", "attn.v", "attn.out", "mlp.x", "mlp.up", "mlp.out"]


@pytest.fixture(scope="module", params=FAMILIES)
def both(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_model(tiny(request.param), folder)
    return folder, transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def first(points):
    return next((one.point for one in points if one.off > TOLERANCE), None)


def test_same_model_has_no_difference(both):
    folder, theirs = both
    model = load_decoder(folder)
    points = compare(model, theirs, random_ids(model.config, 2, 20))
    assert first(points) is None
    names = [one.point for one in points]
    for i in range(3):
        assert {f"blocks.{i}.{end}" for end in COMPARED} <= set(names)
    assert names[0] == "embed.tokens"
    assert names[-2:] == ["final.norm", "final.logits"]
    assert {"embed.out", "blocks.0.resid_post", "blocks.1.resid_post"} <= set(names)


@pytest.mark.parametrize("q_rank", [28, None])
def test_latent_attention_has_no_difference_until_a_weight_changes(q_rank, tmp_path):
    save_model(tiny("deepseek_v3", **{f"layers.{i}.attention.latent.q_rank": q_rank for i in range(3)}), tmp_path)
    model, theirs = (
        load_decoder(tmp_path, copy=True),
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval(),
    )
    ids = random_ids(model.config, 2, 20)
    points = compare(model, theirs, ids)
    assert first(points) is None
    assert {f"blocks.1.attn.{end}" for end in ("x", "q", "latent", "out")} <= {one.point for one in points}
    for parameter, point in (("kv_norm.weight", "latent"), ("q" if q_rank is None else "q.expand", "q")):
        name = parameter if "." in parameter and "norm" in parameter else f"{parameter}.weight"
        with torch.no_grad():
            model.get_parameter(f"blocks.1.attn.{name}").view(-1)[5] += 0.1
        assert first(compare(model, theirs, ids)) == f"blocks.1.attn.{point}"


@pytest.mark.parametrize(("parameter", "point"), [
    ("embed.weight", "embed.tokens"),
    ("blocks.0.attn_norm.weight", "blocks.0.attn.x"),
    ("blocks.1.attn.q.weight", "blocks.1.attn.q"),
    ("blocks.1.attn.k.bias", "blocks.1.attn.k"),
    ("blocks.2.attn.v.weight", "blocks.2.attn.v"),
    ("blocks.0.attn.o.weight", "blocks.0.attn.out"),
    ("blocks.1.mlp.down.weight", "blocks.1.mlp.out"),
    ("norm.weight", "final.norm"),
])  # fmt: skip
def test_changed_weight_is_found(both, parameter, point):
    folder, theirs = both
    model = load_decoder(folder, copy=True)
    with torch.no_grad():
        model.get_parameter(parameter).view(-1)[5] += 0.01
        ids = random_ids(model.config, 2, 20)
        ids[0, 0] = 0  # the changed row of the embedding
    assert first(compare(model, theirs, ids)) == point


def test_changed_setting_is_found(both):
    folder, theirs = both
    model = load_decoder(folder)
    for path, value, point in (("layers.1.attention.scale", 0.5, "blocks.1.attn.out"),
                               ("layers.2.norm.eps", 0.1, "blocks.2.attn.x"),
                               ("layers.1.mlp.activation", "relu", "blocks.1.mlp.out")):  # fmt: skip
        other = Decoder(change(model.config, path, value))
        other.load_state_dict(model.state_dict())
        assert first(compare(other.eval(), theirs, random_ids(model.config, 2, 20))) == point


CROSS = ["cross.q", "cross.k", "cross.v", "cross.out"]


@pytest.fixture(scope="module", params=SEQ2SEQ_FAMILIES)
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    save_model(randomise_sharp(EncoderDecoder(CONFIGS[request.param]())), folder)
    return folder, transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()


def test_same_encoder_decoder_has_no_difference(pair):
    folder, theirs = pair
    model = load_seq2seq(folder)
    sources = random_ids(model.encoder.config, 2, 30)
    points = compare(model, theirs, random_ids(model.config, 2, 20), sources)
    assert first(points) is None
    names = [one.point for one in points]
    inside = [end for end in COMPARED if not end.endswith(".x") or model.config.layers[0].norm_at == ("pre",)]
    for i in range(3):
        assert {f"encoder.blocks.{i}.{end}" for end in inside} <= set(names)
    for i in range(2):
        assert {f"blocks.{i}.{end}" for end in inside + CROSS} <= set(names)
    last = "blocks.1.resid_post" if model.config.final_norm is None else "final.norm"
    assert names[-2:] == [last, "final.logits"]
    assert {"encoder.embed.out", "encoder.blocks.1.resid_post", "blocks.0.resid_post"} <= set(names)


@pytest.mark.parametrize(("parameter", "point"), [
    ("encoder.blocks.1.attn.k.weight", "encoder.blocks.1.attn.k"),
    ("encoder.blocks.2.mlp.down.weight", "encoder.blocks.2.mlp.out"),
    ("blocks.0.attn.o.weight", "blocks.0.attn.out"),
    ("blocks.1.cross.k.weight", "blocks.1.cross.k"),
    ("blocks.1.cross.o.weight", "blocks.1.cross.out"),
])  # fmt: skip
def test_changed_weight_of_either_stack_is_found(pair, parameter, point):
    folder, theirs = pair
    model = load_seq2seq(folder, copy=True)
    with torch.no_grad():
        model.get_parameter(parameter).view(-1)[5] += 0.1
    points = compare(model, theirs, random_ids(model.config, 2, 20), random_ids(model.config, 2, 30, 2))
    assert next(one.point for one in points if one.off > 10 * TOLERANCE) == point
