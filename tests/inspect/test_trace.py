"""Traces: every number against a reference in NumPy, however the text came; looking changes nothing."""

import numpy as np
import pytest
import torch
from reference import run as reference
from tiny import random_ids, run, tiny, tiny_config

from glassformer.config import RelativeConfig
from glassformer.errors import CapacityError, RequestError
from glassformer.generate import session
from glassformer.inspect.capture import capture as reading
from glassformer.inspect.capture import points
from glassformer.inspect.trace import recompute as again
from glassformer.models.language_model import LanguageModel

# all that the equations of the reference cover: grouped queries, windows, caps, both norms and where they stand, ...
FAMILIES = (
    "qwen3", "llama", "gpt2", "mistral", "qwen2", "gpt_neox", "gemma", "gemma2", "gemma3_text", "phi", "olmo", "olmo2",
    "smollm3", "falcon", "stablelm", "mixtral", "qwen3_moe",
)  # fmt: skip
DECODERS = (*FAMILIES, "phi3", "gpt_oss", "olmoe", "deepseek_v2", "deepseek_v3", "relative")
MADE: dict[str, LanguageModel] = {}


def language(family: str) -> LanguageModel:
    if family == "relative" and family not in MADE:  # a bias of scores for how far a key is
        own = {f"layers.{i}.attention.rope": None for i in range(3)} | {"relative": RelativeConfig(8, 20)}
        MADE[family] = LanguageModel(tiny("llama", **own))
    if family not in MADE:
        MADE[family] = LanguageModel(tiny(family))
    return MADE[family]


def text(lm, n=11, seed=1):
    return random_ids(lm.config, 1, n, seed)[0].tolist()


def near(got: torch.Tensor, want, name, tolerance=1e-4):
    want = torch.as_tensor(np.asarray(want))
    assert got.shape == want.shape, name
    there = want.isfinite()
    assert torch.equal(got.isfinite(), there), name
    size = want[there].abs().max().item()
    assert (got.double()[there] - want[there]).abs().max().item() <= tolerance * size, name


def known(lm, ids, **more):
    return reference(lm.config, {n: p.detach().numpy() for n, p in lm.model.named_parameters()}, ids, **more)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_number_is_the_references(family):
    lm = language(family)
    t, want = lm.trace(text(lm)), known(lm, text(lm))
    assert set(t.names()) == set(want)
    for name in t.names():
        value = t[name]
        near(value.tensor, want[name], name)
        assert len(value.axes) == value.tensor.ndim
        size = dict.fromkeys("TS", 11) | points.sizes(lm.config, name)
        assert value.shape == tuple(size[axis] for axis in value.axes), name
        assert 0 <= value.error <= 1e-4 * max(1, value.tensor[value.tensor.isfinite()].abs().max()), name
        assert value.identity


@pytest.mark.parametrize("family", ["qwen3", "falcon", "gemma2"])
def test_the_wrong_grouping_of_heads_is_seen(family):
    """Query heads taken in turns instead of in groups: what the reference says then is another model."""
    lm = language(family)
    t, turns = lm.trace(text(lm)), lambda h, c: h % c.n_kv_heads
    if lm.config.layers[0].attention.n_kv_heads == 1:
        turns = lambda h, c: 0  # noqa: E731  one key head: turns and groups are the same
        near(t["final.logits"].tensor, known(lm, text(lm), group_of=turns)["final.logits"], "logits")
        return
    for name in ("blocks.0.attn.probs", "blocks.0.attn.z", "final.logits"):
        with pytest.raises(AssertionError):
            near(t[name].tensor, known(lm, text(lm), group_of=turns)[name], name, 1e-2)


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("chunk", [512, 4])
def test_a_written_text_is_the_one_that_is_read(family, chunk, monkeypatch):
    """Kept from the passes of `generate`, in chunks and one token at a time, and from one pass: the same numbers."""
    monkeypatch.setattr(session, "PREFILL_CHUNK", chunk)
    lm = language(family)
    t = lm.trace(text(lm, 10), max_tokens=9, temperature=0, capture=["*.z"])
    plain = lm.generate(text(lm, 10), max_tokens=9, temperature=0)
    assert (t.ids[:10], t.ids[10:]) == (plain.prompt_ids, plain.continuations[0].ids)
    assert (t.n_prompt, t.finish, len(t)) == (10, "length", 19)
    whole = lm.trace(t.ids)
    for name in t.names():
        a, b = t[name], whole[name]
        near(a.tensor, b.tensor, name, 3e-5)
        assert a.axes == b.axes
        assert a.error <= 1e-4 * max(1, b.tensor[b.tensor.isfinite()].abs().max()), name


@pytest.mark.parametrize("family", DECODERS)
def test_parts_are_parts_of_the_whole(family):
    lm = language(family)
    t = lm.trace(text(lm))
    for name in t.names():
        whole = t[name].tensor
        if name.endswith((".scores", ".probs")):
            near(t.rows(name, head=2, query=7).tensor, whole[2, 7], name)
            near(t.rows(name, head=[3, 1]).tensor, whole[[3, 1]], name)
            near(t.rows(name, query=[0, -1]).tensor, whole[:, [0, 10]], name)
            assert t.rows(name, head=2, query=7).axes == ("S",)
            assert t.rows(name, head=[0], query=7).axes == ("H", "S")
        else:
            near(t.at(name, [5, 2]).tensor, whole[[5, 2]], name)
            near(t.at(name, -1).tensor, whole[10], name)
            assert t.at(name, 5).axes == t[name].axes[1:]


@pytest.mark.parametrize("family", DECODERS)
def test_what_is_read_is_bit_equal_to_what_passed(family):
    """Kept as it passes, error 0; and neither it nor anything else differs from a run that nobody looks at."""
    lm = language(family)
    ids = torch.tensor([text(lm)])
    tap, plain = Everything(), run(lm.model, ids)
    run(lm.model, ids, tap=tap)
    t = lm.trace(text(lm), capture=["*"])
    for name in points.live(lm.config):
        value = t[name]
        want = tap.seen[name][0].expand(value.shape)
        assert torch.equal(value.tensor, want), name
        assert value.error == 0
        assert value.identity == "captured during the forward pass"
    assert torch.equal(t["final.logits"].tensor, plain[0])
    for name in points.derived(lm.config):
        assert t[name].error < 1e-3


class Everything:
    def __init__(self):
        self.seen = {}

    def wants(self, name):
        return not name.endswith(("scores", "probs", "heads"))

    def __call__(self, name, value):
        self.seen[name] = value.clone()
        return value


@pytest.mark.parametrize("family", ["qwen3", "gpt2", "gemma2", "phi3"])
def test_looking_changes_no_token_and_no_log_probability(family):
    lm = language(family)
    asked = {"max_tokens": 20, "temperature": 1.0, "seed": 5, "logprobs": 3}
    plain = lm.generate(text(lm), **asked)
    pieces = list(lm.trace_stream(text(lm), capture=["*"], **asked))
    assert [(p.id, p.logprob, p.top) for p in pieces[:-1]] == [
        (k.id, k.logprob, k.top) for k in plain.continuations[0].tokens
    ]
    assert pieces[-1].seed == 5
    assert lm.generate(text(lm), **asked) == plain, "a look at one request changed the next"


def test_a_second_text_is_written_while_the_first_is_looked_at():
    lm = language("qwen3")
    alone = [lm.generate(text(lm, seed=s), max_tokens=12, temperature=1.0, seed=s).text for s in (1, 2)]
    first = lm.trace_stream(text(lm, seed=1), max_tokens=12, temperature=1.0, seed=1, capture=["*"])
    second = lm.stream(text(lm, seed=2), max_tokens=12, temperature=1.0, seed=2)
    pairs = list(zip(first, second, strict=False))
    assert "".join(b.text for _, b in pairs) == alone[1]
    assert "".join(a.text for a, _ in pairs) == alone[0]


def test_a_shorter_text_is_the_beginning_and_an_earlier_token_never_changes():
    """Truncated at j: columns up to j are the same. Another token at j: nothing left of it changes, and itself does."""
    for family in ("qwen3", "gpt2", "gemma2"):
        lm = language(family)
        ids = text(lm)
        t, short = lm.trace(ids), lm.trace(ids[:7])
        other = lm.trace([*ids[:7], (ids[7] + 1) % lm.config.vocab_size, *ids[8:]])
        for name in t.names():
            if not name.endswith((".scores", ".probs")):
                near(short[name].tensor, t[name].tensor[:7], name)
                near(other[name].tensor[:7], t[name].tensor[:7], name)
        assert (other["final.logits"].tensor[7:] - t["final.logits"].tensor[7:]).abs().amax(-1).min() > 1e-3


def test_a_text_that_becomes_long_is_read_anew():
    """phi3 turns by other angles from 25 tokens on: its trace holds the second reading, and says so."""
    lm = language("phi3")
    for n_prompt, n_new in ((20, 3), (20, 12), (24, 1), (30, 4)):
        t = lm.trace(text(lm, n_prompt), max_tokens=n_new, temperature=0)
        assert t.ids[n_prompt:] == lm.generate(text(lm, n_prompt), max_tokens=n_new, temperature=0).continuations[0].ids
        assert t.reprefills == ((25,) if n_prompt < 25 <= n_prompt + n_new else ())
        whole = lm.trace(t.ids)
        for name in ("blocks.2.attn.k_rot", "blocks.1.attn.probs", "final.logits"):
            near(t[name].tensor, whole[name].tensor, name)
            assert t[name].error < 1e-3


def test_the_error_is_honest():
    """Numbers that are not the pass's: whatever is computed from them says by how much it is off."""
    lm = language("qwen3")
    for spoilt, told in (
        ("blocks.1.resid_pre", ("blocks.1.attn.q", "blocks.1.mlp.act", "blocks.0.mlp.up")),
        ("blocks.1.attn.v", ("blocks.1.attn.out", "blocks.1.mlp.act")),
        ("blocks.2.resid_post", ("final.logits", "blocks.2.mlp.act")),
        ("blocks.0.attn.z", ("blocks.0.attn.probs", "blocks.0.attn.heads")),
    ):
        t = lm.trace(text(lm), capture=["blocks.0.attn.z"])
        t.captured.tensors[spoilt] = t.captured.tensors[spoilt] + 0.5
        for name in told:
            assert t[name].error > 0.01, (spoilt, name)


# ---- memory


def test_a_trace_says_what_it_keeps():
    """resid_pre of each block and what follows the last, keys and values: to the byte, and beforehand."""
    for family in ("qwen3", "gpt2"):
        lm = language(family)
        c, a = lm.config, lm.config.layers[0].attention
        t = lm.trace(text(lm))
        want = 4 * 11 * ((c.n_layers + 1) * c.d_model + 2 * c.n_layers * a.n_kv_heads * a.head_dim)
        assert t.bytes == want
        assert want == reading.check_budget(c, [], [], 11, 4, None)
        more = lm.trace(text(lm), capture=["blocks.1.mlp.act", "*.resid_post", "embed.out"])
        assert more.bytes == want + 4 * 11 * c.layers[1].mlp.d_ff, "a tensor is kept once, whatever it is called"
        written = lm.trace(text(lm, 6), max_tokens=5, temperature=0)
        assert written.bytes == want


def test_a_budget_refuses_what_would_not_fit_and_says_what_would():
    lm = language("gpt2")
    least = lm.trace(text(lm)).bytes
    assert lm.trace(text(lm), budget=least).bytes == least
    with pytest.raises(CapacityError, match=rf"takes {least} bytes.*budget is {least - 1} bytes.*at most 10 tokens"):
        lm.trace(text(lm), budget=least - 1)
    one = 4 * 11 * 72
    with pytest.raises(CapacityError, match=r"3 points in `capture`, with blocks.0.mlp.act, blocks.1.mlp.act it fits"):
        lm.trace(text(lm), capture=["*.mlp.act"], budget=least + 2 * one)
    with pytest.raises(CapacityError, match="none of them fits"):
        lm.trace(text(lm), capture=["*.mlp.act"], budget=least + one - 1)
    with pytest.raises(CapacityError, match="budget is"):
        lm.trace(text(lm, 6), capture=["*.mlp.act"], max_tokens=5, budget=least + 3 * one - 1)
    t = lm.trace(text(lm), budget=least)
    small = lm.trace(text(lm))
    small.budget = 4 * 4 * 11 * 5
    with pytest.raises(CapacityError, match=r"blocks.0.attn.probs takes 1936 bytes here.*use rows"):
        small["blocks.0.attn.probs"]
    assert small.rows("blocks.0.attn.probs", head=1).shape == (11, 11)
    assert t.budget == least
    for bad in (0, -1, True):
        with pytest.raises(RequestError, match="budget"):
            lm.trace(text(lm), budget=bad)


def test_what_is_computed_again_is_let_go(monkeypatch):
    monkeypatch.setattr("glassformer.inspect.trace.lru.LIMIT", 4 * 11 * 72 * 2)
    lm = language("gpt2")
    t = lm.trace(text(lm))
    for i in range(3):
        t[f"blocks.{i}.mlp.act"]
    assert t.bytes == lm.trace(text(lm)).bytes + 4 * 11 * 72 * 2


def test_one_head_of_a_long_text_takes_no_more_than_one_head(monkeypatch):
    """Never [H, T, S] of all heads: attention is computed for those that are asked for, a few at a time."""
    lm, seen = language("gpt2"), []
    t = lm.trace(text(lm, 60))
    theirs = again.weigh
    watch = lambda spec, q, k, *a: seen.append((*q.shape[:2], len(k))) or theirs(spec, q, k, *a)  # noqa: E731
    monkeypatch.setattr(again, "weigh", watch)
    t.rows("blocks.1.attn.probs", head=2, query=50)
    assert seen == [(1, 1, 51)]
    monkeypatch.setattr(again, "AT_ONCE", 4 * 60 * 25)
    seen.clear()
    whole = t["blocks.1.attn.probs"].tensor
    assert seen == [(25, 4, 25), (25, 4, 50), (10, 4, 60)]
    near(t.rows("blocks.1.attn.probs", head=[3, 0], query=[59, 7]).tensor, whole[[3, 0]][:, [59, 7]], "probs")


# ---- what a person may get wrong


def test_bad_requests_say_what_is_allowed():
    lm = language("gpt2")
    t = lm.trace(text(lm))
    for what, message in (
        (lambda: lm.trace(text(lm), capture=["blocks.9.*"]), r"no point 'blocks.9.\*'; the closest name is 'blocks"),
        (lambda: t["blocks.0.attn.prob"], "closest name is 'blocks.0.attn.probs'"),
        (lambda: t["blocks.0.mlp.gate"], "no point 'blocks.0.mlp.gate'"),
        (lambda: t.at("blocks.0.attn.q", 11), "position must be a whole number from 0 to 10, got 11"),
        (lambda: t.at("blocks.0.attn.q", True), "position must be a whole number"),
        (lambda: t.rows("blocks.0.attn.probs", head=4), "head must be a whole number from 0 to 3, got 4"),
        (lambda: t.rows("blocks.0.attn.z", head=1), "rows returns scores and probs"),
        (lambda: lm.trace(text(lm), temperature=0.5), "temperature has no effect"),
        (lambda: lm.trace([]), "the text is empty"),
        (lambda: lm.trace([97]), "token id 97 is out of range"),
        (lambda: lm.trace(text(lm), max_tokens=-1), "max_tokens must be"),
        (lambda: lm.trace(text(lm), max_tokens=2, colour=1), "unknown option 'colour'"),
    ):  # fmt: skip
        with pytest.raises(RequestError, match=message):
            what()
    with pytest.raises(CapacityError, match="65 tokens, and the model's context holds 64"):
        lm.trace(text(lm, 65))
    with pytest.raises(CapacityError, match="does not fit"):
        lm.trace(text(lm, 60), max_tokens=5)
    assert len(lm.trace(text(lm, 60), max_tokens=4, temperature=0)) == 64, "the whole context"


def test_tokens_without_a_tokenizer_are_numbers():
    lm = language("gpt2")
    assert lm.trace([3, 96]).tokens == ("#3", "#96")
    assert "Trace(2 tokens, 2 of them prompt" in repr(lm.trace([3, 96]))
    assert repr(lm.trace([3, 96])["embed.out"]).startswith("Value(embed.out [T 2, D 48], error 0.0")


def test_a_point_that_a_model_has_not_is_not_in_its_names():
    assert "blocks.0.resid_mid" not in LanguageModel(tiny("phi")).trace([1, 2]).names()
    assert "blocks.0.mlp.router" in language("mixtral").trace([1, 2]).names()
    assert not any("mlp.act" in name for name in language("mixtral").trace([1, 2]).names())
    assert set(points.points(tiny_config("qwen3"))) == set(language("qwen3").trace([1, 2]).names())
