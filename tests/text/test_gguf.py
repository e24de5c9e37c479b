"""A byte-level tokenizer through GGUF's metadata: the same ids of every text."""

from generate.writers import make_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from glassformer.text.gguf import tokenizer_from_gguf, tokenizer_to_gguf

OURS = make_tokenizer()
AGAIN = tokenizer_from_gguf(tokenizer_to_gguf(OURS, OURS.vocab_size + 5))


@given(st.text())
def test_the_same_ids(text):
    for special in (False, True):
        assert AGAIN.encode(text + "<|endoftext|> the cat", special=special) == OURS.encode(
            text + "<|endoftext|> the cat", special=special
        )
    assert AGAIN.special == OURS.special
