"""Roles of heads, on attention whose pattern is known."""

import pytest
import torch
from tiny import tiny

from glassformer.errors import ConfigError
from glassformer.inspect import roles
from glassformer.inspect.derive import Derived
from glassformer.nn.init import init_weights
from glassformer.nn.model import Decoder


@pytest.mark.parametrize(("offset", "role"), [(1, "previous_token"), (23, "induction")])
def test_a_constructed_pattern_scores_one(tiny_decoder, monkeypatch, offset, role):
    """Probabilities put by hand on the key `offset` before each query: exactly that role scores 1, the other 0."""

    def by_hand(model, name, kept, view):
        q = kept[name.replace("probs", "q_rot")]
        at = torch.arange(q.shape[1])
        probs = torch.zeros(q.shape[0], q.shape[2], q.shape[1], q.shape[1])
        probs[:, :, at, (at - offset).clamp(min=0)] = 1
        return Derived(probs, 0.0)

    monkeypatch.setattr(roles, "derive", by_hand)
    found = roles.head_roles(tiny_decoder)._asdict()
    assert torch.equal(found.pop(role), torch.ones(2, 4))
    assert torch.equal(*[*found.values(), torch.zeros(2, 4)])


def test_heads_that_begin_by_looking_back_are_found():
    from glassformer.families import expand
    from glassformer.families.shape import ShapeConfig

    config = expand(ShapeConfig(d_model=128, n_layers=2, rope_theta=1000.0), 300)
    plain = init_weights(Decoder(config), 0)
    back = init_weights(Decoder(config), 0, 0.1, out_std=0.1, qk_gain=1.5, look_back=3.0)
    assert roles.head_roles(plain).previous_token.max() < 0.1
    assert roles.head_roles(back).previous_token[0, 0] > 0.5, "head 0 begins by looking one token back"
    assert roles.head_roles(back).previous_token[0, 1:].max() < 0.3
    assert roles.head_roles(back).previous_token[1].max() < 0.1


@pytest.fixture
def tiny_decoder():
    from glassformer.families import expand
    from glassformer.families.shape import ShapeConfig

    return init_weights(Decoder(expand(ShapeConfig(d_model=32, n_layers=2), 60)), 0)


@pytest.mark.parametrize(("family", "option"), [("gpt2", "look_back"), ("gpt2", "qk_gain"), ("llama", "qk_gain")])
def test_first_weights_that_a_model_cannot_have_are_refused(family, option):
    with pytest.raises(ConfigError, match=f"init.{option} 3.0 has no effect"):
        init_weights(tiny(family), 0, **{option: 3.0})


def test_roles_where_vocabulary_or_context_are_short():
    found = roles.head_roles(tiny("gpt2"))
    assert ((found.previous_token >= 0) & (found.previous_token <= 1)).all()
