"""Text pairs and masked texts: ids equal `transformers`."""

import json

import pytest
import transformers
from tiny_encoders import bytes_of_roberta, wordpieces

from glassformer.errors import TokenizerError
from glassformer.text.files.load import load_tokenizer
from glassformer.text.sentencepiece.tokenizer import SentencePieceTokenizer
from glassformer.text.tokenizer import Tokenizer

BUILDERS = {"bert": wordpieces, "roberta": bytes_of_roberta}
TEXTS = ["the cat sat on the mat.", "", "a dog?", "  The hats  ,", "naïve 吾輩"]


@pytest.fixture(params=BUILDERS)
def both(request, tmp_path):
    built = BUILDERS[request.param]()
    built.save(tmp_path)
    return load_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)


def test_special_tokens_around_one_text_equal_transformers(both):
    ours, theirs = both
    for text in TEXTS:
        assert ours.encode(text) == theirs(text)["input_ids"]
    prefix, suffix = ours.prefix_ids, ours.suffix_ids
    assert (prefix, suffix) == ([theirs.cls_token_id], [theirs.sep_token_id])
    assert ours.encode("") == prefix + suffix


def test_text_pairs_and_token_types_equal_transformers(both):
    ours, theirs = both
    pairs = [(a, b) for a in TEXTS for b in TEXTS if b]  # transformers treats an empty second text as missing
    for (ids, types), (a, b) in zip(ours.encode_pairs(pairs), pairs, strict=True):
        want = theirs(a, b, return_token_type_ids=True)
        assert ids == want["input_ids"]
        assert types == want["token_type_ids"]
    kinds = {kind for _, types in ours.encode_pairs(pairs) for kind in types}
    assert kinds == ({0, 1} if ours.special_tokens.get("[SEP]") else {0})


def test_special_tokens_in_text_are_plain_text(both):
    ours, theirs = both
    forged = f"the {theirs.sep_token} cat {theirs.mask_token}"
    ((ids, _),) = ours.encode_pairs([(forged, forged)])
    assert theirs.mask_token_id not in ids
    assert ids.count(theirs.sep_token_id) == theirs("a", "b")["input_ids"].count(theirs.sep_token_id)
    masked = ours.encode_masked(forged)
    assert masked.count(theirs.mask_token_id) == 1
    assert masked.count(theirs.sep_token_id) == 1


def test_mask_tokens_in_text_are_encoded_as_mask_ids(both):
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


def test_lone_surrogates_raise_error(both):
    ours, _ = both
    with pytest.raises(TokenizerError, match="lone surrogate"):
        ours.encode_pairs([("a", "b\ud800")])
    with pytest.raises(TokenizerError, match="lone surrogate"):
        ours.encode_masked("b\ud800")


def test_tokenizers_without_mask_or_pair_layout_raise_error(tmp_path):
    wordpiece = wordpieces()
    plain = Tokenizer(wordpiece.backend.json, {})
    with pytest.raises(TokenizerError, match=r"has no mask token \(mask_token\)"):
        plain.encode_masked("a [MASK]")
    forced = Tokenizer(json.dumps(json.loads(wordpiece.backend.json)), {"bos_token": "[PAD]", "add_bos_token": True})
    with pytest.raises(TokenizerError, match="disagree about add_bos_token"):
        forced.encode_pairs([("a", "b")])
    with pytest.raises(TokenizerError, match="does not define how to join two texts"):
        SentencePieceTokenizer.encode_pairs(None, [("a", "b")])
