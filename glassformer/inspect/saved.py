"""Traces on disk: `trace.json` says what was traced, and names the safetensors file that has the numbers.

The file is written first, under a name made from what is in it; then trace.json, which names it, takes the place of an
older one. A kill at any moment leaves the older trace whole, or the new one.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from glassformer.config import as_dict
from glassformer.errors import CheckpointError
from glassformer.inspect.again import Kept
from glassformer.inspect.edit import Store, from_json
from glassformer.inspect.editing import Edits
from glassformer.inspect.trace import Language, Trace
from glassformer.nn.model import Decoder
from glassformer.weights.atomic import write_text
from glassformer.weights.save import save_tensors

FORMAT, ABOUT, LAST, EDIT = 1, "trace.json", "last_logits", "edit."
SAMPLE = 1024  # numbers of each parameter that are part of a fingerprint, beside the sum of all
WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def signature(model: Decoder) -> str:
    """SHA-256 of what tells a model from another: its configuration, and of each parameter the sum of all its bits as
    whole numbers, and numbers from all over it.
    """
    digest = hashlib.sha256(json.dumps(as_dict(model.config), sort_keys=True, default=str).encode())
    for name, parameter in model.named_parameters():
        flat = parameter.detach().flatten().view(WHOLE[parameter.element_size()])
        some = flat[:: max(1, len(flat) // SAMPLE)].cpu().contiguous()
        digest.update(f"{name} {list(parameter.shape)} {parameter.dtype} {int(flat.sum(dtype=torch.int64))}".encode())
        digest.update(some.numpy().tobytes())
    return digest.hexdigest()


def save(t: Trace, folder: str | Path) -> None:
    """Write a trace's folder. CheckpointError where the disk is full or cannot be written."""
    folder = Path(folder)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in t.kept.tensors.items()}
    tensors |= {f"{EDIT}{edit.vector}": edit.tensor for edit in t.edits if edit.tensor is not None}
    if t.kept.last_logits is not None:
        tensors[LAST] = t.kept.last_logits.detach().cpu()
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}  # one file has no two names for one place
    about: dict[str, Any] = {
        "format": FORMAT, "fingerprint": signature(t.model), "ids": t.ids, "n_prompt": t.n_prompt, "finish": t.finish,
        "seed": t.seed, "rereads": t.rereads, "budget": t.budget, "edits": [edit.json for edit in t.edits],
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(about).encode())
    for name, tensor in tensors.items():
        digest.update(name.encode())
        digest.update(tensor.view(torch.uint8).numpy().tobytes())
    about["tensors"] = f"trace-{digest.hexdigest()[:16]}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{folder} could not be made: {error.strerror}") from error
    save_tensors(tensors, folder / about["tensors"])
    write_text(folder / ABOUT, json.dumps(about, indent=1) + "\n")
    for old in folder.glob("trace-*.safetensors"):
        if old.name != about["tensors"]:
            old.unlink(missing_ok=True)


def load(lm: Language, folder: str | Path) -> Trace:
    """A trace that was saved, of this very model. CheckpointError where it is of another, or not whole."""
    folder, about = Path(folder), {}
    try:
        about = json.loads((folder / ABOUT).read_text("utf-8"))
        if about["format"] != FORMAT:
            raise CheckpointError(f"{folder / ABOUT} has format {about['format']}, and this version reads {FORMAT}")
        if about["fingerprint"] != signature(lm.model):
            raise CheckpointError(f"{folder}: this trace is of another model, or of other weights than this one has")
        found: dict[str, Tensor] = load_file(folder / about["tensors"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} holds no whole trace: {error}") from error
    except CheckpointError:
        raise
    except Exception as error:  # safetensors has an error type of its own
        raise CheckpointError(f"{folder / about.get('tensors', '')} is damaged: {error}") from error
    device = lm.model.embed.weight.device
    store = Store()
    for name in [name for name in found if name.startswith(EDIT)]:
        store.put(found.pop(name))
    edits = [from_json(one, store) for one in about["edits"]]
    last = found.pop(LAST, None)
    ids, n_prompt = about["ids"], about["n_prompt"]
    editor = Edits(lm.model.config, edits, [n_prompt], len(ids)) if edits else None
    kept = Kept(
        lm.model, torch.tensor(ids, device=device), {name: tensor.to(device) for name, tensor in found.items()}, editor,
        () if editor is None else tuple(editor.by_point), None if last is None else last.to(device),
    )  # fmt: skip
    return Trace(
        lm, kept, n_prompt=n_prompt, edits=tuple(edits), choices=() if editor is None else editor.choices,
        finish=about["finish"], rereads=about["rereads"], budget=about["budget"], seed=about["seed"],
    )  # fmt: skip
