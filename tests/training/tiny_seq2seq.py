"""Runs of a few steps on pairs to copy or reverse."""

import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

from glassformer.families.common.shape import RecurrentShape, Seq2SeqShape
from glassformer.text.train import train_tokenizer
from glassformer.toys import dates
from glassformer.training.config import OptimConfig, ScheduleConfig, TokenizerConfig, TrainConfig
from glassformer.training.data.seq2seq_examples import Seq2SeqExample
from glassformer.training.run.metrics import Reporter
from glassformer.training.run.train import train

TRANSFORMER = Seq2SeqShape(d_model=16, n_layers=1, n_heads=2, d_ff=32, context=16)
RECURRENT = RecurrentShape(d_model=8, d_hidden=16, context=16)
SHAPES = {"transformer": TRANSFORMER, "recurrent": RECURRENT}
FOLDER = tempfile.TemporaryDirectory()  # goes with the process


@cache
def letters() -> TokenizerConfig:
    """A tokenizer of letters, made once, so that runs need not train one."""
    train_tokenizer([dates.LETTERS], kind="char", vocab_size=64).save(FOLDER.name)
    return TokenizerConfig(path=FOLDER.name)


def some_pairs(n: int = 80, task: str = "reverse") -> list[Seq2SeqExample]:
    """Words of 3 to 8 letters, the same at each call."""
    return list(dates.examples(task, 0, "train", n, level=0))


def pair_config(out: Path | str, **changes) -> TrainConfig:
    config = TrainConfig(
        out=str(out),
        task="seq2seq",
        model=TRANSFORMER,
        tokenizer=letters(),
        optim=OptimConfig(muon_dtype="float32"),
        schedule=ScheduleConfig(warmup=2),
        batch=8,
        steps=8,
        eval_every=2,
        save_every=2,
        held_out=0.1,
        exact_pairs=4,
        dtype="float32",
        device="cpu",
    )
    return replace(config, **changes)


def pair_run(out: Path | str, reporter: Reporter | None = None, **changes):
    return train(pair_config(out, **changes), documents=some_pairs(), reporter=reporter)
