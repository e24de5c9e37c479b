"""Seq2seq runs of a few steps: words to copy or reverse."""

import tempfile
from functools import cache
from pathlib import Path

from tiny_runs import replaced

from glassformer.families.common.shape import RecurrentShape, Seq2SeqShape
from glassformer.text.train import train_tokenizer
from glassformer.toys import dates
from glassformer.training.config import OptimConfig, ScheduleConfig, Seq2SeqTaskConfig, TokenizerConfig, TrainConfig
from glassformer.training.data.seq2seq_examples import Seq2SeqExample
from glassformer.training.run.metrics import Reporter
from glassformer.training.run.train import train

TRANSFORMER = Seq2SeqShape(d_model=16, n_layers=1, n_heads=2, d_ff=32, context=16)
RECURRENT = RecurrentShape(d_model=8, d_hidden=16, context=16)
SHAPES = {"transformer": TRANSFORMER, "recurrent": RECURRENT}
FOLDER = tempfile.TemporaryDirectory()  # deleted with the process


@cache
def letters() -> TokenizerConfig:
    """Return a character tokenizer, trained once."""
    train_tokenizer([dates.LETTERS], kind="char", vocab_size=64).save(FOLDER.name)
    return TokenizerConfig(path=FOLDER.name)


def some_examples(n: int = 80, task: str = "reverse") -> list[Seq2SeqExample]:
    """Return the same examples of 3 to 8 letters at each call."""
    return list(dates.examples(task, 0, "train", n, level=0))


def seq2seq_config(out: Path | str, **changes) -> TrainConfig:
    config = TrainConfig(
        out=str(out),
        task=Seq2SeqTaskConfig(model=TRANSFORMER, exact_match_examples=4),
        tokenizer=letters(),
        optim=OptimConfig(muon_dtype="float32"),
        schedule=ScheduleConfig(warmup=2),
        batch=8,
        steps=8,
        eval_every=2,
        save_every=2,
        held_out=0.1,
        dtype="float32",
        device="cpu",
    )
    return replaced(config, **changes)


def seq2seq_run(out: Path | str, reporter: Reporter | None = None, **changes):
    return train(seq2seq_config(out, **changes), documents=some_examples(), reporter=reporter)
