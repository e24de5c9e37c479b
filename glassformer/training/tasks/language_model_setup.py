"""From settings to what training a language model needs: a tokenizer, prepared data, a model."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from glassformer.config import ModelConfig
from glassformer.errors import ConfigError, DataError
from glassformer.families import find_family
from glassformer.families.common.shape import ShapeConfig
from glassformer.formats import load_decoder
from glassformer.formats.find import find_model, tokenizer_of
from glassformer.nn.block import Block
from glassformer.nn.model import Decoder
from glassformer.text import patterns
from glassformer.text.files.find import find_tokenizer
from glassformer.text.tokenizer import Tokenizer
from glassformer.text.train import train_tokenizer
from glassformer.training.config import TrainConfig
from glassformer.training.data.prepare import as_documents, prepare
from glassformer.training.data.sources import Document, Texts
from glassformer.training.init import init_weights
from glassformer.training.run.metrics import Reporter

Documents = Iterable[str] | Iterable[Document] | Callable[[], Iterable[str]]


def open_documents(config: TrainConfig, documents: Documents | None, folder: Path) -> Iterable[Document]:
    """The run's documents, such that they can be gone through twice; standard input is kept in the run's folder."""
    if documents is None:
        if not config.data:
            raise DataError("no data was named: give files, folders, globs or - for standard input")
        return as_documents(_named(config.data, folder))
    if callable(documents) or not getattr(documents, "repeatable", False):
        kept = documents if callable(documents) else list(documents)
        if isinstance(kept, list) and kept and isinstance(kept[0], Document):
            return kept  # pyright: ignore[reportReturnType]
        return Texts(kept)  # pyright: ignore[reportArgumentType]
    return documents  # pyright: ignore[reportReturnType]


def _named(data: tuple[str, ...], folder: Path) -> list[str]:
    return [str(_kept_stdin(folder)) if name == "-" else name for name in data]


def _kept_stdin(folder: Path) -> Path:
    path = folder / "stdin.txt"
    with open(path, "wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    return path


def open_tokenizer(
    config: TrainConfig, texts: Callable[[], tuple[Iterable[str], int | None]], folder: Path, reporter: Reporter
) -> Tokenizer:
    """The run's own copy if it has one, else the one that was named, the continued model's, or a newly trained one.

    texts: what a new one learns from, and its bytes where they are known; asked for only then.
    """
    kept = folder / "tokenizer"
    if config.resume and find_tokenizer(kept):
        return Tokenizer.load(kept)
    if config.tokenizer.path is not None:
        path = Path(config.tokenizer.path)
        tokenizer = Tokenizer.load(path if path.is_dir() else path.parent)
    elif config.from_model is not None:
        found = tokenizer_of(find_model(config.from_model))
        if found is None:
            raise ConfigError(f"{config.from_model} has no tokenizer: name one with tokenizer.path")
        tokenizer = found
    else:
        source, n_bytes = texts()
        kind = config.tokenizer_kind
        size = (
            config.tokenizer.vocab_size or getattr(config.model, "vocab_size", 0) or default_vocab_size(kind, n_bytes)
        )
        tokenizer = train_tokenizer(
            source,
            kind=kind,
            vocab_size=size,
            pattern=patterns.DIGITS_APART if config.tokenizer.digits_apart else patterns.DIGITS_TOGETHER,
            seed=config.seed,
            progress=reporter.on_progress,
        )
        reporter.on_message(f"trained a tokenizer of {tokenizer.vocab_size} tokens ({kind})")
    tokenizer.save(kept)
    return tokenizer


def default_vocab_size(kind: str, n_bytes: int | None) -> int:
    """How many tokens a tokenizer may have where nothing was said: for BPE about one for each 1,000 bytes of text, so
    that each is seen often enough to be learned."""
    if kind != "bpe":
        return 8192
    return 1024 if n_bytes is None else min(32_768, max(512, n_bytes // 1000 // 64 * 64))


def prepare_text(
    config: TrainConfig, documents: Documents | None, held_out: Documents | None, reporter: Reporter
) -> None:
    """Tokenizer and shards into the run's folder."""
    folder = Path(config.out)
    source: list[Iterable[Document]] = []

    def read() -> Iterable[Document]:
        if not source:
            source.append(open_documents(config, documents, folder))
        return source[0]

    def texts() -> tuple[Iterable[str], int | None]:
        return (document.text for document in read()), getattr(read(), "total_bytes", None)

    tokenizer = open_tokenizer(config, texts, folder, reporter)
    if held_out is None and config.held_out_data:
        held_out = as_documents(_named(config.held_out_data, folder))  # pyright: ignore[reportAssignmentType]
    aside = None if held_out is None else open_documents(config, held_out, folder)
    prepare(
        read(),
        tokenizer,
        folder / "data",
        held_out=config.held_out,
        held_out_sources=aside,
        ordered=not config.shuffle,
        rebuild=True,
        progress=reporter.on_progress,
    )


def model_config(config: TrainConfig, vocab_size: int) -> ModelConfig:
    """The model to train. Raises ConfigError where it has fewer tokens than the tokenizer."""
    if isinstance(config.model, ModelConfig):
        made = config.model
    else:
        assert isinstance(config.model, ShapeConfig), "settings give each task the shapes that it knows"
        filled = config.model.fill(vocab_size)
        made = find_family(filled.family).shape(filled)
    if made.vocab_size < vocab_size:
        raise ConfigError(f"the tokenizer has {vocab_size} tokens, and the model's vocab_size is {made.vocab_size}")
    return made


def create_model(config: TrainConfig, vocab_size: int, checkpoint: Path | None, device: torch.device) -> Decoder:
    """The model in float32, each parameter with storage of its own: from a checkpoint, from another model, or new."""
    if checkpoint is not None:
        model = load_decoder(checkpoint, dtype=torch.float32, copy=True)
    elif config.from_model is not None:
        model = load_decoder(find_model(config.from_model), dtype=torch.float32, copy=True)
    else:
        model = init_weights(Decoder(model_config(config, vocab_size)), config.seed, **asdict(config.init))
    if model.config.vocab_size < vocab_size:
        raise ConfigError(
            f"the tokenizer has {vocab_size} tokens, and the model's vocab_size is {model.config.vocab_size}"
        )
    if model.config.context_length < config.context:
        raise ConfigError(
            f"rows of {config.context} tokens do not fit the model's context of {model.config.context_length}: "
            "lower model.context"
        )
    return model.to(device).train()


def compile_blocks(model: nn.Module, trial: Callable[[], None]) -> str | None:
    """torch.compile of every block, one code for all; None, or why it is left undone.

    `trial` runs a forward and backward pass: only then is it known whether a compiler is there and can do it.
    """
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    for block in blocks:
        block.compile()
    try:
        trial()
    except Exception as error:  # the compiler raises whatever its parts raise
        for block in blocks:
            block._compiled_call_impl = None  # what Module.compile sets, and nothing takes back
        return f"torch.compile is left out: {type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return None
