"""Prepare the tokenizer, the data and the model of a language-model run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from glassformer.config import ModelConfig
from glassformer.errors import CheckpointError, ConfigError, DataError
from glassformer.families import find_family
from glassformer.formats import load_decoder
from glassformer.formats.checkpoint import open_checkpoint
from glassformer.formats.find import find_model, tokenizer_of
from glassformer.nn.block import Block
from glassformer.nn.model import Decoder
from glassformer.text import patterns
from glassformer.text.files.find import find_tokenizer
from glassformer.text.files.load import load_tokenizer
from glassformer.text.tokenizer import Tokenizer
from glassformer.text.train import train_tokenizer
from glassformer.training.config import LanguageModelTaskConfig, TrainConfig
from glassformer.training.data.prepare import prepare, reading_report
from glassformer.training.data.sources import Document, DocumentFiles, FileStream, Texts
from glassformer.training.init import check_init, init_weights
from glassformer.training.model_size import check_model_size
from glassformer.training.run.metrics import Reporter

MIN_VOCABULARY = 512  # stands for the size of a tokenizer that is not trained yet

Documents = Iterable[str] | Iterable[Document] | Callable[[], Iterable[str]]


def open_documents(documents: Documents) -> Iterable[Document]:
    """Return documents as an iterable that can be iterated twice. Raises DataError where they are not documents."""
    if isinstance(documents, str | bytes | bytearray | Path | Mapping) or not (
        callable(documents) or isinstance(documents, Iterable)
    ):
        raise DataError(
            f"documents must be an iterable of texts, or a function that returns one, got {type(documents).__name__}: "
            "give a list of texts, or name files as `data`"
        )
    if callable(documents) or not getattr(documents, "repeatable", False):
        items = documents if callable(documents) else list(documents)
        if isinstance(items, list) and items and isinstance(items[0], Document):
            return items  # pyright: ignore[reportReturnType]
        return Texts(items)  # pyright: ignore[reportArgumentType]
    return documents  # pyright: ignore[reportReturnType]


def open_tokenizer(
    config: TrainConfig, texts: Callable[[], tuple[Iterable[str], int | None]], folder: Path, reporter: Reporter
) -> Tokenizer:
    """Return the tokenizer of the run: its own copy, the configured one, that of `from_model`, or a new one.

    Args:
        texts: returns the training texts of a new tokenizer, and their size in bytes where it is known.
    """
    copy = folder / "tokenizer"
    if config.resume and find_tokenizer(copy):
        return load_tokenizer(copy)
    tokenizer = known_tokenizer(config)
    if tokenizer is None:
        source, n_bytes = texts()
        kind = config.tokenizer_kind
        size = config.tokenizer.vocab_size or getattr(config.task.model, "vocab_size", 0)
        tokenizer = train_tokenizer(
            source,
            kind=kind,
            vocab_size=size or default_vocab_size(kind, n_bytes),
            pattern=patterns.DIGITS_APART if config.tokenizer.digits_apart else patterns.DIGITS_TOGETHER,
            seed=config.seed,
            progress=reporter.on_progress,
        )
        reporter.on_message(f"trained a tokenizer of {tokenizer.vocab_size} tokens ({kind})")
    tokenizer.save(copy)
    return tokenizer


def default_vocab_size(kind: str, n_bytes: int | None) -> int:
    """Return the maximum vocabulary size where none is given.

    For BPE one token per 1,000 bytes of text (512 to 32,768), so that each occurs often enough to be learned.
    """
    if kind != "bpe":
        return 8192
    return 1024 if n_bytes is None else min(32_768, max(512, n_bytes // 1000 // 64 * 64))


def prepare_text(
    config: TrainConfig, documents: Documents | None, held_out: Documents | None, reporter: Reporter
) -> None:
    """Write the tokenizer and the tokenized documents into the run folder."""
    assert isinstance(config.task, LanguageModelTaskConfig)
    folder = Path(config.out)

    def files(names: tuple[str, ...]) -> DocumentFiles:
        return DocumentFiles(names, config.read, strict=config.task.strict, announce=reporter.on_message)

    source = files(config.data) if documents is None else open_documents(documents)
    evaluation = None if held_out is None else open_documents(held_out)
    if evaluation is None and config.held_out_data:
        evaluation = files(config.held_out_data)

    def texts() -> Iterator[str]:
        for document in source:
            if not isinstance(document, Document):
                raise DataError(f"a document must be a text or a Document, got {type(document).__name__}")
            yield document.text

    tokenizer = open_tokenizer(config, lambda: (texts(), getattr(source, "total_bytes", None)), folder, reporter)
    shards = prepare(
        source,
        tokenizer,
        folder / "data",
        held_out=config.held_out,
        held_out_sources=evaluation,
        ordered=not config.task.shuffle,
        rebuild=True,
        progress=reporter.on_progress,
    )
    for line in reading_report(shards):
        reporter.on_message(line, warning=True)


def check_language_model(config: TrainConfig, documents: Documents | None, held_out: Documents | None) -> None:
    """Check the files, sizes, tokenizer and prompt of a new run before anything is read, trained or written.

    Raises:
        ConfigError: sizes or options that do not fit together.
        DataError: there is no such file.
        CheckpointError, TokenizerError: the model to continue from, or the tokenizer, cannot be read.
    """
    task = config.task
    assert isinstance(task, LanguageModelTaskConfig)
    check_data(config, DocumentFiles, documents, held_out)
    tokenizer = known_tokenizer(config)
    if config.from_model is not None:
        checkpoint = open_checkpoint(find_model(config.from_model))
        if checkpoint.kind != "decoder":
            raise CheckpointError(f"task lm continues a decoder-only model, and {config.from_model} has another kind")
        assert isinstance(checkpoint.config, ModelConfig)
        check_context(task, checkpoint.config, config.from_model)
        check_vocabulary(0 if tokenizer is None else tokenizer.vocab_size, checkpoint.config)
    else:
        model = model_config(task, tokenizer.vocab_size if tokenizer else MIN_VOCABULARY)
        check_model_size(model)
        check_init(model, qk_gain=task.init.qk_gain, look_back=task.init.look_back)
        check_vocabulary(tokenizer.vocab_size if tokenizer else 0, model)
        check_context(task, model, "the new model")
    if tokenizer is not None:
        check_prompt(config, tokenizer)


def check_data(config: TrainConfig, files: type[FileStream], data: object, held_out: object) -> None:
    """Raise DataError where there is no data, or where a file of the config that no argument replaces is missing."""
    for names, given in ((config.data, data), (config.held_out_data, held_out)):
        if given is None and names:
            files(names, config.read)
    if data is None and not config.data:
        raise DataError("there is no training data: give files, folders, globs or - for standard input")


def check_prompt(config: TrainConfig, tokenizer: Tokenizer) -> None:
    """Raise ConfigError where the prompt of the samples leaves no room in the context of a training sequence."""
    length, limit = len(tokenizer.encode(config.sample_prompt)), config.task.context - 1
    if config.sample_prompt and length > limit:
        raise ConfigError(
            f"sample_prompt has {length:,} tokens, and a context of {limit + 1:,} has room for {limit:,}: shorten it"
        )


def check_context(task: LanguageModelTaskConfig, model: ModelConfig, name: str) -> None:
    """Raise ConfigError where a training sequence is longer than the context of the model."""
    if model.context_length < task.context:
        raise ConfigError(
            f"training sequences of {task.context} tokens exceed the model's context of {model.context_length} "
            f"({name}): lower the context"
        )


def check_vocabulary(n_tokens: int, model: ModelConfig) -> None:
    """Raise ConfigError where the tokenizer has more tokens than the model."""
    if model.vocab_size < n_tokens:
        limit = model.vocab_size
        raise ConfigError(f"the tokenizer has {n_tokens} tokens, more than the model's vocab_size of {limit}")


def known_tokenizer(config: TrainConfig) -> Tokenizer | None:
    """Return the configured tokenizer or that of `from_model`; None where a new one is to be trained."""
    if config.tokenizer.path is not None:
        path = Path(config.tokenizer.path)
        if not path.exists():
            raise ConfigError(f"tokenizer.path is {path}, which does not exist: give a folder or a tokenizer.json")
        return load_tokenizer(path if path.is_dir() else path.parent)
    if config.from_model is None:
        return None
    found = tokenizer_of(find_model(config.from_model))
    if found is None:
        raise ConfigError(f"{config.from_model} has no tokenizer: name one with tokenizer.path")
    return found


def model_config(task: LanguageModelTaskConfig, vocab_size: int) -> ModelConfig:
    """Return the configuration of a new model."""
    if isinstance(task.model, ModelConfig):
        return task.model
    shape = task.model.fill(vocab_size)
    return find_family(shape.family).shape(shape)


def create_model(config: TrainConfig, vocab_size: int, checkpoint: Path | None, device: torch.device) -> Decoder:
    """Return the model in float32, each parameter in its own storage: from a checkpoint, from another model, or new.

    Raises ConfigError where its vocabulary is smaller than the tokenizer's, or its context than a training sequence.
    """
    task = config.task
    assert isinstance(task, LanguageModelTaskConfig)
    if checkpoint is None and config.from_model is not None:
        checkpoint = find_model(config.from_model)
    if checkpoint is not None:
        model = load_decoder(checkpoint, dtype=torch.float32, copy=True)
    else:
        model = init_weights(Decoder(model_config(task, vocab_size)), config.seed, **asdict(task.init))
    check_vocabulary(vocab_size, model.config)
    check_context(task, model.config, str(checkpoint or "the new model"))
    return model.to(device).train()


def compile_blocks(model: nn.Module, trial: Callable[[], None]) -> str | None:
    """Compile every block with torch.compile; return None, or the reason why the blocks are not compiled.

    Args:
        trial: runs a forward and backward pass, which shows whether a compiler exists and supports the blocks.
    """
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    for block in blocks:
        block.compile()
    try:
        trial()
    except Exception as error:  # the compiler raises errors of any type
        for block in blocks:
            block._compiled_call_impl = None  # set by Module.compile, which has no inverse
        return f"torch.compile is not used: {type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return None
