"""A prepacked model equals the original model: logits, tap points and parameters."""

import pytest
import torch
from tiny import ENCODER_DECODERS, assert_near, encode_source, random_ids, tiny, tiny_encoder_decoder
from torch import nn

from glassformer.kernels.linear import PREPACK_ROWS, PrepackedLinear, can_prepack, prepack
from glassformer.nn.step import Step

pytestmark = pytest.mark.skipif(not can_prepack(torch.float32), reason="this PyTorch cannot prepack weights")
BF16 = pytest.mark.skipif(not can_prepack(torch.bfloat16), reason="oneDNN has no bfloat16 products on this CPU")
MODELS = {name: tiny_encoder_decoder(name) for name in ENCODER_DECODERS} | {
    name: tiny(name) for name in ("gpt2", "llama")
}


class RecorderTap:
    """A tap that records every live point."""

    def __init__(self):
        self.seen = {}

    def wants(self, name):
        return not name.endswith(("scores", "probs"))

    def __call__(self, name, value):
        self.seen[name] = value
        return value


@torch.no_grad()
def points(model, rows):
    """Return every live point of a forward pass over `rows` sequences."""
    tap, source = RecorderTap(), None
    if hasattr(model, "encoder"):
        source = encode_source(model, random_ids(model.encoder.config, rows, 7), tap=tap)
    model(ids := random_ids(model.config, rows, 5), Step.of(ids, source=source, tap=tap))
    return tap.seen


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), pytest.param(torch.bfloat16, 5e-2, marks=BF16)]
)
@pytest.mark.parametrize("name", MODELS)
def test_prepacked_model_equals_original(name, dtype, tolerance):
    model = MODELS[name]
    if dtype == torch.bfloat16:
        model = type(model)(model.config).to(dtype)
        model.load_state_dict(MODELS[name].state_dict())
    with torch.no_grad():
        twin = prepack(model, 16)
    assert type(twin) is type(model)
    assert not any(type(part) is nn.Linear for part in twin.modules())
    assert all(type(part) is not PrepackedLinear for part in model.modules())
    assert twin.head.weight is model.head.weight
    assert {id(p) for p in twin.parameters()} == {id(p) for p in model.parameters()}
    for rows in (1, 16, 33):
        found, wanted = points(twin, rows), points(model, rows)
        assert found.keys() == wanted.keys()
        for point, value in wanted.items():
            assert_near(found[point].float(), value.float(), tolerance)


def test_prepack_uses_the_current_weights():
    model = tiny_encoder_decoder("post", seed=3)
    with torch.no_grad():
        before = points(prepack(model, 16), 2)["final.logits"]
        for part in (model.blocks[0].cross.q.bias, model.encoder.blocks[1].mlp.up.weight, model.embed.weight):
            part.mul_(1.1)
            after = points(prepack(model, 16), 2)["final.logits"]
            assert (after - before).abs().max() > 1e-3 * before.abs().max()
            before = after


def test_prepack_returns_the_model_if_it_is_not_faster():
    model = tiny_encoder_decoder("post", seed=4)
    assert prepack(model, PREPACK_ROWS - 1) is model
    assert prepack(model.double(), 64) is model
    assert prepack(model.half(), 64) is model
    assert prepack(model.to("meta"), 64) is model


def test_prepack_preserves_layers_with_hooks():
    model, calls = tiny("gpt2", seed=5), []
    model.blocks[1].mlp.up.register_forward_hook(lambda *_: calls.append("up"))
    model.blocks[2].register_forward_hook(lambda *_: calls.append("block"))
    with torch.no_grad():
        twin = prepack(model, 16)
    assert type(twin.blocks[1].mlp.up) is nn.Linear
    assert isinstance(twin.blocks[1].mlp.down, PrepackedLinear)
    points(twin, 2)
    assert calls == ["up", "block"]
