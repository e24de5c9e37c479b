"""Head roles: on constructed attention patterns, and on a two-layer model with constructed weights."""

import math

import pytest
import torch
from tiny import tiny

from glassformer.config import AttentionConfig, LayerConfig, MLPConfig, ModelConfig, NormConfig
from glassformer.errors import ConfigError
from glassformer.inspect.capture.derive import Derived
from glassformer.inspect.views import roles
from glassformer.models.language_model import LanguageModel
from glassformer.nn.model import Decoder
from glassformer.training.init import init_weights

#       0  1  2  3  4  5  6  7  8
TEXT = [5, 6, 7, 8, 6, 9, 7, 5, 6]
BEFORE = {4: 1, 6: 2, 7: 0, 8: 4}  # the last earlier position of each repeated token


def scores_of(key_of, n_heads=2):
    """Head 0 attends to the key `key_of(query)` only (None: to itself); head 1 attends uniformly."""
    ids, at = torch.tensor(TEXT), torch.arange(len(TEXT))
    probs = torch.zeros(n_heads, len(TEXT), len(TEXT))
    for query in range(len(TEXT)):
        key = key_of(query)
        probs[0, query, query if key is None else key] = 1
        probs[1, query, : query + 1] = 1 / (query + 1)
    counter = roles.RoleCounter(n_heads)
    visible = at[None] <= at[:, None]
    for some in at.split(4):
        counter.add(probs[:, some], visible[some], roles.role_masks(ids, some))
    return counter


@pytest.mark.parametrize(("role", "key_of", "n"), [
    ("previous_token", lambda q: q - 1 if q else None, 8), ("duplicate", BEFORE.get, 4),
    ("induction", lambda q: BEFORE[q] + 1 if q in BEFORE else None, 4), ("first_token", lambda q: 0, 8),
    ("self", lambda q: q, 9),
])  # fmt: skip
def test_constructed_pattern_scores_one(role, key_of, n):
    counter = scores_of(key_of)
    assert counter.means()[role][0] == 1
    assert counter.n[role] == n
    assert counter.means()["entropy"].tolist() == pytest.approx([0, 1])


def test_uniform_attention_scores_the_fraction_of_keys():
    means = scores_of(lambda q: q).means()
    own = [1 / (q + 1) for q in range(9)]
    for role, want in (
        ("self", sum(own) / 9), ("previous_token", sum(own[1:]) / 8), ("first_token", sum(own[1:]) / 8),
        ("duplicate", (own[4] + own[6] + own[7] + 2 * own[8]) / 4),
        ("induction", (own[4] + own[6] + own[7] + 2 * own[8]) / 4),
    ):  # fmt: skip
        assert means[role][1] == pytest.approx(want)
    assert [means[role][0].item() for role in ("previous_token", "duplicate", "induction", "first_token")] == [0] * 4


def test_queries_without_a_key_of_the_role_do_not_count():
    """In a window of 3 most queries see neither the first token nor an earlier copy of their own."""
    ids, at = torch.tensor(TEXT), torch.arange(9)
    visible = (at[None] <= at[:, None]) & (at[:, None] - at[None] < 3)
    counter = roles.RoleCounter(1)
    counter.add(visible.float()[None] / visible.sum(-1, keepdim=True), visible, roles.role_masks(ids, at))
    assert counter.n == {
        "previous_token": 8, "duplicate": 0, "induction": 1, "first_token": 2, "self": 9, "entropy": 8,
    }  # fmt: skip
    assert counter.means()["duplicate"].isnan().all()


@pytest.mark.parametrize(("offset", "role"), [(1, "previous_token"), (23, "induction"), (24, "duplicate"), (0, "self")])
def test_constructed_pattern_on_repeated_tokens(tiny_decoder, monkeypatch, offset, role):
    """With all attention on the key `offset` before each query, that role scores 1 and the others 0."""

    def constructed(model, name, captured, view):
        q = captured[name.replace("probs", "q_rot")]
        at = torch.arange(q.shape[1])
        probs = torch.zeros(q.shape[0], q.shape[2], q.shape[1], q.shape[1])
        probs[:, :, at, (at - offset).clamp(min=0)] = 1
        return Derived(probs, 0.0)

    monkeypatch.setattr(roles, "derive", constructed)
    found = roles.head_roles(tiny_decoder)._asdict()
    assert torch.equal(found.pop(role), torch.ones(2, 4))
    first = found.pop("first_token")  # of the first query of the second half, if offset is the period
    assert torch.equal(first, torch.full((2, 4), 1 / 24 if offset == 24 else 0.0))
    assert all(torch.equal(other, torch.zeros(2, 4)) for other in found.values())


# ---- a constructed model


def induction_model(tokens=12, length=24):
    """Return a model with a previous-token head (layer 0, head 1) and an induction head (layer 1, head 0).

        stream   [ token | position | previous token ]           each part one-hot
        0.1      q: position, k: position + 1,      v: token  ->  previous token
        1.0      q: token,    k: previous token,    v: token  ->  the token after the last copy
    All other heads have zero weights and attend uniformly. The first token has no previous token and attends to itself,
    so a later query of the same token attends to it, too: half of one query of each sequence.
    """
    width, size = 2 * tokens + length, max(tokens, length)
    attention = AttentionConfig(2, 2, size, scale=1.0)
    layer = LayerConfig(attention, MLPConfig(4, "relu", gated=False), NormConfig("rms", 1e-6))
    config = ModelConfig("tiny", tokens, width, length, (layer,) * 2, None, positions="learned")
    model = Decoder(config)
    token, position, before = torch.eye(width).split((tokens, length, tokens))
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        model.embed.weight.copy_(token)
        model.positions.weight.copy_(position)
        for block in model.blocks:
            for norm in (block.attn_norm, block.mlp_norm):
                norm.weight.fill_(1.0)
        one, two = (block.attn for block in model.blocks)
        sharp = 30 / math.sqrt(width)  # of a normalized one-hot part
        one.q.weight[size + 1 : size + length] = (
            sharp * position[1:]
        )  # the query at p has a one at p; the query at 0 is zero
        one.k.weight[size + 1 : size + length] = sharp * position[:-1]  # the key at p - 1 has a one at p
        one.v.weight[size : size + tokens] = token
        one.o.weight[-tokens:, size : size + tokens] = torch.eye(tokens)
        two.q.weight[:tokens], two.k.weight[:tokens], two.v.weight[:tokens] = sharp * token, sharp * before, token
        two.o.weight[:tokens, :tokens] = torch.eye(tokens)
        model.head.weight.copy_(token)
    return model.eval()


def test_constructed_induction_head_is_found():
    model = induction_model()
    lm, text = LanguageModel(model), [3, 1, 4, 8, 5, 9, 2, 6, 3, 1, 4, 8, 5, 9, 2]
    found = lm.trace(text).roles()
    for scores, where in ((roles.head_roles(model), "random tokens"), (found.scores, "a text")):
        for role, layer, head in (("previous_token", 0, 1), ("induction", 1, 0)):
            score = getattr(scores, role)
            assert score[layer, head] > (0.99 if layer == 0 else 0.92), (where, role)
            others = score.clone()
            others[layer, head] = 0
            assert others.max() < 0.3, (where, role)
        assert scores.entropy[0, 0] == pytest.approx(1)
        assert scores.entropy[1, 1] == pytest.approx(1)
    assert found.receipt.error < 1e-5
    assert found.n_queries["induction"] == 7
    assert lm.trace(text)["final.logits"].tensor[-1].argmax() == 6, "it predicts the token after the last copy"
    model.blocks[0].attn.o.weight.data.zero_()
    assert lm.trace(text).roles().scores.induction.max() < 0.3, "without the previous-token head there is no induction"


def test_roles_in_batches_equal_roles_at_once(monkeypatch):
    lm = LanguageModel(tiny("gemma2"))
    ids = [(7 * i) % 13 for i in range(40)]
    full = lm.trace(ids).roles()
    monkeypatch.setattr(roles, "MAX_SCORES", 4 * 40 * 3)
    part = lm.trace(ids).roles()
    assert part.n_queries == full.n_queries
    for a, b in zip(part.scores, full.scores, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)
    t = lm.trace(ids)
    for i in range(3):
        probs = t[f"blocks.{i}.attn.probs"].tensor
        assert full.scores.previous_token[i].tolist() == pytest.approx(probs.diagonal(-1, 1, 2).mean(-1).tolist())
    once = lm.trace([1, 2, 3]).roles()
    assert once.scores.induction.isnan().all()
    assert once.n_queries["induction"] == 0


def test_evidence_is_the_cell_with_the_largest_probability(monkeypatch):
    lm, ids = LanguageModel(tiny("gemma2")), [(7 * i) % 13 for i in range(40)]
    monkeypatch.setattr(roles, "MAX_SCORES", 4 * 40 * 3)  # a few queries at a time
    t = lm.trace(ids)
    found = t.roles()
    for layer in range(3):
        probs = t[f"blocks.{layer}.attn.probs"].tensor.numpy()
        for role, fits in (
            ("previous_token", lambda q, k: k == q - 1),
            ("duplicate", lambda q, k: k < q and ids[k] == ids[q]),
            ("induction", lambda q, k: 0 < k < q and ids[k - 1] == ids[q]),
            ("first_token", lambda q, k: k == 0 < q),
            ("self", lambda q, k: k == q),
        ):
            for head in range(len(probs)):
                shares = [(probs[head, q, k], q, k) for q in range(40) for k in range(q + 1) if fits(q, k)]
                one = found.evidence[role][layer][head]
                if one is None:  # all of them are outside the window
                    assert max(shares)[0] == 0
                    continue
                query, key, share = one
                assert share == pytest.approx(max(shares)[0], abs=1e-6)
                assert fits(query, key), (role, query, key)
                assert probs[head, query, key] == pytest.approx(share, abs=1e-6)
    assert all(one is None for layer in found.evidence["entropy"] for one in layer)
    once = lm.trace([1, 2, 3]).roles()
    assert all(one is None for layer in once.evidence["induction"] for one in layer)


def test_role_rows_equal_roles():
    t = LanguageModel(tiny("llama")).trace([(7 * i) % 13 for i in range(20)])
    full, rows = t.roles(), list(roles.role_rows(t))
    assert [row.layer for row in rows] == [0, 1, 2]
    for role, scores in full.scores._asdict().items():
        torch.testing.assert_close(torch.stack([row.scores[role] for row in rows]), scores, equal_nan=True)
        assert tuple(row.evidence[role] for row in rows) == full.evidence[role]


def test_look_back_initialization_makes_previous_token_heads():
    from glassformer.families import expand
    from glassformer.families.common.shape import ShapeConfig

    config = expand(ShapeConfig(d_model=128, n_layers=2, rope_theta=1000.0), 300)
    plain = init_weights(Decoder(config), 0)
    back = init_weights(Decoder(config), 0, 0.1, out_std=0.1, qk_gain=1.5, look_back=3.0)
    assert roles.head_roles(plain).previous_token.max() < 0.1
    assert roles.head_roles(back).previous_token[0, 0] > 0.5, "head 0 is initialized as a previous-token head"
    assert roles.head_roles(back).previous_token[0, 1:].max() < 0.3
    assert roles.head_roles(back).previous_token[1].max() < 0.1


@pytest.fixture
def tiny_decoder():
    from glassformer.families import expand
    from glassformer.families.common.shape import ShapeConfig

    return init_weights(Decoder(expand(ShapeConfig(d_model=32, n_layers=2), 60)), 0)


@pytest.mark.parametrize(("family", "option"), [("gpt2", "look_back"), ("gpt2", "qk_gain"), ("llama", "qk_gain")])
def test_unsupported_init_options_raise_config_error(family, option):
    with pytest.raises(ConfigError, match=f"init.{option} must be .* got 3.0"):
        init_weights(tiny(family), 0, **{option: 3.0})


def test_roles_of_short_vocabulary_or_context():
    found = roles.head_roles(tiny("gpt2"))
    assert ((found.previous_token >= 0) & (found.previous_token <= 1)).all()
