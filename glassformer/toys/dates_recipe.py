"""How the demonstration's three encoder-decoders are trained and scored: alike in everything but how they remember.

    rnn             the source is one state: all that the decoder ever gets of it (Sutskever et al. 2014)
    rnn-attention   the same, and at each step it looks back at every state (Bahdanau et al. 2015)
    transformer     nothing but looking: no state is carried on (Vaswani et al. 2017)

They read the same pairs in the same order, in the same tokens, for the same time.
"""

from __future__ import annotations

from collections.abc import Iterator

from glassformer.families.common.shape import RecurrentShape, Seq2SeqShape
from glassformer.models.translator import Translator
from glassformer.toys import dates
from glassformer.training.config import TokenizerConfig, TrainConfig
from glassformer.training.data.seq2seq_examples import Seq2SeqExample
from glassformer.training.tasks.seq2seq_scores import Seq2SeqScores, score_translations

SYSTEMS: dict[str, RecurrentShape | Seq2SeqShape] = {
    "rnn": RecurrentShape(d_model=128, d_hidden=256, attention=None, context=128),
    "rnn-attention": RecurrentShape(d_model=128, d_hidden=256, attention="additive", context=128),
    "transformer": Seq2SeqShape(d_model=128, n_layers=2, n_heads=4, context=128, norm_at="pre"),
}
PAIRS_PER_SECOND = 1500  # more than any of the three reads on two cores
UNSEEN = 1_000_000  # from here on are the held-out pairs that no run is evaluated on as it trains


def train_config(
    system: str, task: str, out: str, *, seconds: float | None = None, steps: int | None = None, seed: int = 0
) -> TrainConfig:
    """The settings of a run on one of `dates.TASKS`, for so many seconds or steps.

    What is written in words is read in words, with each digit a token of its own; letters are read one by one.
    """
    letters = task in ("reverse", "copy")
    return TrainConfig(
        out=out,
        task="seq2seq",
        model=SYSTEMS[system],
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
    """The pairs that a run of so many seconds trains on, of all levels alike."""
    return dates.examples(task, seed, "train", int(PAIRS_PER_SECOND * max(10.0, seconds)))


def held_out_examples(task: str, count: int = 1000) -> Iterator[Seq2SeqExample]:
    """Pairs to evaluate a run on, whose targets no run trains on."""
    return dates.examples(task, 0, "held-out", count)


def sample_example(task: str) -> Seq2SeqExample:
    """A held-out pair of the longest level, in words where there are any: the alignment that is drawn."""
    found = list(dates.examples(task, 0, "held-out", 50, dates.LEVELS - 1, UNSEEN))
    return next((pair for pair in found if not any(sign.isdigit() for sign in pair.source)), found[0])


def score(translator: Translator, task: str, count: int = 1000) -> Seq2SeqScores:
    """What a model writes, greedily, for held-out pairs; by the length of the source in characters.

    It is stopped where the longest target has ended: what goes on is wrong.
    """
    found = list(dates.examples(task, 0, "held-out", count, start=UNSEEN))
    sources, targets = ([getattr(pair, side) for pair in found] for side in ("source", "target"))
    longest = 1 + max(len(translator.tokenizer.encode(target, bare=True)) for target in targets)
    written = [translation.text for translation in translator.translate(sources, max_tokens=longest)]
    return score_translations(written, targets, [len(source) for source in sources])
