"""Damaged model files for the fuzz tests of `tests/formats` and `tests/soak`: one check per format.

`check(name, rng)` damages one file of a valid model folder, loads the model, and runs it on a few tokens.
"""

import json
import random
import shutil
import tempfile
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from mutate import mutate_bytes, mutate_json_file
from tiny import randomise, tiny, tiny_config, tiny_encoder_decoder
from tiny_encoders import CONFIGS as ENCODERS
from tiny_encoders import embedder, tiny_encoder
from tiny_gguf import gguf_model
from tiny_translators import CONFIGS as TRANSLATORS

from glassformer.config import RecurrentConfig, change
from glassformer.families.common.original import META_LLAMA
from glassformer.families.llama import FAMILY as LLAMA
from glassformer.formats import load_model, save_model
from glassformer.formats.gguf.save import save_gguf
from glassformer.formats.tensor_mapping import map_tensors
from glassformer.models.embedder import Embedder
from glassformer.models.language_model import LanguageModel
from glassformer.models.load import load
from glassformer.nn.model import Decoder, EncoderDecoder
from glassformer.nn.recurrent import RecurrentEncoderDecoder

CONFIGS = (
    "qwen3", "gpt2", "gpt_neox", "gemma3_text", "phi3", "gpt_oss", "deepseek_v2", "falcon", "mixtral", "bart", "t5",
    "marian", "bert", "roberta", "pair", "recurrent",
)  # fmt: skip
GGUFS = ("llama", "gemma3_text", "phi3", "gpt_oss", "deepseek_v2")
WORDS = {"tokenizer.ggml.tokens": ["a", "b", "ü"], "x.floats": [0.5, 1.5], "x.flag": True}


def save_original(folder: Path) -> None:
    """Write a model as Meta does: params.json and consolidated.00.pth."""
    config = tiny_config("llama", **{
        f"layers.{i}.{name}": False for i in range(3) for name in ("attention.bias", "attention.out_bias", "mlp.bias")
    })  # fmt: skip
    model = randomise(Decoder(change(config, "tied_head", False)))
    parameters = dict(model.named_parameters())
    mappings = map_tensors(META_LLAMA.apply_to(LLAMA), model.config, parameters)
    torch.save({one.tensor_name: one.join(parameters) for one in mappings}, folder / "consolidated.00.pth")
    settings = {"dim": 48, "n_layers": 3, "n_heads": 4, "n_kv_heads": 1, "norm_eps": 1e-2, "vocab_size": 97,
                "multiple_of": 8, "rope_theta": 10000.0, "ffn_dim_multiplier": 0.5625, "max_seq_len": 64}  # fmt: skip
    (folder / "params.json").write_text(json.dumps(settings))


def model_of(family: str) -> torch.nn.Module:
    """Return a tiny model of a decoder family, an encoder family, an encoder-decoder, or our own two formats."""
    if family in TRANSLATORS:
        return randomise(EncoderDecoder(TRANSLATORS[family]()))
    if family in ENCODERS:
        return tiny_encoder(family)
    if family == "recurrent":
        return randomise(RecurrentEncoderDecoder(RecurrentConfig(11, 13, 10, 12, 2, attention="additive")))
    return tiny_encoder_decoder("separate") if family == "pair" else tiny(family)


@cache
def base(name: str) -> Path:
    """Return a folder with the valid model whose file `name` names: "KIND FAMILY"."""
    folder = Path(tempfile.mkdtemp(prefix="valid-"))
    kind, _, family = name.partition(" ")
    if kind == "gguf":
        save_gguf(gguf_model(family), folder / "model.gguf", "Q8_0", extra=WORDS)
    elif kind == "params":
        save_original(folder)
    elif kind in ("modules", "pooling", "dense", "sentence"):
        embedder("bert").save(folder)
    else:
        save_model(model_of(family or "llama"), folder, shard=60_000 if kind == "index" else 10**9)
        (folder / "generation_config.json").write_text('{"eos_token_id": [2, 3], "temperature": 0.5}')
    return folder


def mutate_numbers(data: bytes, rng: random.Random) -> bytes:
    """Return config.json with one or two of its numbers replaced by absurd ones."""
    raw = json.loads(data)
    places: list[tuple[Any, Any]] = []
    nodes: list[Any] = [raw]
    while nodes:
        node = nodes.pop()
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if isinstance(value, (dict, list)):
                nodes.append(value)
            elif type(value) in (int, float):
                places.append((node, key))
    for node, key in rng.sample(places, rng.choice((1, 1, 2))):
        node[key] = rng.choice((0, -1, 1, 7, 9999, 10**6, 10**9, 2**31, 2**40, 2**62, 2**64, 10**30, 1e-300, 1e300))
    return json.dumps(raw).encode()


FILES = {  # kind -> damaged file, mutation
    "config": ("config.json", mutate_json_file),
    "numbers": ("config.json", mutate_numbers),
    "generation": ("generation_config.json", mutate_json_file),
    "index": ("model.safetensors.index.json", mutate_json_file),
    "header": ("model.safetensors", partial(mutate_bytes, header=4000)),
    "gguf": ("model.gguf", partial(mutate_bytes, header=1500)),
    "params": ("params.json", mutate_json_file),
    "modules": ("modules.json", mutate_json_file),
    "pooling": ("1_Pooling/config.json", mutate_json_file),
    "sentence": ("sentence_bert_config.json", mutate_json_file),
}
NAMES = (
    *(f"{kind} {family}" for kind in ("config", "numbers") for family in CONFIGS),
    *(f"gguf {family}" for family in GGUFS),
    *("generation", "index", "header", "params", "modules", "pooling", "sentence"),
)


GROUPS = {kind: [name for name in NAMES if name.startswith(kind)] for kind in ("config", "numbers", "gguf")} | {
    "others": [name for name in NAMES if " " not in name]
}


def check_one_of(group: str, rng: random.Random) -> None:
    """`check` of a random format of a group."""
    check(rng.choice(GROUPS[group]), rng)


def check(name: str, rng: random.Random) -> None:
    """Load and run a damaged model. A model that loads gives logits of the right shape."""
    kind, _, family = name.partition(" ")
    file, mutate = FILES[kind]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "model")
        shutil.copytree(base(name), copy)
        (copy / file).write_bytes(mutate((copy / file).read_bytes(), rng))
        if family in (*TRANSLATORS, *ENCODERS, "pair", "recurrent"):
            load_model(copy)  # without a tokenizer
            return
        model = load(copy / file if file.endswith(".gguf") else copy, device="cpu")
        if isinstance(model, LanguageModel):
            model.generate([1, 2, 3], max_tokens=2, seed=1)
        elif isinstance(model, Embedder):
            model.embed(["a b", "c"])


CHECKS = {name.replace(" ", "-"): partial(check, name) for name in NAMES}
