"""Points of an encoder-decoder: all are visited, each can be edited, and derived points equal the reference."""

import numpy as np
import pytest
import torch
from test_points import Everything, Tap
from tiny import (
    ENCODER_DECODERS,
    assert_near,
    encode_source,
    encoder_decoder_config,
    randomise_sharp,
    run,
    run_cached,
    tiny_encoder_decoder,
)
from tiny_translators import CONFIGS, SEQ2SEQ_FAMILIES

from glassformer.cache.dense import DenseCache
from glassformer.errors import RequestError
from glassformer.inspect.capture import points
from glassformer.inspect.capture.derive import derive
from glassformer.nn.attend import KV, attend_reference, attend_sdpa
from glassformer.nn.model import EncoderDecoder
from glassformer.nn.step import Step

MODELS = {name: tiny_encoder_decoder(name) for name in ENCODER_DECODERS}
MODELS |= {family: randomise_sharp(EncoderDecoder(CONFIGS[family]())) for family in SEQ2SEQ_FAMILIES}
SOURCES, LENGTHS = torch.randint(83, (3, 9), generator=torch.Generator().manual_seed(1)), (9, 4, 1)
IDS = torch.randint(83, (3, 7), generator=torch.Generator().manual_seed(2))
EACH = pytest.mark.parametrize("name", MODELS)


def logits(model, tap=None, attend=attend_sdpa, encoder_attend=attend_sdpa):
    """Return the logits of a padded batch, with one tap for encoder and decoder."""
    source = encode_source(model, SOURCES, LENGTHS, tap=tap, attend=encoder_attend)
    return run(model, IDS, source=source, tap=tap, attend=attend)


def hooked_module(stack, name):
    """Return (module, None) if the point is a module's output, or (None, module) if it is its input."""
    if not name.startswith("blocks."):
        after = {"embed.tokens": stack.embed, "embed.positions": stack.positions, "final.norm": stack.norm}
        return (None, stack.blocks[0]) if name == "embed.out" else (after.get(name, stack), None)
    _, number, end = name.split(".", 2)
    block = stack.blocks[int(number)]
    before = {"resid_pre": block, "mlp.act": block.mlp.down}
    after = {"resid_post": block, "mlp.out": block.mlp.down, "mlp.add": block.mlp_out_norm}
    after |= {"resid_mid": block.attn_post_norm, "resid_cross": block.cross_post_norm}
    after |= {"mlp.gate": block.mlp.gate, "mlp.up": block.mlp.up}
    for part in ("attn", "cross", "mlp"):
        before[f"{part}.x"] = getattr(block, part)
    for part in ("attn", "cross"):
        attention, out_norm = getattr(block, part), getattr(block, f"{part}_out_norm")
        if attention is not None:
            before[f"{part}.z"] = attention.o
            after |= {f"{part}.{p}": getattr(attention, p) for p in "qkv"}
            after |= {f"{part}.out": attention.o, f"{part}.add": out_norm}
    return (after[end], None) if end in after else (None, before[end])


def logits_with_hook(model, name, delta):
    """Return the logits with `delta` added at a point by a module hook or in the attention backend, without a tap."""
    bare = name.removeprefix("encoder.")
    of_encoder = bare != name
    stack = model.encoder if of_encoder else model
    if bare.endswith("_rot"):
        _, number, kind, part = bare.split(".")
        calls = iter(range(100))

        def attend(spec, q, kv, view, bias=None, sinks=None):
            if spec.source == (kind == "cross") and next(calls) == int(number):
                q, kv = (q + delta, kv) if part == "q_rot" else (q, KV(kv.k + delta, kv.v))
            return attend_sdpa(spec, q, kv, view, bias, sinks)

        return logits(model, **{"encoder_attend" if of_encoder else "attend": attend})
    after, before = hooked_module(stack, bare)

    def add(value):
        return value + (delta.flatten(value.ndim - 1) if delta.ndim > value.ndim else delta)

    def hooked(does):
        if after is not None:
            handle = after.register_forward_hook(lambda _m, _a, out: add(out))
        else:
            handle = before.register_forward_pre_hook(lambda _m, a: (add(a[0]), *a[1:]))
        try:
            return does()
        finally:
            handle.remove()

    if of_encoder:  # the decoder shares the table, so the hook is active in the encoder's forward pass only
        return run(model, IDS, source=hooked(lambda: encode_source(model, SOURCES, LENGTHS)))
    source = encode_source(model, SOURCES, LENGTHS)
    return hooked(lambda: run(model, IDS, source=source))


@EACH
def test_edit_at_every_live_point_equals_a_module_hook(name):
    model, everything = MODELS[name], Everything()
    plain = logits(model, everything)
    for point in points.live(model.config):
        value = everything.seen[point]
        delta = torch.randn(value.shape, generator=torch.Generator().manual_seed(3)) * value.std() * 0.3
        tap = Tap({point}, {point: delta})
        tapped = logits(model, tap)
        assert list(tap.seen) == [point]
        assert torch.equal(tapped, logits_with_hook(model, point, delta)), point
        assert (tapped - plain).abs().max() > 1e-3 * plain.abs().max(), f"{point} does not reach the logits"


@EACH
def test_tap_visits_the_registered_points_in_order(name):
    model, tap = MODELS[name], Everything()
    logits(model, tap)
    assert list(tap.seen) == points.live(model.config)


@EACH
def test_axes_match_the_shapes(name):
    model, tap = MODELS[name], Everything()
    logits(model, tap)
    for point, value in tap.seen.items():
        of_encoder = point.startswith("encoder.")
        layer = (model.encoder if of_encoder else model).config.layers[0]
        a = layer.attention
        size = {"B": 3, "T": 9 if of_encoder else 7, "S": 9, "D": 48, "V": 97, "F": layer.mlp.d_ff}
        size |= {"H": a.n_heads, "Hkv": a.n_kv_heads, "Dh": a.head_dim, "Dv": a.v_dim, "#B": len(value)}
        assert value.shape == tuple(size[axis] for axis in points.find(model.config, point).axes.split()), point


@EACH
def test_capture_changes_no_bit(name):
    model = MODELS[name]
    plain = logits(model)
    assert torch.equal(plain, logits(model, Everything()))
    cached = []
    for tap in (None, Everything()):
        cache = DenseCache.of(model.config, 3, 7, source=encode_source(model, SOURCES, LENGTHS, tap=tap))
        cached.append(run_cached(model, IDS, [4, 1, 2], cache, tap=tap))
    assert torch.equal(*cached)


@EACH
def test_derived_points_equal_the_reference(name):
    """All points derived from captured values equal those inside attend_reference."""
    model, tap, inside = MODELS[name], Everything(), {}

    def attend(spec, *args):
        z, scores, probs = attend_reference(spec, *args)
        kind = "blocks.{}.cross" if spec.source else "blocks.{}.attn" if spec.causal else "encoder.blocks.{}.attn"
        layer = next(at for i in range(9) if (at := kind.format(i)) not in inside)
        inside[layer] = {"scores": scores, "probs": probs}
        return z

    reading = Step.of(SOURCES, LENGTHS, tap=tap, attend=attend)
    with torch.no_grad():
        writing = Step.of(IDS, tap=tap, attend=attend, source=model.encode(SOURCES, reading))
        model(IDS, writing)
        found = points.derived(model.config)
        assert len(found) == 3 * len(inside) == 3 * (2 * model.config.n_layers + model.encoder.config.n_layers)
        for point in found:
            layer, end = point.rsplit(".", 1)
            step = reading if point.startswith("encoder.") else writing
            few = {need: tap.seen[need] for need in points.needs(model.config, point)}
            got = derive(model, point, few, step.view(model.get_submodule(layer).spec))
            assert got.error < 1e-5
            if end == "heads":
                bias = model.get_submodule(layer).o.bias
                assert_near(got.value.sum(-2) + (0 if bias is None else bias), tap.seen[f"{layer}.out"])
            else:
                assert torch.equal(got.value, inside[layer][end])


@pytest.mark.parametrize("family", ["t5", "flan"])
def test_relative_bias_is_part_of_the_scores(family):
    """Scores minus q·k are the learned bias of each distance, shared by all layers of a stack."""
    model, tap = MODELS[family], Everything()
    reading = Step.of(SOURCES, tap=tap)
    writing = Step.of(IDS, tap=tap, source=model.encode(SOURCES, reading))
    model(IDS, writing)
    near = [(0, 0, 0), (6, 5, 1), (5, 2, 3)]  # query, key, bucket
    for prefix, stack, step, places in (
        ("encoder.", model.encoder, reading, [*near, (8, 0, 5), (0, 3, 11), (2, 6, 12), (0, 8, 13)]),
        ("", model, writing, [*near, (6, 0, 6)]),
    ):
        weight = stack.relative_positions.weight.detach()  # [buckets, H]
        for i in range(stack.config.n_layers):
            layer = f"{prefix}blocks.{i}.attn"
            scores = derive(model, f"{layer}.scores", tap.seen, step.view(stack.blocks[i].attn.spec)).value
            product = torch.einsum("bthd,bshd->bhts", *(tap.seen[f"{layer}.{part}_rot"] for part in "qk"))
            for t, s, bucket in places:
                assert_near(scores[:, :, t, s] - product[:, :, t, s], weight[bucket].expand(3, -1), 1e-4)


@pytest.mark.parametrize("name", ["post", "rms"])
def test_alignment_equals_numpy(name):
    """Cross-attention in NumPy covers query and key norms, grouped heads and padded sources."""
    model, tap = MODELS[name], Everything()
    logits(model, tap)
    cross, step = model.blocks[1].cross, Step.of(IDS, source=encode_source(model, SOURCES, LENGTHS))
    got = derive(model, "blocks.1.cross.probs", tap.seen, step.view(cross.spec))
    q, k, v, z = (tap.seen[f"blocks.1.cross.{p}"].double().numpy() for p in ("q", "k", "v", "z"))
    if name == "rms":
        q, k = (
            x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-2) * norm.weight.detach().double().numpy()
            for x, norm in ((q, cross.q_norm), (k, cross.k_norm))
        )
    scale, group = (1.0, 2) if name == "rms" else (1 / np.sqrt(12), 1)
    for b, n in enumerate(LENGTHS):
        for h in range(4):
            scores = q[b, :, h] @ k[b, :n, h // group].T * scale
            probs = np.exp(scores - scores.max(-1, keepdims=True))
            probs /= probs.sum(-1, keepdims=True)
            assert_near(got.value[b, h, :, :n], torch.tensor(probs))
            assert not got.value[b, h, :, n:].any()
            assert_near(torch.tensor(z[b, :, h]), torch.tensor(probs @ v[b, :n, h // group]))


def test_tap_sees_source_keys_in_the_first_forward_pass_only():
    """Alignment of a later forward pass is derived from its queries and the keys of the first one."""
    model, taps = MODELS["separate"], []
    cache = DenseCache.of(model.config, 3, 7, source=encode_source(model, SOURCES, LENGTHS))
    full = Everything()
    logits(model, full)
    for part in IDS.split([4, 1, 2], 1):
        taps.append(Everything())
        step = Step(cache.extend([part.shape[1]] * 3), cache=cache, tap=taps[-1])
        with torch.no_grad():
            model(part, step)
    first_only = {f"blocks.{i}.cross.{p}" for i in range(2) for p in ("k", "v", "k_rot")}
    assert taps[0].seen.keys() - taps[1].seen.keys() == first_only
    assert taps[1].seen.keys() == taps[2].seen.keys()
    captured = {**taps[2].seen, **{name: taps[0].seen[name] for name in first_only}}
    view = step.view(model.blocks[1].cross.spec)
    full_view = Step.of(IDS, source=cache.source).view(model.blocks[1].cross.spec)
    got, want = (derive(model, "blocks.1.cross.probs", *of) for of in ((captured, view), (full.seen, full_view)))
    assert_near(got.value, want.value[:, :, 5:])
    assert got.error < 1e-5


def test_edited_cross_scores_hide_a_source_token():
    """Scores of -inf in both layers equal a source whose token is masked in cross-attention."""
    model = MODELS["pre"]

    class Hide(Tap):
        def __call__(self, name, value):
            return value.index_fill(-1, torch.tensor([3]), -torch.inf)

    source = encode_source(model, SOURCES[:1])
    hidden = run(model, IDS[:1], source=source, tap=Hide({f"blocks.{i}.cross.scores" for i in range(2)}))
    positions = source.positions.index_fill(-1, torch.tensor([3]), -1)
    want = run(model, IDS[:1], source=type(source)(source.states, positions, padded=True))
    assert_near(hidden, want)
    assert (hidden - run(model, IDS[:1], source=source)).abs().max() > 1e-2


def test_point_names_of_an_encoder_decoder():
    config = encoder_decoder_config("separate")
    every = points.points(config)
    assert {"encoder.embed.tokens", "encoder.blocks.2.attn.z", "encoder.final.norm", "blocks.1.cross.z"} <= set(every)
    assert not any(name.startswith("encoder.") and ("cross" in name or "logits" in name) for name in every)
    assert points.needs(config, "encoder.blocks.2.attn.heads") == [
        "encoder.blocks.2.attn.z", "encoder.blocks.2.attn.out",
    ]  # fmt: skip
    assert points.needs(config, "blocks.1.cross.probs")[0] == "blocks.1.cross.q_rot"
    with pytest.raises(RequestError, match=r"no point 'encoder.blocks.3.attn.z'.*encoder.blocks"):
        points.find(config, "encoder.blocks.3.attn.z")
