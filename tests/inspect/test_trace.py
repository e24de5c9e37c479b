"""Traces equal a NumPy reference, for given and generated texts, and capture changes no result."""

import numpy as np
import pytest
import torch
from reference import run as reference
from tiny import random_ids, run, tiny, tiny_config

from glassformer.config import RelativeConfig
from glassformer.errors import CapacityError, RequestError
from glassformer.generate import prefill
from glassformer.inspect.capture import capture as capture_module
from glassformer.inspect.capture import points
from glassformer.inspect.trace import recompute
from glassformer.kernels.native.attention import attend_native
from glassformer.models.language_model import LanguageModel

# the families that the reference covers: grouped queries, windows, softcaps, norm kinds and positions, ...
FAMILIES = (
    "qwen3", "llama", "gpt2", "mistral", "qwen2", "gpt_neox", "gemma", "gemma2", "gemma3_text", "phi", "olmo", "olmo2",
    "smollm3", "falcon", "stablelm", "mixtral", "qwen3_moe",
)  # fmt: skip
DECODERS = (*FAMILIES, "phi3", "gpt_oss", "olmoe", "deepseek_v2", "deepseek_v3", "relative")
MODELS: dict[str, LanguageModel] = {}


def language(family: str) -> LanguageModel:
    if family == "relative" and family not in MODELS:  # a score bias by the distance of the key
        own = {f"layers.{i}.attention.rope": None for i in range(3)} | {"relative": RelativeConfig(8, 20)}
        MODELS[family] = LanguageModel(tiny("llama", **own))
    if family not in MODELS:
        MODELS[family] = LanguageModel(tiny(family))
    return MODELS[family]


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
def test_every_value_equals_the_reference(family):
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
def test_wrong_head_grouping_is_detected(family):
    """A reference that interleaves query heads over key heads, instead of grouping them, differs."""
    lm = language(family)
    t, interleaved = lm.trace(text(lm)), lambda h, c: h % c.n_kv_heads
    if lm.config.layers[0].attention.n_kv_heads == 1:
        interleaved = lambda h, c: 0  # noqa: E731  with one key head, both groupings are the same
        near(t["final.logits"].tensor, known(lm, text(lm), group_of=interleaved)["final.logits"], "logits")
        return
    for name in ("blocks.0.attn.probs", "blocks.0.attn.z", "final.logits"):
        with pytest.raises(AssertionError):
            near(t[name].tensor, known(lm, text(lm), group_of=interleaved)[name], name, 1e-2)


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("chunk", [512, 4])
def test_trace_of_generation_equals_trace_of_its_text(family, chunk, monkeypatch):
    """Chunked prefill and decoding give the values of one forward pass over the complete text."""
    monkeypatch.setattr(prefill, "PREFILL_CHUNK", chunk)
    lm = language(family)
    t = lm.trace(text(lm, 10), max_tokens=9, temperature=0, capture=["*.z"])
    plain = lm.generate(text(lm, 10), max_tokens=9, temperature=0)
    assert (t.ids[:10], t.ids[10:]) == (plain.prompt_ids, plain.continuations[0].ids)
    assert (t.n_prompt, t.finish, len(t)) == (10, "length", 19)
    full = lm.trace(t.ids)
    for name in t.names():
        a, b = t[name], full[name]
        near(a.tensor, b.tensor, name, 3e-5)
        assert a.axes == b.axes
        assert a.error <= 1e-4 * max(1, b.tensor[b.tensor.isfinite()].abs().max()), name


@pytest.mark.parametrize("family", DECODERS)
def test_rows_and_positions_equal_slices_of_the_full_value(family):
    lm = language(family)
    t = lm.trace(text(lm))
    for name in t.names():
        full = t[name].tensor
        if name.endswith((".scores", ".probs")):
            near(t.rows(name, head=2, query=7).tensor, full[2, 7], name)
            near(t.rows(name, head=[3, 1]).tensor, full[[3, 1]], name)
            near(t.rows(name, query=[0, -1]).tensor, full[:, [0, 10]], name)
            assert t.rows(name, head=2, query=7).axes == ("S",)
            assert t.rows(name, head=[0], query=7).axes == ("H", "S")
        else:
            near(t.at(name, [5, 2]).tensor, full[[5, 2]], name)
            near(t.at(name, -1).tensor, full[10], name)
            assert t.at(name, 5).axes == t[name].axes[1:]


@pytest.mark.parametrize("family", DECODERS)
def test_captured_values_are_bit_equal_to_the_forward_pass(family):
    """Captured values have the error 0, and capture does not change the logits."""
    lm = language(family)
    ids = torch.tensor([text(lm)])
    tap, plain = Everything(), run(lm.model, ids, attend=attend_native)
    run(lm.model, ids, tap=tap, attend=attend_native)
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
def test_capture_changes_no_token_and_no_log_probability(family):
    lm = language(family)
    options = {"max_tokens": 20, "temperature": 1.0, "seed": 5, "logprobs": 3}
    plain = lm.generate(text(lm), **options)
    events = list(lm.trace_stream(text(lm), capture=["*"], **options))
    assert [(p.id, p.logprob, p.top) for p in events[:-1]] == [
        (k.id, k.logprob, k.top) for k in plain.continuations[0].tokens
    ]
    assert events[-1].seed == 5
    assert lm.generate(text(lm), **options) == plain, "tracing one request changed the next"


def test_interleaved_trace_and_generation_do_not_interfere():
    lm = language("qwen3")
    alone = [lm.generate(text(lm, seed=s), max_tokens=12, temperature=1.0, seed=s).text for s in (1, 2)]
    first = lm.trace_stream(text(lm, seed=1), max_tokens=12, temperature=1.0, seed=1, capture=["*"])
    second = lm.stream(text(lm, seed=2), max_tokens=12, temperature=1.0, seed=2)
    events = list(zip(first, second, strict=False))
    assert "".join(b.text for _, b in events) == alone[1]
    assert "".join(a.text for a, _ in events) == alone[0]


def test_values_depend_only_on_earlier_tokens():
    """Truncating the text or changing the token at position 7 changes no value before it."""
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


def test_text_beyond_the_original_context_is_prefilled_again():
    """phi3 uses other rotary angles from 25 tokens on; the trace has the values of the second prefill."""
    lm = language("phi3")
    for n_prompt, n_new in ((20, 3), (20, 12), (24, 1), (30, 4)):
        t = lm.trace(text(lm, n_prompt), max_tokens=n_new, temperature=0)
        assert t.ids[n_prompt:] == lm.generate(text(lm, n_prompt), max_tokens=n_new, temperature=0).continuations[0].ids
        assert t.reprefills == ((25,) if n_prompt < 25 <= n_prompt + n_new else ())
        full = lm.trace(t.ids)
        for name in ("blocks.2.attn.k_rot", "blocks.1.attn.probs", "final.logits"):
            near(t[name].tensor, full[name].tensor, name)
            assert t[name].error < 1e-3


def test_error_reports_wrong_inputs():
    """Values recomputed from a corrupted tensor report a large error."""
    lm = language("qwen3")
    for corrupted, dependents in (
        ("blocks.1.resid_pre", ("blocks.1.attn.q", "blocks.1.mlp.act", "blocks.0.mlp.up")),
        ("blocks.1.attn.v", ("blocks.1.attn.out", "blocks.1.mlp.act")),
        ("blocks.2.resid_post", ("final.logits", "blocks.2.mlp.act")),
        ("blocks.0.attn.z", ("blocks.0.attn.probs", "blocks.0.attn.heads")),
    ):
        t = lm.trace(text(lm), capture=["blocks.0.attn.z"])
        t.captured.tensors[corrupted] = t.captured.tensors[corrupted] + 0.5
        for name in dependents:
            assert t[name].error > 0.01, (corrupted, name)


# ---- memory


def test_bytes_of_a_trace():
    """A trace stores resid_pre of each block, the last resid_post, keys and values; the budget predicts its bytes."""
    for family in ("qwen3", "gpt2"):
        lm = language(family)
        c, a = lm.config, lm.config.layers[0].attention
        t = lm.trace(text(lm))
        want = 4 * 11 * ((c.n_layers + 1) * c.d_model + 2 * c.n_layers * a.n_kv_heads * a.head_dim)
        assert t.bytes == want
        assert want == capture_module.check_budget(c, [], [], 11, 4, None)
        more = lm.trace(text(lm), capture=["blocks.1.mlp.act", "*.resid_post", "embed.out"])
        assert more.bytes == want + 4 * 11 * c.layers[1].mlp.d_ff, "aliases of a tensor are stored once"
        generated = lm.trace(text(lm, 6), max_tokens=5, temperature=0)
        assert generated.bytes == want


def test_budget_errors_name_what_fits():
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


def test_cache_of_recomputed_values_is_bounded(monkeypatch):
    monkeypatch.setattr("glassformer.inspect.trace.lru.LIMIT", 4 * 11 * 72 * 2)
    lm = language("gpt2")
    t = lm.trace(text(lm))
    for i in range(3):
        t[f"blocks.{i}.mlp.act"]
    assert t.bytes == lm.trace(text(lm)).bytes + 4 * 11 * 72 * 2


def test_one_head_is_recomputed_alone(monkeypatch):
    """Attention is recomputed for the requested heads and queries only, in bounded batches."""
    lm, seen = language("gpt2"), []
    t = lm.trace(text(lm, 60))
    attend_one_text = recompute.attend_one_text
    record = lambda spec, q, k, *a: seen.append((*q.shape[:2], len(k))) or attend_one_text(spec, q, k, *a)  # noqa: E731
    monkeypatch.setattr(recompute, "attend_one_text", record)
    t.rows("blocks.1.attn.probs", head=2, query=50)
    assert seen == [(1, 1, 51)]
    monkeypatch.setattr(recompute, "MAX_SCORES", 4 * 60 * 25)
    seen.clear()
    full = t["blocks.1.attn.probs"].tensor
    assert seen == [(25, 4, 25), (25, 4, 50), (10, 4, 60)]
    near(t.rows("blocks.1.attn.probs", head=[3, 0], query=[59, 7]).tensor, full[[3, 0]][:, [59, 7]], "probs")


# ---- errors


def test_invalid_requests_raise():
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
    assert len(lm.trace(text(lm, 60), max_tokens=4, temperature=0)) == 64, "the complete context"


def test_tokens_without_a_tokenizer_are_numbers():
    lm = language("gpt2")
    assert lm.trace([3, 96]).tokens == ("#3", "#96")
    assert "Trace(2 tokens, 2 of them prompt" in repr(lm.trace([3, 96]))
    assert repr(lm.trace([3, 96])["embed.out"]).startswith("Value(embed.out [T 2, D 48], error 0.0")


def test_names_list_only_points_of_the_model():
    assert "blocks.0.resid_mid" not in LanguageModel(tiny("phi")).trace([1, 2]).names()
    assert "blocks.0.mlp.router" in language("mixtral").trace([1, 2]).names()
    assert not any("mlp.act" in name for name in language("mixtral").trace([1, 2]).names())
    assert set(points.points(tiny_config("qwen3"))) == set(language("qwen3").trace([1, 2]).names())
