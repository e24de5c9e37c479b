"""The training and scoring of the demo's three encoder-decoders, which differ only in their architecture.

    rnn             the decoder receives the source as one state (Sutskever et al. 2014)
    rnn-attention   in addition, the decoder attends to every encoder state (Bahdanau et al. 2015)
    transformer     attention without recurrent state (Vaswani et al. 2017)

All are trained on the same examples in the same order, with the same tokens, for the same time.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from glassformer.families.common.shape import RecurrentShape, Seq2SeqShape
from glassformer.models.translator import Translator
from glassformer.toys import dates
from glassformer.training.config import Seq2SeqTaskConfig, TokenizerConfig, TrainConfig
from glassformer.training.data.seq2seq_examples import Seq2SeqExample
from glassformer.training.tasks.seq2seq_scores import Seq2SeqScores, score_translations

SYSTEMS: dict[str, RecurrentShape | Seq2SeqShape] = {
    "rnn": RecurrentShape(d_model=128, d_hidden=256, attention=None, context=128),
    "rnn-attention": RecurrentShape(d_model=128, d_hidden=256, attention="additive", context=128),
    "transformer": Seq2SeqShape(d_model=128, n_layers=2, n_heads=4, context=128, norm_at="pre"),
}
EXAMPLES_PER_SECOND = 1500  # more than any of the three trains on with two cores
UNSEEN = 1_000_000  # first held-out example that no run is evaluated on during training


def train_config(
    system: str, task: str, out: str, *, seconds: float | None = None, steps: int | None = None, seed: int = 0
) -> TrainConfig:
    """Return the configuration of a run on one of `dates.TASKS`, with a budget in seconds or steps.

    Dates and numbers have a BPE tokenizer with single digits, letters a character tokenizer.
    """
    letters = task in ("reverse", "copy")
    return TrainConfig(
        out=out,
        task=Seq2SeqTaskConfig(model=SYSTEMS[system]),
        tokenizer=TokenizerConfig(kind="char")
        if letters
        else TokenizerConfig(kind="bpe", vocab_size=512, digits_apart=True),
        batch=64,
        seconds=seconds,
        steps=steps,
        eval_tokens=16_384,
        sample_prompt=sample_example(task).source,
        seed=seed,
    )


def training_examples(task: str, seed: int, seconds: float) -> Iterator[Seq2SeqExample]:
    """Yield the training examples of a run of `seconds`, of all levels evenly."""
    return dates.examples(task, seed, "train", int(EXAMPLES_PER_SECOND * max(10.0, seconds)))


def held_out_examples(task: str, count: int = 1000) -> Iterator[Seq2SeqExample]:
    """Yield the examples that a run is evaluated on, whose targets are in no training split."""
    return dates.examples(task, 0, "held-out", count)


def sample_example(task: str) -> Seq2SeqExample:
    """Return the held-out example whose alignment the demo draws: of the longest level, in words if possible."""
    found = list(dates.examples(task, 0, "held-out", 50, dates.LEVELS - 1, UNSEEN))
    return next((example for example in found if not any(c.isdigit() for c in example.source)), found[0])


def score(translator: Translator, task: str, count: int = 1000) -> Seq2SeqScores:
    """Return the scores of greedy translations of held-out examples, by source length in characters.

    Decoding stops at the length of the longest target; an output that has not ended is wrong.
    """
    found = list(dates.examples(task, 0, "held-out", count, start=UNSEEN))
    sources, targets = ([getattr(example, side) for example in found] for side in ("source", "target"))
    longest = 1 + max(len(translator.tokenizer.encode(target, bare=True)) for target in targets)
    outputs = [translation.text for translation in translator.translate(sources, max_tokens=longest)]
    bleu = find_spec("sacrebleu") is not None  # an optional dependency
    return score_translations(outputs, targets, [len(source) for source in sources], bleu=bleu)
