"""Create or load an encoder-decoder to train, and run its training forward pass."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.config import ModelConfig, RecurrentConfig, TextEncoderConfig
from glassformer.errors import CheckpointError, ConfigError
from glassformer.families import read_config
from glassformer.families.common.shape import RecurrentShape, Seq2SeqShape
from glassformer.formats import load_seq2seq
from glassformer.formats.find import find_model
from glassformer.formats.reader import read_json
from glassformer.generate.session import Seq2SeqModel, vocab_sizes
from glassformer.nn.model import EncoderDecoder
from glassformer.nn.recurrent import RecurrentEncoderDecoder, init_recurrent
from glassformer.nn.step import Step
from glassformer.training.data.seq2seq_batches import Seq2SeqBatch
from glassformer.training.init import init_glorot
from glassformer.training.tasks.evaluate import Compute

CONTEXTS = ("context", "source_context")


def create_seq2seq_model(config: ModelConfig | RecurrentConfig, seed: int) -> Seq2SeqModel:
    """Return a model with initial weights: Glorot's in a Transformer, as in the paper of 2017."""
    if isinstance(config, RecurrentConfig):
        return init_recurrent(RecurrentEncoderDecoder(config), seed)
    model = EncoderDecoder(config)
    init_glorot(model, seed)
    return model


def checkpoint_shape(model: str | Path) -> Seq2SeqShape | RecurrentShape:
    """Return the shape of an encoder-decoder checkpoint, to continue its training.

    A recurrent model has no context; its shape has the default one. Raises CheckpointError where `model` is no
    encoder-decoder, ConfigError where no shape describes its layers.
    """
    file = find_model(model) / "config.json"
    config = read_config(read_json(file), str(file))
    if isinstance(config, RecurrentConfig):
        sizes = asdict(config)
        del sizes["source_vocab_size"], sizes["target_vocab_size"]
        return RecurrentShape(**sizes)
    if isinstance(config, TextEncoderConfig):
        raise CheckpointError(f"{model} is an encoder-only model: task seq2seq needs an encoder-decoder")
    if config.encoder is None:
        raise CheckpointError(f"{model} is a language model without an encoder: continue it with task lm")
    layer = config.layers[0]
    shape = Seq2SeqShape(
        d_model=config.d_model,
        n_layers=config.n_layers,
        n_heads=layer.attention.n_heads,
        d_ff=layer.mlp.d_ff,
        context=config.context_length,
        source_context=config.encoder.context_length,
        norm_at="post" if layer.norm_at == ("post",) else "pre",
        positions="learned" if config.positions == "learned" else "sinusoidal",
        shared_embedding=config.shared_embedding,
        tied_head=config.tied_head,
    )
    if shape.expand(config.vocab_size, config.encoder.vocab_size) != config:
        raise ConfigError(
            f"{model} is an encoder-decoder with layers that cannot be trained here: Seq2SeqShape lists the options"
        )
    return shape


def check_shape(model: str | Path, shape: Seq2SeqShape | RecurrentShape) -> None:
    """Raise ConfigError where `shape` is not that of the checkpoint `model`; shorter contexts are allowed."""
    own = checkpoint_shape(model)
    if isinstance(own, Seq2SeqShape) and isinstance(shape, Seq2SeqShape):
        for name in CONTEXTS:
            given, limit = getattr(shape, name) or shape.context, getattr(own, name)
            if given > limit:
                raise ConfigError(f"{name} is {given}, more than the {limit} of {model}: lower it")
    if type(own) is not type(shape):
        raise ConfigError(f"{model} has a {type(own).__name__}, got model {type(shape).__name__}: use checkpoint_shape")
    values, given = asdict(own), asdict(shape)
    wrong = [f"{n} {given[n]!r} (it has {values[n]!r})" for n in values if n not in CONTEXTS and values[n] != given[n]]
    if wrong:
        raise ConfigError(f"the model options differ from those of {model}: {', '.join(wrong)}: use checkpoint_shape")


def load_seq2seq_model(folder: str | Path, vocab_size: int) -> Seq2SeqModel:
    """Load the model in float32, each parameter in its own storage, for a tokenizer of `vocab_size` tokens."""
    model = load_seq2seq(folder, dtype=torch.float32, copy=True)
    limit = min(vocab_sizes(model))
    if limit < vocab_size:
        raise ConfigError(f"the tokenizer has {vocab_size} tokens, more than the model's vocab_size of {limit}")
    return model


def target_hidden(model: Seq2SeqModel, batch: Seq2SeqBatch, compute: Compute) -> Float[Tensor, "B T D"]:
    """Return the head's input at each target position, given all targets before it (teacher forcing)."""
    if isinstance(model, RecurrentEncoderDecoder):
        return model.hidden(batch.source, batch.inputs, batch.source_lengths)
    lengths = batch.source_lengths.tolist()
    attend = compute.attention_for(model.config, max(batch.source.shape[1], batch.inputs.shape[1]))
    source = model.encode(batch.source, Step.of(batch.source, lengths, attend=attend))
    return model.hidden(batch.inputs, Step.of(batch.inputs, attend=attend, source=source))
