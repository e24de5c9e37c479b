"""An encoder-decoder in training: a source is read, and its target written from it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from glassformer.atomic import write_text
from glassformer.errors import ConfigError, DataError
from glassformer.families.common.shape import RecurrentShape, Seq2SeqShape
from glassformer.formats.find import find_model
from glassformer.generate.beam_search import BeamSearch, search
from glassformer.generate.session import Seq2SeqModel
from glassformer.kernels.cross_entropy import linear_cross_entropy
from glassformer.models.translator import Translator
from glassformer.nn.linear import TiedLinear
from glassformer.text.tokenizer import Tokenizer
from glassformer.training.config import TrainConfig
from glassformer.training.data.packing import permutation
from glassformer.training.data.seq2seq_batches import Seq2SeqBatch, Seq2SeqLoader, seq2seq_eval_batches, target_counts
from glassformer.training.data.seq2seq_examples import Seq2SeqExample, Seq2SeqExamples, Seq2SeqFiles, tokenize_examples
from glassformer.training.data.seq2seq_store import load_examples, save_examples
from glassformer.training.data.sources import Skipped
from glassformer.training.optim.optimizers import role_of
from glassformer.training.run.distributed import ProcessGroup
from glassformer.training.run.metrics import Reporter
from glassformer.training.run.precision import matrix_flops_per_token
from glassformer.training.tasks.evaluate import Compute, Evaluation
from glassformer.training.tasks.language_model_setup import open_tokenizer
from glassformer.training.tasks.seq2seq_model import (
    check_shape,
    create_seq2seq_model,
    load_seq2seq_model,
    target_hidden,
)

ExampleSource = Iterable[Seq2SeqExample] | Callable[[], Iterable[Seq2SeqExample]]
SOURCE_KEYS = (".cross.k.", ".cross.v.", "alignment.key.")


def prepare_examples(
    config: TrainConfig, given: ExampleSource | None, held_out: ExampleSource | None, reporter: Reporter
) -> None:
    """Tokenizer and tokenized pairs into the run's folder; what is left out is told, by file and line.

    DATA/pairs.json keeps it: {"train": pairs, "held_out": pairs, "source_held_out": pairs left out of training for that
    reason, "left_out": reason -> {"count", "examples"}}.
    """
    folder, shape = Path(config.out), config.model
    assert isinstance(shape, Seq2SeqShape | RecurrentShape), "settings give each task the shapes that it knows"
    if config.from_model is not None:
        check_shape(config.from_model, shape)

    left_out, overlap = Skipped(), 0

    def tell(skipped: Skipped) -> None:
        left_out.merge(skipped)
        for line in skipped.lines():
            reporter.on_message(f"left out: {line}", warning=True)

    def read(source: Iterable[Seq2SeqExample]) -> Seq2SeqExamples:
        found = tokenize_examples(
            source, tokenizer, context=shape.context, source_context=shape.source_context, strict=config.strict
        )
        tell(found.skipped)
        return found

    def texts() -> tuple[Iterable[str], int | None]:
        return (text for pair in source for text in (pair.source, pair.target)), getattr(source, "total_bytes", None)

    source = Seq2SeqFiles(config.data, strict=config.strict) if given is None else make_repeatable(given)
    if isinstance(source, Seq2SeqFiles) and not source.repeatable:  # standard input: it comes but once
        files, source = source, list(source)
        tell(files.skipped)
    tokenizer = open_tokenizer(config, texts, folder, reporter)
    train = read(source)
    if held_out is None and config.held_out_data:
        held_out = Seq2SeqFiles(config.held_out_data, strict=config.strict)
    if held_out is not None:
        aside, every = read(make_repeatable(held_out)), len(train)
        train = exclude_sources(train, aside)
        overlap = every - len(train)
        if overlap:
            reporter.on_message(f"left out: {overlap:,} pairs to train on whose source is held out", warning=True)
    elif config.held_out:
        train, aside = train.hold_out(config.held_out)
    else:
        aside = train.select(np.arange(0))
    reporter.on_message(f"{len(train):,} pairs to train on, {len(aside):,} held out")
    save_examples(folder / "data", train, aside)
    counts = {"train": len(train), "held_out": len(aside), "source_held_out": overlap, "left_out": left_out.as_json()}
    write_text(folder / "data" / "pairs.json", json.dumps(counts, indent=2, ensure_ascii=False) + "\n")


def make_repeatable(source: ExampleSource) -> Iterable[Seq2SeqExample]:
    """The same pairs, such that they can be gone through twice. DataError where they are something else."""
    if isinstance(source, Seq2SeqFiles):
        return source
    found = RepeatableSource(source) if callable(source) else list(source)
    for item in islice(found, 1):
        if not isinstance(item, Seq2SeqExample):
            raise DataError(f"a seq2seq example must be a Seq2SeqExample, got {type(item).__name__}")
    return found


class RepeatableSource:
    """The pairs that a function gives, each time anew."""

    def __init__(self, make: Callable[[], Iterable[Seq2SeqExample]]):
        self.make = make

    def __iter__(self) -> Iterator[Seq2SeqExample]:
        return iter(self.make())


def exclude_sources(pairs: Seq2SeqExamples, aside: Seq2SeqExamples) -> Seq2SeqExamples:
    """Those whose source is none of `aside`'s. DataError where none is left."""
    known = {aside.source.sequence(i).tobytes() for i in range(len(aside))}
    fresh = [i for i in range(len(pairs)) if pairs.source.sequence(i).tobytes() not in known]
    if not fresh:
        raise DataError("every pair's source is held out: there is none left to train on")
    return pairs if len(fresh) == len(pairs) else pairs.select(np.array(fresh))


class Seq2SeqTask:
    """See `Task`. checkpoint: the model folder to go on from, None to begin.

    An evaluation reads as many held-out pairs as have `eval_tokens` targets, and writes `exact_pairs` of them: drawn
    by an order that is the same for every run on the same pairs.
    """

    prepare = staticmethod(prepare_examples)

    def __init__(self, config: TrainConfig, world: ProcessGroup, compute: Compute, checkpoint: Path | None):
        folder, shape = Path(config.out), config.model
        assert isinstance(shape, Seq2SeqShape | RecurrentShape), "settings give each task the shapes that it knows"
        self.config, self.world, self.compute = config, world, compute
        self.tokenizer = Tokenizer.load(folder / "tokenizer")
        train, held_out = load_examples(folder / "data")
        self.model = self._model(shape, checkpoint)
        self.loader = Seq2SeqLoader(train, config.batch, config.seed, world.rank, world.size, config.accumulate)
        self.fingerprint = hashlib.sha256(f"{train.fingerprint} {held_out.fingerprint}".encode()).hexdigest()
        drawn = held_out.select(permutation(len(held_out), 0))
        fitting = int((np.cumsum(target_counts(drawn)) <= config.eval_tokens).sum())
        self.eval_examples = drawn.select(np.arange(min(len(drawn), max(1, fitting))))
        self.exact_match_examples = drawn.select(np.arange(min(config.exact_pairs, len(drawn))))
        self.train_tokens, self.held_out_tokens = int(target_counts(train).sum()), int(target_counts(held_out).sum())
        self.batch_tokens = max(1, config.batch // world.size * self.train_tokens // len(train))
        of_source, of_target = seq2seq_matrices(self.model)
        self.matrices = of_source + of_target
        ratio = len(train.source.tokens) / self.train_tokens
        self.flops_per_token = ratio * matrix_flops_per_token(of_source) + matrix_flops_per_token(of_target)
        self.prompt = self.tokenizer.encode(config.sample_prompt, bare=True)
        if len(self.prompt) > (shape.source_context or shape.context):
            raise ConfigError(f"sample_prompt has {len(self.prompt)} tokens, more than a source may have")

    def _model(self, shape: Seq2SeqShape | RecurrentShape, checkpoint: Path | None) -> Seq2SeqModel:
        continued = checkpoint
        if continued is None and self.config.from_model is not None:
            continued = find_model(self.config.from_model)
        if continued is None:
            model = create_seq2seq_model(shape.expand(self.tokenizer.vocab_size), self.config.seed)
        else:
            model = load_seq2seq_model(continued, self.tokenizer.vocab_size)
        return model.to(self.compute.device).train()

    def steps_for(self, tokens: int) -> int:
        return self.loader.steps_for(tokens)

    def loss(self, batch: Seq2SeqBatch) -> Tensor:
        return self._loss(batch, self.config.label_smoothing)

    def _loss(self, batch: Seq2SeqBatch, smoothing: float) -> Tensor:
        """The sum over counted targets of -log p(target), in nats; float32."""
        how, model = self.compute, self.model
        if how.device.type != "cpu":  # but the lengths: what is made of them begins here, and would wait for them
            batch = replace(batch.to(how.device, non_blocking=True), source_lengths=batch.source_lengths)
        with how.autocast():
            hidden = target_hidden(model, batch, how).flatten(0, 1)  # [B T, D]
        return linear_cross_entropy(hidden, model.head.weight, batch.targets.flatten(), how.dtype, smoothing)

    @torch.no_grad()
    def evaluate(self) -> Evaluation | None:
        if not len(self.eval_examples):
            return None
        nats, tokens, world = 0.0, 0, self.world
        for batch in seq2seq_eval_batches(
            self.eval_examples, self.config.batch, rank=world.rank, world_size=world.size
        ):
            nats += self._loss(batch, 0.0).item()
            tokens += batch.tokens
        place = self.compute.device if world.size > 1 else "cpu"  # nccl sums only what lies on a GPU
        values = torch.tensor([nats, tokens, self.count_exact()], dtype=torch.float64, device=place)
        total, count, right = world.all_reduce(values).tolist()
        return Evaluation(
            total / count,
            int(count),
            0.0,
            right / len(self.exact_match_examples) if len(self.exact_match_examples) else None,
        )

    def count_exact(self) -> int:
        """How many of this process's share of the pairs to write are written exactly, as text.

        What is still going on where the longest target of its batch has ended is wrong.
        """
        right, world = 0, self.world
        for batch in seq2seq_eval_batches(
            self.exact_match_examples, self.config.batch, rank=world.rank, world_size=world.size
        ):
            wanted = [self.exact_match_examples.target.sequence(number).tolist() for number in batch.indices.tolist()]
            sources = [self.exact_match_examples.source.sequence(number).tolist() for number in batch.indices.tolist()]
            found = self.generate(sources, batch.targets.shape[1])
            same = [self.text(a) == self.text(b) for a, b in zip(found, wanted, strict=True)]
            right += sum(ok for ok, number in zip(same, batch.indices.tolist(), strict=True) if number >= 0)
        return right

    def generate(self, sources: Sequence[Sequence[int]], most: int) -> list[list[int]]:
        """Token ids for each source, greedily, at most so many; in float32."""
        pairs = self.loader.examples
        found = search(self.model, sources, BeamSearch(max_tokens=most), begin=pairs.bos_id, end=pairs.eos_id)
        return [list(best.ids) for best, *_ in found]

    def text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids)

    def sample(self) -> str:
        """What the prompt is translated to, greedily."""
        config = self.config
        most = min(config.sample_tokens, config.context)
        ids = self.generate([self.prompt], most)[0]
        return f"{config.sample_prompt} -> {self.text(ids)}"

    def save(self, folder: Path) -> None:
        Translator(self.model, self.tokenizer).save(folder)


def seq2seq_matrices(model: Seq2SeqModel) -> tuple[Counter[tuple[int, int]], Counter[tuple[int, int]]]:
    """[out, in] of the matrices that a source's tokens are multiplied with, and of those that a target's are.

    A decoder's cross-attention makes its keys and values of sources.
    """
    of_source: Counter[tuple[int, int]] = Counter()
    of_target: Counter[tuple[int, int]] = Counter()
    for name, parameter in model.named_parameters():
        if role_of(name, parameter) in ("hidden", "head"):
            mine = of_source if name.startswith("encoder.") or any(k in name for k in SOURCE_KEYS) else of_target
            mine[parameter.shape[0], parameter.shape[1]] += 1
    if isinstance(model.head, TiedLinear):
        of_target[model.head.weight.shape[0], model.head.weight.shape[1]] += 1
    return of_source, of_target
