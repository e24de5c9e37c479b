"""Views of a trace: each number equals a NumPy float64 computation from the weights and the trace's tensors."""

import base64
import json

import numpy as np
import pytest
import torch
from generate.scripted import make_tokenizer
from inspect_subjects import SOURCE, TEXT, subject, translator
from tiny import encoder_decoder_config, tiny

from glassformer.cache.dense import DenseCache
from glassformer.errors import RequestError
from glassformer.inspect.edits.edit import ablate, add, knockout, scale
from glassformer.inspect.present.traces import LanguageModelTrace
from glassformer.inspect.views import cache as cache_module
from glassformer.inspect.views import layer as layer_module
from glassformer.inspect.views.anatomy import times
from glassformer.inspect.views.block import block
from glassformer.inspect.views.cache import cache, cache_speed
from glassformer.inspect.views.cell import cell
from glassformer.inspect.views.heads import grid, heads
from glassformer.inspect.views.qkv import qkv
from glassformer.inspect.views.registry import VIEWS, find_view
from glassformer.inspect.views.result import plain
from glassformer.inspect.views.sampling import sampling
from glassformer.inspect.views.summary import summary
from glassformer.inspect.views.tracks import changed, tracks
from glassformer.models.language_model import LanguageModel
from glassformer.nn.step import Step

FAMILIES = ("qwen3", "gpt2", "gemma2", "gpt_oss", "phi", "olmo2", "smollm3")
IDS = [7, 3, 31, 4, 4, 60, 2, 19, 8, 55, 23, 9]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
LOOSE = {"rel": 1e-3, "abs": 1e-4}
REQUIRED = {  # the parameters without defaults
    "qkv": {"layer": 1, "head": 2, "position": 5},
    "cell": {"layer": 1, "head": 2, "query": 7, "key": 3},
    "heads": {"layer": 1, "position": 4},
    "grid": {"layer": 1},
    "block": {"layer": 1, "position": 3},
}


def trace_of(family, **changes):
    return LanguageModel(tiny(family, **changes)).trace(IDS)


@pytest.fixture(scope="module", params=FAMILIES)
def t(request):
    return trace_of(request.param)


def np64(t, name):
    return t[name].tensor.detach().double().numpy()


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


# ---- one cell


@pytest.mark.parametrize("head", [0, 3])
@pytest.mark.parametrize(("query", "key"), [(11, 3), (6, 6), (2, 9), (-1, 0)])
def test_every_number_of_a_cell_equals_numpy(t, head, query, key):
    for layer in range(t.config.n_layers):
        config, attention = t.config.layers[layer].attention, t.model.blocks[layer].attn
        result = cell(t, layer=layer, head=head, query=query, key=key)
        query, key = query % len(IDS), key % len(IDS)
        kv_head = head * config.n_kv_heads // config.n_heads
        assert (result.query, result.key, result.kv_head) == (query, key, kv_head)
        name = f"blocks.{layer}.attn"
        q, k, v = np64(t, f"{name}.q_rot")[query, head], np64(t, f"{name}.k_rot"), np64(t, f"{name}.v")
        k, v = k[:, kv_head], v[:, kv_head]
        scale = config.head_dim**-0.5 if config.scale is None else config.scale
        np.testing.assert_allclose(result.products, q * k[key], **CLOSE)
        assert result.sum == pytest.approx((q * k[key]).sum(), rel=1e-4, abs=1e-5)
        assert result.scaled == pytest.approx(result.sum * scale, rel=1e-5)
        scores = k @ q * scale
        if config.softcap is not None:
            scores = config.softcap * np.tanh(scores / config.softcap)
        assert result.capped == pytest.approx(scores[key], rel=1e-4, abs=1e-5)
        at = np.arange(len(IDS))
        seen = (at <= query) & (at > query - (config.window or 10**6))
        assert result.visible == seen[key]
        scores = np.where(seen, scores, -np.inf)
        np.testing.assert_allclose(result.scores, scores, **CLOSE)
        sink = [] if attention.sinks is None else [attention.sinks[head].item()]
        probs = softmax(np.array([*scores, *sink]))[: len(IDS)]
        np.testing.assert_allclose(result.probs, probs, **CLOSE)
        assert result.prob == pytest.approx(probs[key], rel=1e-4, abs=1e-6)
        assert result.exp / result.total == pytest.approx(probs[key], rel=1e-4, abs=1e-6)
        np.testing.assert_allclose(result.weighted, probs[key] * v[key], **CLOSE)
        np.testing.assert_allclose(result.z, probs @ v, **CLOSE)
        check_unscaled(result, k @ q, seen, config.softcap, sink, v)
        own = probs[probs > 0]
        assert result.entropy == pytest.approx(-(own * np.log(own)).sum(), rel=1e-4, abs=1e-6)
        assert result.bias == 0
        assert result.receipt.error < 1e-4


def check_unscaled(found, sums, seen, softcap, sink, v):
    """Check the numbers with a scale of 1; softcap, mask and sinks still apply."""
    flat, key, loose = found.unscaled, found.key, {"rtol": 1e-3, "atol": 1e-4}
    scores = sums if softcap is None else softcap * np.tanh(sums / softcap)
    assert flat.capped == pytest.approx(scores[key], rel=1e-4, abs=1e-4)
    scores = np.where(seen, scores, -np.inf)
    exp = np.exp(scores - max(*scores, *sink))
    total = exp.sum() + sum(np.exp(one - max(*scores, *sink)) for one in sink)
    assert flat.score == pytest.approx(scores[key], rel=1e-4, abs=1e-4)
    assert flat.largest == pytest.approx(max(*scores, *sink), rel=1e-4, abs=1e-4)
    assert (flat.exp, flat.total) == (pytest.approx(exp[key], **LOOSE), pytest.approx(total, **LOOSE))
    assert flat.prob == pytest.approx(exp[key] / total, **LOOSE)
    np.testing.assert_allclose(flat.probs, exp / total, **loose)
    np.testing.assert_allclose(flat.weighted, exp[key] / total * v[key], **loose)
    np.testing.assert_allclose(flat.z, (exp / total) @ v, **loose)
    own = (exp / total)[exp > 0]
    assert flat.entropy == pytest.approx(-(own * np.log(own)).sum(), rel=1e-3, abs=1e-4)


def test_wrong_head_grouping_changes_z():
    """A query head with the key/value head of its neighbour gets another z."""
    t = trace_of("qwen3")
    result = cell(t, layer=0, head=1, query=9, key=2)
    v = np64(t, "blocks.0.attn.v")
    right, wrong = (np.asarray(result.probs) @ v[:, kv] for kv in (0, 1))
    np.testing.assert_allclose(result.z, right, **CLOSE)
    assert np.abs(result.z - wrong).max() > 0.1


# ---- q, k, v of one token


def test_every_product_of_q_k_v_equals_numpy(t):
    for layer in range(t.config.n_layers):
        config, attention = t.config.layers[layer].attention, t.model.blocks[layer].attn
        result = qkv(t, layer=layer, head=3, position=5, dim=2)
        x = np64(t, f"blocks.{layer}.attn.x")[5]
        np.testing.assert_allclose(result.x, x, **CLOSE)
        for end, head in (("q", 3), ("k", result.kv_head), ("v", result.kv_head)):
            linear = getattr(attention, end)
            size = linear.weight.shape[0] // (config.n_heads if end == "q" else config.n_kv_heads)
            rows = linear.weight.detach().double().numpy()[head * size : (head + 1) * size]
            bias = 0 if linear.bias is None else linear.bias.detach().double().numpy()[head * size : (head + 1) * size]
            worked = rows @ x + bias
            worked = worked if config.clip is None else worked.clip(-config.clip, config.clip)
            np.testing.assert_allclose(getattr(result, end), worked, **CLOSE)
            product = result.products[end]
            np.testing.assert_allclose(product.weights, rows[2], **CLOSE)
            assert product.value == pytest.approx(worked[2], rel=1e-4, abs=1e-5)
            assert product.sum == pytest.approx(rows[2] @ x, rel=1e-4, abs=1e-5)
        if config.qk_norm is None and config.clip is None:
            factor = getattr(config.rope.scaling, "attention_factor", 1.0) if config.rope else 1.0
            assert result.lengths["q_rot"] == pytest.approx(result.lengths["q"] * factor, rel=1e-5), (
                "a rotation preserves the norm"
            )
        assert result.receipt.error < 1e-4


def rms(x, gain, eps=1e-6):
    return x / np.sqrt((x**2).mean() + eps) * gain


def rotated(rope, row, position):
    """Pair i of the first R dimensions, i and i + R/2, as a complex number times e^(i position theta^(-2i/R))."""
    half = rope.dim // 2
    pairs = row[:half] + 1j * row[half : rope.dim]
    pairs = pairs * np.exp(1j * position * rope.theta ** (-np.arange(half) / half))
    return np.concatenate([pairs.real, pairs.imag, row[rope.dim :]])


@pytest.mark.parametrize("q_rank", [28, None])
@pytest.mark.parametrize("family", ["deepseek_v2", "deepseek_v3"])
def test_every_product_of_latent_attention_equals_numpy(family, q_rank):
    """DeepSeek-V2, equations 9 to 17, for one token: from x to q, k and v of a head."""
    config = {f"layers.{i}.attention.latent.q_rank": q_rank for i in range(3)}
    t = trace_of(family, **config, **{"layers.1.attention.rope.scaling": None})
    for layer, position in ((0, 7), (1, 5), (1, 0), (2, 11)):
        attention = t.config.layers[layer].attention
        w = {n: p.detach().double().numpy() for n, p in t.model.blocks[layer].attn.named_parameters()}
        size, shared, v_size, x = (
            attention.head_dim,
            attention.rope.dim,
            10,
            np64(t, f"blocks.{layer}.attn.x")[position],
        )
        down = w["kv.weight"] @ x + w["kv.bias"]
        c_kv = rms(down[shared:], w["kv_norm.weight"])
        q_rows, c_q = w["q.weight"] if q_rank is None else w["q.expand.weight"], x
        if q_rank is not None:
            reduced = w["q.reduce.weight"] @ x + w["q.reduce.bias"]
            c_q = rms(reduced, w["q.norm.weight"])
        other = qkv(t, layer=layer, head=0, position=position)
        for head in (0, 3):
            q_own = q_rows[head * size : (head + 1) * size]
            k_own = w["expand_k.weight"].reshape(4, size - shared, -1)[head]
            v_own = w["expand_v.weight"].reshape(4, v_size, -1)[head]
            rows = {"q": q_own @ c_q, "k": np.concatenate([down[:shared], k_own @ c_kv]), "v": v_own @ c_kv}
            for dim in (0, shared - 1, shared, v_size - 1, v_size, size - 1):
                result = qkv(t, layer=layer, head=head, position=position, dim=dim)
                for end, row in rows.items():
                    np.testing.assert_allclose(getattr(result, end), row, **CLOSE)
                    assert (end in result.products) == (dim < len(row))
                own = {"q": q_own[dim], "k": w["kv.weight"][dim] if dim < shared else k_own[dim - shared]}
                own |= {"v": v_own[dim]} if dim < v_size else {}
                bias = {"k": w["kv.bias"][dim]} if dim < shared else {}
                for end, weights in own.items():
                    product = result.products[end]
                    np.testing.assert_allclose(product.weights, weights, **CLOSE)
                    assert product.value == pytest.approx(rows[end][dim], rel=1e-4, abs=1e-5)
                    assert product.sum == pytest.approx(rows[end][dim] - bias.get(end, 0.0), rel=1e-4, abs=1e-5)
                    inputs = {"x": result.x} | {name: one.normed for name, one in result.latents.items()}
                    assert float(product.weights @ inputs[product.of]) == pytest.approx(product.sum, rel=1e-4, abs=1e-5)
                named = {end: (one.matrix, one.of) for end, one in result.products.items()}
                assert named["q"] == (("W_q", "x") if q_rank is None else ("W_uq", "q"))
                assert named["k"] == (("W_kr", "x") if dim < shared else ("W_uk", "kv"))
                assert named.get("v", ("W_uv", "kv")) == ("W_uv", "kv")
            assert result.latents.keys() == ({"kv"} if q_rank is None else {"q", "kv"})
            np.testing.assert_allclose(result.latents["kv"].reduced, down[shared:], **CLOSE)
            np.testing.assert_allclose(result.latents["kv"].normed, c_kv, **CLOSE)
            if q_rank is not None:
                np.testing.assert_allclose(result.latents["q"].reduced, reduced, **CLOSE)
                np.testing.assert_allclose(result.latents["q"].normed, c_q, **CLOSE)
            assert torch.equal(result.k[:shared], other.k[:shared]), "shared by all heads"
            assert torch.equal(result.k_rot[:shared], other.k_rot[:shared])
            assert result.rotated == shared
            for end in ("q", "k"):
                before, after = np.asarray(getattr(result, end)), np.asarray(getattr(result, f"{end}_rot"))
                factor = getattr(attention.rope.scaling, "attention_factor", 1.0)
                lengths = np.linalg.norm(before[:shared]) * factor, np.linalg.norm(after[:shared])
                assert lengths[0] == pytest.approx(lengths[1], rel=1e-5)
                np.testing.assert_allclose(after[shared:], before[shared:], **CLOSE)  # from the latent: not rotated
                if layer == 1:
                    np.testing.assert_allclose(after, rotated(attention.rope, rows[end], position), **CLOSE)
                    assert result.lengths[f"{end}_rot"] == pytest.approx(result.lengths[end], rel=1e-5)
            assert result.receipt.error < 1e-4


def test_receipt_error_covers_the_latent():
    t = trace_of("deepseek_v2")
    t.captured.tensors["blocks.1.attn.latent"][5] += 0.5
    assert qkv(t, layer=1, head=0, position=5).receipt.error > 0.4
    assert qkv(t, layer=1, head=0, position=4).receipt.error < 1e-4


# ---- heads


def test_heads_sum_to_attention_output(t):
    for layer in range(t.config.n_layers):
        result, o = heads(t, layer=layer, position=8), t.model.blocks[layer].attn.o
        z = np64(t, f"blocks.{layer}.attn.z")[8]
        expected, weight = np64(t, f"blocks.{layer}.attn.out")[8], o.weight.detach().double().numpy()
        for head, part in enumerate(result.parts):
            alone = np.zeros_like(z)
            alone[head] = z[head]
            np.testing.assert_allclose(part, weight @ alone.reshape(-1), rtol=1e-4, atol=1e-4)
        bias = 0 if o.bias is None else o.bias.detach().double().numpy()
        np.testing.assert_allclose(np.asarray(result.parts).sum(0) + bias, expected, rtol=1e-4, atol=1e-4)
        assert float(result.shares.sum()) + result.bias_share == pytest.approx(1, abs=1e-4)


def test_grid_is_the_maximum_of_each_field(t):
    for size in (4, 48):
        result = grid(t, layer=0, size=size)
        probs = np64(t, "blocks.0.attn.probs")
        data = np.frombuffer(base64.b64decode(result.pixels), np.uint8).reshape(
            result.heads, result.rows, result.columns
        )
        edges = lambda i, n: (i * len(IDS) // n, -(-(i + 1) * len(IDS) // n))  # noqa: E731
        for row in range(result.rows):
            for column in range(result.columns):
                (a, b), (c, d) = edges(row, result.rows), edges(column, result.columns)
                largest = probs[:, a:b, c:d].max((1, 2))
                assert (np.abs(data[:, row, column] / 255 - largest) <= result.bound + 1e-6).all()


def test_views_of_patterns_in_parts_equal_those_of_the_whole(t, monkeypatch):
    """A pattern above the bound is computed for some queries at a time."""
    complete = [(grid(t, layer=i, size=5), cache(t, layer=i)) for i in range(t.config.n_layers)]
    monkeypatch.setattr(layer_module, "MAX_PATTERN_BYTES", 0)
    monkeypatch.setattr(cache_module, "MAX_SCORES", 4 * 12 * 5)
    for i, (pixels, stored) in enumerate(complete):
        result, other = grid(t, layer=i, size=5), cache(t, layer=i)
        a, b = (np.frombuffer(base64.b64decode(one.pixels), np.uint8).astype(int) for one in (result, pixels))
        assert np.abs(a - b).max() <= 1
        np.testing.assert_allclose(other.mass, stored.mass, rtol=1e-4, atol=1e-5)
        assert result.receipt.identity == pixels.receipt.identity
        assert result.receipt.error < 1e-4


# ---- a block


def test_block_is_the_sum_of_its_branches(t):
    for layer in range(t.config.n_layers):
        result = block(t, layer=layer, position=6, top=5)
        assert result.receipt.error < 1e-4
        if "post" not in t.config.layers[layer].norm_at:
            np.testing.assert_allclose(
                result.resid_pre + result.attn_add + result.mlp_add, result.resid_post, atol=1e-4
            )
        if t.config.layers[layer].experts is not None:
            assert result.note is not None
            assert len(result.experts) == t.config.layers[layer].experts.top_k
            assert sum(one.weight for one in result.experts) == pytest.approx(1, abs=1e-5)
            continue
        act, down = np64(t, f"blocks.{layer}.mlp.act")[6], t.model.blocks[layer].mlp.down.weight.detach().double()
        written = np.abs(act) * np.linalg.norm(down.numpy(), axis=0)
        assert [one.index for one in result.neurons] == np.argsort(-written)[:5].tolist()
        first = result.neurons[0]
        assert first.act == pytest.approx(act[first.index], rel=1e-4)  # its tokens: test_direct_path.py


# ---- text, residual stream, sampling


def test_summary_equals_score(t):
    result, score = summary(t, top=3), t.lm.score(IDS, top=3)
    for one, theirs in zip(result.tokens[1:], score.tokens[1:], strict=True):
        assert one.id == theirs.id
        assert one.prob == pytest.approx(np.exp(theirs.logprob), rel=1e-4)
        assert [named.id for named in one.top] == [id for id, _ in theirs.top]
    logits = np64(t, "final.logits")
    assert [one.id for one in result.next] == np.argsort(-logits[-1])[:3].tolist()
    ranks = [(logits[i] > logits[i, IDS[i + 1]]).sum() for i in range(len(IDS) - 1)]
    assert [one.rank for one in result.tokens[1:]] == ranks


def test_tracks_are_norms(t):
    result = tracks(t)
    for i in range(t.config.n_layers):
        np.testing.assert_allclose(
            result.norms[i], np.linalg.norm(np64(t, f"blocks.{i}.resid_pre"), axis=-1), rtol=1e-5
        )
    assert result.windows == tuple(layer.attention.window for layer in t.config.layers)


def test_a_change_leaves_earlier_tokens_unchanged(t):
    other = t.lm.trace([*IDS[:5], 61, *IDS[6:]])
    result = changed(t, other=other)
    experts = any(layer.experts for layer in t.config.layers)  # batched with other tokens: rounding differs
    assert (result.first, result.token, result.edited) == (5, 5, None)
    assert result.max_before == result.distances[:, :5].max() <= (1e-4 if experts else 0)
    assert (result.distances[:, 5] > 0.1).all()
    assert changed(t, other=t).first is None
    shorter = changed(t, other=t.lm.trace(IDS[:7]))
    assert shorter.distances.shape == (t.config.n_layers + 1, 7)
    assert shorter.distances.max() < 1e-4, "truncation does not change earlier tokens"


@pytest.mark.parametrize(
    ("edit", "row", "position"),
    [
        (ablate("blocks.1.attn.z", head=1, position=4), 2, 4),
        (add("blocks.2.resid_pre", 1.0, position=(7, 3)), 2, 3),
        (scale("embed.out", 2.0, position=6), 0, 6),
        (knockout("blocks.0.attn.scores", query=8, key=2), 1, 8),
        (ablate("blocks.0.mlp.out", position=-1), 1, 11),
    ],
    ids=lambda one: getattr(one, "point", None),
)
def test_an_edit_changes_cells_from_its_own_on(edit, row, position):
    """Either trace may have the edit; edits of both are no difference."""
    t, both = trace_of("qwen3"), scale("blocks.0.attn.out", 0.5)
    plain, other = t.lm.trace(IDS, edit=[both]), t.lm.trace(IDS, edit=[both, edit])
    for one, two in ((plain, other), (other, plain)):
        result = changed(one, other=two)
        assert (result.token, result.first) == (None, position)
        assert (result.edited.row, result.edited.position, result.edited.point) == (row, position, edit.point)
        assert result.distances[row, position] > 1e-3, "the named cell differs"
        left, below = result.distances[:, :position], result.distances[:row]
        assert result.max_before == left.max() < 1e-4, "rounding: an edit of scores selects the readable kernel"
        assert not row or below.max() < 1e-4
    assert changed(other, other=other).first is None


def test_different_texts_and_an_edit_are_both_reported():
    """The first difference is the earlier of both; an edit after the last block changes no cell."""
    t = trace_of("qwen3")
    parted, edit = [*IDS[:7], 61, *IDS[8:]], ablate("blocks.1.attn.z", head=1, position=3)
    result = changed(t, other=t.lm.trace(parted, edit=[edit]))
    assert (result.token, result.edited.position, result.first, result.max_before) == (7, 3, 3, 0)
    assert result.distances[2:, 3].min() > 1e-3
    later = changed(t, other=t.lm.trace(parted, edit=[ablate("blocks.1.attn.z", head=1, position=9)]))
    assert (later.token, later.edited.position, later.first, later.max_before) == (7, 9, 7, 0)
    after = changed(t, other=t.lm.trace(IDS, edit=[scale("final.norm", 2.0)]))
    assert (after.token, after.edited, after.first) == (None, None, None)
    assert after.distances.max() == 0
    cut = changed(t, other=t.lm.trace(IDS[:5], edit=[]))
    assert (cut.token, cut.edited) == (None, None)


def test_order_of_edits_is_a_difference():
    t, twice, more = trace_of("qwen3"), scale("blocks.0.mlp.out", 2.0), add("blocks.0.mlp.out", 1.0)
    one, two = (t.lm.trace(IDS, edit=edits) for edits in ([twice, more], [more, twice]))
    assert changed(one, other=two).edited.row == 1
    assert changed(one, other=two).distances[1].min() > 0.1


def test_stages_equal_numpy():
    t = trace_of("gpt2")
    result = sampling(t, position=4, temperature=0.5, top_k=9, top_p=0.8, min_p=0.05, top=97)
    logits = np64(t, "final.logits")[4]
    by_id = {one.id: i for i, one in enumerate(result.tokens)}
    stages = {stage.name: np.array([stage.probs[by_id[i]] for i in range(97)]) for stage in result.stages}
    p = softmax(logits / 0.5)
    np.testing.assert_allclose(stages["model"], softmax(logits), rtol=1e-4)
    np.testing.assert_allclose(stages["temperature"], p, rtol=1e-4)
    best = np.argsort(-p)
    keep = best[:9]
    p = np.where(np.isin(np.arange(97), keep), p, 0)
    p /= p.sum()
    np.testing.assert_allclose(stages["top_k"], p, rtol=1e-4, atol=1e-8)
    n = int((np.cumsum(p[best]) < 0.8).sum()) + 1
    p = np.where(np.isin(np.arange(97), best[:n]), p, 0)
    p /= p.sum()
    np.testing.assert_allclose(stages["top_p"], p, rtol=1e-4, atol=1e-8)
    p = np.where(p >= 0.05 * p.max(), p, 0)
    np.testing.assert_allclose(stages["min_p"], p / p.sum(), rtol=1e-4, atol=1e-8)
    assert [stage.remaining for stage in result.stages][2:] == [9, n, int((p > 0).sum())]


def test_ten_thousand_draws_fit_the_distribution():
    result = sampling(trace_of("gpt2"), position=7, temperature=2.0, draws=10_000, top=97, seed=3)
    expected = np.array(result.stages[-1].probs) * 10_000
    few = expected < 5
    observed = np.array([*np.array(result.draws)[~few], np.array(result.draws)[few].sum()])
    expected = np.array([*expected[~few], expected[few].sum()])
    chi2, degrees = ((observed - expected) ** 2 / expected).sum(), len(expected) - 1
    assert observed.sum() == 10_000
    assert abs(chi2 - degrees) < 5 * (2 * degrees) ** 0.5, f"chi-squared {chi2:.0f} of {degrees} degrees of freedom"


# ---- the cache


def filled(t, chunks):
    """Return a cache filled with the text in chunks, and the source's keys and values after each chunk."""
    source = getattr(t, "source", None)
    encoded = (
        None if source is None else t.model.encode(torch.tensor([source.ids]), Step.of(torch.tensor([source.ids])))
    )
    dense_cache, ids, seen = DenseCache.of(t.config, 1, len(t.ids), source=encoded), torch.tensor([t.ids]), []
    with torch.no_grad():
        for part in ids.split(chunks, 1):
            t.model.hidden(part, Step(dense_cache.extend([part.shape[1]]), cache=dense_cache))
            seen.append([slot.source for slot in dense_cache.slots])
    return dense_cache, seen


def test_cache_bytes_equal_a_real_cache(t):
    dense_cache, _ = filled(t, len(IDS))
    result = cache(t, layer=1)
    assert result.bytes == sum(one.bytes for one in result.layers) == dense_cache.bytes
    assert result.source_mass is None
    assert all(one.source is None for one in result.layers)
    probs = np64(t, "blocks.1.attn.probs")
    np.testing.assert_allclose(result.mass, probs.sum(1), rtol=1e-5, atol=1e-6)


def test_latent_replaces_keys_and_values_in_the_cache():
    t = trace_of("deepseek_v2")
    result = cache(t)
    assert result.bytes == filled(t, len(IDS))[0].bytes
    assert result.layers[0].contents == "a latent and a rotated key"
    assert result.layers[0].bytes_per_slot == (8 + 20) * 4, "one rotated key for all heads and the latent, in float32"


@pytest.mark.parametrize("name", ["pre", "rms"])
def test_source_keys_and_values_are_cached_once(name):
    """They are computed once, whatever the number of steps; bytes equal those of a real cache."""
    t = translator(encoder_decoder_config(name)).trace(SOURCE, TEXT)
    dense_cache, seen = filled(t, 1)
    result, n = cache(t, layer=1), len(t.source)
    assert result.bytes == dense_cache.bytes
    for i, (slot, one) in enumerate(zip(dense_cache.slots, result.layers, strict=True)):
        own, theirs = slot.tensors()[:2], slot.tensors()[2:]
        assert (one.slots, one.bytes) == (len(t), sum(tensor.nbytes for tensor in own))
        assert (one.source.slots, one.source.bytes) == (n, sum(tensor.nbytes for tensor in theirs))
        cross = t.config.layers[i].cross
        assert one.source.bytes_per_slot == 2 * cross.n_kv_heads * cross.head_dim * 4
        first, *later = [step[i] for step in seen]
        assert len(later) == len(t) - 1
        assert all(a is b for step in later for a, b in zip(step, first, strict=True)), "computed once"
    for mass, name in ((result.mass, "attn"), (result.source_mass, "cross")):
        probs = np64(t, f"blocks.1.{name}.probs")
        np.testing.assert_allclose(mass, probs.sum(1), rtol=1e-5, atol=1e-6)
    assert result.source_mass.shape[1] == n
    assert float(result.source_mass.sum()) == pytest.approx(result.source_mass.shape[0] * len(t), rel=1e-5)
    assert result.receipt.error < 1e-4
    own, theirs = eval(result.receipt.python, {"t": t})
    assert torch.equal(own, result.mass)
    assert torch.equal(theirs, result.source_mass)


@pytest.mark.parametrize("one", ["qwen3", "deepseek_v3", "pair", "t5"])
def test_cache_speed_is_positive_and_logits_are_equal(one):
    t = subject("encoder-decoders", one)[1] if one in ("pair", "t5") else trace_of(one)
    result = cache_speed(t, rounds=2)
    assert min(result.prefill, result.decode, result.uncached) > 0
    assert (result.source is None) == (t.kind == "decoder")
    assert result.source is None or result.source > 0
    assert result.receipt.error < 1e-4


def test_times_sum_to_the_total(t):
    result = times(t, rounds=2)
    parts = [result.embedding, *result.attention, *result.feed_forward, result.head]
    assert len(parts) == 2 * t.config.n_layers + 2
    assert min(parts) > 0
    assert sum(parts) == pytest.approx(result.total)


# ---- all views


def test_every_trace_view_works_for_decoders(t):
    """Each returns valid JSON without NaN."""
    for name, view in VIEWS.items():
        if view.of == "trace" and name != "alignment":  # needs a source
            parameters = REQUIRED.get(name, {}) | ({"other": t} if "other" in view.parameters else {})
            result = plain(view.function(t, **parameters))
            assert json.loads(json.dumps(result, allow_nan=False)) == result
            assert result["receipt"]["python"]


def test_every_receipt_is_runnable_python():
    lm = LanguageModel(tiny("qwen3", vocab_size=make_tokenizer().vocab_size), make_tokenizer())
    t, other = lm.trace("the cat sat"), lm.trace("the cat ran")
    of_model = {"tokens": {"text": "a cat"}, "merges": {"word": "cat"}, "embedding": {"token": 7}}
    of_model["embedding_map"] = {"tokens": (7, 8, 9, 30)}
    parameters = {
        **REQUIRED,
        **of_model,
        "qkv": {"layer": 1, "head": 2, "position": 1},
        "block": {"layer": 1, "position": 1},
    }
    parameters |= {"cell": {"layer": 1, "head": 2, "query": 2, "key": 1}, "heads": {"layer": 1, "position": 1}}
    parameters |= {"changed": {"other": other}, "fork": {"other": other}}
    for name, view in VIEWS.items():
        if name == "alignment":  # needs a source
            continue
        result = view.function(lm if view.of == "model" else t, **parameters.get(name, {}))
        assert eval(result.receipt.python, {"lm": lm, "t": t, "other": other}) is not None, name


def test_views_are_methods():
    t = trace_of("gpt2")
    assert plain(t.cell(layer=1, head=2, query=7, key=3)) == plain(cell(t, layer=1, head=2, query=7, key=3))
    assert "cell" in dir(t)
    assert "cell" in dir(LanguageModelTrace)
    assert not hasattr(t, "anatomy")


@pytest.mark.parametrize(
    ("name", "given", "match"),
    [
        ("cell", {"layer": 3}, "layer must be a whole number from 0 to 2, got 3"),
        ("cell", {"head": -1}, "head must be a whole number from 0 to 3"),
        ("cell", {"query": 12}, "query must be a whole number from -12 to 11, got 12"),
        ("qkv", {"dim": 99}, "dim must be"),
        ("grid", {"size": 1000}, "size must be a whole number from 4 to 256"),
        ("heads", {"position": -13}, "position must be"),
        ("block", {"top": -1}, "top must be"),
    ],
)
def test_out_of_range_parameters_raise_request_error(name, given, match):
    with pytest.raises(RequestError, match=match):
        find_view(name).function(trace_of("qwen3"), **REQUIRED[name] | given)


@pytest.mark.parametrize(
    ("name", "given", "match"),
    [
        ("cell", {}, "needs the parameter 'layer'"),
        ("cell", {"layer": "x", "head": "0", "query": "1", "key": "1"}, "layer must be a whole number, got 'x'"),
        ("cell", {"layers": "1"}, "has no parameter 'layers'; it has: layer, head, query, key"),
        ("embedding", {"token": "1", "table": "middle"}, "must be one of 'input', 'source', 'output', got 'middle'"),
        ("embedding_map", {"tokens": "1,b"}, "tokens must be a whole number, got 'b'"),
        ("sampling", {"temperature": "hot"}, "temperature must be a number, got 'hot'"),
        ("changed", {"other": "abc"}, "other must be another trace"),
    ],
)
def test_invalid_text_parameters_raise_request_error(name, given, match):
    with pytest.raises(RequestError, match=match):
        find_view(name).read(given)


def test_text_parameters_are_parsed():
    assert find_view("embedding_map").read({"tokens": "1,2,30"}) == {"tokens": (1, 2, 30)}
    parameters = {"temperature": "0.5", "top_k": "", "top_p": "0.9", "draws": "10"}
    assert find_view("sampling").read(parameters) == {"temperature": 0.5, "top_k": None, "top_p": 0.9, "draws": 10}


def test_summary_marks_generated_tokens():
    tokenizer = make_tokenizer()
    lm = LanguageModel(tiny("gpt2", vocab_size=tokenizer.vocab_size), tokenizer)
    t = lm.trace("the cat", max_tokens=6, temperature=0)
    result = summary(t)
    assert [one.generated for one in result.tokens] == [i >= t.n_prompt for i in range(len(t.ids))]
    assert all(one.rank == 0 for one in result.tokens[t.n_prompt :]), "greedy decoding takes the most likely token"
