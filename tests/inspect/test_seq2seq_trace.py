"""Traces of encoder-decoders and recurrent models equal NumPy and `align`; traces of encoders equal the model."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from generate.scripted import make_tokenizer
from test_translator import RECURRENT, TRANSLATORS
from tiny import assert_near, randomise_sharp
from tiny_encoders import CONFIGS as ENCODERS
from tiny_encoders import some_ids, tiny_encoder, wordpieces
from tiny_translators import CONFIGS as FAMILIES

from glassformer.errors import CapacityError, RequestError
from glassformer.inspect.capture.points import points
from glassformer.inspect.capture.recorder import RecorderTap
from glassformer.models.embedder import Embedder
from glassformer.models.translator import Translator
from glassformer.nn.model import EncoderDecoder
from glassformer.nn.step import Step

SOURCE, TARGET = "the cat sat", "a dog"
NEAR = {"rtol": 1e-4, "atol": 1e-5}
TOKENIZER = make_tokenizer()


def family_translator(name):
    """Return a translator of a family that `transformers` supports."""
    config = FAMILIES[name]()
    size = TOKENIZER.vocab_size
    config = replace(config, vocab_size=size, encoder=replace(config.encoder, vocab_size=size))
    return Translator(randomise_sharp(EncoderDecoder(config)), TOKENIZER)


SEQ2SEQ = {name: one for name, one in TRANSLATORS.items() if name not in RECURRENT}
SEQ2SEQ |= {name: family_translator(name) for name in FAMILIES}
RECURRENT_ATTENTION = {name: TRANSLATORS[name] for name, (attention, _) in RECURRENT.items() if attention is not None}
EACH_SEQ2SEQ = pytest.mark.parametrize("name", SEQ2SEQ)
EACH_RNN = pytest.mark.parametrize("name", RECURRENT_ATTENTION)
EACH = pytest.mark.parametrize("name", SEQ2SEQ | TRANSLATORS)


def translator(name):
    return (SEQ2SEQ | TRANSLATORS)[name]


def np64(t, name):
    return t[name].tensor.detach().double().numpy()


# ---- encoder-decoders


@EACH_SEQ2SEQ
def test_every_point_equals_the_forward_pass(name):
    one = SEQ2SEQ[name]
    t = one.trace(SOURCE, TARGET)
    tap = RecorderTap(*(point for point, about in points(one.config).items() if about.kind == "live"))
    source, ids = torch.tensor([t.source.ids]), torch.tensor([t.ids])
    with torch.no_grad():
        read = one.model.encode(source, Step.of(source, tap=tap))
        step = Step.of(ids, source=read, tap=tap)
        one.model(ids, step)
    assert t.names() == list(points(one.config))
    largest = max(value.abs().max().item() for (value,) in tap.values())
    for point in t.names():
        value = t[point]
        assert value.shape == t.shape(point), point
        assert value.axes == t.axes(point)
        if point in tap:
            assert_near(value.tensor, tap[point][0][0])
        assert value.error is not None, point
        assert value.error <= 1e-5 * largest, (point, value)


@EACH_SEQ2SEQ
@pytest.mark.parametrize("which", ["attn", "cross", "encoder"])
def test_probabilities_times_values_are_z(name, which):
    t = SEQ2SEQ[name].trace(SOURCE, TARGET)
    stack = t.config.encoder if which == "encoder" else t.config
    side, kind = ("encoder.", "attn") if which == "encoder" else ("", which)
    for i in range(stack.n_layers):
        at = f"{side}blocks.{i}.{kind}"
        probs, v, z = np64(t, f"{at}.probs"), np64(t, f"{at}.v"), np64(t, f"{at}.z")
        v = np.repeat(v, z.shape[1] // v.shape[1], axis=1)
        np.testing.assert_allclose(np.einsum("hts,shd->thd", probs, v), z, **NEAR)
        np.testing.assert_allclose(probs.sum(-1), 1, rtol=1e-5)
        rows, columns = (len(t) if side == "" else len(t.source)), (len(t) if which == "attn" else len(t.source))
        assert probs.shape[1:] == (rows, columns)
        ahead = np.triu(np.ones((rows, columns), bool), 1)
        assert (probs[:, ahead] == 0).all() == (which == "attn")
        part = t.rows(f"{at}.probs", head=1, query=[2, 0])
        np.testing.assert_allclose(part.tensor.numpy(), probs[1, [2, 0]], **NEAR)
        assert part.error <= 1e-4


@EACH_SEQ2SEQ
def test_capture_is_exact_and_changes_nothing(name):
    one = SEQ2SEQ[name]
    plain, read = (
        one.trace(SOURCE, TARGET),
        one.trace(SOURCE, TARGET, capture=["encoder.blocks.1.*", "blocks.0.cross.*"]),
    )
    for point in ("encoder.blocks.1.attn.z", "encoder.blocks.1.mlp.act", "blocks.0.cross.q_rot", "blocks.0.cross.out"):
        assert read[point].error == 0
        assert_near(read[point].tensor, plain[point].tensor)
    for trace in (plain, read):
        assert torch.equal(trace.captured.last_logits, plain.captured.last_logits)
    source, ids = torch.tensor([plain.source.ids]), torch.tensor([plain.ids])
    with torch.no_grad():
        logits = one.model(ids, Step.of(ids, source=one.model.encode(source, Step.of(source))))
    assert_near(plain["final.logits"].tensor, logits[0])
    assert read.bytes > plain.bytes > plain.source.bytes > 0


# ---- recurrent models


@EACH_RNN
def test_context_is_the_weighted_sum_of_states(name):
    t = RECURRENT_ATTENTION[name].trace(SOURCE, TARGET)
    scores, probs, states, context = (np64(t, f"rnn.{end}") for end in ("scores", "probs", "states", "context"))
    again = np.exp(scores - scores.max(-1, keepdims=True))
    np.testing.assert_allclose(probs, again / again.sum(-1, keepdims=True), **NEAR)
    np.testing.assert_allclose(context, sum(probs[:, j, None] * states[j] for j in range(len(states))), **NEAR)
    assert probs.shape == (len(t), len(t.source)) == t.shape("rnn.probs")
    assert all(t[point].error <= 1e-5 for point in t.names())
    assert t.rows("rnn.probs", query=1).tensor.tolist() == t["rnn.probs"][1].tolist()
    assert t["rnn.context"].identity == "max |probs · states - context|"


def test_missing_points_of_recurrent_models_raise_request_error():
    one = TRANSLATORS["none"].trace(SOURCE, TARGET)
    assert one.names() == ["rnn.states", "final.logits"]
    with pytest.raises(RequestError, match="has no attention"):
        one.alignment()
    for t in (one, TRANSLATORS["additive"].trace(SOURCE, TARGET)):
        with pytest.raises(RequestError, match=r"has no blocks, and no 'blocks.0.attn.z'"):
            t["blocks.0.attn.z"]
        with pytest.raises(RequestError, match=r"has no point 'rnn.contexts'"):
            t["rnn.contexts"]
    with pytest.raises(RequestError, match="no heads"):
        t.rows("rnn.probs", head=0)
    with pytest.raises(CapacityError, match="the budget is 64 bytes"):
        TRANSLATORS["additive"].trace(SOURCE, TARGET, budget=64)


# ---- all models with a source


@EACH
def test_greedy_trace_equals_translate(name):
    one = translator(name)
    t = one.trace(SOURCE, max_tokens=6)
    (found,) = one.translate(SOURCE, max_tokens=6)
    best = found.targets[0]
    ended = best.finish == "stop"
    assert t.target == (*best.ids, *([one.end_id] if ended else []))
    assert t.ids == (one.begin_id, *t.target[:-1])
    assert (t.finish, t.n_prompt) == (best.finish, 1)
    logprobs = t["final.logits"].tensor.log_softmax(-1)
    assert logprobs.gather(-1, torch.tensor(t.target)[:, None]).sum().item() == pytest.approx(best.logprob, abs=1e-4)


@pytest.mark.parametrize("name", [name for name in SEQ2SEQ | TRANSLATORS if name != "none"])
def test_alignment_equals_align(name):
    one = translator(name)
    t, shown = one.trace(SOURCE, TARGET), one.align(SOURCE, TARGET)
    found = t.alignment()
    torch.testing.assert_close(found.probs, shown.mean)
    assert tuple(side.text for side in found.source) == shown.source_tokens
    assert tuple(side.text for side in found.target) == shown.target_tokens
    assert found.ended
    torch.testing.assert_close(found.probs.sum(-1), torch.ones(len(found.target)))
    assert found.receipt.error <= 1e-4
    if t.kind == "encoder-decoder":
        one_head = t.alignment(layer=1, head=2)
        torch.testing.assert_close(one_head.probs, shown.probs[1, 2])
        torch.testing.assert_close(torch.as_tensor(eval(one_head.receipt.python, {"t": t})), one_head.probs)
        torch.testing.assert_close(t.alignment(layer=1).probs, shown.probs[1].mean(0))
    else:
        assert (found.n_layers, found.n_heads) == (1, 1)
    with pytest.raises(RequestError, match="layer"):
        t.alignment(head=0)
    with pytest.raises(RequestError, match="layer must be a whole number"):
        t.alignment(layer=9)


@EACH_SEQ2SEQ
@pytest.mark.parametrize("which", ["attn", "cross", "encoder"])
def test_cell_equals_numpy(name, which):
    t = SEQ2SEQ[name].trace(SOURCE, TARGET)
    side, kind = ("encoder.", "attn") if which == "encoder" else ("", which)
    config = (t.config.encoder if which == "encoder" else t.config).layers[1]
    config = config.cross if which == "cross" else config.attention
    found = t.cell(layer=1, head=2, query=2, key=1, attention=which)
    kv = 2 * config.n_kv_heads // config.n_heads
    at = f"{side}blocks.1.{kind}"
    q, k, v = np64(t, f"{at}.q_rot")[2, 2], np64(t, f"{at}.k_rot")[:, kv], np64(t, f"{at}.v")[:, kv]
    scale = config.head_dim**-0.5 if config.scale is None else config.scale
    np.testing.assert_allclose(found.products, q * k[1], **NEAR)
    assert found.scaled == pytest.approx(q @ k[1] * scale, rel=1e-4, abs=1e-5)
    probs = np64(t, f"{at}.probs")[2, 2]
    assert found.prob == pytest.approx(probs[1], rel=1e-4)
    np.testing.assert_allclose(found.z, probs @ v, **NEAR)
    np.testing.assert_allclose(found.weighted, probs[1] * v[1], **NEAR)
    assert found.attention == which
    again = eval(found.receipt.python, {"t": t})
    assert again.prob == found.prob
    assert found.receipt.error <= 1e-4
    pictures = t.grid(layer=1, attention=which)
    assert (pictures.rows, pictures.columns) == np64(t, f"{at}.probs").shape[1:]
    size = len(t.source) if which == "cross" or which == "encoder" else len(t)
    with pytest.raises(RequestError, match=f"key must be a whole number from -{size} to {size - 1}"):
        t.cell(layer=1, head=2, query=2, key=size, attention=which)


def test_invalid_seq2seq_trace_requests_raise():
    one = SEQ2SEQ["pre"]
    for wrong, what in (
        ({"target": TARGET, "max_tokens": 3}, "max_tokens has no effect"),
        ({"capture": ["encoder.blocks.9.attn.z"]}, "has no point"),
        ({"budget": 100}, "the budget is 100 bytes"),
        ({"max_tokens": 0}, "max_tokens"),
    ):
        with pytest.raises((RequestError, CapacityError), match=what):
            one.trace(SOURCE, **wrong)
    with pytest.raises(RequestError, match="empty"):
        one.trace("")
    with pytest.raises(RequestError, match="source: token id 9999"):
        one.trace([9999])
    with pytest.raises(CapacityError, match="context holds"):
        one.trace([3] * 4000, TARGET)
    calls = []
    one.trace(SOURCE, max_tokens=3, before_forward=lambda: calls.append(1))
    assert 2 <= len(calls) <= 4, "of generation, and of recording"

    def cancel():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        one.trace(SOURCE, before_forward=cancel)


# ---- encoders


@pytest.mark.parametrize("family", ENCODERS)
def test_encoder_trace_equals_the_forward_pass(family):
    model = tiny_encoder(family)
    one = Embedder(model, wordpieces())
    ids = some_ids(model.config, 1, 11)
    tap = RecorderTap(*(point for point, about in points(model.config).items() if about.kind == "live"))
    with torch.no_grad():
        step = Step.of(ids, tap=tap)
        states = model(ids, step)
        if model.pooler is not None:
            pooled = model.pooled(states, step)
            if model.next_sentence is not None:
                model.follows(pooled, step)
        if model.head is not None:
            model.logits(states, step)
    t = one.trace(ids[0].tolist())
    assert t.names() == list(points(model.config))
    for point in t.names():
        value = t[point]
        assert value.shape == t.shape(point), point
        if point in tap:
            assert_near(value.tensor, tap[point][0][0])
        assert value.error is not None, point
        assert value.error <= 1e-4, value
    probs, v, z = (np64(t, f"blocks.2.attn.{end}") for end in ("probs", "v", "z"))
    np.testing.assert_allclose(np.einsum("hts,shd->thd", probs, v), z, **NEAR)
    assert (probs > 0).all()
    cell = t.cell(layer=2, head=1, query=3, key=9)
    assert cell.visible
    assert cell.prob == pytest.approx(probs[1, 3, 9], rel=1e-4)
    with pytest.raises(RequestError, match="predicts no next token"):
        t.lens()
    with pytest.raises(RequestError, match="needs an encoder-decoder"):
        t.cell(layer=2, head=1, query=3, key=9, attention="encoder")
    with pytest.raises(RequestError, match="has no source"):
        t.cell(layer=2, head=1, query=3, key=9, attention="cross")


def test_encoder_text_has_special_tokens():
    one = Embedder(tiny_encoder("bert"), wordpieces())
    assert one.trace("the cat").tokens == ("[CLS]", " the", " cat", "[SEP]")
