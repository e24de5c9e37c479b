"""Open a checkpoint: read its configuration and tensor names, but no weights."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from glassformer.config import ModelConfig, RecurrentConfig, TextEncoderConfig
from glassformer.errors import CheckpointError, shortened
from glassformer.families import FAMILIES, Family, family_of, read_config
from glassformer.families.common.family import AnyConfig, ConfigFields
from glassformer.families.common.original import OriginalFormat, detect_linear_layout
from glassformer.formats.find import end_token_ids, tokenizer_of
from glassformer.formats.generation_config import read_generation_config
from glassformer.formats.gguf.shards import is_gguf
from glassformer.formats.original import find_original, open_original, self_contained_format
from glassformer.formats.pickled import read_pickle
from glassformer.formats.quantization import take_quantization
from glassformer.formats.reader import FLOAT_DTYPES, TensorReader, read_json, rename_tensors
from glassformer.formats.sentence_transformers import read_pooling, transformer_folder
from glassformer.formats.weight_files import PICKLED_SUFFIXES, open_weights, shard_names, weight_files
from glassformer.nn.pooling import SentencePooling
from glassformer.text.tokenizer import Tokenizer

ModelKind = Literal["decoder", "encoder-decoder", "recurrent", "encoder"]
MAX_UNCHECKED = 1000  # experts that a config may describe without the weights to match


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint, created by `open_checkpoint`.

    Attributes:
        path: the folder or file that was opened.
        model_path: the folder or file with the weights: `path`, or the transformer's folder within a
            sentence-transformers folder.
        config: the model's configuration.
        reader: the tensors by name.
        family: how this checkpoint names and lays out its tensors.
        metadata: a GGUF file's metadata; empty for other formats.
    """

    path: Path
    model_path: Path
    config: AnyConfig
    reader: TensorReader
    family: Family
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> ModelKind:
        """The kind of the model, from its configuration."""
        if isinstance(self.config, RecurrentConfig):
            return "recurrent"
        if isinstance(self.config, TextEncoderConfig):
            return "encoder"
        return "decoder" if self.config.encoder is None else "encoder-decoder"

    @property
    def n_parameters(self) -> int:
        """The number of elements in all stored tensors: about the number of parameters."""
        return _n_elements(self.reader)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of most stored elements. Quantized elements count as bfloat16, which is at least as precise."""
        sizes: Counter[torch.dtype] = Counter()
        for name in self.reader:
            dtype = FLOAT_DTYPES.get(self.reader.stored_type(name), torch.bfloat16)
            sizes[dtype] += torch.Size(self.reader.shape(name)).numel()
        return sizes.most_common(1)[0][0] if sizes else torch.float32

    @property
    def left_out(self) -> list[str]:
        """The names of the tensors of parts that are not loaded: the image encoder of a multimodal model."""
        patterns = [re.compile(pattern) for pattern in self.family.left_out]
        names = ((name, name.removeprefix(self.family.prefix)) for name in self.reader)
        return [name for name, bare in names if any(pattern.fullmatch(bare) for pattern in patterns)]

    def tokenizer(self) -> Tokenizer | None:
        """Load the tokenizer; None if the checkpoint has none."""
        return tokenizer_of(self.model_path, self.metadata)

    def end_token_ids(self) -> list[int]:
        """Return the ids of the tokens that end a generated text."""
        return end_token_ids(self.model_path, self.metadata)

    def generation_config(self) -> dict[str, Any]:
        """Return the generation settings of an encoder-decoder; empty for our own formats, which need none."""
        return {} if self.family.rules is None else read_generation_config(self.model_path, self.metadata)

    def pooling(self) -> SentencePooling:
        """Load the module that turns an encoder's states into one vector; the mean if the checkpoint names none."""
        if self.metadata:
            from glassformer.formats.gguf.pooling import pooling_from_gguf

            return pooling_from_gguf(self.metadata, str(self.path))
        folder = self.path.parent if self.path.is_file() else self.path
        return read_pooling(folder, self.config.d_model)


def open_checkpoint(path: str | Path, ignore_keys: tuple[str, ...] = ()) -> Checkpoint:
    """Open a model folder, a weights file with its config.json, a GGUF file, or a layout of `common/original.py`.

    Args:
        path: an existing folder or file; `find_model` returns one for a name.
        ignore_keys: keys of config.json that the family does not know and that do not matter.

    Raises:
        CheckpointError: a file is missing, truncated or damaged.
        ConfigError: the configuration has a key or value that is not supported.
    """
    path = Path(path)
    model_path = transformer_folder(path)
    if is_gguf(path):
        return _open_gguf(path, ignore_keys)
    if (layout := find_original(model_path)) is not None:
        return _open_original(model_path, layout, ignore_keys)
    is_file = model_path.is_file()
    folder = model_path.parent if is_file else model_path
    if is_file and path.suffix in PICKLED_SUFFIXES and (layout := self_contained_format(read_pickle(path))) is not None:
        return _open_original(path, layout, ignore_keys)
    raw, source = read_json(folder / "config.json"), str(folder / "config.json")
    unpack = take_quantization(raw, source, ignore_keys)
    config = read_config(raw, source, ignore_keys)
    names = (shard_names(folder, path.name) or [path.name]) if is_file else weight_files(folder)
    _check_files([folder / name for name in names])
    reader = TensorReader([open_weights(folder / name) for name in names])
    unpack(reader)
    stored_as = FAMILIES.get(str(raw.get("model_type")), family_of(config))
    rename_tensors(reader, stored_as.renamed)
    family = detect_linear_layout(family_of(config), _shapes(reader))
    family = replace(family, ignored=(*family.ignored, *stored_as.left_out), left_out=stored_as.left_out)
    _check_size(config, reader, path)
    return Checkpoint(path, model_path, family.detect_heads(config, reader), reader, family)


def _check_files(paths: list[Path]) -> None:
    missing = [str(path) for path in paths if not path.is_file()]
    if unreadable := [name for name in missing if os.path.lexists(name)]:
        raise CheckpointError(f"{shortened(unreadable)}: not a regular file")
    if missing:
        raise CheckpointError(f"{shortened(missing)} {'is' if len(missing) == 1 else 'are'} missing")


def _check_size(config: AnyConfig, reader: TensorReader, path: Path) -> None:
    """Reject a configuration with far more layers or experts than the weights can fill.

    Without this check a damaged config.json could cause millions of modules to be built before loading fails.
    """
    if isinstance(config, RecurrentConfig):
        n_layers = n = config.n_layers
    else:
        encoder = config.encoder if isinstance(config, ModelConfig) else None
        layers = config.layers if encoder is None else config.layers + encoder.layers
        n_layers, n = len(layers), sum(1 + (layer.experts.n_experts if layer.experts else 0) for layer in layers)
    n_elements = _n_elements(reader)  # every layer has a tensor of its own; experts may share one
    if n_layers > len(reader) or (n > max(MAX_UNCHECKED, len(reader)) and n * config.d_model > n_elements):
        raise CheckpointError(
            f"{path}: the configuration describes {n} layers and experts, but the weights have only {len(reader)} "
            f"tensors with {n_elements} elements"
        )


def _n_elements(reader: TensorReader) -> int:
    return sum(torch.Size(reader.shape(name)).numel() for name in reader)


def _shapes(reader: TensorReader) -> dict[str, tuple[int, ...]]:
    return {name: reader.shape(name) for name in reader}


def _open_original(path: Path, layout: OriginalFormat, ignore_keys: tuple[str, ...]) -> Checkpoint:
    settings, source, files = open_original(path, layout)
    reader = TensorReader(files)
    fields = ConfigFields(settings, source, ignore_keys)
    raw = layout.read(fields, _shapes(reader))
    fields.close()
    config = read_config({"model_type": layout.family, **raw}, source)
    family = layout.apply_to(
        family_of(config), bare=layout.bias_setting is not None and settings.get(layout.bias_setting) is False
    )
    _check_size(config, reader, path)
    return Checkpoint(path, path, config, reader, family)


def _open_gguf(path: Path, ignore_keys: tuple[str, ...]) -> Checkpoint:
    from glassformer.formats.gguf.file import check_claims, open_gguf
    from glassformer.formats.gguf.metadata import gguf_family, read_metadata
    from glassformer.formats.gguf.tensor_names import EMBED

    files = open_gguf(path)
    reader, metadata = TensorReader(files), files[0].metadata
    shape = reader.shape(EMBED) if EMBED in reader else ()
    if len(shape) != 2:
        problem = f"got shape {list(shape)}" if EMBED in reader else "but is missing"
        raise CheckpointError(f"{path}: {EMBED} must be a matrix, {problem}")
    check_claims(files, width=shape[1])
    file_of = {name: file for file in files for name in file}
    config = read_metadata(
        metadata, reader.keys(), shape[0], str(path), ignore_keys, lambda name: file_of[name].vector(name)
    )
    return Checkpoint(path, path, config, reader, gguf_family(family_of(config)), metadata)
