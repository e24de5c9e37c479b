"""Points of an encoder-only model: all are visited, capture changes no bit, and P·V equals z."""

import numpy as np
import pytest
import torch
from test_points import Everything, Tap
from tiny import TOLERANCE, assert_near, by_definition, relative_change
from tiny_encoders import CONFIGS, outputs, some_ids, tiny_encoder

from glassformer.inspect.capture import points
from glassformer.inspect.capture.derive import derive
from glassformer.nn.step import Step

FAMILIES = pytest.mark.parametrize("family", CONFIGS)


@FAMILIES
def test_forward_pass_visits_every_live_point_in_order(family):
    """Each point is visited once, in the registered order and with the registered axes."""
    model, tap = tiny_encoder(family), Everything()
    config = model.config
    ids = some_ids(config, 2, 11)
    plain = outputs(model, ids)
    tapped = outputs(model, ids, tap=tap)
    assert all(torch.equal(tapped[name], plain[name]) for name in plain), "capture changed a bit"
    assert list(tap.seen) == points.live(config)
    sizes = {"B": 2, "T": 11, "S": 11, "D": 48, "H": 4, "Hkv": 4, "Dh": 12, "Dv": 12, "F": 72, "V": 97, "2": 2}
    for name, value in tap.seen.items():
        axes = points.find(config, name).axes.split()
        want = [(1 if axis.startswith("#") else sizes[axis.lstrip("#")]) for axis in axes]
        assert list(value.shape) == want, name
    assert ("embed.types" in tap.seen) == (config.n_token_types > 0)
    assert ("final.pooled" in tap.seen) == config.pooler
    assert ("final.follows" in tap.seen) == config.next_sentence


@FAMILIES
def test_every_live_point_can_be_edited(family):
    """The value that a tap returns changes the states or the output of a head."""
    model = tiny_encoder(family)
    ids = some_ids(model.config, 1, 9)
    plain, everything = outputs(model, ids), Everything()
    outputs(model, ids, tap=everything)
    generator = torch.Generator().manual_seed(0)
    for name, value in everything.seen.items():
        delta = torch.randn(value.shape, generator=generator)
        new = outputs(model, ids, tap=Tap((name,), {name: delta}))
        assert max(relative_change(new[part], plain[part]) for part in plain) > 100 * TOLERANCE, name
        if name == "embed.positions":
            assert_near(
                outputs(model, ids, tap=Tap(("embed.tokens",), {"embed.tokens": delta}))["states"], new["states"]
            )


@FAMILIES
@torch.no_grad()
def test_recomputed_probabilities_equal_numpy(family):
    """Probabilities equal NumPy's, with padding too, and the error is max |P·V - z|."""
    model, lengths = tiny_encoder(family), [11, 6]
    ids, tap = some_ids(model.config, 2, 11), Everything()
    step = Step.of(ids, lengths, tap=tap)
    model(ids, step)
    for i, block in enumerate(model.blocks):
        got = derive(model, f"blocks.{i}.attn.probs", tap.seen, step.view(block.attn.spec))
        q, k, v, z = (tap.seen[f"blocks.{i}.attn.{part}"].double().numpy() for part in ("q_rot", "k_rot", "v", "z"))
        scores = np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(12)
        scores[1, :, :6, 6:] = -np.inf  # padding is masked
        probs = np.exp(scores - scores.max(-1, keepdims=True))
        probs /= probs.sum(-1, keepdims=True)
        rows = got.value.numpy()
        assert np.abs(rows[0] - probs[0]).max() < 1e-5
        assert np.abs(rows[1, :, :6] - probs[1, :, :6]).max() < 1e-5
        assert rows[1, :, :6, 6:].max() == 0
        assert rows[0, :, 0, 1:].max() > 0.01, "the first token attends to no later token"
        off = np.abs(np.einsum("bhts,bshd->bthd", rows.astype(float), v) - z).max()
        assert abs(got.error - off) < 1e-6
        assert got.error < 1e-5


@FAMILIES
@torch.no_grad()
def test_heads_sum_to_the_attention_output(family):
    model = tiny_encoder(family)
    ids, tap = some_ids(model.config, 2, 11), Everything()
    step = Step.of(ids, tap=tap, attend=by_definition)
    model(ids, step)
    for name in points.derived(model.config):
        few = {need: tap.seen[need] for need in points.needs(model.config, name)}
        attention = model.blocks[int(name.split(".")[1])].attn
        got = derive(model, name, few, step.view(attention.spec))
        assert got.error < 1e-5
        if name.endswith("heads"):
            assert_near(got.value.sum(2) + attention.o.bias, tap.seen[name.replace("heads", "out")])


def test_edited_probabilities_select_reference_attention():
    """With uniform probabilities in the last block, z is the mean of the values."""
    model = tiny_encoder("bert")
    ids = some_ids(model.config, 1, 9)

    class Uniform(Everything):
        def wants(self, name):
            return super().wants(name) or name == "blocks.2.attn.probs"

        def __call__(self, name, value):
            value = torch.full_like(value, 1 / value.shape[-1]) if name.endswith("probs") else value
            return super().__call__(name, value)

    tap = Uniform()
    outputs(model, ids, tap=tap)
    z, v = tap.seen["blocks.2.attn.z"], tap.seen["blocks.2.attn.v"]
    assert_near(z, v.mean(1, keepdim=True).expand_as(z))
