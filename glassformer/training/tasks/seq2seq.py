"""Train an encoder-decoder on source-target pairs."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from glassformer.atomic import write_text
from glassformer.counted import counted
from glassformer.errors import ConfigError, DataError
from glassformer.formats.find import find_model
from glassformer.generate.beam_search import BeamSearch, search
from glassformer.generate.session import Seq2SeqModel
from glassformer.kernels.cross_entropy import linear_cross_entropy
from glassformer.models.translator import Translator
from glassformer.nn.linear import TiedLinear
from glassformer.text.files.load import load_tokenizer
from glassformer.text.tokenizer import Tokenizer
from glassformer.training.config import Seq2SeqTaskConfig, TrainConfig
from glassformer.training.data.packing import permutation
from glassformer.training.data.seq2seq_batches import Seq2SeqBatch, Seq2SeqLoader, seq2seq_eval_batches, target_counts
from glassformer.training.data.seq2seq_examples import Seq2SeqExample, Seq2SeqExamples, Seq2SeqFiles, tokenize_examples
from glassformer.training.data.seq2seq_store import load_examples, save_examples
from glassformer.training.data.sources import Skipped
from glassformer.training.model_size import check_model_size
from glassformer.training.optim.storage import role_of
from glassformer.training.run.distributed import ProcessGroup
from glassformer.training.run.metrics import Reporter
from glassformer.training.run.precision import matrix_flops_per_token
from glassformer.training.tasks.evaluate import Compute, Evaluation
from glassformer.training.tasks.language_model_setup import MIN_VOCABULARY, check_data, known_tokenizer, open_tokenizer
from glassformer.training.tasks.seq2seq_model import (
    check_shape,
    create_seq2seq_model,
    load_seq2seq_model,
    target_hidden,
)

ExampleSource = Iterable[Seq2SeqExample] | Callable[[], Iterable[Seq2SeqExample]]
SOURCE_KEYS = (".cross.k.", ".cross.v.", "alignment.key.")  # matrices of a decoder that are multiplied with the source


def prepare_examples(
    config: TrainConfig, examples: ExampleSource | None, held_out: ExampleSource | None, reporter: Reporter
) -> None:
    """Write the tokenizer and the tokenized examples into the run folder, and report skipped examples.

    DATA/pairs.json records {"train": examples, "held_out": examples, "source_held_out": examples removed from training
    because their source is held out, "left_out": reason -> {"count", "examples"}}.
    """
    folder, task = Path(config.out), config.task
    assert isinstance(task, Seq2SeqTaskConfig)
    shape = task.model
    if config.from_model is not None:
        check_shape(config.from_model, shape)

    all_skipped, overlap = Skipped(), 0

    def report(skipped: Skipped) -> None:
        all_skipped.merge(skipped)
        for line in skipped.lines():
            reporter.on_message(f"skipped: {line}", warning=True)

    def tokenize(source: Iterable[Seq2SeqExample]) -> Seq2SeqExamples:
        found = tokenize_examples(
            source, tokenizer, context=shape.context, source_context=shape.source_context, strict=task.strict
        )
        report(found.skipped)
        return found

    def texts() -> tuple[Iterable[str], int | None]:
        sides = (text for example in source for text in (example.source, example.target))
        return sides, getattr(source, "total_bytes", None)

    def files(names: tuple[str, ...]) -> Seq2SeqFiles:
        return Seq2SeqFiles(names, config.read, strict=task.strict, announce=reporter.on_message)

    source = files(config.data) if examples is None else make_repeatable(examples)
    tokenizer = open_tokenizer(config, texts, folder, reporter)
    train = tokenize(source)
    if held_out is None and config.held_out_data:
        held_out = files(config.held_out_data)
    if held_out is not None:
        evaluation, n_train = tokenize(make_repeatable(held_out)), len(train)
        train = exclude_sources(train, evaluation)
        overlap = n_train - len(train)
        if overlap:
            reporter.on_message(
                f"skipped: {counted(overlap, 'training example')} whose source is held out", warning=True
            )
    elif config.held_out:
        train, evaluation = train.hold_out(config.held_out)
    else:
        evaluation = train.select(np.arange(0))
    reporter.on_message(f"{counted(len(train), 'training example')}, {len(evaluation):,} held out")
    save_examples(folder / "data", train, evaluation)
    counts = {
        "train": len(train),
        "held_out": len(evaluation),
        "source_held_out": overlap,
        "left_out": all_skipped.as_json(),
    }
    write_text(folder / "data" / "pairs.json", json.dumps(counts, indent=2, ensure_ascii=False) + "\n")


def check_seq2seq(config: TrainConfig, examples: ExampleSource | None, held_out: ExampleSource | None) -> None:
    """Check the files, sizes, tokenizer and prompt of a new run before anything is read, trained or written.

    Raises:
        ConfigError: sizes or options that do not fit together.
        DataError: there is no such file.
        CheckpointError, TokenizerError: the model to continue from, or the tokenizer, cannot be read.
    """
    task = config.task
    assert isinstance(task, Seq2SeqTaskConfig)
    check_data(config, Seq2SeqFiles, examples, held_out)
    if config.from_model is not None:
        check_shape(config.from_model, task.model)
    else:
        check_model_size(task.model.expand(MIN_VOCABULARY))
    tokenizer = known_tokenizer(config)
    if tokenizer is not None:
        prompt_ids(config, tokenizer)


def prompt_ids(config: TrainConfig, tokenizer: Tokenizer) -> list[int]:
    """Return the ids of the samples' source. Raises ConfigError where it is longer than a source may be."""
    ids, shape = tokenizer.encode(config.sample_prompt, bare=True), config.task.model
    limit = getattr(shape, "source_context", 0) or config.task.context
    if len(ids) > limit:
        raise ConfigError(f"sample_prompt has {len(ids)} tokens, more than the {limit} of a source: shorten it")
    return ids


def make_repeatable(source: ExampleSource) -> Iterable[Seq2SeqExample]:
    """Return the examples as an iterable that can be iterated twice. Raises DataError where they are not examples."""
    if isinstance(source, Seq2SeqFiles):
        return source
    if not callable(source) and not isinstance(source, Iterable):
        raise DataError(f"documents must be an iterable of Seq2SeqExample, got {type(source).__name__}")
    return RepeatableSource(source if callable(source) else list(source).__iter__)


class RepeatableSource:
    """The examples that a function returns, called for each iteration."""

    def __init__(self, make: Callable[[], Iterable[Seq2SeqExample]]):
        self.make = make

    def __iter__(self) -> Iterator[Seq2SeqExample]:
        found = self.make()
        if not isinstance(found, Iterable):
            raise DataError(f"documents must be an iterable of Seq2SeqExample, got {type(found).__name__}")
        for item in found:
            if not isinstance(item, Seq2SeqExample):
                raise DataError(f"a training example must be a Seq2SeqExample, got {type(item).__name__}")
            yield item


def exclude_sources(examples: Seq2SeqExamples, held_out: Seq2SeqExamples) -> Seq2SeqExamples:
    """Return the examples whose source is not in `held_out`. Raises DataError where there are none."""
    excluded = {held_out.source.sequence(i).tobytes() for i in range(len(held_out))}
    rest = [i for i in range(len(examples)) if examples.source.sequence(i).tobytes() not in excluded]
    if not rest:
        raise DataError("the source of every training example is held out: give other training or held-out examples")
    return examples if len(rest) == len(examples) else examples.select(np.array(rest))


class Seq2SeqTask:
    """The `Task` of an encoder-decoder. checkpoint: the model folder to resume from; None to start.

    An evaluation computes the loss of held-out examples with `eval_tokens` targets in all, and decodes
    `exact_match_examples` of them. Every run on the same data selects the same examples.
    """

    check, prepare = staticmethod(check_seq2seq), staticmethod(prepare_examples)

    def __init__(self, config: TrainConfig, world: ProcessGroup, compute: Compute, checkpoint: Path | None):
        assert isinstance(config.task, Seq2SeqTaskConfig)
        folder = Path(config.out)
        self.config, self.task, self.world, self.compute = config, config.task, world, compute
        self.tokenizer = load_tokenizer(folder / "tokenizer")
        self.unk_id = self.tokenizer.unk_id
        train, held_out = load_examples(folder / "data")
        self.model = self._create_model(checkpoint)
        self.examples = train
        self.fingerprint = hashlib.sha256(f"{train.fingerprint} {held_out.fingerprint}".encode()).hexdigest()
        shuffled = held_out.select(permutation(len(held_out), 0))
        fitting = int((np.cumsum(target_counts(shuffled)) <= config.eval_tokens).sum())
        self.eval_examples = shuffled.select(np.arange(min(len(shuffled), max(1, fitting))))
        self.exact_match_examples = shuffled.select(np.arange(min(self.task.exact_match_examples, len(shuffled))))
        self.train_tokens, self.held_out_tokens = int(target_counts(train).sum()), int(target_counts(held_out).sum())
        self.set_batch(config.batch)
        of_source, of_target = seq2seq_matrices(self.model)
        self.matrices = of_source + of_target
        ratio = len(train.source.tokens) / self.train_tokens
        self.flops_per_token = ratio * matrix_flops_per_token(of_source) + matrix_flops_per_token(of_target)
        self.prompt = prompt_ids(config, self.tokenizer)

    def set_batch(self, batch: int) -> None:
        config, world = replace(self.config, batch=batch), self.world
        self.loader = Seq2SeqLoader(self.examples, batch, config.seed, world.rank, world.size, config.accumulate)
        self.config, self.batch_tokens = config, max(1, batch // world.size * self.train_tokens // len(self.examples))

    @staticmethod
    def verify(folder: Path) -> None:
        """Do nothing: the fingerprint of the run covers every token."""

    def _create_model(self, checkpoint: Path | None) -> Seq2SeqModel:
        if checkpoint is None and self.config.from_model is not None:
            checkpoint = find_model(self.config.from_model)
        vocab_size = self.tokenizer.vocab_size
        if checkpoint is None:
            model = create_seq2seq_model(self.task.model.expand(vocab_size), self.config.seed)
        else:
            model = load_seq2seq_model(checkpoint, vocab_size)
        return model.to(self.compute.device).train()

    def steps_for(self, tokens: int) -> int:
        return self.loader.steps_for(tokens)

    def loss(self, batch: Seq2SeqBatch) -> Tensor:
        return self._loss(batch, self.task.label_smoothing)

    def _loss(self, batch: Seq2SeqBatch, smoothing: float) -> Tensor:
        """Return the sum over counted targets of -log p(target), in nats, in float32."""
        compute, model = self.compute, self.model
        if compute.device.type != "cpu":  # the lengths stay on the CPU, where masks are made from them
            batch = replace(batch.to(compute.device, non_blocking=True), source_lengths=batch.source_lengths)
        with compute.autocast():
            hidden = target_hidden(model, batch, compute).flatten(0, 1)  # [B T, D]
        return linear_cross_entropy(hidden, model.head.weight, batch.targets.flatten(), compute.dtype, smoothing)

    @torch.no_grad()
    def evaluate(self) -> Evaluation | None:
        if not len(self.eval_examples):
            return None
        nats, tokens, unknown, world = 0.0, 0, 0, self.world
        batches = seq2seq_eval_batches(self.eval_examples, self.config.batch, rank=world.rank, world_size=world.size)
        for batch in batches:
            nats += self._loss(batch, 0.0).item()
            tokens += batch.tokens
            unknown += 0 if self.unk_id is None else int((batch.targets == self.unk_id).sum())
        device = self.compute.device if world.size > 1 else "cpu"  # nccl sums only tensors on a GPU
        values = torch.tensor([nats, tokens, self.count_exact(), unknown], dtype=torch.float64, device=device)
        total, count, exact, n_unknown = world.all_reduce(values).tolist()
        n_decoded = len(self.exact_match_examples)
        return Evaluation(total / count, int(count), 0.0, exact / n_decoded if n_decoded else None, int(n_unknown))

    def count_exact(self) -> int:
        """Count the examples of this process that are decoded to exactly their target, compared as text.

        An output that has not ended where the longest target of its batch does is wrong, and so is every output for a
        target with unknown tokens, whose text is not known.
        """
        count, world, examples = 0, self.world, self.exact_match_examples
        for batch in seq2seq_eval_batches(examples, self.config.batch, rank=world.rank, world_size=world.size):
            indices = batch.indices.tolist()
            outputs = self.generate([examples.source.sequence(i).tolist() for i in indices], batch.targets.shape[1])
            for i, output in zip(indices, outputs, strict=True):
                target = examples.target.sequence(i).tolist()
                count += i >= 0 and self.unk_id not in target and self.text(output) == self.text(target)
        return count

    def generate(self, sources: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
        """Return the token ids decoded greedily from each source, in float32."""
        examples = self.loader.examples
        found = search(
            self.model, sources, BeamSearch(max_tokens=max_tokens), begin=examples.bos_id, end=examples.eos_id
        )
        return [list(best.ids) for best, *_ in found]

    def text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids)

    def sample(self) -> str:
        """Return the prompt and the target decoded greedily from it."""
        max_tokens = min(self.config.sample_tokens, self.task.context)
        return f"{self.config.sample_prompt} -> {self.text(self.generate([self.prompt], max_tokens)[0])}"

    def save(self, folder: Path) -> None:
        Translator(self.model, self.tokenizer).save(folder)


def seq2seq_matrices(model: Seq2SeqModel) -> tuple[Counter[tuple[int, int]], Counter[tuple[int, int]]]:
    """Count the [out, in] matrices multiplied with each source token, and those multiplied with each target token.

    The keys and values of a decoder's cross-attention are computed from the source.
    """
    of_source: Counter[tuple[int, int]] = Counter()
    of_target: Counter[tuple[int, int]] = Counter()
    for name, parameter in model.named_parameters():
        if role_of(name, parameter) in ("hidden", "head"):
            counts = of_source if name.startswith("encoder.") or any(k in name for k in SOURCE_KEYS) else of_target
            counts[parameter.shape[0], parameter.shape[1]] += 1
    if isinstance(model.head, TiedLinear):
        of_target[model.head.weight.shape[0], model.head.weight.shape[1]] += 1
    return of_source, of_target
