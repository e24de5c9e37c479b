"""A small byte-level tokenizer, models with its vocabulary, the same models in transformers, and one that is scripted."""

import json

import pytest
import tokenizers
import torch
from tiny import tiny, tiny_config
from tokenizers import decoders, models, pre_tokenizers, trainers

from glassformer.lm import LanguageModel
from glassformer.nn.model import Decoder
from glassformer.text.tokenizer import Tokenizer
from glassformer.weights import save_model

END = "<|endoftext|>"
TEXTS = ["the cat sat on the mat. the dog ate the hat.", "吾輩は猫である。名前はまだ無い。", "naïve café, déjà vu — ok? 🙂👍🏽"]


def make_tokenizer() -> Tokenizer:
    """256 bytes, some merges (also of half characters), and the end of a text."""
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=[END], initial_alphabet=alphabet, show_progress=False, min_frequency=1
    )
    core.train_from_iterator(TEXTS, trainer)
    return Tokenizer(json.dumps(json.loads(core.to_str())), {"eos_token": END})


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return make_tokenizer()


@pytest.fixture(scope="session")
def lm(tokenizer) -> LanguageModel:
    """The Qwen3 shape with a sliding window in the middle layer, and a tokenizer."""
    return LanguageModel(tiny("qwen3", vocab_size=tokenizer.vocab_size), tokenizer)


@pytest.fixture(scope="session")
def in_transformers(tmp_path_factory):
    """`tiny(family)` as transformers opens it."""
    transformers = pytest.importorskip("transformers")

    def opened(family):
        folder = tmp_path_factory.mktemp(family)
        save_model(tiny(family), folder)
        return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()

    return opened


class Scripted(Decoder):
    """A model that writes given tokens after a prompt of one token, and after them the last again and again."""

    def __init__(self, script, vocab_size, context_length=64):
        super().__init__(tiny_config("qwen3", vocab_size=vocab_size, context_length=context_length))
        self.script = list(script)

    def logits(self, hidden, step):
        place = step.positions[0, -1].clamp(max=len(self.script) - 1)
        logits = torch.zeros(len(hidden), self.config.vocab_size)
        logits[:, self.script[int(place)]] = 50.0
        return logits


@pytest.fixture(scope="session")
def scripted(tokenizer):
    """`scripted(ids)` or `scripted(b"bytes")`, one token a byte: a language model that writes exactly that."""

    def make(script, **rest) -> LanguageModel:
        if isinstance(script, bytes):
            one = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size)}
            script = [one[bytes([b])] for b in script]
        return LanguageModel(Scripted(script, tokenizer.vocab_size, **rest), tokenizer)

    return make
