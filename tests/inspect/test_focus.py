"""The layer, head, query and key to show first."""

import pytest
import torch
from inspect_subjects import subject
from tiny import tiny

from glassformer.errors import RequestError
from glassformer.inspect.views.focus import MIN_SCORE, ROLES, focus
from glassformer.models.language_model import LanguageModel

IDS = [7, 3, 31, 4, 4, 60, 2, 19, 8, 55, 23, 9]


@pytest.fixture(scope="module")
def t():
    return LanguageModel(tiny("qwen3")).trace(IDS, max_tokens=3, temperature=0)


def test_decoder_focus_is_the_head_with_the_largest_contribution(t):
    found, last = focus(t), len(IDS) - 1
    shares = torch.tensor(t.attribution(position=last).heads)
    assert (found.layer, found.head) == divmod(int(shares.argmax()), shares.shape[1])
    assert found.query == last, "the last token of the prompt"
    row = t[f"blocks.{found.layer}.attn.probs"].tensor[found.head, last]
    assert found.key == 1 + int(row[1:last].argmax()), "without the first token and the query itself"
    assert f"{shares.max():.2f}" in found.because


def test_given_values_are_used(t):
    found = focus(t, layer=1, head=3, query=5, key=2)
    assert (found.layer, found.head, found.query, found.key) == (1, 3, 5, 2)
    shares = t.attribution(position=6).heads
    assert focus(t, layer=2, query=6).head == max(range(4), key=shares[2].__getitem__)
    assert focus(t, head=1, query=6).layer == max(range(3), key=lambda layer: shares[layer][1])


def test_reason_names_the_heads_that_were_compared(t):
    assert focus(t).because.endswith("more than any other head")
    assert focus(t, layer=1).because.endswith("more than any other head of block 1")
    assert focus(t, head=2).because.endswith("more than head 2 of any other block")
    assert focus(t, layer=1, head=2).because == "selected"


def test_without_attribution_the_head_with_the_clearest_role():
    lm = LanguageModel(tiny("llama", **{f"layers.{i}.norm_at": ("post",) for i in range(3)}))
    t = lm.trace(IDS)
    found, roles = focus(t), t.roles()
    best = next((role for role in ROLES if getattr(roles.scores, role).nan_to_num(-1).max() >= MIN_SCORE), None)
    if best is None:
        assert (found.layer, found.head) == (0, 0)
        return
    scores = getattr(roles.scores, best)
    assert scores[found.layer, found.head] == scores.nan_to_num(-1).max()
    assert found.query == roles.evidence[best][found.layer][found.head].query


@pytest.mark.parametrize(
    ("kind", "family", "attention"),
    [
        ("encoders", "bert", "attn"),
        ("encoder-decoders", "pair", "cross"),
        ("encoder-decoders", "pair", "encoder"),
        ("encoder-decoders", "pair", "attn"),
    ],
)
def test_focus_of_other_kinds_is_a_cell_of_their_attention(kind, family, attention):
    t = subject(kind, family)[1]
    found = focus(t, attention=attention)
    prefix, name = ("encoder.", "attn") if attention == "encoder" else ("", attention)
    row = t[f"{prefix}blocks.{found.layer}.{name}.probs"].tensor[found.head, found.query]
    if attention != "attn" or kind == "encoders":
        assert found.key == int(row.argmax())
    assert 0 <= found.key < len(row)


@pytest.mark.parametrize(
    ("values", "param"),
    [
        ({"layer": 3}, "layer"), ({"head": 4}, "head"), ({"query": 99}, "query"),
        ({"layer": 0, "head": 0, "key": 99}, "key"),
        ({"attention": "cross"}, "attention"), ({"attention": "encoder"}, "attention"),
    ],
)  # fmt: skip
def test_out_of_range_values_raise_request_error(t, values, param):
    with pytest.raises(RequestError) as error:
        focus(t, **values)
    assert error.value.param == param
