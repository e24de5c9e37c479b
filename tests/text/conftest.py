"""Fixtures: a small tokenizer of each kind, trained once per session."""

import pytest

from glassformer.text.tokenizer import Tokenizer
from glassformer.text.train import train_tokenizer

CORPUS = """The cat sat on the mat; it's 12:30, and the dog isn't there. They'll say: "Who's that?"
    def f(x):\n\treturn x ** 2  # naïve façade — coöperate\r\n
吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。Привет, мир! שלום 👩‍👩‍👧 🇯🇵 é é ﷽
the the the cat cats catty, low lower lowest, new newer newest wide wider widest <|endoftext|> <b>bold</b>
"""


def without_bos(trained: Tokenizer) -> Tokenizer:
    """Return the tokenizer without the BOS before a text, so that tests count only the text's tokens."""
    config = {key: value for key, value in trained.config.items() if "bos" not in key}
    return Tokenizer(trained.backend.json, config)


@pytest.fixture(scope="session")
def bpe() -> Tokenizer:
    return without_bos(train_tokenizer([CORPUS] * 3, vocab_size=400, special_tokens=("<|endoftext|>", "<|user|>")))


@pytest.fixture(scope="session")
def char() -> Tokenizer:
    return without_bos(train_tokenizer([CORPUS], kind="char", vocab_size=500))


@pytest.fixture(scope="session")
def word() -> Tokenizer:
    return without_bos(train_tokenizer([CORPUS], kind="word", vocab_size=500))


@pytest.fixture(params=["bpe", "char", "word"])
def tokenizer(request) -> Tokenizer:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def corpus() -> str:
    return CORPUS
