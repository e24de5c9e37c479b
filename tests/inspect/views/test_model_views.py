"""Views of a model by itself: its tokenizer, its table, its parts."""

import json
from itertools import pairwise

import numpy as np
import pytest
from generate.writers import make_tokenizer
from inspect_subjects import subject, translator
from tiny import pair_config, tiny

from glassformer.errors import RequestError
from glassformer.inspect.trace.trace import bytes_text
from glassformer.inspect.views.anatomy import anatomy
from glassformer.inspect.views.embedding import distinct, embedding, embedding_map, table_of
from glassformer.inspect.views.registry import VIEWS, find_view
from glassformer.inspect.views.result import plain
from glassformer.inspect.views.tokens import merges, tokens
from glassformer.models.language_model import LanguageModel
from glassformer.models.load import load

TEXT = "the cat sat. 吾輩は猫である。 👩‍👩‍👧"


@pytest.fixture(scope="module")
def lm():
    tokenizer = make_tokenizer()
    return LanguageModel(tiny("gpt2", vocab_size=tokenizer.vocab_size, tied_head=False), tokenizer)


@pytest.fixture(scope="module")
def bare():
    return LanguageModel(tiny("llama"))


# ---- tokens


def test_tokens_say_their_bytes_and_places(lm):
    found = tokens(lm, text=TEXT)
    assert b"".join(bytes.fromhex(one.bytes) for one in found.tokens) == TEXT.encode()
    assert [one.id for one in found.tokens] == lm.encode(TEXT)
    assert all(one.text in TEXT[one.start : one.end] or one.text.startswith("<") for one in found.tokens)
    assert (found.n_bytes, found.receipt.error) == (len(TEXT.encode()), 0)


def test_a_part_of_a_character_is_shown_by_its_bytes():
    assert (bytes_text(b" a"), bytes_text("猫".encode()[:2])) == (" a", "<E7 8C>")


def test_merges_are_those_of_a_replay_of_the_ranks(lm):
    """A loop over the merges of tokenizer.json, best first, each wherever it fits."""
    word = "cat"
    raw = json.loads(lm.tokenizer.backend.json)["model"]["merges"]
    parts, used = list(word), []
    for rank, merge in enumerate(raw):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        while any(pair == (left, right) for pair in pairwise(parts)):
            at = next(i for i, pair in enumerate(pairwise(parts)) if pair == (left, right))
            parts[at : at + 2] = [left + right]
            used.append((rank, at))
    found = merges(lm, word=word)
    assert [(step.rank, step.at) for step in found.steps[1:]] == used
    assert list(found.steps[-1].parts) == parts
    assert len(used) > 0
    assert list(found.ids) == lm.tokenizer.encode(word, bare=True)


def test_merges_are_of_one_word(lm, bare):
    with pytest.raises(RequestError, match="of one word; the tokenizer cuts"):
        merges(lm, word="the cat")
    with pytest.raises(RequestError, match="no tokenizer"):
        merges(bare, word="the")
    with pytest.raises(RequestError, match="no tokenizer"):
        tokens(bare, text="the")


# ---- the table


@pytest.fixture(scope="module")
def readers():
    return {
        "pair": translator(pair_config("separate")),
        "recurrent": subject("recurrent encoder-decoders", "additive")[0],
    }


TABLES = {
    ("lm", "input"): lambda model: model.embed.weight,
    ("lm", "output"): lambda model: model.head.weight,
    ("pair", "input"): lambda model: model.embed.weight,
    ("pair", "output"): lambda model: model.head.weight,
    ("pair", "source"): lambda model: model.encoder.embed.weight,
    ("recurrent", "input"): lambda model: model.target_embed.weight,
    ("recurrent", "source"): lambda model: model.source_embed.weight,
    ("recurrent", "output"): lambda model: model.head.weight,
}


@pytest.mark.parametrize(("model", "table"), TABLES)
def test_nearest_rows_by_numpy(lm, readers, model, table):
    lm = {"lm": lm, **readers}[model]
    rows = TABLES[model, table](lm.model).detach().double().numpy()
    found = embedding(lm, token=17, n=5, table=table)
    np.testing.assert_array_equal(np.asarray(found.row), rows[17].astype(np.float32))
    cosine = rows @ rows[17] / np.linalg.norm(rows, axis=1) / np.linalg.norm(rows[17])
    order = [i for i in np.argsort(-cosine) if i != 17][:5]
    assert [one.id for one in found.nearest] == order
    np.testing.assert_allclose([one.value for one in found.nearest], cosine[order], rtol=1e-5)
    assert found.token.value == pytest.approx(np.linalg.norm(rows[17]), rel=1e-6)
    assert found.n_rows == len(rows)
    assert found.receipt.error == 0
    assert not found.tied
    assert table in found.tables
    named = eval(found.receipt.python, {"lm": lm})
    np.testing.assert_array_equal(named.detach().numpy(), rows[17].astype(np.float32))


def test_a_table_that_is_another_is_named_once(lm, readers):
    """Models of a source have a table for it, which may be the one that their own tokens are looked up in."""
    assert distinct(lm) == ("input", "output")
    assert distinct(LanguageModel(tiny("gpt2"))) == ("input",)
    assert {name: distinct(one) for name, one in readers.items()} == {
        "pair": ("input", "source", "output"),
        "recurrent": ("input", "source", "output"),
    }
    shared = subject("encoder-decoders", "t5")[0]
    assert distinct(shared) == ("input",)
    assert embedding(shared, token=3, table="source").tied
    assert distinct(subject("encoders", "bert")[0]) == ("input",)


def test_the_plane_is_the_covariances_first_two_eigenvectors(lm):
    chosen = tuple(range(40, 70))
    found = embedding_map(lm, tokens=chosen)
    rows = lm.model.embed.weight.detach().double().numpy()[list(chosen)]
    values, vectors = np.linalg.eigh(np.cov(rows.T))
    plane = (rows - rows.mean(0)) @ vectors[:, ::-1][:, :2]
    ours = np.array([(place.x, place.y) for place in found.places])
    np.testing.assert_allclose(np.abs(ours), np.abs(plane), atol=1e-9)
    np.testing.assert_allclose(found.explained, values[::-1][:2] / values.sum(), rtol=1e-9)
    assert found == embedding_map(lm, tokens=chosen), "the same picture each time"


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda lm: embedding(lm, token=-1), "token must be a whole number from 0 to"),
        (lambda lm: embedding(lm, token=10**6), "token must be a whole number from 0 to"),
        (lambda lm: embedding(lm, token=1, n=0), "n must be"),
        (lambda lm: table_of(lm, "middle"), "table must be 'input' or 'output' of this model, got 'middle'"),
        (lambda lm: embedding(lm, token=1, table="source"), "'input' or 'output' of this model, got 'source'"),
        (lambda lm: embedding_map(lm, tokens=(1, 1, 2)), "3 to 2000 different tokens, got 2"),
        (lambda lm: embedding_map(lm, tokens=(1, 2, 10**6)), "tokens must be"),
    ],
)
def test_bad_requests_are_refused(lm, call, match):
    with pytest.raises(RequestError, match=match):
        call(lm)


# ---- the parts


@pytest.mark.parametrize("family", ["qwen3", "gpt2", "gpt_oss", "phi"])
def test_the_parts_add_up_to_the_state_dict(family):
    lm = LanguageModel(tiny(family))
    found = anatomy(lm)
    state = sum(p.numel() for p in lm.model.state_dict().values())
    assert sum(part.parameters for part in found.parts) == found.parameters == state
    assert found.receipt.error == 0
    assert sum(found.shares.values()) == pytest.approx(1)
    kinds = {part.kind for part in found.parts}
    assert {"embedding", "attention", "feed-forward", "norms"} <= kinds <= {*kinds, "head", "positions"}
    named = {matrix.name: list(matrix.shape) for part in found.parts for matrix in part.matrices}
    assert named == {name: list(p.shape) for name, p in lm.model.named_parameters()}
    assert len(found.layers) == lm.config.n_layers


def test_what_ships_with_the_package_can_be_seen():
    found = plain(anatomy(load("stories")))
    assert found["shares"]["feed-forward"] > found["shares"]["attention"], "the feed-forward layers hold the most"
    assert json.loads(json.dumps(found, allow_nan=False)) == found


# ---- the registry


def test_every_view_says_what_it_shows():
    for name, view in VIEWS.items():
        assert name == view.name
        assert view.meaning.endswith((".", ")")), name


def test_an_unknown_view_names_the_nearest():
    with pytest.raises(RequestError, match="no view 'cel'; the nearest is 'cell'"):
        find_view("cel")


def test_numbers_that_are_none_are_said_as_such():
    given = {"a": (float("nan"), float("inf"), -float("inf"), 1.5), "b": None}
    assert plain(given) == {"a": ["NaN", "Infinity", "-Infinity", 1.5], "b": None}
