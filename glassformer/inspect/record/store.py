"""Traces on disk: `trace.json` describes the trace and names the safetensors file with its tensors.

The tensor file is written first, under a name made from its contents; then trace.json, which names it, replaces the
older one. An interruption at any moment leaves either the older trace or the new one, complete.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NotRequired, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from typing_extensions import TypedDict

from glassformer.atomic import write_text
from glassformer.config import as_dict
from glassformer.errors import CapacityError, CheckpointError, RequestError
from glassformer.formats.safetensors_file import save_tensors
from glassformer.generate.session import max_source_tokens, vocab_sizes
from glassformer.inspect.capture.capture import required_points
from glassformer.inspect.capture.points import ENCODER, find, points, sizes
from glassformer.inspect.edits.apply import Edits, edited_points, trace_fields
from glassformer.inspect.edits.edit import Store, from_json
from glassformer.inspect.trace.recompute import CapturedValues
from glassformer.inspect.trace.recurrent import RecurrentTrace, SourceTokens
from glassformer.inspect.trace.seq2seq import Seq2seqTrace
from glassformer.inspect.trace.trace import ModelKind, Trace
from glassformer.json_file import check_schema, read_json
from glassformer.kernels.packed_linear import packed_modules
from glassformer.nn.linear import device_of, dtype_of
from glassformer.nn.protocols import EncodedSource

FORMAT, ABOUT, LAST, EDIT = 2, "trace.json", "last_logits", "edit."
ANY_LENGTH = 1 << 31  # an edit may name positions that generation did not reach
TENSOR_FILE = r"trace-[0-9a-f]{16}\.safetensors"
SAMPLE = 1024  # numbers of each parameter in a fingerprint, in addition to the sum of all
T = TypeVar("T", bound=Trace)
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def signature(model: Any) -> str:
    """Return a SHA-256 that identifies a model.

    It covers the configuration, and for each parameter the sum of its numbers as integers and a sample of them.
    """
    digest = hashlib.sha256(json.dumps(as_dict(model.config), sort_keys=True, default=str).encode())
    packed = ((f"{name}.packed", module.packed) for name, module in packed_modules(model))
    for name, parameter in chain(model.named_parameters(), packed):
        flat = parameter.detach().flatten().view(INTEGERS[parameter.element_size()])
        some = flat[:: max(1, len(flat) // SAMPLE)].cpu().contiguous()
        digest.update(f"{name} {list(parameter.shape)} {parameter.dtype} {int(flat.sum(dtype=torch.int64))}".encode())
        digest.update(some.numpy().tobytes())
    return digest.hexdigest()


def save(t: Trace, folder: str | Path) -> None:
    """Save a trace in a folder. CheckpointError where the disk is full or the folder cannot be written."""
    folder = Path(folder)
    captured = t.captured.tensors | ({} if t.captured.last_logits is None else {LAST: t.captured.last_logits})
    if isinstance(t, Seq2seqTrace):
        captured |= {f"{ENCODER}{name}": tensor for name, tensor in t.source.captured.tensors.items()}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in captured.items()}
    tensors |= {f"{EDIT}{edit.vector}": edit.tensor for edit in t.edits if edit.tensor is not None}
    tensors = {
        name: tensor.clone() for name, tensor in tensors.items()
    }  # safetensors rejects tensors that share memory
    about: dict[str, Any] = {
        "format": FORMAT, "kind": t.kind, "fingerprint": signature(t.model), "ids": list(t.ids), "n_prompt": t.n_prompt,
        "finish": t.finish, "seed": t.seed, "rereads": list(t.reprefills), "budget": t.budget,
        "edits": [edit.json for edit in t.edits],
    }  # fmt: skip
    if t.source is not None:
        about |= {"source": list(t.source_ids), "target": list(t.target)}
    about["tensors"] = tensor_file(about, tensors)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be created: {error.strerror}") from error
    save_tensors(tensors, folder / about["tensors"])
    write_text(folder / ABOUT, json.dumps(about, indent=1) + "\n")
    for old in folder.glob("trace-*.safetensors"):
        if old.name != about["tensors"]:
            old.unlink(missing_ok=True)


def tensor_file(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return the name of the tensor file of a saved trace: a digest of its description and of all tensors."""
    described = {key: value for key, value in about.items() if key != "tensors"}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode("utf-8", "backslashreplace"))
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"trace-{digest.hexdigest()[:16]}.safetensors"


class SavedTrace(TypedDict):
    """The contents of `trace.json`. source, target: of a model with a source."""

    format: int
    kind: ModelKind
    fingerprint: str
    ids: list[int]
    n_prompt: int
    finish: Literal["stop", "length", "nan"] | None
    seed: int | None
    rereads: list[int]
    budget: int
    edits: list[dict[str, Any]]
    source: NotRequired[list[int]]
    target: NotRequired[list[int]]
    tensors: str


def load(trace_type: type[T], lm: Any, folder: str | Path) -> T:
    """Load a trace of this model. CheckpointError where it is of another model, incomplete or damaged."""
    folder = Path(folder)
    raw = read_json(folder / ABOUT, dict[str, Any])
    if raw.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder / ABOUT} has format {raw.get('format')!r:.40}, and this version reads {FORMAT}: record the trace "
            "again"
        )
    about: SavedTrace = check_schema(raw, folder / ABOUT, SavedTrace)
    if about["fingerprint"] != signature(lm.model):
        raise CheckpointError(f"{folder}: this trace is of another model, or of other weights than this model's")
    try:
        if about["kind"] != lm.kind:
            raise ValueError(f"the trace is of a model of kind {about['kind']!r}, and this one is of kind {lm.kind!r}")
        _check_tokens(lm, about)
        if not re.fullmatch(TENSOR_FILE, about["tensors"]):
            raise ValueError(f"tensors must be the name of a file of the folder, got {about['tensors']!r:.100}")
        found: dict[str, Tensor] = load_file(folder / about["tensors"])
        if about["tensors"] != tensor_file(raw, found):
            raise ValueError(f"the contents differ from the digest in the name {about['tensors']}: a file was changed")
        return _trace(trace_type, lm, about, found)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder} holds no complete trace: {error}") from error
    except (RequestError, CapacityError) as error:  # from an edit
        raise CheckpointError(f"{folder / ABOUT}: {error}") from error
    except SafetensorError as error:
        raise CheckpointError(f"{folder / about['tensors']} is damaged: {error}") from error


def _check_tokens(lm: Any, about: SavedTrace) -> None:
    """Raise ValueError unless the model can have processed these tokens."""
    config, n = lm.config, len(about["ids"])
    context: int | None = getattr(config, "context_length", None)
    sides: list[tuple[str, list[int], int, int | None]]
    if about["kind"] in ("encoder-decoder", "recurrent"):
        source_size, size = vocab_sizes(lm.model)
        sides = [
            ("ids", about["ids"], size, context),
            ("source", about.get("source", []), source_size, max_source_tokens(lm.model)),
            ("target", about.get("target", []), size, n),
        ]  # fmt: skip
        if len(about.get("target", [])) != n:
            raise ValueError(f"target must have {n} tokens, one for each of ids, got {len(about.get('target', []))}")
    else:
        sides = [("ids", about["ids"], config.vocab_size, context)]
        if about.get("source") or about.get("target"):
            raise ValueError("source and target are of a model with a source, and this one has none")
    for name, ids, size, limit in sides:
        if not ids or (limit is not None and len(ids) > limit):
            raise ValueError(f"{name} must have 1 to {limit} tokens, got {len(ids)}")
        if not (min(ids) >= 0 and max(ids) < size):
            raise ValueError(f"{name} must be tokens from 0 to {size - 1}, got {min(ids)} to {max(ids)}")
    if about["budget"] < 1 or (about["seed"] or 0) < 0:
        raise ValueError(f"budget must be above 0 and seed at least 0, got {about['budget']} and {about['seed']}")
    if not 1 <= about["n_prompt"] <= n:
        raise ValueError(f"n_prompt must be from 1 to {n}, got {about['n_prompt']}")
    if not all(1 <= length <= n for length in about["rereads"]):
        raise ValueError(f"rereads must be lengths from 1 to {n}, got {about['rereads']}")


def _trace(trace_type: type[T], lm: Any, about: SavedTrace, found: dict[str, Tensor]) -> T:
    """Make the trace of a model from its description and its tensors.

    KeyError names what is missing; ValueError says what does not fit the model.
    """
    store, device = Store(), device_of(lm.model)
    for name in [name for name in found if name.startswith(EDIT)]:
        if found[name].dtype != torch.float32 or store.put(found.pop(name)) != name.removeprefix(EDIT):
            raise ValueError(f"{name} must be float32 with the SHA-256 of its name")
    tensors = {name: tensor.to(device) for name, tensor in found.items()}
    source, edits = about.get("source", []), [from_json(one, store) for one in about["edits"]]
    editor = Edits(lm.config, edits, [about["n_prompt"]], ANY_LENGTH, len(source)) if edits else None
    rest: dict[str, Any] = {name: about[name] for name in ("n_prompt", "finish", "seed", "budget")} | trace_fields(
        editor
    )
    rest["reprefills"] = about["rereads"]
    dtypes = {torch.float32, dtype_of(lm.model)}

    def captured(
        model: Any, ids: list[int], prefix: str, editor: Edits | None, encoded: EncodedSource | None = None
    ) -> CapturedValues:
        own = {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}
        own = own if prefix else {name: tensor for name, tensor in own.items() if not name.startswith(ENCODER)}
        edited = edited_points(editor)
        for name in required_points(model.config, edited) if trace_type.has_blocks else points(model.config):
            if name not in own:
                raise KeyError(f"{prefix}{name}")
        for name, value in own.items():
            axes = ["V"] if name == LAST else find(model.config, name).axes.split()[1:]
            known = sizes(model.config, name) | {"T": len(ids), "S": len(source), "2": 2}
            shape = tuple(known[axis.removeprefix("#")] for axis in axes)
            if value.shape != shape or value.dtype not in dtypes:
                raise ValueError(
                    f"{prefix}{name} must have the shape {list(shape)} and a dtype of the model, got "
                    f"{list(value.shape)} and {value.dtype}"
                )
            if not edits and not (value.isfinite() | value.isneginf()).all():
                raise ValueError(f"{prefix}{name} holds NaN or infinity, and no edit made it")
        last = own.pop(LAST, None)
        return CapturedValues(model, torch.tensor(ids, device=device), own, editor, edited, last, encoded)

    ids = about["ids"]
    if issubclass(trace_type, RecurrentTrace):
        tokens = SourceTokens(lm, source)
        return trace_type(lm, captured(lm.model, ids, "", editor), tokens, about.get("target", []), **rest)
    if issubclass(trace_type, Seq2seqTrace):
        inner = None if editor is None else editor.for_encoder()
        encoder = trace_type.source_type(lm, captured(lm.model.encoder, source, ENCODER, inner), **trace_fields(inner))
        values = captured(lm.model, ids, "", editor, encoder.encoded)
        return trace_type(lm, values, encoder, about.get("target", []), **rest)
    return trace_type(lm, captured(lm.model, ids, "", editor), **rest)
