"""`glassformer show`: describe a model without loading its weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from rich.table import Table

from glassformer.cli.common import IgnoreKeys, Json, out, print_json
from glassformer.counted import counted

if TYPE_CHECKING:
    from glassformer.formats.checkpoint import Checkpoint
    from glassformer.kernels.placement import Placement, QuantizedMatrices
    from glassformer.text.tokenizer import Tokenizer

PARTS = {
    "embed": "embedding",
    "token_types": "token types",
    "relative_positions": "position bias",
    "attn": "attention",
    "cross": "cross-attention",
    "mlp": "feed-forward",
    "next_sentence": "next-sentence head",
}


def show(
    model: str,
    *,
    quantize: Literal["int8", "int4"] | None = None,
    offline: Annotated[bool, Parameter(negative="")] = False,
    json: Json = False,
    ignore_key: IgnoreKeys = (),
) -> None:
    """Show a model without loading it: sizes, memory, files, tokenizer, chat template and implementations.

    Parameters
    ----------
    model
        A model folder or file, a run folder, `stories`, `smollm2`, or a name on the hub.
    quantize
        Load the model, quantize it, and show the relative error of each matrix.
    offline
        Use no network.
    """
    from glassformer.config import TextEncoderConfig
    from glassformer.families.common.config_json import to_json
    from glassformer.formats.checkpoint import open_checkpoint
    from glassformer.formats.find import find_model, tokenizer_of
    from glassformer.formats.load import account, meta_parameters, quantized_matrices
    from glassformer.formats.sentence_transformers import MODULES, read_pooling
    from glassformer.kernels.describe import describe
    from glassformer.kernels.packed_linear import runs_packed
    from glassformer.kernels.placement import choose_placement
    from glassformer.models.load import load

    found = find_model(model, offline=offline)
    checkpoint = open_checkpoint(found, ignore_key)
    parameters = meta_parameters(checkpoint.config)
    used = {name for _, name in account(checkpoint, parameters)}
    parts: Counter[str] = Counter()
    for name, p in parameters.items():
        parts[_part(name)] += p.numel()
    stored = Counter(checkpoint.reader.stored_type(name) for name in checkpoint.reader)
    tokenizer = tokenizer_of(found, checkpoint.metadata)
    sentence = None
    if isinstance(checkpoint.config, TextEncoderConfig) and (found / MODULES).exists():
        sentence = to_json(read_pooling(found, checkpoint.config.d_model).config)
    matrices = quantized_matrices(checkpoint)
    placement = choose_placement(
        "auto", "auto", stored=checkpoint.dtype, n_parameters=checkpoint.n_parameters,
        quantized=matrices, packs=runs_packed(),
    )  # fmt: skip
    quantization = None
    memory = _memory(sum(parts.values()), matrices, placement)
    if quantize is not None:
        lm = load(found, quantize=quantize, ignore_keys=ignore_key)
        placement, quantization = lm.placement or placement, lm.quantization
        stored_once = {tensor.data_ptr(): tensor.nbytes for tensor in lm.model.state_dict().values()}
        memory = {quantize: sum(stored_once.values())} | memory
    facts = {
        "model": str(found),
        "family": checkpoint.family.name,
        "parameters": sum(parts.values()),
        "parts": dict(parts),
        "stored": dict(stored),
        "not read": sorted(name for name in checkpoint.reader if name not in used),
        "memory": memory,
        "cache": _cache(checkpoint),
        **({} if quantization is None else {"quantization": asdict(quantization)}),
        "choices": [asdict(choice) for choice in describe(checkpoint.config, placement)],
        "tokenizer": None if tokenizer is None else _tokenizer_facts(tokenizer),
        "chat_templates": {} if tokenizer is None else tokenizer.chat_templates,
        **({} if sentence is None else {"sentence": sentence}),
        "config": to_json(checkpoint.config),
    }
    if json:
        print_json(facts)
    else:
        _print(facts)


def _part(name: str) -> str:
    """Return the part of a model that a parameter belongs to."""
    words = [word for word in name.removeprefix("encoder.").split(".") if word != "blocks" and not word.isdigit()]
    side = "encoder: " if name.startswith("encoder.") else ""
    if "norm" in words or words[0].endswith("_norm"):
        return f"{side}norms"
    return side + PARTS.get(words[0], words[0])


def _memory(n_weights: int, matrices: Sequence[QuantizedMatrices], placement: Placement) -> dict[str, int]:
    """Return the bytes of the weights as they run, if they are packed, and in float dtypes."""
    floats = {"float32": 4 * n_weights, "bfloat16": 2 * n_weights}
    if not placement.packed:
        return floats
    packed = [one for one in matrices if one.packs]
    n_floats = n_weights - sum(one.n_weights for one in packed)
    return {"packed": sum(one.nbytes for one in packed) + n_floats * placement.dtype.itemsize} | floats


def _cache(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Return the bytes of cached keys and values in a 16-bit dtype; None if the model has no cache."""
    from glassformer.cache.size import cached_numbers
    from glassformer.config import ModelConfig

    config = checkpoint.config
    if not isinstance(config, ModelConfig):
        return None
    full = cached_numbers(config, config.context_length) * 2
    return {
        "bytes_per_token": cached_numbers(config, 1) * 2,
        "context": config.context_length,
        "bytes_at_context": full,
    }


def _tokenizer_facts(tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "vocab_size": tokenizer.vocab_size,
        "bos_id": tokenizer.bos_id,
        "eos_id": tokenizer.eos_id,
        "adds_bos": tokenizer.add_bos,
        "special": len(tokenizer.special_tokens),
    }


def _print(facts: dict[str, Any]) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("model", facts["model"])
    table.add_row("family", facts["family"])
    total = facts["parameters"]
    table.add_row("parameters", f"{total:,}")
    for part, n in facts["parts"].items():
        table.add_row("", f"{n:>15,}  {100 * n / total:5.1f}%  {part}")
    table.add_row("stored", ", ".join(f"{counted(n, 'tensor')} {kind}" for kind, n in facts["stored"].items()))
    if left := facts["not read"]:
        table.add_row(
            "not read", f"{counted(len(left), 'tensor')}: {left[0]}{' to ' + left[-1] if len(left) > 1 else ''}"
        )
    sizes = {"packed" if name == "packed" else f"in {name}": size for name, size in facts["memory"].items()}
    table.add_row("memory", ", ".join(f"{size / 1e6:,.1f} MB {name}" for name, size in sizes.items()))
    if facts["cache"] is not None:
        cache = facts["cache"]
        row = f"a sequence of {cache['context']:,} tokens: {cache['bytes_at_context'] / 1e6:,.1f} MB"
        table.add_row("cache", f"{cache['bytes_per_token']:,} bytes per token in 16 bits; {row}")
    if (quantization := facts.get("quantization")) is not None:
        for i, one in enumerate(quantization["matrices"]):
            row = f"{one['format']}  {100 * one['error']:6.2f}%  {one['name']} {list(one['shape'])}"
            table.add_row("" if i else "errors", row)
    for choice in facts["choices"]:
        table.add_row(choice["what"], f"{choice['value']}: {choice['because']}")
    words = facts["tokenizer"]
    table.add_row("tokenizer", ", ".join(f"{key} {value}" for key, value in words.items()) if words else "none")
    templates = [f"{name} ({counted(len(text), 'character')})" for name, text in facts["chat_templates"].items()]
    table.add_row("chat templates", ", ".join(templates) or "none")
    for part in ("sentence", "config"):
        for i, (key, value) in enumerate(facts.get(part, {}).items()):
            table.add_row("" if i else part, f"{key}: {value}")
    out.print(table, markup=False)
