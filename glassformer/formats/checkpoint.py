"""A model on disk, opened and not yet read: its configuration, its tensors by name, and which parameters they fill."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from glassformer.config import ModelConfig, RecurrentConfig, TextEncoderConfig
from glassformer.errors import CheckpointError
from glassformer.families import Family, family_of, read_config
from glassformer.families.common.family import AnyConfig, ConfigFields
from glassformer.families.common.original import OriginalFormat, as_it_lies
from glassformer.formats import fp8, mxfp4
from glassformer.formats.original import holds_settings, open_original, original_of
from glassformer.formats.pickled import PickledFile, read_pickle
from glassformer.formats.reader import FLOATS, TensorFile, TensorReader, read_json
from glassformer.formats.safetensors_file import SafetensorsFile
from glassformer.formats.tensor_mapping import TensorMapping, entries
from glassformer.nn.encoder import TextEncoder
from glassformer.nn.model import Decoder, make_model
from glassformer.nn.recurrent import RecurrentEncoderDecoder

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
PICKLED = (".bin", ".pt", ".pth")
AnyModel = Decoder | RecurrentEncoderDecoder | TextEncoder
SHOWN = 20  # problems told one by one
MANY = 1000  # layers and experts, which any file may claim


@dataclass(frozen=True)
class Checkpoint:
    """`family` says how the tensors are named and laid out here; `metadata` are a GGUF file's."""

    path: Path
    config: AnyConfig
    reader: TensorReader
    family: Family
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n_numbers(self) -> int:
        """How many numbers the tensors hold: about the number of parameters."""
        return sum(torch.Size(self.reader.shape(name)).numel() for name in self.reader)

    @property
    def dtype(self) -> torch.dtype:
        """What most of the numbers are stored in; bfloat16 stands for what is quantized, which is no finer."""
        sizes: Counter[torch.dtype] = Counter()
        for name in self.reader:
            dtype = FLOATS.get(self.reader.kind(name), torch.bfloat16)
            sizes[dtype] += torch.Size(self.reader.shape(name)).numel()
        return sizes.most_common(1)[0][0] if sizes else torch.float32


def open_checkpoint(path: Path, ignore_keys: tuple[str, ...] = ()) -> Checkpoint:
    """A model folder, a weights file beside its config.json, or a GGUF file, which is all in one; or one of the layouts
    of `families/original.py`.

    CheckpointError names a file that is missing, cut short or damaged; ConfigError what of its configuration is not
    understood.
    """
    if path.suffix == ".gguf":
        return _open_gguf(path, ignore_keys)
    if (one := original_of(path)) is not None:
        return _open_original(path, one, ignore_keys)
    folder = path.parent if path.is_file() else path
    if path.suffix in PICKLED and path.is_file() and (one := holds_settings(read_pickle(path))) is not None:
        return _open_original(path, one, ignore_keys)
    config = read_config(read_json(folder / "config.json"), str(folder / "config.json"), ignore_keys)
    names = [path.name] if path.is_file() else weight_files(folder)
    missing = [str(folder / name) for name in names if not (folder / name).is_file()]
    if missing:
        there = [name for name in missing if os.path.lexists(name)]
        if there:
            raise CheckpointError(f"{', '.join(there[:SHOWN])}: not a file that can be read")
        raise CheckpointError(f"{', '.join(missing[:SHOWN])} {'is' if len(missing) == 1 else 'are'} missing")
    reader = fp8.unpacked(mxfp4.unpacked(TensorReader([open_file(folder / name) for name in names])))
    found = as_it_lies(family_of(config), _shapes(reader))
    return Checkpoint(path, found.fit(_plausible(config, reader, path), reader), reader, found)


def _plausible(config: AnyConfig, reader: TensorReader, path: Path) -> AnyConfig:
    """The configuration. CheckpointError where it describes so many layers or experts, beside so few tensors, that the
    mere list of what is missing would not end."""
    if not isinstance(config, RecurrentConfig):
        n = sum(1 + (layer.experts.n_experts if layer.experts else 0) for layer in config.layers)
        n_numbers = sum(torch.Size(reader.shape(name)).numel() for name in reader)
        if n > max(MANY, len(reader)) and n * config.d_model > n_numbers:
            raise CheckpointError(
                f"{path}: the configuration describes {n} layers and experts, and the {len(reader)} tensors of the "
                f"weights, with {n_numbers} numbers, cannot be theirs"
            )
    return config


def _shapes(reader: TensorReader) -> dict[str, tuple[int, ...]]:
    return {name: reader.shape(name) for name in reader}


def _open_original(path: Path, one: OriginalFormat, ignore_keys: tuple[str, ...]) -> Checkpoint:
    settings, where, files = open_original(path, one)
    reader = TensorReader(files)
    raw = ConfigFields(settings, where, ignore_keys)
    said = one.read(raw, _shapes(reader))
    raw.close()
    config = read_config({"model_type": one.family, **said}, where)
    family = one.laid_out(family_of(config), bare=one.bare is not None and settings.get(one.bare) is False)
    return Checkpoint(path, _plausible(config, reader, path), reader, family)


def _open_gguf(path: Path, ignore_keys: tuple[str, ...]) -> Checkpoint:
    from glassformer.formats.gguf.file import check_claims, open_gguf
    from glassformer.formats.gguf.metadata import in_gguf, read_metadata
    from glassformer.formats.gguf.tensor_names import EMBED

    files = open_gguf(path)
    reader, metadata = TensorReader(files), files[0].metadata
    shape = reader.shape(EMBED) if EMBED in reader else ()
    if len(shape) != 2:
        found = f"got {list(shape)}" if EMBED in reader else "and is missing"
        raise CheckpointError(f"{path}: {EMBED} must be a table, {found}")
    check_claims(files, width=shape[1])
    where = {name: file for file in files for name in file}
    config = read_metadata(
        metadata, reader.keys(), shape[0], str(path), ignore_keys, lambda name: where[name].numbers(name)
    )
    return Checkpoint(path, config, reader, in_gguf(family_of(config)), metadata)


def open_file(path: Path) -> TensorFile:
    """One file of weights, by what its name says it is."""
    if path.suffix == ".safetensors":
        return SafetensorsFile(path)
    if path.suffix in PICKLED:
        return PickledFile(path)
    raise CheckpointError(f"{path} is not a file of weights: known are .safetensors, .bin, .pt, .pth and .gguf")


def weight_files(folder: Path) -> list[str]:
    """The files that hold a folder's weights: the shards of an index, or one file; safetensors come first."""
    for name in WEIGHTS:
        index = folder / f"{name}.index.json"
        if index.exists():
            shards = read_json(index).get("weight_map")
            if not isinstance(shards, dict) or not all(
                isinstance(shard, str) and re.fullmatch(r"(?!\.+$)[^/\\\0]+", shard) for shard in shards.values()
            ):
                raise CheckpointError(f"{index}: weight_map must name a file for each tensor")
            return sorted(set(shards.values()))
        if (folder / name).exists():
            return [name]
    return [WEIGHTS[0]]


def parameters_of(config: AnyConfig) -> dict[str, Tensor]:
    """A model's parameters by name, of which there are only shapes."""
    return dict(empty_model(config).named_parameters())


def empty_model(config: AnyConfig) -> AnyModel:
    """A model without numbers, on the meta device."""
    with torch.device("meta"), _NoFirstValues():
        if isinstance(config, RecurrentConfig):
            return RecurrentEncoderDecoder(config)
        if isinstance(config, TextEncoderConfig):
            return TextEncoder(config)
        return make_model(config)


class _NoFirstValues(TorchFunctionMode):
    """Layers draw no first values: on the meta device there are none, and PyTorch would import a second's worth of code
    to see it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def account(checkpoint: Checkpoint, parameters: dict[str, Tensor]) -> list[tuple[TensorMapping, str | None]]:
    """Each entry with the name its tensor has in the file, None for zeros. All problems in one CheckpointError."""
    fam, config, reader = checkpoint.family, checkpoint.config, checkpoint.reader
    pairs, wrong, unused = [], [f"filled twice: {what}" for what in reader.twice], set(reader)
    bare = not any(name.startswith(fam.prefix) for name in reader)
    there = {fam.prefix + name if bare else name for name in reader}
    for entry in entries(fam, config, parameters, there):
        name = entry.theirs.removeprefix(fam.prefix) if bare else entry.theirs
        if name not in reader and entry.instead in reader:
            name = entry.instead
        if name not in reader and entry.zeros:
            pairs.append((entry, None))
            continue
        if name not in reader:
            wrong.append(f"missing: {name} (fills {', '.join(entry.ours)})")
            continue
        unused.discard(name)
        if reader.shape(name) != entry.shape(parameters):
            found, told = list(reader.shape(name)), list(entry.shape(parameters))
            wrong.append(f"shape: {name} is {found}, the config says {told}")
        if reader.dtype(name) is None:
            wrong.append(f"type: {name} is {reader.kind(name)}, weights are {reader.readable(name)}")
        pairs.append((entry, name))
    wrong += [f"not used: {name}" for name in sorted(unused) if not _may_be_left(fam, config, name, reader)]
    if wrong:
        shown = "\n  ".join(wrong[:SHOWN]) + (f"\n  and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else "")
        raise CheckpointError(f"{checkpoint.path}: the weights do not fit the configuration:\n  {shown}")
    return pairs


def _may_be_left(fam: Family, config: AnyConfig, name: str, reader: TensorReader) -> bool:
    """A buffer without weights, a copy of the embedding beside a tied head, or one of a vector."""
    n_layers = config.n_layers if isinstance(config, ModelConfig) else 0
    patterns = [pattern.replace("{n_layers}", str(n_layers)) for pattern in fam.ignored]
    if any(re.fullmatch(pattern, name.removeprefix(fam.prefix)) for pattern in patterns):
        return True
    rules = None if isinstance(config, RecurrentConfig) else fam.rules_of(config)
    if rules is None or isinstance(config, RecurrentConfig):
        return False
    twin = dict(fam.twins).get(name)
    if twin is not None and twin in reader:
        return torch.equal(reader[name], reader[twin])
    theirs = {rule.ours: rule.theirs for rule in rules}
    table, head = theirs["embed.weight",], theirs.get(("head.weight",))
    table = table if table in reader else table.removeprefix(fam.prefix)
    tied = isinstance(config, ModelConfig) and config.tied_head
    copies = {*fam.copies, *(() if head is None or not tied else (head,))}
    known = name in copies or fam.prefix + name in copies
    return known and table in reader and torch.equal(reader[name], reader[table])
