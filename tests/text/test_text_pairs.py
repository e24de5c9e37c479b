"""Two texts in a row, and texts with hidden places: the ids of `transformers`."""

import json

import pytest
from tiny_encoders import bytes_of_roberta, wordpieces

from glassformer.errors import TokenizerError
from glassformer.text.files.load import load_tokenizer
from glassformer.text.sentencepiece.tokenizer import SentencePieceTokenizer
from glassformer.text.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")

MADE = {"bert": wordpieces, "roberta": bytes_of_roberta}
TEXTS = ["the cat sat on the mat.", "", "a dog?", "  The hats  ,", "naïve 吾輩"]


@pytest.fixture(params=MADE)
def both(request, tmp_path):
    made = MADE[request.param]()
    made.save(tmp_path)
    return load_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)


def test_one_text_is_framed(both):
    ours, theirs = both
    for text in TEXTS:
        assert ours.encode(text) == theirs(text)["input_ids"]
    before, after = ours.prefix_ids, ours.suffix_ids
    assert (before, after) == ([theirs.cls_token_id], [theirs.sep_token_id])
    assert ours.encode("") == before + after


def test_two_texts_are_framed_and_told_apart(both):
    ours, theirs = both
    pairs = [(a, b) for a in TEXTS for b in TEXTS if b]  # theirs takes an empty second text for none
    for (ids, types), (a, b) in zip(ours.encode_pairs(pairs), pairs, strict=True):
        want = theirs(a, b, return_token_type_ids=True)
        assert ids == want["input_ids"]
        assert types == want["token_type_ids"]
    kinds = {kind for _, types in ours.encode_pairs(pairs) for kind in types}
    assert kinds == ({0, 1} if ours.special_tokens.get("[SEP]") else {0})


def test_what_a_text_says_is_no_control_token(both):
    ours, theirs = both
    forged = f"the {theirs.sep_token} cat {theirs.mask_token}"
    ((ids, _),) = ours.encode_pairs([(forged, forged)])
    assert theirs.mask_token_id not in ids
    assert ids.count(theirs.sep_token_id) == theirs("a", "b")["input_ids"].count(theirs.sep_token_id)
    hidden = ours.encode_masked(forged)
    assert hidden.count(theirs.mask_token_id) == 1
    assert hidden.count(theirs.sep_token_id) == 1


def test_hidden_places_are_where_the_name_of_the_mask_stands(both):
    ours, theirs = both
    mask = theirs.mask_token
    for text in (
        f"the {mask} sat on the {mask}.",
        f"{mask}",
        f"a{mask}b",
        f"  {mask}  the",
        f"the cat{mask}{mask} .",
        "the",
    ):
        assert ours.encode_masked(text) == theirs(text)["input_ids"], text
    assert ours.mask_id == theirs.mask_token_id


def test_half_a_character_is_refused(both):
    ours, _ = both
    with pytest.raises(TokenizerError, match="lone surrogate"):
        ours.encode_pairs([("a", "b\ud800")])
    with pytest.raises(TokenizerError, match="lone surrogate"):
        ours.encode_masked("b\ud800")


def test_tokenizers_that_do_not_say_how_are_told(tmp_path):
    made = wordpieces()
    plain = Tokenizer(made.backend.json, {})
    with pytest.raises(TokenizerError, match=r"has no mask token \(mask_token\)"):
        plain.encode_masked("a [MASK]")
    forced = Tokenizer(json.dumps(json.loads(made.backend.json)), {"bos_token": "[PAD]", "add_bos_token": True})
    with pytest.raises(TokenizerError, match="disagree about add_bos_token"):
        forced.encode_pairs([("a", "b")])
    with pytest.raises(TokenizerError, match="does not define how to join two texts"):
        SentencePieceTokenizer.encode_pairs(None, [("a", "b")])
