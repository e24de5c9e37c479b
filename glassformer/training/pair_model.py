"""An encoder-decoder in training, whichever it is: made, fed with a batch, written from, saved and read again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from glassformer.cache.dense import DenseCache
from glassformer.config import ModelConfig, RecurrentConfig, as_dict
from glassformer.errors import CheckpointError, ConfigError
from glassformer.nn.init import init_glorot
from glassformer.nn.model import EncoderDecoder
from glassformer.nn.recurrent import RecurrentEncoderDecoder, init_recurrent
from glassformer.nn.step import Step
from glassformer.training.evaluate import Pass
from glassformer.training.pair_batches import PairBatch
from glassformer.training.settings import build
from glassformer.weights.atomic import write_text
from glassformer.weights.reader import Reader, read_json
from glassformer.weights.save import save_tensors

PairModel = EncoderDecoder | RecurrentEncoderDecoder
KINDS = {"transformer": (ModelConfig, EncoderDecoder), "recurrent": (RecurrentConfig, RecurrentEncoderDecoder)}


def new_pair_model(config: ModelConfig | RecurrentConfig, seed: int) -> PairModel:
    """A model with first weights: Glorot's in a Transformer, as in 2017."""
    if isinstance(config, RecurrentConfig):
        return init_recurrent(RecurrentEncoderDecoder(config), seed)
    model = EncoderDecoder(config)
    init_glorot(model, seed)
    return model


def target_hidden(model: PairModel, batch: PairBatch, how: Pass) -> Float[Tensor, "B T D"]:
    """What the head reads at each place of the targets, every token before it being given (teacher forcing)."""
    if isinstance(model, RecurrentEncoderDecoder):
        return model.hidden(batch.source, batch.inputs, batch.source_lengths)
    lengths = batch.source_lengths.tolist()
    source = model.encode(batch.source, Step.of(batch.source, lengths, attend=how.attend(batch.source.shape[1])))
    length = max(batch.source.shape[1], batch.inputs.shape[1])
    return model.hidden(batch.inputs, Step.of(batch.inputs, attend=how.attend(length), source=source))


@torch.no_grad()
def write_greedily(
    model: PairModel, source: Int[Tensor, "B S"], lengths: Int[Tensor, "B"], most: int, bos_id: int, eos_id: int
) -> list[list[int]]:
    """What the model writes for each source, the likeliest token each time, without the token that ends it.

    `most` tokens at most, that one included.
    """
    read = reading(model, source, lengths, most)
    ids = torch.full((len(source), 1), bos_id, device=source.device)
    ended, written = torch.zeros_like(ids, dtype=torch.bool), []
    while len(written) < most and not bool(ended.all()):
        ids = read(ids).argmax(-1)  # [B, 1]
        written.append(ids)
        ended |= ids == eos_id
    rows = torch.cat(written, 1).tolist()
    return [row[: row.index(eos_id)] if eos_id in row else row for row in rows]


def reading(
    model: PairModel, source: Int[Tensor, "B S"], lengths: Int[Tensor, "B"], most: int
) -> Callable[[Tensor], Tensor]:
    """The sources are read; then a function from each row's next token [B, 1] to the logits after it [B, 1, V]."""
    if isinstance(model, RecurrentEncoderDecoder):
        state = model.encode(source, lengths)

        def recur(ids: Tensor) -> Tensor:
            nonlocal state
            hidden, state = model.decode(ids, state)
            return model.logits(hidden)

        return recur
    states = model.encode(source, Step.of(source, lengths.tolist()))
    cache = DenseCache.of(model.config, len(source), most, source.device, states)
    return lambda ids: model(ids, Step(cache.extend([1] * len(ids)), cache=cache))


def save_pair_model(model: PairModel, folder: Path) -> None:
    """Write `config.json`, which says all of the configuration, and `model.safetensors`, under the parameters' names.

    CheckpointError where the disk is full.
    """
    kind = next(name for name, (_, module) in KINDS.items() if isinstance(model, module))
    tensors = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters()}
    save_tensors(tensors, folder / "model.safetensors")
    raw = {"task": "seq2seq", "model": kind, "config": as_dict(model.config)}
    write_text(folder / "config.json", json.dumps(raw, indent=2) + "\n")


def load_pair_model(folder: Path) -> PairModel:
    """What `save_pair_model` has written. CheckpointError names what is missing, left over, or does not fit."""
    path = folder / "config.json"
    raw = read_json(path)
    if raw.get("task") != "seq2seq" or raw.get("model") not in KINDS:
        raise CheckpointError(f"{path} is not of an encoder-decoder: its task is {raw.get('task')!r}")
    config_kind, module = KINDS[raw["model"]]
    try:
        model = module(build(config_kind, raw.get("config"), "config"))
    except (ConfigError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    reader, own = Reader(folder), dict(model.named_parameters())
    wrong = [f"missing: {name}" for name in own.keys() - reader.keys()]
    wrong += [f"not used: {name}" for name in reader.keys() - own.keys()]
    wrong += [
        f"shape: {name} is {list(reader.shape(name))}, the config says {list(own[name].shape)}"
        for name in own.keys() & reader.keys()
        if reader.shape(name) != own[name].shape
    ]
    if wrong:
        raise CheckpointError(f"{folder}: the weights do not fit the configuration: {'; '.join(sorted(wrong)[:20])}")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(reader[name])
    return model
