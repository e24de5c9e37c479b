"""A small byte-level tokenizer, and a model that generates a fixed script."""

import json

import tokenizers
import torch
from tiny import tiny_config
from tokenizers import decoders, models, pre_tokenizers, trainers

from glassformer.nn.model import Decoder
from glassformer.text.tokenizer import Tokenizer

END = "<|endoftext|>"
TEXTS = [
    "the cat sat on the mat. the dog ate the hat.",
    "吾輩は猫である。名前はまだ無い。",
    "naïve café, déjà vu — ok? 🙂👍🏽",
]


def make_tokenizer() -> Tokenizer:
    """Return a tokenizer with 256 bytes, some merges (also within characters) and an end token."""
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=[END], initial_alphabet=alphabet, show_progress=False, min_frequency=1
    )
    core.train_from_iterator(TEXTS, trainer)
    return Tokenizer(json.dumps(json.loads(core.to_str())), {"eos_token": END})


class Scripted(Decoder):
    """A model that generates a script after a prompt of one token, then repeats the last token."""

    def __init__(self, script, vocab_size, context_length=64):
        super().__init__(tiny_config("qwen3", vocab_size=vocab_size, context_length=context_length))
        self.script = list(script)

    def hidden(self, ids, step):
        return torch.zeros(*ids.shape, self.config.d_model)

    def logits(self, hidden, step):
        position = step.positions[0, -1].clamp(max=len(self.script) - 1)
        logits = torch.zeros(len(hidden), self.config.vocab_size)
        logits[:, self.script[int(position)]] = 50.0
        return logits
