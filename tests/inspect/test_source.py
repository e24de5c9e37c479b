"""Points of an encoder-decoder: all are there, each can be changed, and what is derived is what attention weighed."""

import numpy as np
import pytest
import torch
from test_points import Everything, Tap
from tiny import PAIRS, assert_near, pair_config, read, run, run_cached, tiny_pair, wake
from tiny_translators import CONFIGS, PAIR_FAMILIES

from glassformer.cache.dense import DenseCache
from glassformer.errors import RequestError
from glassformer.inspect.capture import points
from glassformer.inspect.capture.derive import derive
from glassformer.nn.attend import KV, attend_reference, attend_sdpa
from glassformer.nn.model import EncoderDecoder
from glassformer.nn.step import Step

MODELS = {name: tiny_pair(name) for name in PAIRS}
MODELS |= {family: wake(EncoderDecoder(CONFIGS[family]())) for family in PAIR_FAMILIES}
SOURCES, LENGTHS = torch.randint(83, (3, 9), generator=torch.Generator().manual_seed(1)), (9, 4, 1)
IDS = torch.randint(83, (3, 7), generator=torch.Generator().manual_seed(2))
EACH = pytest.mark.parametrize("name", MODELS)


def whole(model, tap=None, attend=attend_sdpa, encoder_attend=attend_sdpa):
    """Logits of a padded batch; one tap for both passes."""
    source = read(model, SOURCES, LENGTHS, tap=tap, attend=encoder_attend)
    return run(model, IDS, source=source, tap=tap, attend=attend)


def place(stack, name):
    """The module whose output a point is, or None and the module whose input it is."""
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


def changed_from_outside(model, name, delta):
    """Logits with `delta` added at a point by torch's module hooks, or in the attention backend: never by a tap."""
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

        return whole(model, **{"encoder_attend" if of_encoder else "attend": attend})
    after, before = place(stack, bare)

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

    if of_encoder:  # a shared table is the decoder's too: hooked in one of the two passes alone
        return run(model, IDS, source=hooked(lambda: read(model, SOURCES, LENGTHS)))
    source = read(model, SOURCES, LENGTHS)
    return hooked(lambda: run(model, IDS, source=source))


@EACH
def test_a_change_at_every_live_point_is_what_a_module_hook_makes(name):
    model, everything = MODELS[name], Everything()
    plain = whole(model, everything)
    for point in points.live(model.config):
        value = everything.seen[point]
        delta = torch.randn(value.shape, generator=torch.Generator().manual_seed(3)) * value.std() * 0.3
        tap = Tap({point}, {point: delta})
        tapped = whole(model, tap)
        assert list(tap.seen) == [point]
        assert torch.equal(tapped, changed_from_outside(model, point, delta)), point
        assert (tapped - plain).abs().max() > 1e-3 * plain.abs().max(), f"{point} does not reach the logits"


@EACH
def test_the_registry_is_what_passes_the_tap_in_its_order(name):
    model, tap = MODELS[name], Everything()
    whole(model, tap)
    assert list(tap.seen) == points.live(model.config)


@EACH
def test_axes_are_the_shapes(name):
    model, tap = MODELS[name], Everything()
    whole(model, tap)
    for point, value in tap.seen.items():
        of_encoder = point.startswith("encoder.")
        layer = (model.encoder if of_encoder else model).config.layers[0]
        a = layer.attention
        size = {"B": 3, "T": 9 if of_encoder else 7, "S": 9, "D": 48, "V": 97, "F": layer.mlp.d_ff}
        size |= {"H": a.n_heads, "Hkv": a.n_kv_heads, "Dh": a.head_dim, "Dv": a.v_dim, "#B": len(value)}
        assert value.shape == tuple(size[axis] for axis in points.find(model.config, point).axes.split()), point


@EACH
def test_looking_changes_no_bit(name):
    model = MODELS[name]
    plain = whole(model)
    assert torch.equal(plain, whole(model, Everything()))
    cached = []
    for tap in (None, Everything()):
        cache = DenseCache.of(model.config, 3, 7, source=read(model, SOURCES, LENGTHS, tap=tap))
        cached.append(run_cached(model, IDS, [4, 1, 2], cache, tap=tap))
    assert torch.equal(*cached)


@EACH
def test_derived_points_are_those_of_the_definition(name):
    """Every one of them, in encoder and decoder: from what was kept, what attend_reference had."""
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
def test_a_relative_bias_is_in_the_scores(family):
    """What is left of them beside the product is the learned number of each distance, one for all layers of a side."""
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
def test_alignment_by_hand(name):
    """Cross-attention in NumPy: norms of queries and keys, groups of heads, padding of sources left out."""
    model, tap = MODELS[name], Everything()
    whole(model, tap)
    cross, step = model.blocks[1].cross, Step.of(IDS, source=read(model, SOURCES, LENGTHS))
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


def test_a_sources_keys_pass_the_tap_in_the_first_pass_only():
    """A later pass's alignment is derived from its own queries and the first pass's keys."""
    model, taps = MODELS["separate"], []
    cache = DenseCache.of(model.config, 3, 7, source=read(model, SOURCES, LENGTHS))
    full = Everything()
    whole(model, full)
    for part in IDS.split([4, 1, 2], 1):
        taps.append(Everything())
        step = Step(cache.extend([part.shape[1]] * 3), cache=cache, tap=taps[-1])
        with torch.no_grad():
            model(part, step)
    made_once = {f"blocks.{i}.cross.{p}" for i in range(2) for p in ("k", "v", "k_rot")}
    assert taps[0].seen.keys() - taps[1].seen.keys() == made_once
    assert taps[1].seen.keys() == taps[2].seen.keys()
    kept = {**taps[2].seen, **{name: taps[0].seen[name] for name in made_once}}
    view = step.view(model.blocks[1].cross.spec)
    whole_view = Step.of(IDS, source=cache.source).view(model.blocks[1].cross.spec)
    got, want = (derive(model, "blocks.1.cross.probs", *of) for of in ((kept, view), (full.seen, whole_view)))
    assert_near(got.value, want.value[:, :, 5:])
    assert got.error < 1e-5


def test_an_edit_of_alignment_hides_a_token_of_the_source():
    """Scores at -inf in both layers = a source that has no such token for cross-attention."""
    model = MODELS["pre"]

    class Hide(Tap):
        def __call__(self, name, value):
            return value.index_fill(-1, torch.tensor([3]), -torch.inf)

    source = read(model, SOURCES[:1])
    hidden = run(model, IDS[:1], source=source, tap=Hide({f"blocks.{i}.cross.scores" for i in range(2)}))
    positions = source.positions.index_fill(-1, torch.tensor([3]), -1)
    want = run(model, IDS[:1], source=type(source)(source.states, positions, padded=True))
    assert_near(hidden, want)
    assert (hidden - run(model, IDS[:1], source=source)).abs().max() > 1e-2


def test_names_are_of_the_one_vocabulary():
    config = pair_config("separate")
    every = points.points(config)
    assert {"encoder.embed.tokens", "encoder.blocks.2.attn.z", "encoder.final.norm", "blocks.1.cross.z"} <= set(every)
    assert not any(name.startswith("encoder.") and ("cross" in name or "logits" in name) for name in every)
    assert points.needs(config, "encoder.blocks.2.attn.heads") == [
        "encoder.blocks.2.attn.z", "encoder.blocks.2.attn.out",
    ]  # fmt: skip
    assert points.needs(config, "blocks.1.cross.probs")[0] == "blocks.1.cross.q_rot"
    with pytest.raises(RequestError, match=r"no point 'encoder.blocks.3.attn.z'.*encoder.blocks"):
        points.find(config, "encoder.blocks.3.attn.z")
