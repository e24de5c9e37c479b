"""Encoder and encoder-decoder: equal to torch.nn.Transformer; padded = single; cached = uncached; errors."""

import math

import pytest
import torch
import torch.nn.functional as F
from tiny import (
    ENCODER_DECODERS,
    assert_near,
    by_definition,
    encode_source,
    encoder_decoder_config,
    randomise,
    relative_change,
    run,
    run_cached,
    tiny_encoder_decoder,
)
from torch import nn

from glassformer.cache.dense import DenseCache
from glassformer.config import (
    AttentionConfig,
    EncoderConfig,
    LayerConfig,
    MLPConfig,
    ModelConfig,
    NormConfig,
    RopeConfig,
    change,
)
from glassformer.errors import CapacityError, ConfigError
from glassformer.families.common.shape import Seq2SeqShape
from glassformer.kernels.attention import attend_fused, attend_products
from glassformer.kernels.cross_entropy import next_token_loss
from glassformer.nn.attention import Attention
from glassformer.nn.cross_attention import CrossAttention
from glassformer.nn.model import Decoder, Encoder, EncoderDecoder, make_model
from glassformer.nn.protocols import EncodedSource
from glassformer.nn.step import Step
from glassformer.training.init import init_glorot, init_weights

MODELS = {name: tiny_encoder_decoder(name) for name in ENCODER_DECODERS}
LENGTHS, TARGET_LENGTHS = (9, 4, 1, 7), (6, 11, 3, 1)  # of four sources and their targets
SOURCES, TARGETS = (torch.randint(83, (4, n), generator=torch.Generator().manual_seed(n)) for n in (9, 11))
CHUNKS = ([11], [1] * 11, [4, 1, 6], [10, 1])
BACKENDS = pytest.mark.parametrize("attend", [by_definition, attend_fused, attend_products])
EACH = pytest.mark.parametrize("name", ENCODER_DECODERS)


def single(model, b, length=None):
    """Return the logits of sequence b as a batch of one without padding."""
    source = encode_source(model, SOURCES[b : b + 1, : LENGTHS[b]])
    return run(model, TARGETS[b : b + 1, :length], source=source)[0]


# ---- against torch ----


class TorchModel(nn.Module):
    """torch.nn.Transformer between an embedding and a head, as its users write it."""

    def __init__(self, norm_first, final_norm, n_encoder=3, n_decoder=2, d=24, heads=3, d_ff=40):
        super().__init__()
        self.source, self.target, self.head = nn.Embedding(83, d), nn.Embedding(97, d), nn.Linear(d, 97, bias=False)
        self.core = nn.Transformer(
            d, heads, n_encoder, n_decoder, d_ff, 0.0, "relu", layer_norm_eps=1e-2, batch_first=True,
            norm_first=norm_first,
        )  # fmt: skip
        if not final_norm:
            self.core.encoder.norm = self.core.decoder.norm = None

    def positions(self, length, d=24):
        table = torch.zeros(length, d)
        for p in range(length):
            for i in range(0, d, 2):
                table[p, i], table[p, i + 1] = math.sin(p / 10_000 ** (i / d)), math.cos(p / 10_000 ** (i / d))
        return table

    def forward(self, sources, lengths, ids):
        hidden = torch.arange(sources.shape[1]) >= torch.tensor(lengths)[:, None]
        source, target = (
            table(x) * math.sqrt(24) + self.positions(x.shape[1])
            for table, x in ((self.source, sources), (self.target, ids))
        )
        causal = self.core.generate_square_subsequent_mask(ids.shape[1])
        return self.head(
            self.core(
                source, target, tgt_mask=causal, tgt_is_causal=True, src_key_padding_mask=hidden,
                memory_key_padding_mask=hidden,
            )
        )  # fmt: skip


def convert_weights(theirs, norm_first):
    """Return the weights of `TorchModel` under our names, with q, k and v split."""
    found, norm = {}, "norm" if norm_first else "post_norm"
    sublayers = {"encoder": ("attn", "mlp"), "decoder": ("attn", "cross", "mlp")}
    renamed = {
        "self_attn.out_proj": "attn.o", "multihead_attn.out_proj": "cross.o", "linear1": "mlp.up",
        "linear2": "mlp.down",
    }  # fmt: skip
    for name, value in theirs.state_dict().items():
        if not name.startswith("core."):
            found[{"source": "encoder.embed", "target": "embed"}.get(name.split(".")[0], "head") + ".weight"] = value
            continue
        _, side, *rest = name.split(".")
        prefix, (middle, last) = "encoder." if side == "encoder" else "", (".".join(rest[2:-1]), rest[-1])
        if rest[0] == "norm":
            found[f"{prefix}norm.{last}"] = value
        elif last.startswith("in_proj"):
            for part, tensor in zip("qkv", value.chunk(3), strict=True):
                kind = "attn" if middle == "self_attn" else "cross"
                found[f"{prefix}blocks.{rest[1]}.{kind}.{part}.{last.removeprefix('in_proj_')}"] = tensor
        elif middle.startswith("norm"):
            sublayer = sublayers[side][int(middle[-1]) - 1]
            found[f"{prefix}blocks.{rest[1]}.{sublayer}_{norm}.{last}"] = value
        else:
            found[f"{prefix}blocks.{rest[1]}.{renamed[middle]}.{last}"] = value
    return found


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@BACKENDS
@pytest.mark.parametrize("final_norm", [True, False])
@pytest.mark.parametrize("norm_at", ["pre", "post"])
def test_model_equals_torch_transformer(norm_at, final_norm, attend):
    theirs = randomise(TorchModel(norm_at == "pre", final_norm), 3).train()  # train mode avoids torch's fused path
    with torch.no_grad():
        for table in (theirs.source, theirs.target):
            table.weight.mul_(24**-0.5)
    attention = AttentionConfig(3, 3, 8, bias=True, out_bias=True, causal=False)
    norm, mlp = NormConfig("layer", 1e-2), MLPConfig(40, "relu", gated=False, bias=True)
    encoder_layer = LayerConfig(attention, mlp, norm, (norm_at,))
    decoder_layer = LayerConfig(change(attention, "causal", True), mlp, norm, (norm_at,), attention)
    final, scale = norm if final_norm else None, math.sqrt(24)
    encoder = EncoderConfig(83, 24, 64, (encoder_layer,) * 3, final, "sinusoidal", scale)
    ours = EncoderDecoder(
        ModelConfig("", 97, 24, 64, (decoder_layer,) * 2, final, "sinusoidal", embed_scale=scale, encoder=encoder)
    )
    ours.load_state_dict(convert_weights(theirs, norm_at == "pre"))
    with torch.no_grad():
        want = theirs(SOURCES, LENGTHS, TARGETS)
        got = run(ours, TARGETS, source=encode_source(ours, SOURCES, LENGTHS, attend=attend), attend=attend)
        assert_near(got, want)
        assert relative_change(theirs(SOURCES, (9,) * 4, TARGETS), want) > 1e-2, "padding must change the logits"
        assert relative_change(theirs(SOURCES.roll(1, 0), LENGTHS, TARGETS), want) > 1e-2, (
            "the source must change the logits"
        )


@BACKENDS
@pytest.mark.parametrize("source", [False, True])
def test_attention_equals_torch_multihead_attention(source, attend):
    """Self-attention over padded sequences, and cross-attention."""
    theirs = randomise(nn.MultiheadAttention(24, 4, batch_first=True), 3)
    config = AttentionConfig(4, 4, 6, bias=True, out_bias=True, causal=False)
    ours, w = (CrossAttention if source else Attention)(config, 24), theirs.state_dict()
    ours.load_state_dict({
        **{f"{n}.{p}": t for p in ("weight", "bias") for n, t in zip("qkv", w[f"in_proj_{p}"].chunk(3), strict=True)},
        **{f"o.{p}": w[f"out_proj.{p}"] for p in ("weight", "bias")},
    })  # fmt: skip
    g = torch.Generator().manual_seed(5)
    memory = torch.randn(4, 9, 24, generator=g)
    x = torch.randn(4, 11, 24, generator=g) if source else memory
    hidden = torch.arange(9) >= torch.tensor(LENGTHS)[:, None]
    keys = Step.of(SOURCES, LENGTHS)
    step = (
        Step.of(TARGETS, source=EncodedSource(memory, keys.positions, keys.padded), attend=attend) if source else keys
    )
    step.backend = attend
    with torch.no_grad():
        want, _ = theirs(x, memory, memory, key_padding_mask=hidden)
        got = ours(x, step.layer(0))
    real = torch.ones(4, 11, dtype=torch.bool) if source else ~hidden
    assert_near(got[real], want[real], 2e-6)


# ---- batches of different lengths ----


@BACKENDS
@EACH
def test_padded_equals_single(name, attend):
    """In a batch of different lengths, the logits of each sequence equal those of a batch of one."""
    model = MODELS[name]
    padded = encode_source(model, SOURCES, LENGTHS, attend=attend)
    batched = run(model, TARGETS, lengths=TARGET_LENGTHS, source=padded, attend=attend)
    for b, (n, written) in enumerate(zip(LENGTHS, TARGET_LENGTHS, strict=True)):
        assert_near(padded.states[b, :n], encode_source(model, SOURCES[b : b + 1, :n]).states[0])
        assert_near(batched[b, :written], single(model, b, written))
    assert not batched.isnan().any()


@EACH
def test_padding_tokens_do_not_change_logits(name):
    model = MODELS[name]
    others = [x.clone() for x in (SOURCES, TARGETS)]
    for rows, lengths in zip(others, (LENGTHS, TARGET_LENGTHS), strict=True):
        for row, n in zip(rows, lengths, strict=True):
            row[n:] = (row[n:] + 7) % 83
    a, b = (
        run(model, targets, lengths=TARGET_LENGTHS, source=encode_source(model, sources, LENGTHS))
        for sources, targets in ((SOURCES, TARGETS), others)
    )
    for row, n in enumerate(TARGET_LENGTHS):
        assert torch.equal(a[row, :n], b[row, :n])


@EACH
def test_padding_gets_no_gradient(name):
    """Each source token occurs once, and no target token is a source token."""
    model = tiny_encoder_decoder(name)
    model.zero_grad()
    sources = torch.arange(36).view(4, 9)
    source = model.encode(sources, Step.of(sources, LENGTHS))
    states = source.states
    states.retain_grad()
    ids = torch.full((4, 5), 50)
    targets = torch.full((4, 5), 60)
    next_token_loss(model, ids, targets, Step.of(ids, source=source)).backward()
    real = torch.arange(9) < torch.tensor(LENGTHS)[:, None]
    assert (states.grad.abs().sum(-1) > 0).equal(real)
    if not model.config.shared_embedding:
        assert (model.encoder.embed.weight.grad[:36].abs().sum(-1) > 0).equal(real.flatten())


@EACH
def test_encoder_is_not_causal(name):
    model = MODELS[name]
    changed = SOURCES.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 83
    a, b = (encode_source(model, ids).states for ids in (SOURCES, changed))
    assert relative_change(b[:, 0], a[:, 0]) > 1e-3
    later = TARGETS.clone()
    later[:, 6:] = (later[:, 6:] + 1) % 83
    x, y = (run(model, ids, source=encode_source(model, SOURCES)) for ids in (TARGETS, later))
    assert torch.equal(x[:, :6], y[:, :6])
    assert relative_change(y[:, 6:], x[:, 6:]) > 1e-2


# ---- cached decoding ----


@BACKENDS
@EACH
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "padded"])
def test_cached_equals_uncached(name, lengths, attend):
    model = MODELS[name]
    source = encode_source(model, SOURCES, lengths)
    want = run(model, TARGETS, source=source)
    for chunks in CHUNKS:
        cache = DenseCache.of(model.config, 4, 11, source=source)
        assert_near(run_cached(model, TARGETS, chunks, cache, attend=attend), want)


@EACH
def test_uneven_batch_equals_single(name):
    """Each forward pass adds a different number of tokens to each sequence, possibly none."""
    model = MODELS[name]
    cache = DenseCache.of(model.config, 4, 11, source=encode_source(model, SOURCES, LENGTHS))
    parts, at = [[] for _ in LENGTHS], [0] * 4
    for counts in ([3, 7, 1, 1], [1, 1, 1, 0], [2, 3, 0, 0], [0, 0, 1, 0]):
        ids = torch.zeros(4, max(counts), dtype=torch.long)
        for b, c in enumerate(counts):
            ids[b, :c] = TARGETS[b, at[b] : at[b] + c]
        with torch.no_grad():
            out = model(ids, Step(cache.extend(counts), cache=cache))
        for b, c in enumerate(counts):
            parts[b].append(out[b, :c])
            at[b] += c
    assert tuple(at) == TARGET_LENGTHS
    for b, n in enumerate(TARGET_LENGTHS):
        assert_near(torch.cat(parts[b]), single(model, b, n))


@EACH
@pytest.mark.parametrize("rows", [[2, 0, 2, 1, 3, 3], [1], [3, 2]], ids=str)
def test_select_includes_the_source(name, rows):
    """`select` also selects the keys, values and mask of the source."""
    model = MODELS[name]
    cache = DenseCache.of(model.config, 4, 11, source=encode_source(model, SOURCES, LENGTHS))
    first = run_cached(model, TARGETS[:, :5], [5], cache)
    cache.select(rows)
    rest = run_cached(model, TARGETS[rows, 5:], [1, 3, 2], cache)
    for part, b in zip(rest, rows, strict=True):
        assert_near(torch.cat([first[b], part]), single(model, b))


def test_repeated_source():
    """A source may be repeated before the first forward pass, with and without padding."""
    model = MODELS["post"]
    for source in (encode_source(model, SOURCES[:1]), encode_source(model, SOURCES[:1], (6,))):
        cache = DenseCache.of(model.config, 1, 11, source=source)
        cache.select([0] * 4)
        want = run(model, TARGETS, source=source.select(torch.tensor([0] * 4)))
        assert_near(run_cached(model, TARGETS, [2, 1, 8], cache), want)
        assert_near(want[2], run(model, TARGETS[2:3], source=source)[0])


def test_source_keys_are_computed_once():
    model, calls = MODELS["post"], []
    hooks = [block.cross.k.register_forward_hook(lambda *_: calls.append(1)) for block in model.blocks]
    cache = DenseCache.of(model.config, 4, 11, source=encode_source(model, SOURCES, LENGTHS))
    run_cached(model, TARGETS, [1] * 5 + [6], cache)
    for hook in hooks:
        hook.remove()
    assert len(calls) == model.config.n_layers
    assert (
        cache.bytes == model.config.n_layers * 2 * 4 * (11 + 9) * 4 * 12 * 4
    )  # k and v, sequences, keys, heads, Dh, bytes


# ---- configuration ----


SETTINGS = [
    ("post", "embed_scale", 1.0), ("post", "encoder.embed_scale", 1.0), ("separate", "positions", "sinusoidal"),
    ("separate", "encoder.positions", None), ("pre", "final_norm", None), ("pre", "encoder.final_norm", None),
    ("rms", "layers.0.cross.scale", 0.5), ("rms", "encoder.layers.1.attention.scale", 0.5),
    ("rms", "encoder.layers.0.attention.rope", None), ("post", "layers.1.cross.scale", 1.0),
]  # fmt: skip


@pytest.mark.parametrize(("name", "path", "value"), SETTINGS)
def test_every_setting_changes_the_logits(name, path, value):
    model, other = MODELS[name], EncoderDecoder(encoder_decoder_config(name, **{path: value}))
    other.load_state_dict(model.state_dict(), strict=False)
    a, b = (run(m, TARGETS, source=encode_source(m, SOURCES, LENGTHS)) for m in (model, other))
    assert relative_change(b, a) > 1e-3


def test_shared_embedding_is_one_parameter():
    model, separate = (tiny_encoder_decoder(name) for name in ("post", "separate"))
    names = {name for name, _ in model.named_parameters()}
    assert "embed.weight" in names
    assert "encoder.embed.weight" not in names
    assert model.encoder.embed.weight is model.embed.weight is model.head.weight
    assert {"embed.weight", "encoder.embed.weight", "head.weight"} <= {n for n, _ in separate.named_parameters()}
    changed = tiny_encoder_decoder("post")
    with torch.no_grad():
        changed.embed.weight[SOURCES[0, 0]] += 1
    assert relative_change(encode_source(changed, SOURCES).states, encode_source(model, SOURCES).states) > 1e-2


def test_make_model():
    assert type(make_model(encoder_decoder_config("post"))) is EncoderDecoder
    assert type(make_model(change(tiny_decoder_config(), "vocab_size", 50))) is Decoder
    assert type(EncoderDecoder(encoder_decoder_config("post")).encoder) is Encoder


def tiny_decoder_config():
    return ModelConfig("", 97, 48, 64, (LayerConfig(AttentionConfig(4, 4, 12), MLPConfig(72)),))


PLAIN = AttentionConfig(4, 4, 12)


@pytest.mark.parametrize(("path", "value", "message"), [
    ("layers.0.cross", None, "in every layer of a model with an encoder"),
    ("encoder", None, "in every layer of a model with an encoder"),
    ("layers.0.attention.causal", False, "a decoder must have causal = True"),
    ("encoder.layers.1.attention.causal", True, "an encoder must have causal = False"),
    ("encoder.layers.1.cross", change(PLAIN, "causal", False), "an encoder has no cross-attention"),
    ("layers.0.cross", PLAIN, "must have causal False, rope None"),
    ("layers.0.cross.rope", RopeConfig(), "must have causal False, rope None"),
    ("layers.0.cross.window", 4, "a window requires causal attention"),
    ("encoder.vocab_size", 96, "same vocab_size on both sides, got 96 and 97"),
    ("encoder.d_model", 24, "same d_model, got 24 and 48"),
    ("embed_scale", 0.0, "embed_scale must be above 0"),
    ("encoder.embed_scale", -1.0, "embed_scale must be above 0"),
    ("encoder.layers", (), "at least one layer"),
    ("encoder.context_length", 0, "context_length must be at least 1"),
], ids=str)  # fmt: skip
def test_invalid_config_raises_config_error(path, value, message):
    with pytest.raises(ConfigError, match=message):
        encoder_decoder_config("post", **{path: value})


def test_shared_embedding_without_encoder_raises():
    with pytest.raises(ConfigError, match="shared_embedding requires an encoder"):
        change(tiny_decoder_config(), "shared_embedding", True)


@pytest.mark.parametrize("lengths", [(9, 4), (9, 4, 0, 7), (9, 10, 1, 7), (9, -1, 1, 7)], ids=str)
def test_invalid_lengths_raise_value_error(lengths):
    with pytest.raises(ValueError, match="lengths must be 4 numbers from 1 to 9"):
        Step.of(SOURCES, lengths)


def test_full_lengths_need_no_mask():
    assert not Step.of(SOURCES, (9, 9, 9, 9)).padded


def test_too_long_source_raises_capacity_error():
    model, ids = MODELS["post"], torch.zeros(1, 65, dtype=torch.long)
    with pytest.raises(CapacityError, match="65 tokens does not fit: the encoder's context holds 64"):
        model.encode(ids, Step.of(ids))


def test_missing_source_raises():
    with pytest.raises(AssertionError, match="needs a Step with a source"):
        run(MODELS["post"], TARGETS)


def n_parameters(shape, *vocabularies):
    return sum(p.numel() for p in make_model(shape.expand(*vocabularies)).parameters())


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("norm_at", ["post", "pre"])
def test_shape_has_the_parameters_of_the_paper(norm_at):
    """The parameter count equals that of torch.nn.Transformer plus the embedding; torch always has final norms."""
    theirs = nn.Transformer(32, 4, 2, 2, 128, batch_first=True)
    final_norms = 0 if norm_at == "pre" else 2 * 2 * 32
    shape = Seq2SeqShape(d_model=32, n_layers=2, n_heads=4, norm_at=norm_at)
    core = sum(p.numel() for p in theirs.parameters()) - final_norms
    assert n_parameters(shape, 50) == core + 50 * 32
    separate = Seq2SeqShape(
        32, 2, 4, norm_at=norm_at, shared_embedding=False, tied_head=False, positions="learned", context=9
    )
    assert n_parameters(separate, 50, 70) == core + (50 + 50 + 70 + 9 + 9) * 32
    config = shape.expand(50)
    assert config.embed_scale == config.encoder.embed_scale == math.sqrt(32)
    assert config.layers[0].norm_at == (norm_at,)


@pytest.mark.parametrize(
    ("changes", "message"), [({"n_heads": 5}, "multiple of n_heads"), ({"n_layers": 0}, "one layer")]
)
def test_invalid_shape_raises_config_error(changes, message):
    with pytest.raises(ConfigError, match=message):
        Seq2SeqShape(**changes).expand(50)


def test_shared_embedding_requires_equal_vocabularies():
    with pytest.raises(ConfigError, match="same vocab_size on both sides, got 70 and 50"):
        Seq2SeqShape().expand(50, 70)


# ---- training ----


@EACH
def test_chunked_loss_reaches_every_parameter(name):
    model = tiny_encoder_decoder(name)
    targets = TARGETS.roll(-1, 1).clone()
    for row, n in zip(targets, TARGET_LENGTHS, strict=True):
        row[n:] = -100

    def step():
        return Step.of(TARGETS, TARGET_LENGTHS, source=model.encode(SOURCES, Step.of(SOURCES, LENGTHS)))

    next_token_loss(model, TARGETS, targets, step(), smoothing=0.1).backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    logits = model(TARGETS, step()).flatten(0, 1)
    F.cross_entropy(logits, targets.flatten(), reduction="sum", label_smoothing=0.1).backward()
    for n, p in model.named_parameters():
        if n.endswith("k.bias"):  # adds the same to all scores of a query: only rounding is left
            assert max(p.grad.abs().max(), grads[n].abs().max()) < 1e-3
            continue
        assert p.grad.any(), f"{n} gets no gradient"
        assert_near(grads[n], p.grad, 1e-5)


@EACH
def test_init_weights(name):
    """As in GPT-2: projections to a residual stream are divided by the root of their number."""
    model, again = (init_weights(EncoderDecoder(encoder_decoder_config(name)), 0) for _ in range(2))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))
    for n, p in model.named_parameters():
        if p.ndim == 1:
            assert (p == ("weight" in n)).all(), n
        elif n.endswith(("attn.o.weight", "cross.o.weight", "mlp.down.weight")):
            n_projections = 2 * model.encoder.config.n_layers if n.startswith("encoder.") else 3 * model.config.n_layers
            assert abs(p.std() / (0.02 / math.sqrt(n_projections)) - 1) < 0.1, n
        else:
            assert abs(p.std() / 0.02 - 1) < 0.1, n


@EACH
def test_init_glorot(name):
    """Matrices are Glorot uniform; embeddings have variance 1 / D, so that logits have variance 1."""
    model, again, other = (init_glorot(EncoderDecoder(encoder_decoder_config(name)), seed) for seed in (0, 0, 1))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))
    assert not torch.equal(model.embed.weight, other.embed.weight)
    for n, p in model.named_parameters():
        if p.ndim == 1:
            assert (p == ("weight" in n)).all(), n
        elif n.endswith(("embed.weight", "positions.weight", "head.weight")):
            assert abs(p.std() * math.sqrt(48) - 1) < 0.1, n
        else:
            bound = math.sqrt(6 / sum(p.shape))
            assert 0.95 * bound < p.abs().max() <= bound, n
            assert abs(p.std() * math.sqrt(3) / bound - 1) < 0.1, n
