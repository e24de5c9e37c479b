"""Fixtures: a tiny random model with a tokenizer, the same model in transformers, and a scripted one."""

import pytest
import transformers
from generate.scripted import Scripted, make_tokenizer
from tiny import tiny

from glassformer.formats import save_model
from glassformer.models.language_model import LanguageModel
from glassformer.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return make_tokenizer()


@pytest.fixture(scope="session")
def lm(tokenizer) -> LanguageModel:
    """The Qwen3 shape with a sliding window in the middle layer, and a tokenizer."""
    return LanguageModel(tiny("qwen3", vocab_size=tokenizer.vocab_size), tokenizer)


@pytest.fixture(scope="session")
def in_transformers(tmp_path_factory):
    """Return a function that opens a tiny model in transformers."""

    def open_model(model):
        folder = tmp_path_factory.mktemp("opened")
        save_model(model, folder)
        return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()

    return open_model


@pytest.fixture(scope="session")
def scripted(tokenizer):
    """`scripted(ids)` or `scripted(b"bytes")`, one token per byte: a language model that generates this script."""

    def make(script, **options) -> LanguageModel:
        if isinstance(script, bytes):
            token_of_byte = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size)}
            script = [token_of_byte[bytes([b])] for b in script]
        return LanguageModel(Scripted(script, tokenizer.vocab_size, **options), tokenizer)

    return make
