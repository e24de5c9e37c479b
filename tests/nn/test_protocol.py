"""The attention protocol (`Step.keep`, `Step.attend`, `Step.view`) carries attentions that the package has not yet.

One throwaway model per kind. Norms, projections and feed-forward layers are the reference's own modules; the attention
between them is written here, as a family's would be. Each must equal an independent implementation, uncached, cached at
several chunkings, and in an uneven batch, by the definition and by its fast twin.
"""

import math

import pytest
import torch
from test_attend import naive, seen_by_loops
from tiny import assert_near, by_definition, randomise
from torch import nn

from glassformer.cache.dense import DenseCache
from glassformer.config import RopeConfig
from glassformer.kernels.attention import attend_fused, attend_products
from glassformer.nn.attend import KV, AttendSpec
from glassformer.nn.protocols import EncodedSource
from glassformer.nn.rope import rotate
from glassformer.nn.step import Step

transformers = pytest.importorskip("transformers")

VOCAB, LENGTH = 61, 13
CHUNKS = ([13], [1] * 13, [5, 1, 7], [8, 5])
IDS = torch.randint(VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(0))
BACKENDS = pytest.mark.parametrize("attend", [by_definition, attend_fused, attend_products])


def assert_carried(model, reference, windows, attend, step_of=lambda rows, **step: step):
    """`model(ids, step)` equals `reference(ids, rows)`: whole, in chunks, and in a batch where rows end unevenly.

    `rows` are the numbers of the rows in `ids`, for what else belongs to a row (its source).
    """
    both, (n, short) = (0, 1), (LENGTH, 6)
    with torch.no_grad():
        want = reference(IDS, both)
        assert want.abs().max() > 0.1
        assert_near(model(IDS, Step.of(IDS, **step_of(both, attend=attend))), want)
        for chunks in CHUNKS:
            cache, parts = DenseCache(windows, 2, LENGTH), []
            for part in IDS.split(chunks, 1):
                positions = cache.extend([part.shape[1]] * 2)
                parts.append(model(part, Step(positions, **step_of(both, cache=cache, attend=attend))))
            assert_near(torch.cat(parts, 1), want)
        cache, parts, at = DenseCache(windows, 2, LENGTH), ([], []), [0, 0]
        for counts in ([7, 2], [1, 1], [0, 3], [1, 0], [4, 0]):  # row 1 ends after 6 tokens
            ids = torch.zeros(2, max(counts), dtype=torch.long)
            for b, c in enumerate(counts):
                ids[b, :c] = IDS[b, at[b] : at[b] + c]
            out = model(ids, Step(cache.extend(counts), **step_of(both, cache=cache, attend=attend)))
            for b, c in enumerate(counts):
                parts[b].append(out[b, :c])
                at[b] += c
        assert at == [n, short]
        assert_near(torch.cat(parts[0]), want[0])
        assert_near(torch.cat(parts[1]), reference(IDS[1:, :short], (1,))[0])


def sharp(hf, by=2.0):
    """Not blind: everything random, attention far from uniform."""
    randomise(hf, 4)
    with torch.no_grad():
        for name, p in hf.named_parameters():
            if name.endswith(
                ("q_proj.weight", "SelfAttention.q.weight", "EncDecAttention.q.weight", "q_b_proj.weight")
            ):
                p.mul_(by)
            if "relative_attention_bias" in name:
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(8)) * 2)
    return hf


def project(a, x, theta, step):
    q, k, v = (p(x).unflatten(-1, (-1, a.head_dim)) for p in (a.q_proj, a.k_proj, a.v_proj))
    cos, sin = step.rotation(RopeConfig(theta), a.head_dim)
    return rotate(q, cos, sin), rotate(k, cos, sin), v


# ---- Gemma 2: softcap, its own scale, alternating windows, norms before and after ----


class Gemma2(nn.Module):
    def __init__(self, hf):
        super().__init__()
        self.hf, c = hf, hf.config
        kinds = {"full_attention": None, "sliding_attention": c.sliding_window}
        self.windows = [kinds[kind] for kind in c.layer_types]
        scale = c.query_pre_attn_scalar**-0.5
        self.specs = [AttendSpec(scale, window=w, softcap=c.attn_logit_softcapping) for w in self.windows]

    def forward(self, ids, step):
        x = self.hf.embed_tokens(ids)
        for i, (block, spec) in enumerate(zip(self.hf.layers, self.specs, strict=True)):
            s = step.layer(i)
            q, k, v = project(block.self_attn, block.input_layernorm(x), 100.0, s)
            z = s.attend(spec, q, s.keep(k, v))
            x = x + block.post_attention_layernorm(block.self_attn.o_proj(z.flatten(-2)))
            x = x + block.post_feedforward_layernorm(block.mlp(block.pre_feedforward_layernorm(x)))
        return self.hf.norm(x)


def gemma2(**changes):
    config = transformers.Gemma2Config(**{
        "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12, "query_pre_attn_scalar": 7,
        "attn_logit_softcapping": 1.5, "sliding_window": 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
        "attn_implementation": "eager", **changes,
    })  # fmt: skip
    return sharp(transformers.Gemma2Model(config), 1.0)


@BACKENDS
def test_gemma2_softcap_and_alternating_windows(attend):
    hf = gemma2()
    model = Gemma2(hf)
    assert set(model.windows) == {4, None}
    assert_carried(model, lambda ids, _: hf(ids).last_hidden_state, model.windows, attend)


@pytest.mark.parametrize("change", [
    {"attn_logit_softcapping": 3.0}, {"sliding_window": 5}, {"query_pre_attn_scalar": 8},
], ids=str)  # fmt: skip
def test_gemma2s_settings_all_show(change):
    with torch.no_grad():
        a, b = (Gemma2(gemma2(**c))(IDS, Step.of(IDS)) for c in ({}, change))
    assert (a - b).abs().max() > 1e-3 * a.abs().max()


# ---- gpt-oss: sinks, biases, alternating windows ----


class GptOss(nn.Module):
    def __init__(self, hf):
        super().__init__()
        self.hf, c = hf, hf.config
        kinds = {"full_attention": None, "sliding_attention": c.sliding_window}
        self.windows = [kinds[kind] for kind in c.layer_types]
        self.specs = [AttendSpec(c.head_dim**-0.5, window=w) for w in self.windows]

    def forward(self, ids, step):
        x = self.hf.embed_tokens(ids)
        for i, (block, spec) in enumerate(zip(self.hf.layers, self.specs, strict=True)):
            a, s = block.self_attn, step.layer(i)
            q, k, v = project(a, block.input_layernorm(x), 100.0, s)
            x = x + a.o_proj(s.attend(spec, q, s.keep(k, v), sinks=a.sinks).flatten(-2))
            x = x + block.mlp(block.post_attention_layernorm(x))[0]
        return self.hf.norm(x)


@BACKENDS
def test_gpt_oss_sinks_and_alternating_windows(attend):
    config = transformers.GptOssConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=24, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=12, sliding_window=4, num_local_experts=4, num_experts_per_tok=2,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0}, attn_implementation="eager",
        experts_implementation="eager", pad_token_id=None,
    )  # fmt: skip
    hf = sharp(transformers.GptOssModel(config))
    model = GptOss(hf)
    assert set(model.windows) == {4, None}
    with torch.no_grad():
        for block in hf.layers:
            block.self_attn.sinks.copy_(torch.tensor([1.0, -0.5, 2.0, 0.5]))
    assert_carried(model, lambda ids, _: hf(ids).last_hidden_state, model.windows, attend)
    with torch.no_grad():
        before = model(IDS, Step.of(IDS))
        for block in hf.layers:
            block.self_attn.sinks.add_(0.5)
        assert (model(IDS, Step.of(IDS)) - before).abs().max() > 1e-2, "sinks do not show"


# ---- T5: relative bias learned per bucket of distance, unscaled; cross-attention to sources of uneven length ----

SOURCE = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(2))
SOURCE_MASK = torch.arange(9) < torch.tensor([[9], [5]])


class T5Decoder(nn.Module):
    """The bias table is the first layer's parameter, and its bias every layer's: made once per pass."""

    self_spec, cross_spec = AttendSpec(1.0), AttendSpec(1.0, causal=False, source=True)

    def __init__(self, hf, n_buckets, max_distance):
        super().__init__()
        self.hf, self.n_buckets, self.max_distance = hf, n_buckets, max_distance
        self.sources_read = 0

    def bias(self, view):
        distance = (view.queries[:, :, None] - view.keys[:, None, :]).clamp(min=0)  # [B, T, S]
        exact = self.n_buckets // 2
        far = torch.log(distance.clamp(min=1) / exact) / math.log(self.max_distance / exact) * (self.n_buckets - exact)
        bucket = torch.where(distance < exact, distance, (exact + far.long()).clamp(max=self.n_buckets - 1))
        table = self.hf.block[0].layer[0].SelfAttention.relative_attention_bias
        return table(bucket).permute(0, 3, 1, 2)  # [B, H, T, S]

    def source(self, a, source):
        self.sources_read += 1
        return tuple(p(source).unflatten(-1, (a.n_heads, -1)) for p in (a.k, a.v))

    def forward(self, ids, step, source):
        x, bias = self.hf.embed_tokens(ids), self.bias(step.view(self.self_spec))
        for i, block in enumerate(self.hf.block):
            s, (own, cross, ff) = step.layer(i), block.layer
            a, y = own.SelfAttention, own.layer_norm(x)
            q, k, v = (p(y).unflatten(-1, (a.n_heads, -1)) for p in (a.q, a.k, a.v))
            x = x + a.o(s.attend(self.self_spec, q, s.keep(k, v), bias=bias).flatten(-2))
            a, y = cross.EncDecAttention, cross.layer_norm(x)
            kv = s.keep_source(lambda a=a: self.source(a, source))
            q = a.q(y).unflatten(-1, (a.n_heads, -1))
            x = x + a.o(s.attend(self.cross_spec, q, kv, name="cross").flatten(-2))
            x = ff(x)
        return self.hf.final_layer_norm(x)


def t5():
    config = transformers.T5Config(
        vocab_size=VOCAB, d_model=32, d_kv=6, d_ff=40, num_layers=1, num_decoder_layers=3, num_heads=4,
        relative_attention_num_buckets=8, relative_attention_max_distance=10, attn_implementation="eager",
    )  # fmt: skip
    return sharp(transformers.T5ForConditionalGeneration(config).decoder, 3.0)


def source_of(rows):
    rows = list(rows)
    return EncodedSource(SOURCE[rows], torch.where(SOURCE_MASK[rows], torch.arange(9), -1), padded=True)


@BACKENDS
def test_t5_relative_bias_and_cross_attention(attend):
    hf = t5()
    model = T5Decoder(hf, 8, 10)

    def reference(ids, rows):
        rows = list(rows)
        return hf(
            ids, encoder_hidden_states=SOURCE[rows], encoder_attention_mask=SOURCE_MASK[rows].long()
        ).last_hidden_state

    assert_carried(
        lambda ids, step: model(ids, step, SOURCE),
        reference,
        [None] * 3,
        attend,
        step_of=lambda rows, **step: {"source": source_of(rows), **step},
    )


def test_a_source_is_read_once_and_follows_its_row():
    """Keys of an encoder are made in the first pass only, and `select` takes them along."""
    model = T5Decoder(t5(), 8, 10)
    cache = DenseCache([None] * 3, 2, LENGTH)
    with torch.no_grad():
        whole = model(IDS, Step.of(IDS, source=source_of((0, 1))), SOURCE)
        model.sources_read = 0
        model(IDS[:, :5], Step(cache.extend([5, 5]), cache=cache, source=source_of((0, 1))), SOURCE)
        cache.select([1, 0, 1])
        rest = model(IDS[[1, 0, 1], 5:], Step(cache.extend([8] * 3), cache=cache, source=source_of((1, 0, 1))), None)
    assert model.sources_read == 3, "once per layer"
    assert_near(rest, whole[[1, 0, 1], 5:])
    floats = 2 * 4 * 6  # keys and values of 4 heads of 6
    assert cache.bytes == 3 * 3 * (LENGTH + 9) * floats * 4


def test_cross_attention_is_torchs():
    """Against torch.nn.MultiheadAttention, with sources of uneven length."""
    theirs = randomise(nn.MultiheadAttention(24, 4, batch_first=True), 3)
    g = torch.Generator().manual_seed(5)
    x, source = torch.randn(2, 7, 24, generator=g), torch.randn(2, 9, 24, generator=g)
    w, b = theirs.in_proj_weight.chunk(3), theirs.in_proj_bias.chunk(3)
    spec = AttendSpec(6**-0.5, causal=False, source=True)

    def ours(x, step):
        q = nn.functional.linear(x, w[0], b[0]).unflatten(-1, (4, 6))
        kv = step.keep_source(
            lambda: tuple(nn.functional.linear(source, w[i], b[i]).unflatten(-1, (4, 6)) for i in (1, 2))
        )
        return theirs.out_proj(step.attend(spec, q, kv, name="cross").flatten(-2))

    with torch.no_grad():
        want, _ = theirs(x, source, source, key_padding_mask=~SOURCE_MASK)
        for attend in (by_definition, attend_fused, attend_products):
            cache = DenseCache([None], 2, 7)
            parts = [
                ours(
                    part,
                    Step(cache.extend([part.shape[1]] * 2), cache=cache, source=source_of((0, 1)), attend=attend).layer(
                        0
                    ),
                )
                for part in x.split([4, 1, 2], 1)
            ]
            assert_near(torch.cat(parts, 1), want, 2e-6)
        unmasked, _ = theirs(x, source, source)
        assert (unmasked - want).abs().max() > 1e-2


def test_an_encoder_sees_all_of_its_row_and_no_padding():
    """Not causal; padding is a document of its own."""
    theirs = randomise(nn.MultiheadAttention(24, 4, batch_first=True), 3)
    x = torch.randn(2, 9, 24, generator=torch.Generator().manual_seed(5))
    w, b, spec = theirs.in_proj_weight.chunk(3), theirs.in_proj_bias.chunk(3), AttendSpec(6**-0.5, causal=False)
    q, k, v = (nn.functional.linear(x, w[i], b[i]).unflatten(-1, (4, 6)) for i in range(3))
    with torch.no_grad():
        for mask in (None, SOURCE_MASK):
            want, _ = theirs(x, x, x, key_padding_mask=None if mask is None else ~mask)
            for attend in (by_definition, attend_fused, attend_products):
                step = Step(
                    torch.arange(9)[None], documents=None if mask is None else (~mask).long(), attend=attend
                ).layer(0)
                got = theirs.out_proj(step.attend(spec, q, step.keep(k, v)).flatten(-2))
                real = torch.ones_like(SOURCE_MASK) if mask is None else mask
                assert_near(got[real], want[real], 2e-6)


# ---- latent attention (MLA): the latent is kept, keys and values are made from it, or never ----


class Latent(nn.Module):
    """`how` "absorbed": one key head [latent; rotated part], values the latent itself, W_k and W_v moved to q and z.
    "absorbed, kept once": the same, the latent stored once. "expanded": keys and values of all heads, each pass."""

    def __init__(self, hf, how):
        super().__init__()
        self.hf, self.how, c = hf, how, hf.config
        self.nope, self.rope, self.rank = c.qk_nope_head_dim, c.qk_rope_head_dim, c.kv_lora_rank
        self.spec = AttendSpec((self.nope + self.rope) ** -0.5)

    def attention(self, a, x, step):
        q = a.q_b_proj(a.q_a_layernorm(a.q_a_proj(x))).unflatten(-1, (a.num_heads, -1))
        q, q_rot = q.split([self.nope, self.rope], -1)  # [B, T, H, nope], [B, T, H, rope]
        latent, k_rot = a.kv_a_proj_with_mqa(x).unsqueeze(-2).split([self.rank, self.rope], -1)  # [B, T, 1, ...]
        latent, (cos, sin) = a.kv_a_layernorm(latent), step.rotation(RopeConfig(100.0), self.rope)
        q_rot, k_rot = rotate(q_rot, cos, sin), rotate(k_rot, cos, sin)
        w_k, w_v = a.kv_b_proj.weight.unflatten(0, (a.num_heads, -1)).split(
            [self.nope, a.v_head_dim], 1
        )  # [H, d, rank]
        if self.how == "expanded":
            latent, k_rot = step.keep(latent, k_rot)
            k = torch.einsum("bsxr,hdr->bshd", latent, w_k)
            kv = KV(
                torch.cat([k, k_rot.expand(-1, -1, a.num_heads, -1)], -1), torch.einsum("bsxr,hdr->bshd", latent, w_v)
            )
            return a.o_proj(step.attend(self.spec, torch.cat([q, q_rot], -1), kv).flatten(-2))
        if self.how == "absorbed":
            kv = step.keep(torch.cat([latent, k_rot], -1), latent)
        else:
            latent, k_rot = step.keep(latent, k_rot)
            kv = KV(torch.cat([latent, k_rot], -1), latent)
        q = torch.cat([torch.einsum("bthd,hdr->bthr", q, w_k), q_rot], -1)
        z = step.attend(self.spec, q, kv)  # [B, T, H, rank]
        return a.o_proj(torch.einsum("bthr,hdr->bthd", z, w_v).flatten(-2))

    def forward(self, ids, step):
        x = self.hf.embed_tokens(ids)
        for i, block in enumerate(self.hf.layers):
            x = x + self.attention(block.self_attn, block.input_layernorm(x), step.layer(i))
            x = x + block.mlp(block.post_attention_layernorm(x))
        return self.hf.norm(x)


@BACKENDS
@pytest.mark.parametrize(
    ("how", "kept"), [("absorbed", 16 + 4 + 16), ("absorbed, kept once", 16 + 4), ("expanded", 16 + 4)]
)
def test_latent_attention_is_deepseeks(how, kept, attend):
    """Against DeepSeek-V3 of transformers, which expands every head's keys and values."""
    config = transformers.DeepseekV3Config(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=40, num_hidden_layers=2, first_k_dense_replace=2,
        num_attention_heads=4, num_key_value_heads=4, q_lora_rank=20, kv_lora_rank=16, qk_nope_head_dim=10,
        qk_rope_head_dim=4, v_head_dim=7, rope_interleave=False, attn_implementation="eager", pad_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
    )  # fmt: skip
    hf = sharp(transformers.DeepseekV3Model(config))
    model = Latent(hf, how)
    assert_carried(model, lambda ids, _: hf(ids).last_hidden_state, [None] * 2, attend)
    cache = DenseCache([None] * 2, 2, LENGTH)
    with torch.no_grad():
        model(IDS, Step(cache.extend([LENGTH] * 2), cache=cache))
    assert cache.bytes == 2 * 2 * LENGTH * kept * 4


# ---- ALiBi: a bias that falls with distance ----


class Alibi(nn.Module):
    """One attention; its bias from the positions of whatever keys the cache returns, a ring's too."""

    def __init__(self, window):
        super().__init__()
        self.embed, self.q, self.k, self.v = nn.Embedding(VOCAB, 24), *(nn.Linear(24, n) for n in (24, 12, 12))
        self.spec, self.slopes = AttendSpec(6**-0.5, window=window), 2.0 ** -torch.arange(4)

    def project(self, ids):
        x = self.embed(ids)
        return [p(x).unflatten(-1, (-1, 6)) for p in (self.q, self.k, self.v)]

    def forward(self, ids, step):
        q, k, v = self.project(ids)
        view, s = step.view(self.spec), step.layer(0)
        distance = view.queries[:, None, :, None] - view.keys[:, None, None, :]
        return s.attend(self.spec, q, s.keep(k, v), bias=-self.slopes[:, None, None] * distance).flatten(-2)

    def reference(self, ids, _):
        q, k, v = self.project(ids)
        at = torch.arange(ids.shape[1])
        bias = (-self.slopes[:, None, None] * (at[:, None] - at)).expand(len(ids), -1, -1, -1)
        every = at.expand(len(ids), -1)
        seen = seen_by_loops(every, every, True, self.spec.window, None)
        return torch.tensor(naive(q, k, v, self.spec.scale, seen, bias=bias)[0]).flatten(-2)


@BACKENDS
@pytest.mark.parametrize("window", [None, 4])
def test_alibi_is_a_bias(window, attend):
    model = randomise(Alibi(window))
    assert_carried(model, model.reference, [window], attend)
