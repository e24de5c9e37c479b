"""Each edit of an encoder, encoder-decoder or recurrent model equals an independent change: in the weights, in NumPy,
in another run or in a module of `transformers`.
"""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from test_seq2seq_trace import (
    NEAR,
    RECURRENT_ATTENTION,
    SEQ2SEQ,
    SOURCE,
    TARGET,
    TOKENIZER,
    TRANSLATORS,
    np64,
    translator,
)
from test_translator import TEXTS
from tiny import assert_near, random_ids, randomise_sharp
from tiny_encoders import CONFIGS as ENCODERS
from tiny_encoders import some_ids, tiny_encoder, wordpieces
from tiny_translators import CONFIGS as FAMILIES

from glassformer.errors import RequestError
from glassformer.formats import save_model
from glassformer.inspect.edits.edit import ablate, add, from_json, knockout, patch, replace, scale
from glassformer.models.embedder import Embedder
from glassformer.models.translator import Translator
from glassformer.nn.model import EncoderDecoder

OTHER, MORE = TOKENIZER.encode(SOURCE)[::-1], "a hat"
SOME_SEQ2SEQ = [name for name in ("pre", "rms", "t5", "bart") if name in SEQ2SEQ]
EACH_SEQ2SEQ = pytest.mark.parametrize("name", SOME_SEQ2SEQ)
EACH_RNN = pytest.mark.parametrize("name", RECURRENT_ATTENTION)
EACH = pytest.mark.parametrize("name", [*SOME_SEQ2SEQ, *RECURRENT_ATTENTION])
ATTENTIONS = ("encoder.blocks.1.attn", "blocks.1.attn", "blocks.0.cross")
WHERE = pytest.mark.parametrize("layer", ATTENTIONS)
EDITS = {  # by model kind; their results must not depend on how values are computed
    "pair": (
        add("encoder.blocks.0.resid_mid", torch.linspace(-2, 2, 48), position=(1, 3)),
        scale("encoder.final.norm", 0.5, position=2), ablate("encoder.blocks.1.attn.z", head=1),
        knockout("encoder.blocks.0.attn.scores", query=3, key=(0, 1)), scale("blocks.0.cross.k_rot", -1.0, position=1),
        knockout("blocks.1.cross.scores", query=(1, 2), key=2), add("blocks.1.cross.out", 4.0, position=2, dim=5),
        replace("blocks.0.cross.probs", 0.3, head=2, query=2, key=0), ablate("blocks.0.attn.z", head=0),
        scale("final.logits", 0.5, position=1),
        scale("blocks.1.cross.heads", 2.0, head=1),
    ),
    "rnn": (
        scale("rnn.states", -1.0, position=1), knockout("rnn.scores", query=(1, 2), key=2),
        replace("rnn.probs", 0.3, query=2, key=0), add("rnn.context", 0.5, position=(0, 2), dim=3),
        scale("final.logits", 0.5, position=1),
    ),
}  # fmt: skip


def edits_of(one):
    return EDITS["rnn" if one.kind == "recurrent" else "pair"]


def same(a, b):
    """Check that two tensors are near, with infinities at the same positions."""
    assert torch.equal(a.isinf(), b.isinf())
    assert_near(a.masked_fill(a.isinf(), 0), b.masked_fill(b.isinf(), 0))


def heads_of(one, layer):
    module = one.model.get_submodule(layer)
    return module, module.config.head_dim


# ---- neutral edits, and edits that equal changed weights


@pytest.mark.parametrize("name", [*SEQ2SEQ, *TRANSLATORS])
def test_scale_by_one_at_every_point_changes_nothing(name):
    one = translator(name)
    plain = one.trace(SOURCE, TARGET)
    derived_ends = (".scores", ".probs", ".heads") if one.kind == "encoder-decoder" else ()
    edits = [scale(point, 1.0) for point in plain.names() if not point.endswith(derived_ends or ("?",))]
    t = one.trace(SOURCE, TARGET, edit=edits)
    assert all(torch.equal(t[point].tensor, plain[point].tensor) for point in ("final.logits", plain.names()[0]))
    assert one.translate(TEXTS, max_tokens=6, edit=edits) == one.translate(TEXTS, max_tokens=6)
    derived = [scale(point, 1.0) for point in plain.names() if point not in {edit.point for edit in edits}]
    t = one.trace(SOURCE, TARGET, edit=derived)
    assert_near(t["final.logits"].tensor, plain["final.logits"].tensor)


@EACH_SEQ2SEQ
@WHERE
def test_ablated_head_equals_zero_columns_of_w_o(name, layer):
    one = SEQ2SEQ[name]
    other = Translator(copy.deepcopy(one.model), one.tokenizer)
    module, size = heads_of(other, layer)
    with torch.no_grad():
        module.o.weight[:, 2 * size : 3 * size] = 0
    for end in ("z", "heads"):
        edit = [ablate(f"{layer}.{end}", head=2)]
        assert_near(
            one.trace(SOURCE, TARGET, edit=edit)["final.logits"].tensor,
            other.trace(SOURCE, TARGET)["final.logits"].tensor,
        )
        for beam in (1, 3):
            ours, theirs = (
                m.translate(TEXTS, max_tokens=7, beam=beam, **how) for m, how in ((one, {"edit": edit}), (other, {}))
            )
            assert [a.text for a in ours] == [b.text for b in theirs]
            logprobs = [[a.targets[0].logprob for a in some] for some in (ours, theirs)]
            assert logprobs[0] == pytest.approx(logprobs[1], abs=1e-3)
    plain = one.trace(SOURCE, TARGET)["final.logits"].tensor
    assert (plain - other.trace(SOURCE, TARGET)["final.logits"].tensor).abs().max() > 1e-2, "the head has no effect"


@pytest.mark.parametrize("family", FAMILIES)
@WHERE
def test_ablated_head_equals_a_hook_in_transformers(family, layer, tmp_path):
    """The hook is on the W_o module of the same model in `transformers`."""
    import transformers

    from glassformer.formats import load_seq2seq

    save_model(randomise_sharp(EncoderDecoder(FAMILIES[family]())), tmp_path)
    theirs, model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval(), load_seq2seq(tmp_path)
    core = getattr(theirs, "model", theirs)
    side = core.encoder if layer.startswith("encoder.") else core.decoder
    i, cross = int(layer.split("blocks.")[1][0]), layer.endswith("cross")
    if hasattr(side, "layers"):
        module = (side.layers[i].encoder_attn if cross else side.layers[i].self_attn).out_proj
    else:
        module = (side.block[i].layer[1].EncDecAttention if cross else side.block[i].layer[0].SelfAttention).o
    size = model.get_submodule(layer).config.head_dim

    def silence(_module, args):
        z = args[0].clone()
        z[..., size : 2 * size] = 0
        return (z, *args[1:])

    source, ids = random_ids(model.encoder.config, 1, 12)[0].tolist(), random_ids(model.config, 1, 9, 2)[0].tolist()
    read = {"input_ids": torch.tensor([source]), "decoder_input_ids": torch.tensor([ids])}
    hook = module.register_forward_pre_hook(silence)
    with torch.no_grad():
        want = theirs(**read).logits[0]
        hook.remove()
        plain = theirs(**read).logits[0]
    from glassformer.inspect.edits.apply import Edits
    from glassformer.inspect.record.seq2seq import record_seq2seq
    from glassformer.inspect.trace.seq2seq import Seq2seqTrace

    class Only:
        kind, tokenizer = "encoder-decoder", None

    one = Only()
    one.model = model
    editor = Edits(model.config, [ablate(f"{layer}.z", head=1)], [len(ids)], len(ids), len(source))
    t = record_seq2seq(Seq2seqTrace, one, source, ids, ids, n_prompt=len(ids), editor=editor)
    assert_near(t["final.logits"].tensor, want)
    assert (want - plain).abs().max() > 1e-2


# ---- a knocked-out key


@EACH_SEQ2SEQ
@WHERE
def test_knockout_equals_softmax_without_the_key(name, layer):
    """The softmax is computed in float64 from the unedited scores; other queries do not change."""
    one = SEQ2SEQ[name]
    plain, query = one.trace(SOURCE, TARGET), 2
    key = int(np64(plain, f"{layer}.probs")[1, query].argmax())
    t = one.trace(SOURCE, TARGET, edit=[knockout(f"{layer}.scores", head=1, query=query, key=key)])
    scores, v = np64(plain, f"{layer}.scores")[1, query], np64(plain, f"{layer}.v")
    scores[key] = -np.inf
    probs = np.exp(scores - scores.max())
    probs /= probs.sum()
    kv = v.shape[1] // heads_of(one, layer)[0].config.n_heads  # of head 1: itself, or with grouped queries the first
    np.testing.assert_allclose(np64(t, f"{layer}.probs")[1, query], probs, **NEAR)
    np.testing.assert_allclose(np64(t, f"{layer}.z")[query, 1], probs @ v[:, kv], **NEAR)
    np.testing.assert_allclose(t.rows(f"{layer}.probs", head=1, query=query).tensor.numpy(), probs, **NEAR)
    z, was = np64(t, f"{layer}.z"), np64(plain, f"{layer}.z")
    z[query, 1] = was[query, 1]
    np.testing.assert_allclose(z, was, **NEAR)
    assert [choice.what for choice in t.choices] == [layer]
    assert (t["final.logits"].tensor - plain["final.logits"].tensor).abs().max() > 1e-3


@EACH_RNN
def test_knockout_removes_a_state_from_the_recurrent_context(name):
    one = RECURRENT_ATTENTION[name]
    plain, query = one.trace(SOURCE, TARGET), 1
    key = int(np64(plain, "rnn.probs")[query].argmax())
    t = one.trace(SOURCE, TARGET, edit=[knockout("rnn.scores", query=query, key=key)])
    scores = np64(plain, "rnn.scores")[query]
    scores[key] = -np.inf
    probs = np.exp(scores - scores.max())
    probs /= probs.sum()
    np.testing.assert_allclose(np64(t, "rnn.probs")[query], probs, **NEAR)
    np.testing.assert_allclose(np64(t, "rnn.context")[query], probs @ np64(plain, "rnn.states"), **NEAR)
    assert torch.equal(t["final.logits"].tensor[:query], plain["final.logits"].tensor[:query])
    assert (t["final.logits"].tensor[query] - plain["final.logits"].tensor[query]).abs().max() > 1e-4
    assert t.choices == ()
    assert all(t[point].error <= 1e-5 for point in t.names())
    fork = t.fork(plain)
    p, q = (x["final.logits"].tensor.double().log_softmax(-1) for x in (t, plain))
    assert [step.kl for step in fork.steps] == pytest.approx((p.exp() * (p - q)).sum(-1).tolist(), abs=1e-9)
    assert fork.diverges_at is None
    assert max(step.kl for step in fork.steps) > 1e-6


# ---- patches from another run


@EACH_SEQ2SEQ
def test_patch_at_all_positions_equals_the_source_run(name):
    one = SEQ2SEQ[name]
    plain = one.trace(SOURCE, TARGET)
    other, far = one.trace(OTHER, TARGET), one.trace(SOURCE, MORE)
    assert len(plain.source) == len(other.source)
    t = one.trace(SOURCE, TARGET, edit=[patch("encoder.blocks.1.resid_pre", other)])
    for point in ("encoder.blocks.1.attn.z", "encoder.final.norm", "blocks.0.cross.k", "final.logits"):
        assert torch.equal(t[point].tensor, other[point].tensor), point
    assert not torch.equal(t["encoder.blocks.0.resid_mid"].tensor, other["encoder.blocks.0.resid_mid"].tensor)
    patches = [patch(f"blocks.{i}.cross.{end}", other) for i in range(2) for end in ("k_rot", "v")]
    assert torch.equal(one.trace(SOURCE, TARGET, edit=patches)["final.logits"].tensor, other["final.logits"].tensor)
    n = min(len(plain), len(far))
    t = one.trace(SOURCE, TARGET, edit=[patch("blocks.1.resid_pre", far)])
    assert torch.equal(t["blocks.1.resid_pre"].tensor[:n], far["blocks.1.resid_pre"].tensor[:n])
    assert_near(t["final.logits"].tensor[:n], far["final.logits"].tensor[:n])
    cell = one.trace(SOURCE, TARGET, edit=[patch("blocks.0.cross.probs", other, head=2, query=1)])
    assert_near(cell["blocks.0.cross.probs"].tensor[2, 1], other["blocks.0.cross.probs"].tensor[2, 1])
    assert_near(cell["blocks.0.cross.probs"].tensor[2, 0], plain["blocks.0.cross.probs"].tensor[2, 0])


@EACH_RNN
def test_patch_of_the_states_of_a_recurrent_model(name):
    one = RECURRENT_ATTENTION[name]
    plain, other = one.trace(SOURCE, TARGET), one.trace(OTHER, TARGET)
    assert len(plain.source) == len(other.source)
    t = one.trace(SOURCE, TARGET, edit=[patch("rnn.states", other)])
    assert torch.equal(t["rnn.states"].tensor, other["rnn.states"].tensor)
    one_row = one.trace(SOURCE, TARGET, edit=[patch("rnn.probs", other, query=1)])
    assert torch.equal(one_row["rnn.probs"].tensor[1], other["rnn.probs"].tensor[1])
    assert torch.equal(one_row["rnn.probs"].tensor[0], plain["rnn.probs"].tensor[0])
    if one.config.n_layers == 1:  # otherwise the decoder receives more than the top states
        assert_near(t["final.logits"].tensor, other["final.logits"].tensor)


# ---- captured, recomputed, decoded


@pytest.mark.parametrize("name", ["rms", "t5", *RECURRENT_ATTENTION])
def test_recomputed_values_equal_captured_values(name):
    """Captured and recomputed values are equal, with all edits at once and with each alone."""
    one = translator(name)
    plain = one.trace(SOURCE, TARGET)["final.logits"].tensor
    lazy, captured = (one.trace(SOURCE, TARGET, edit=edits_of(one), capture=read) for read in ((), ["*"]))
    for point in lazy.names():
        same(lazy[point].tensor, captured[point].tensor)
        assert lazy[point].error <= 1e-3, point
    for edit in edits_of(one):
        lazy, captured = (one.trace(SOURCE, TARGET, edit=[edit], capture=read) for read in ((), ["*"]))
        for point in (edit.point, "final.logits"):
            same(lazy[point].tensor, captured[point].tensor)
            assert lazy[point].error <= 1e-3, edit
        assert (plain - lazy["final.logits"].tensor).abs().max() > 1e-4, edit


@EACH
def test_edited_decoding_equals_full_forward_passes(name):
    """Each token has the highest logit of an uncached forward pass over the text so far."""
    one = translator(name)
    edits, n = edits_of(one), 6
    t, ids = one.trace(SOURCE, max_tokens=n, edit=edits), [one.begin_id]
    for _ in range(n):
        again = one.trace(SOURCE, [*ids[1:], one.end_id], ended=False, edit=fitting(edits, len(ids)))
        ids.append(int(again["final.logits"].tensor[-1, : one.tokenizer.vocab_size].argmax()))
        if ids[-1] == one.end_id:
            break
    assert list(t.target) == ids[1:]
    (found,) = one.translate(SOURCE, max_tokens=n, edit=edits)
    assert list(found.targets[0].ids) == [token for token in ids[1:] if token != one.end_id]
    logprobs = t["final.logits"].tensor.log_softmax(-1).gather(-1, torch.tensor(t.target)[:, None])
    assert found.targets[0].logprob == pytest.approx(logprobs.sum().item(), abs=1e-3)
    several = one.translate([*TEXTS[:1], SOURCE, TEXTS[2]], max_tokens=n, edit=edits)  # padded, in one batch
    assert several[1].targets[0].ids == found.targets[0].ids


def fitting(edits, n):
    """Return the edits that apply to a target of n tokens, limited to its positions."""
    found = []
    for edit in edits:
        data = edit.json
        theirs = edit.point.startswith(("encoder.", "rnn.states")) or edit.point.endswith("cross.k_rot")
        for name in () if theirs else ("position", "query"):
            if name in data:
                some = [i for i in (data[name] if isinstance(data[name], list) else [data[name]]) if i < n]
                data[name] = some
        if [] not in data.values():
            found.append((data, edit))
    from dataclasses import replace as other

    return [other(edit, position=data.get("position"), query=data.get("query")) for data, edit in found]


@EACH
def test_edited_beam_logprobs_equal_those_of_a_trace(name):
    one = translator(name)
    edits = edits_of(one)
    for best in one.translate(SOURCE, max_tokens=6, beam=3, n=3, edit=edits)[0].targets:
        ended = best.finish == "stop"
        ids = [*best.ids, one.end_id] if ended else list(best.ids)
        t = one.trace(SOURCE, ids, ended=False, edit=fitting(edits, len(ids)))
        logprobs = t["final.logits"].tensor.log_softmax(-1).gather(-1, torch.tensor(ids)[:, None])
        assert best.logprob == pytest.approx(logprobs.sum().item(), abs=1e-3)


@EACH
def test_position_minus_one_is_every_generating_position(name):
    one, token = translator(name), 70
    edit = [replace("final.logits", 99.0, position=-1, dim=token)]
    assert one.trace(SOURCE, max_tokens=4, edit=edit).target == (token,) * 4
    read = one.trace(SOURCE, TARGET, edit=edit)["final.logits"].tensor
    assert torch.equal(read[:-1], one.trace(SOURCE, TARGET)["final.logits"].tensor[:-1])
    assert read[-1, token] == 99


# ---- encoders


def embedder(family):
    return Embedder(tiny_encoder(family), wordpieces())


TEXT = "the cat [MASK] on the mat"
EACH_ENCODER = pytest.mark.parametrize("family", ENCODERS)


@EACH_ENCODER
def test_scale_by_one_does_not_change_an_encoder(family):
    one = embedder(family)
    ids = one.tokenizer.encode_masked(TEXT)
    plain = one.trace(ids)
    derived_ends = (".scores", ".probs", ".heads")
    edits = [scale(point, 1.0) for point in plain.names() if not point.endswith(derived_ends)]
    t = one.trace(ids, edit=edits)
    assert all(
        torch.equal(t[point].tensor, plain[point].tensor) for point in ("final.norm", "final.logits", "embed.out")
    )
    texts = ["the cat sat", "a dog ate the hat"]
    assert torch.equal(one.embed(texts, edit=edits), one.embed(texts))
    assert one.fill(TEXT, edit=edits) == one.fill(TEXT)


@EACH_ENCODER
def test_ablated_head_of_an_encoder(family, tmp_path):
    """The ablation equals zero columns of W_o in a copy, and a hook in `transformers`."""
    one = embedder(family)
    other = Embedder(copy.deepcopy(one.model), one.tokenizer)
    with torch.no_grad():
        other.model.blocks[1].attn.o.weight[:, 12:24] = 0
    edit, texts = [ablate("blocks.1.attn.z", head=1)], ["the cat sat", "a dog ate the hat"]
    assert_near(one.embed(texts, edit=edit), other.embed(texts))
    assert (one.embed(texts) - other.embed(texts)).abs().max() > 1e-2
    ours, theirs = one.fill(TEXT, edit=edit), other.fill(TEXT)
    assert [[guess.id for guess in row] for row in ours] == [[guess.id for guess in row] for row in theirs]
    assert [g.probability for g in ours[0]] == pytest.approx([g.probability for g in theirs[0]], rel=1e-4)

    import transformers

    save_model(one.model, tmp_path)
    hf = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    name = "attention.out_lin" if family == "distilbert" else "attention.output.dense"
    (module,) = [m for path, m in hf.named_modules() if path.endswith(f"layer.1.{name}")]

    def silence(_module, args):
        z = args[0].clone()
        z[..., 12:24] = 0
        return (z, *args[1:])

    ids = some_ids(one.config, 1, 11)
    module.register_forward_pre_hook(silence)
    with torch.no_grad():
        want = hf(ids).logits[0]
    assert_near(one.trace(ids[0].tolist(), edit=edit)["final.logits"].tensor, want)


@EACH_ENCODER
def test_edits_of_an_encoder_are_captured_or_recomputed(family):
    one = embedder(family)
    ids = some_ids(one.config, 1, 11)[0].tolist()
    plain, other = one.trace(ids), one.trace(some_ids(one.config, 1, 11, 5)[0].tolist())
    edits = [
        knockout("blocks.1.attn.scores", head=1, query=4, key=9), scale("blocks.0.mlp.act", 0.5, dim=7),
        patch("blocks.2.attn.z", other, position=3), add("final.norm", 0.3, position=(0, 2)),
        replace("final.logits", 2.0, position=10, dim=5),
    ]  # fmt: skip
    if one.model.pooler is not None:
        edits.append(scale("final.pooled", -1.0, dim=3))
    t, captured = one.trace(ids, edit=edits), one.trace(ids, edit=edits, capture=["*"])
    for point in t.names():
        same(t[point].tensor, captured[point].tensor)
        assert t[point].error <= 1e-3, point
    scores = np64(plain, "blocks.1.attn.scores")[1, 4]
    alone = one.trace(ids, edit=edits[:1])
    scores[9] = -np.inf
    probs = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    np.testing.assert_allclose(np64(alone, "blocks.1.attn.probs")[1, 4], probs, **NEAR)
    patched = one.trace(ids, edit=[patch("blocks.1.resid_pre", other)])
    assert torch.equal(patched["final.logits"].tensor, other["final.logits"].tensor)
    if one.model.pooler is not None:
        turned = one.trace(ids, edit=edits[-1:])["final.pooled"].tensor
        want = plain["final.pooled"].tensor.clone()
        want[3] *= -1
        assert torch.equal(turned, want)
        taken = one.trace(ids, edit=[patch("final.pooled", other)])["final.pooled"].tensor
        assert torch.equal(taken, other["final.pooled"].tensor)


# ---- errors


WRONG = [
    ("pre", {"op": "ablate", "point": "encoder.blocks.9.attn.z"}, "no point 'encoder.blocks.9.attn.z'"),
    ("pre", {"op": "ablate", "point": "encoder.embed.out", "position": -1}, r"position must be from 0 to \d+, got -1"),
    ("pre", {"op": "ablate", "point": "blocks.0.cross.v", "position": 99}, "position must be from 0 to"),
    ("pre", {"op": "knockout", "point": "blocks.0.cross.scores", "query": 0, "key": 99}, "key must be from 0 to"),
    ("pre", {"op": "knockout", "point": "blocks.0.cross.z"}, "a knockout edits scores, such as blocks.0.cross.scores"),
    ("pre", {"op": "knockout", "point": "embed.out"}, "a knockout edits scores, such as encoder.blocks.0.attn.scores"),
    ("pre", {"op": "ablate", "point": "blocks.0.cross.z", "head": 4}, "head must be from 0 to 3, got 4"),
    ("dot", {"op": "ablate", "point": "blocks.0.attn.z"}, "no point 'blocks.0.attn.z'"),
    ("dot", {"op": "ablate", "point": "rnn.states", "position": -1}, r"position must be from 0 to \d+, got -1"),
    ("dot", {"op": "knockout", "point": "rnn.scores", "head": 0}, "rnn.scores has no head: it has query, key"),
    ("dot", {"op": "knockout", "point": "rnn.context"}, "a knockout edits scores, such as rnn.scores"),
    ("dot", {"op": "ablate", "point": "rnn.context", "dim": 12}, "dim must be from 0 to 11, got 12"),
    ("none", {"op": "knockout", "point": "rnn.states"}, "this model has no attention"),
    ("none", {"op": "ablate", "point": "rnn.probs"}, "no point 'rnn.probs'"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "edit", "message"), WRONG)
def test_invalid_edits_raise_request_error(name, edit, message):
    one = translator(name)
    for use in (partial(one.trace, SOURCE, TARGET), partial(one.trace, SOURCE), partial(one.translate, SOURCE)):
        with pytest.raises(RequestError, match=message):
            use(edit=[from_json(edit)])


def test_invalid_encoder_edits_and_nan_logits_raise_request_error():
    one = embedder("bert")
    for edit, message in (
        (ablate("encoder.final.norm"), "no point"), (ablate("blocks.0.attn.z", position=-1), "from 0 to 4, got -1"),
        (ablate("final.pooled", position=0), "final.pooled has no position: it has dim"),
        (add("final.pooled", [1.0]), r"its tensor has the shape \[1\]"),
    ):  # fmt: skip
        for use in (one.trace, one.embed, one.fill):
            with pytest.raises(RequestError, match=message):
                use("a [MASK] sat" if use == one.fill else "a cat sat", edit=[edit])
    for name in ("pre", "dot"):
        blind = knockout("rnn.scores" if name == "dot" else "blocks.0.cross.scores", query=1)
        with pytest.raises(RequestError, match="the edits make the logits NaN"):
            translator(name).translate(SOURCE, max_tokens=5, edit=[replace("final.logits", 9.0, dim=70), blind])
        assert translator(name).trace(SOURCE, TARGET, edit=[blind])["final.logits"].tensor[1].isnan().all()
    with pytest.raises(
        RequestError, match=r"text 2 of 2: edit ablate of encoder.embed.out: position must be from 0 to 0"
    ):
        translator("pre").translate([SOURCE, "a"], edit=[ablate("encoder.embed.out", position=1)])
