"""Each registered point is visited and can be edited, and capture changes no bit."""

from dataclasses import replace

import pytest
import torch
from tiny import (
    FAMILIES,
    assert_near,
    encoder_decoder_config,
    random_ids,
    randomise_sharp,
    run,
    run_cached,
    tiny,
    tiny_config,
)

from glassformer.cache.dense import DenseCache
from glassformer.errors import RequestError
from glassformer.inspect.capture import points
from glassformer.models.language_model import LanguageModel
from glassformer.nn.attend import KV, attend_sdpa
from glassformer.nn.model import Decoder
from glassformer.nn.rope import rotate
from glassformer.nn.step import Step

SHAPES = {name: tiny_config(name) for name in FAMILIES}
SHAPES["post and out"] = tiny_config("llama", **{f"layers.{i}.norm_at": ("out", "post") for i in range(3)})
MODELS = {
    **{family: tiny(family) for family in FAMILIES},
    "post and out": tiny("llama", **{f"layers.{i}.norm_at": ("out", "post") for i in range(3)}),
    "sinusoidal": tiny("gpt2", positions="sinusoidal"),
    "parallel": tiny("gpt_neox"),
    "parallel, one norm": tiny("phi"),
    "caps, windows, norms before and after": tiny("gemma2"),
    "experts in some layers": tiny("qwen3_moe"),
    "sinks, windows, experts with biases": tiny("gpt_oss"),
    "latents": tiny("deepseek_v2", **{f"layers.{i}.experts.shared_d_ff": 72 for i in (1, 2)}),
    "a shared expert": tiny("mixtral", **{f"layers.{i}.experts.shared_d_ff": 16 for i in range(3)}),
}


class Tap:
    """Store the wanted points, and add the `delta` of a point if it has one."""

    def __init__(self, wants, delta=None):
        self.names, self.delta, self.seen = wants, delta or {}, {}

    def wants(self, name):
        return name in self.names

    def __call__(self, name, value):
        self.seen[name] = value.clone()
        return value + self.delta[name] if name in self.delta else value


class Everything(Tap):
    def __init__(self):
        super().__init__(())

    def wants(self, name):
        return not name.endswith(("scores", "probs", "heads"))


def logits_with_hook(model, name, delta, ids):
    """Return the logits with `delta` added at a point by a module hook or in the attention backend, without a tap."""
    add = lambda _m, _a, out: out + delta.flatten(out.ndim - 1) if delta.ndim > out.ndim else out + delta  # noqa: E731
    add_before = lambda _m, a: (a[0] + (delta.flatten(2) if delta.ndim > a[0].ndim else delta), *a[1:])  # noqa: E731
    if not name.startswith("blocks."):
        after = {
            "embed.tokens": model.embed,
            "embed.positions": model.positions,
            "final.norm": model.norm,
            "final.logits": model,
        }
        if name == "embed.out":
            return hooked(model, ids, model.blocks[0].register_forward_pre_hook(add_before))
        return hooked(model, ids, after[name].register_forward_hook(add))
    _, number, end = name.split(".", 2)
    block = model.blocks[int(number)]
    latent = block.attn.config.latent is not None
    if end in ("attn.q_rot", "attn.k_rot") or (latent and end in ("attn.k", "attn.v")):
        calls, a = iter(range(100)), block.attn.config
        rotation = (None, None) if a.rope is None else Step.of(ids).rotation(a.rope, a.head_dim)

        def attend(spec, q, kv, view, bias=None, sinks=None):
            if next(calls) == int(number):
                q = q + delta if end == "attn.q_rot" else q
                k = kv.k + delta if end == "attn.k_rot" else kv.k
                k = k + rotate(delta, *rotation) if end == "attn.k" else k
                kv = KV(k, kv.v + delta if end == "attn.v" else kv.v)
            return attend_sdpa(spec, q, kv, view, bias, sinks)

        return run(model, ids, attend=attend)
    neurons = getattr(block.mlp, "shared", block.mlp) or block.mlp.experts[0]
    before = {
        "resid_pre": block, "attn.x": block.attn, "mlp.x": block.mlp,
        "attn.z": block.attn.o, "mlp.act": neurons.down,
    }  # fmt: skip
    after = {
        "resid_mid": block.attn_post_norm, "resid_post": block, "attn.q": block.attn.q,
        "attn.k": getattr(block.attn, "k", None),
        "attn.v": getattr(block.attn, "v", None), "attn.latent": getattr(block.attn, "kv_norm", None),
        "attn.out": block.attn.o, "attn.add": block.attn_out_norm, "mlp.gate": neurons.gate,
        "mlp.up": neurons.up, "mlp.router": getattr(block.mlp, "router", None),
        "mlp.out": block.mlp, "mlp.add": block.mlp_out_norm,
    }  # fmt: skip
    if end in before:
        return hooked(model, ids, before[end].register_forward_pre_hook(add_before))
    return hooked(model, ids, after[end].register_forward_hook(add))


def hooked(model, ids, handle):
    try:
        return run(model, ids)
    finally:
        handle.remove()


@pytest.mark.parametrize("name", MODELS)
def test_edit_at_every_live_point_equals_a_module_hook(name):
    model = MODELS[name]
    ids = random_ids(model.config, 2, 11)
    plain, everything = run(model, ids), Everything()
    run(model, ids, tap=everything)
    for point in points.live(model.config):
        value = everything.seen[point]
        delta = torch.randn(value.shape, generator=torch.Generator().manual_seed(3)) * value.std() * 0.3
        tap = Tap({point}, {point: delta})
        tapped = run(model, ids, tap=tap)
        assert list(tap.seen) == [point]
        hooked_logits = logits_with_hook(model, point, delta, ids)
        if name == "latents" and point.endswith("attn.k"):
            assert_near(tapped, hooked_logits)  # the tap rotates the sum; the hook adds rotated terms
        else:
            assert torch.equal(tapped, hooked_logits), point
        assert (tapped - plain).abs().max() > 1e-3 * plain.abs().max(), f"{point} does not reach the logits"


@pytest.mark.parametrize("name", MODELS)
def test_tap_visits_the_registered_points_in_order(name):
    model = MODELS[name]
    ids, tap = random_ids(model.config, 2, 11), Everything()
    run(model, ids, tap=tap)
    assert list(tap.seen) == points.live(model.config)


@pytest.mark.parametrize("name", MODELS)
def test_axes_match_the_shapes(name):
    model = MODELS[name]
    c, a = model.config, model.config.layers[0].attention
    size = {"B": 2, "T": 11, "S": 11, "D": c.d_model, "V": c.vocab_size, "F": 72, "H": a.n_heads, "Hkv": a.n_kv_heads}
    size |= {"Dv": a.v_dim, "C": a.latent.rank if a.latent else None}
    size |= {"Dh": a.head_dim, "#B": 1, "E": 6} | ({"F": 16} if name == "a shared expert" else {})
    tap = Everything()
    run(model, random_ids(c, 2, 11), tap=tap)
    for point, value in tap.seen.items():
        assert value.shape == tuple(size[axis] for axis in points.find(c, point).axes.split()), point


@pytest.mark.parametrize("name", MODELS)
def test_capture_changes_no_bit(name):
    model = MODELS[name]
    ids = random_ids(model.config, 2, 11)
    plain = run(model, ids)
    assert torch.equal(plain, run(model, ids, tap=Everything()))
    assert torch.equal(plain, run(model, ids, tap=Tap(())))
    cached, tapped = (
        run_cached(model, ids, [6, 1, 4], DenseCache.of(model.config, 2, 11), tap=tap) for tap in (None, Everything())
    )
    assert torch.equal(cached, tapped)


def test_tap_that_wants_nothing_is_not_called():
    class Never:
        def wants(self, name):
            return False

        def __call__(self, name, value):
            raise AssertionError(f"the tap was called with {name}")

    model = MODELS["qwen3"]
    ids = random_ids(model.config, 2, 11)
    assert torch.equal(run(model, ids), run(model, ids, tap=Never()))


def test_edited_probabilities_select_reference_attention_in_their_layer_only():
    """Zero probabilities of a head equal a zero z; other layers use the chosen backend."""
    model, calls = MODELS["qwen3"], []
    ids = random_ids(model.config, 2, 11)

    class Silence(Tap):
        def __call__(self, name, value):
            value = value.clone()
            value[..., 2, :, :] = 0  # [B, H, T, S]
            return value

    class SilenceZ(Tap):
        def __call__(self, name, value):
            value = value.clone()
            value[..., 2, :] = 0  # [B, T, H, Dh]
            return value

    def counting(*args):
        calls.append(1)
        return attend_sdpa(*args)

    a = run(model, ids, tap=Silence({"blocks.1.attn.probs"}), attend=counting)
    b = run(model, ids, tap=SilenceZ({"blocks.1.attn.z"}))
    assert len(calls) == 2, "two of three layers use the chosen backend"
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert (a - run(model, ids)).abs().max() > 1e-2


def test_edited_scores_hide_a_key():
    model = MODELS["gpt2"]
    ids = random_ids(model.config, 1, 9)

    class Hide(Tap):
        def __call__(self, name, value):
            self.seen[name] = value
            return value.index_fill(-1, torch.tensor([3]), -torch.inf) if name.endswith("scores") else value

    tap = Hide({"blocks.0.attn.scores", "blocks.0.attn.probs"})
    hidden = run(model, ids, tap=tap)
    probs = tap.seen["blocks.0.attn.probs"]
    assert not probs[..., 3].nan_to_num().any()
    assert torch.equal(hidden[:, :3], run(model, ids, tap=Tap({"blocks.0.attn.scores"}))[:, :3])
    assert (hidden[:, 4:] - run(model, ids)[:, 4:]).abs().max() > 1e-2


def test_model_lists_only_its_own_points():
    qwen3, gpt2 = (points.points(SHAPES[name]) for name in ("qwen3", "gpt2"))
    assert "embed.positions" in gpt2
    assert "embed.positions" not in qwen3
    assert "blocks.2.mlp.gate" in qwen3
    parallel = points.points(tiny_config("gpt_neox"))
    assert set(gpt2) - set(parallel) == {f"blocks.{i}.resid_mid" for i in range(3)} | {"embed.positions"}
    assert not any("gate" in name for name in gpt2)
    assert not any(name.startswith("blocks.3.") or "{" in name for name in qwen3)
    for name in points.derived(SHAPES["qwen3"]):
        assert set(points.needs(SHAPES["qwen3"], name)) <= set(points.live(SHAPES["qwen3"]))
    assert points.needs(SHAPES["qwen3"], "blocks.1.attn.heads") == ["blocks.1.attn.z", "blocks.1.attn.out"]
    assert points.needs(SHAPES["qwen3"], "blocks.1.attn.z") == ["blocks.1.attn.z"]
    assert all(point.meaning and point.axes for point in qwen3.values())
    for shape in (*SHAPES.values(), tiny_config("gpt_neox"), tiny_config("mixtral"), encoder_decoder_config("pre")):
        for name, point in points.points(shape).items():
            assert points.find(shape, name) == replace(point, name=points.find(shape, name).name)


@pytest.mark.parametrize(("wrong", "nearest"), [
    ("blocks.9.attn.z", "attn.z"), ("blocks.1.attn.prob", "blocks.1.attn.probs"), ("embed.positions", "embed."),
])  # fmt: skip
def test_unknown_point_error_suggests_the_nearest(wrong, nearest):
    with pytest.raises(RequestError, match=f"no point '{wrong}'.*{nearest}"):
        points.find(SHAPES["qwen3"], wrong)


def test_tap_sees_only_the_new_tokens_of_a_cached_forward_pass():
    model = MODELS["qwen3"]
    ids, cache, tap = random_ids(model.config, 1, 7), DenseCache.of(model.config, 1, 7), Everything()
    with torch.no_grad():
        model(ids[:, :5], Step(cache.extend([5]), cache=cache))
        model(ids[:, 5:], Step(cache.extend([2]), cache=cache, tap=tap))
    full = Everything()
    run(model, ids, tap=full)
    for name, value in tap.seen.items():
        torch.testing.assert_close(value, full.seen[name][:, 5:], rtol=1e-4, atol=1e-5)


def test_the_points_of_a_deep_model_are_made_once(monkeypatch):
    """A trace does not match all names with patterns: its time grows with the layers, not with their square."""
    calls = {}
    for n in (8, 16, 32):
        config = tiny_config("llama")
        lm = LanguageModel(randomise_sharp(Decoder(replace(config, layers=config.layers[:1] * n))))
        matched, made = [], points._make_points.cache_info().misses
        monkeypatch.setattr(points, "fnmatchcase", lambda *given, matched=matched: matched.append(given))
        t = lm.trace([5, 3, 9])
        assert t.lens().receipt.error == 0
        assert t["blocks.3.attn.z"].error < 1e-3
        assert points._make_points.cache_info().misses == made + 1
        calls[n] = len(matched)
        monkeypatch.undo()
    assert calls == {8: 0, 16: 0, 32: 0}
    config = tiny_config("gpt2")
    assert points.points(config) is points.points(config)
    assert "attn.latent" not in " ".join(points.points(config)), "of this config, not of another"
