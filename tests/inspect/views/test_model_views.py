"""Views of a model: its tokenizer, its embedding tables, its parts."""

import json
from itertools import pairwise

import numpy as np
import pytest
from generate.scripted import make_tokenizer
from inspect_subjects import subject, translator
from tiny import encoder_decoder_config, tiny

from glassformer.errors import RequestError
from glassformer.inspect.trace.trace import bytes_text
from glassformer.inspect.views.anatomy import anatomy
from glassformer.inspect.views.embedding import distinct_tables, embedding, embedding_map, get_table
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


def test_tokens_have_bytes_and_character_spans(lm):
    result = tokens(lm, text=TEXT)
    assert b"".join(bytes.fromhex(one.bytes) for one in result.tokens) == TEXT.encode()
    assert [one.id for one in result.tokens] == lm.encode(TEXT)
    assert all(one.text in TEXT[one.start : one.end] or one.text.startswith("<") for one in result.tokens)
    assert (result.n_bytes, result.receipt.error) == (len(TEXT.encode()), 0)


def test_partial_character_is_shown_as_bytes():
    assert (bytes_text(b" a"), bytes_text("猫".encode()[:2])) == (" a", "<E7 8C>")


def test_merges_equal_a_loop_over_ranks(lm):
    """Apply the merges of tokenizer.json in the order of their ranks, each as often as possible."""
    word = "cat"
    raw = json.loads(lm.tokenizer.backend.json)["model"]["merges"]
    parts, used = list(word), []
    for rank, merge in enumerate(raw):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        while any(pair == (left, right) for pair in pairwise(parts)):
            at = next(i for i, pair in enumerate(pairwise(parts)) if pair == (left, right))
            parts[at : at + 2] = [left + right]
            used.append((rank, at))
    result = merges(lm, word=word)
    assert [(step.rank, step.at) for step in result.steps[1:]] == used
    assert list(result.steps[-1].parts) == parts
    assert len(used) > 0
    assert list(result.ids) == lm.tokenizer.encode(word, bare=True)


def test_merges_reject_several_words_and_missing_tokenizers(lm, bare):
    with pytest.raises(RequestError, match="word must be one word; the tokenizer splits"):
        merges(lm, word="the cat")
    with pytest.raises(RequestError, match="no tokenizer"):
        merges(bare, word="the")
    with pytest.raises(RequestError, match="no tokenizer"):
        tokens(bare, text="the")


# ---- embedding tables


@pytest.fixture(scope="module")
def with_source():
    return {
        "pair": translator(encoder_decoder_config("separate")),
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
def test_nearest_rows_equal_numpy(lm, with_source, model, table):
    lm = {"lm": lm, **with_source}[model]
    rows = TABLES[model, table](lm.model).detach().double().numpy()
    result = embedding(lm, token=17, n=5, table=table)
    np.testing.assert_array_equal(np.asarray(result.row), rows[17].astype(np.float32))
    cosine = rows @ rows[17] / np.linalg.norm(rows, axis=1) / np.linalg.norm(rows[17])
    order = [i for i in np.argsort(-cosine) if i != 17][:5]
    assert [one.id for one in result.nearest] == order
    np.testing.assert_allclose([one.value for one in result.nearest], cosine[order], rtol=1e-5)
    assert result.token.value == pytest.approx(np.linalg.norm(rows[17]), rel=1e-6)
    assert result.n_rows == len(rows)
    assert result.receipt.error == 0
    assert not result.tied
    assert table in result.tables
    named = eval(result.receipt.python, {"lm": lm})
    np.testing.assert_array_equal(named.detach().numpy(), rows[17].astype(np.float32))


def test_tied_tables_are_listed_once(lm, with_source):
    """Models with a source have a table for it, which may be tied to the table of input tokens."""
    assert distinct_tables(lm) == ("input", "output")
    assert distinct_tables(LanguageModel(tiny("gpt2"))) == ("input",)
    assert {name: distinct_tables(one) for name, one in with_source.items()} == {
        "pair": ("input", "source", "output"),
        "recurrent": ("input", "source", "output"),
    }
    shared = subject("encoder-decoders", "t5")[0]
    assert distinct_tables(shared) == ("input",)
    assert embedding(shared, token=3, table="source").tied
    assert distinct_tables(subject("encoders", "bert")[0]) == ("input",)


def test_map_axes_are_the_first_two_eigenvectors_of_the_covariance(lm):
    chosen = tuple(range(40, 70))
    result = embedding_map(lm, tokens=chosen)
    rows = lm.model.embed.weight.detach().double().numpy()[list(chosen)]
    values, vectors = np.linalg.eigh(np.cov(rows.T))
    plane = (rows - rows.mean(0)) @ vectors[:, ::-1][:, :2]
    ours = np.array([(place.x, place.y) for place in result.points])
    np.testing.assert_allclose(np.abs(ours), np.abs(plane), atol=1e-9)
    np.testing.assert_allclose(result.explained, values[::-1][:2] / values.sum(), rtol=1e-9)
    assert result == embedding_map(lm, tokens=chosen), "the map is deterministic"


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda lm: embedding(lm, token=-1), "token must be a whole number from 0 to"),
        (lambda lm: embedding(lm, token=10**6), "token must be a whole number from 0 to"),
        (lambda lm: embedding(lm, token=1, n=0), "n must be"),
        (lambda lm: get_table(lm, "middle"), "table must be one of 'input', 'output', got 'middle'"),
        (lambda lm: embedding(lm, token=1, table="source"), "'input', 'output', got 'source'"),
        (lambda lm: embedding_map(lm, tokens=(1, 1, 2)), "3 to 2000 different ones, got 2"),
        (lambda lm: embedding_map(lm, tokens=(1, 2, 10**6)), "tokens must be"),
    ],
)
def test_bad_requests_raise_request_error(lm, call, match):
    with pytest.raises(RequestError, match=match):
        call(lm)


# ---- parts


@pytest.mark.parametrize("family", ["qwen3", "gpt2", "gpt_oss", "phi"])
def test_parts_sum_to_the_state_dict(family):
    lm = LanguageModel(tiny(family))
    result = anatomy(lm)
    state = sum(p.numel() for p in lm.model.state_dict().values())
    assert sum(part.parameters for part in result.parts) == result.parameters == state
    assert result.receipt.error == 0
    assert sum(result.shares.values()) == pytest.approx(1)
    kinds = {part.kind for part in result.parts}
    assert {"embedding", "attention", "feed-forward", "norms"} <= kinds <= {*kinds, "head", "positions"}
    named = {matrix.name: list(matrix.shape) for part in result.parts for matrix in part.matrices}
    assert named == {name: list(p.shape) for name, p in lm.model.named_parameters()}
    assert len(result.layers) == lm.config.n_layers


def test_packaged_model_has_an_anatomy():
    result = plain(anatomy(load("stories")))
    assert result["shares"]["feed-forward"] > result["shares"]["attention"], "feed-forward layers have most parameters"
    assert json.loads(json.dumps(result, allow_nan=False)) == result


# ---- the registry


def test_every_view_has_a_description():
    for name, view in VIEWS.items():
        assert name == view.name
        assert view.meaning.endswith((".", ")")), name


def test_unknown_view_error_names_the_nearest():
    with pytest.raises(RequestError, match="unknown view 'cel'; the nearest is 'cell'"):
        find_view("cel")


def test_non_finite_numbers_become_strings():
    parameters = {"a": (float("nan"), float("inf"), -float("inf"), 1.5), "b": None}
    assert plain(parameters) == {"a": ["NaN", "Infinity", "-Infinity", 1.5], "b": None}
