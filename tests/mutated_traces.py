"""Damaged saved traces, with a digest that fits them or without; for `mutate.run_mutations`."""

import functools
import json
import random
import tempfile
from pathlib import Path

import torch
from inspect_subjects import SOURCE, subject
from mutate import mutate_bytes, mutate_json, mutate_json_file
from safetensors.torch import load_file, save_file

from glassformer.inspect.edits.edit import ablate, add
from glassformer.inspect.record.store import tensor_file
from glassformer.inspect.views.result import plain

SUBJECTS = {"decoder": ("decoders", "gpt2"), "pair": ("encoder-decoders", "pair"), "recurrent": (
    "recurrent encoder-decoders", "dot"), "encoder": ("encoders", "bert")}  # fmt: skip


@functools.cache
def saved(kind):
    """Return a model, and the files of a trace of it."""
    lm, *_ = subject(*SUBJECTS[kind])
    given = (SOURCE, "the cat sat") if kind in ("pair", "recurrent") else ("the cat sat",)
    edits = []
    if kind in ("decoder", "pair"):
        edits = [add("blocks.0.resid_post", torch.linspace(-1, 1, 48), position=1), ablate("blocks.1.attn.z", head=0)]
    folder = Path(tempfile.mkdtemp())
    lm.trace(*given, edit=edits).save(folder)
    return lm, {path.name: path.read_bytes() for path in folder.iterdir()}


def check(kind: str, rng: random.Random) -> None:
    """Damage a saved trace, load it, and compute views of it if it loads."""
    lm, files = saved(kind)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, data in files.items():
            (folder / file).write_bytes(data)
        how = rng.random()
        (tensors,) = folder.glob("*.safetensors")
        about = folder / "trace.json"
        if how < 0.2:
            about.write_bytes(mutate_json_file(about.read_bytes(), rng))
        elif how < 0.4:
            tensors.write_bytes(mutate_bytes(tensors.read_bytes(), rng, header=2000))
        else:  # values that the digest fits
            described, numbers = json.loads(about.read_bytes()), load_file(tensors)
            if how < 0.8:
                described = mutate_json(described, rng)
            else:
                _change_tensor(numbers, rng)
            if isinstance(described, dict):
                try:
                    described["tensors"] = tensor_file(described, numbers)
                except (TypeError, ValueError, RecursionError):
                    return  # not JSON
                save_file(numbers, folder / described["tensors"])
            about.write_text(json.dumps(described), "utf-8", "surrogatepass")
        t = lm.load_trace(folder)
    for point in rng.sample(t.names(), min(3, len(t.names()))):
        assert t[point].tensor.numel() > 0
    if t.kind != "encoder":
        plain(t.summary())
    t.fork(t) if t.kind == "decoder" else None


def _change_tensor(numbers: dict[str, torch.Tensor], rng: random.Random) -> None:
    name = rng.choice(sorted(numbers))
    value = numbers[name]
    match rng.choice(("remove", "rename", "dtype", "shape", "nan", "longer", "extra", "empty")):
        case "remove":
            del numbers[name]
        case "rename":
            numbers[rng.choice(("", "x", "blocks.9.attn.v", "edit.", f"{name}.", "last_logits"))] = numbers.pop(name)
        case "dtype":
            numbers[name] = value.to(rng.choice((torch.float64, torch.int32, torch.bool, torch.float16)))
        case "shape":
            numbers[name] = value.reshape(-1).contiguous()
        case "nan":
            numbers[name] = value.clone()
            numbers[name].reshape(-1)[0] = float(rng.choice(("nan", "inf", "-inf")))
        case "longer":
            numbers[name] = torch.cat([value, value])
        case "extra":
            numbers[rng.choice(("blocks.0.mlp.act", "embed.out", "final.logits", "a"))] = value.clone()
        case _:
            numbers[name] = value.new_empty(0)


CHECKS = {kind: functools.partial(check, kind) for kind in SUBJECTS}
