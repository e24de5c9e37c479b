"""Runs of a few steps on pairs to copy or reverse."""

from dataclasses import replace
from pathlib import Path

from glassformer.families.shape import PairShape, RecurrentShape
from glassformer.training import dates
from glassformer.training.loop import train
from glassformer.training.metrics import Reporter
from glassformer.training.pairs import Pair
from glassformer.training.settings import OptimConfig, ScheduleConfig, TrainConfig

TRANSFORMER = PairShape(d_model=16, n_layers=1, n_heads=2, d_ff=32, context=16)
RECURRENT = RecurrentShape(d_model=8, d_hidden=16, context=16)
SHAPES = {"transformer": TRANSFORMER, "recurrent": RECURRENT}


def some_pairs(n: int = 80, task: str = "reverse") -> list[Pair]:
    """Words of 3 to 8 letters, the same at each call."""
    return list(dates.pairs(task, 0, "train", n, level=0))


def pair_config(out: Path | str, **changes) -> TrainConfig:
    config = TrainConfig(
        out=str(out),
        task="seq2seq",
        model=TRANSFORMER,
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
