"""Damaged model files: loading gives a model or an error that names the file, never a crash or a huge allocation."""

import json
import struct
import tracemalloc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny import randomise, tiny_config
from tiny_gguf import gguf_model

from glassformer.errors import CheckpointError, ConfigError
from glassformer.formats import load_decoder, save_model
from glassformer.formats.gguf.header import read_header
from glassformer.formats.gguf.save import save_gguf
from glassformer.nn.model import Decoder

FAMILIES = (
    "gemma3_text",
    "phi3",
    "mixtral",
    "gpt_oss",
    "stablelm",
)  # features: window, rope factors, experts, ...
WORDS = {"tokenizer.ggml.tokens": ["a", "b", "ü"], "x.floats": [0.5, 1.5], "x.flag": True}
NUMBERS = [0, 1, 255, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    one_layer = tiny_config("llama")
    model = randomise(Decoder(type(one_layer)(**{**vars(one_layer), "layers": one_layer.layers[:1]})))
    save_model(model, folder)
    save_gguf(model, folder / "model.gguf", "Q8_0", extra=WORDS)
    for family in FAMILIES:
        save_gguf(gguf_model(family), folder / f"{family}.gguf", "Q8_0")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    return folder


def assert_loads_or_names(path, **options):
    """Load a model; the only errors allowed are CheckpointError and ConfigError, with a message that names the file."""
    try:
        load_decoder(path, **options)
    except (CheckpointError, ConfigError) as error:
        assert path.name in str(error) or "config.json" in str(error), error  # noqa: PT017


def mutate(data_bytes: bytes, data, header: int) -> bytes:
    """Change, cut, insert or duplicate some bytes, most of them in the header."""
    mutated = bytearray(data_bytes)
    for _ in range(data.draw(st.integers(1, 4))):
        if not mutated:
            break
        at = data.draw(st.integers(0, min(header, len(mutated) - 1)) | st.integers(0, len(mutated) - 1))
        kind = data.draw(st.sampled_from(["byte", "number", "cut", "insert", "double", "remove"]))
        if kind == "byte":
            mutated[at] = data.draw(st.integers(0, 255))
        elif kind == "number":
            mutated[at : at + 8] = struct.pack("<Q", data.draw(st.sampled_from(NUMBERS)))
        elif kind == "cut":
            mutated = mutated[: max(1, at)]
        elif kind == "insert":
            mutated[at:at] = data.draw(st.binary(min_size=1, max_size=9))
        elif kind == "double":
            mutated[at:at] = mutated[at : at + data.draw(st.integers(1, 64))]
        else:
            del mutated[at : at + data.draw(st.integers(1, 9))]
    return bytes(mutated)


@settings(max_examples=150)
@pytest.mark.parametrize("name", ["model.safetensors", "model.gguf", "pytorch_model.bin"])
@given(data=st.data())
def test_mutated_file_loads_or_raises(files, name, tmp_path_factory, data):
    whole = (files / name).read_bytes()
    path = tmp_path_factory.mktemp("damaged", numbered=True) / name
    path.write_bytes(mutate(whole, data, 2600))
    (path.parent / "config.json").write_bytes((files / "config.json").read_bytes())
    assert_loads_or_names(path, copy=data.draw(st.booleans()))


@settings(max_examples=60)
@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
def test_mutated_gguf_loads_or_raises(files, family, tmp_path_factory, data):
    """Most changes fall into the metadata, which comes first in the file."""
    whole = (files / f"{family}.gguf").read_bytes()
    path = tmp_path_factory.mktemp("damaged", numbered=True) / "a.gguf"
    path.write_bytes(mutate(whole, data, 1100))
    assert_loads_or_names(path)


@pytest.mark.parametrize("number", [0, 1, 3, 2**31 - 1, 2**32 - 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_absurd_metadata_number_loads_or_raises(files, family, number, tmp_path):
    """Set each number of the metadata to an absurd value, one at a time."""
    whole, path = (files / f"{family}.gguf").read_bytes(), tmp_path / "a.gguf"
    header = read_header(files / f"{family}.gguf")
    for key, value in header.metadata.items():
        if type(value) not in (int, float):
            continue
        at = whole.index(key.encode()) + len(key) + 4
        path.write_bytes(whole[:at] + struct.pack("<I", number) + whole[at + 4 :])
        assert_loads_or_names(path)


@pytest.mark.parametrize("name", ["model.safetensors", "model.gguf"])
def test_truncated_file_raises(files, name, tmp_path):
    whole = (files / name).read_bytes()
    (tmp_path / "config.json").write_bytes((files / "config.json").read_bytes())
    header = range(0, 2600, 13)
    for cut in [*header, len(whole) // 2, len(whole) - 33]:
        (tmp_path / name).write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match=name):
            load_decoder(tmp_path / name)


def gguf_string(text):
    return struct.pack("<Q", len(text)) + text.encode()


def key_value(key, kind, value):
    return gguf_string(key) + struct.pack("<I", kind) + value


def gguf_bytes(key_values=(), tensors=(), n_keys=None, n_tensors=None, version=3):
    counts = struct.pack("<IQQ", version, len(tensors) if n_tensors is None else n_tensors,
                         len(key_values) if n_keys is None else n_keys)  # fmt: skip
    return b"GGUF" + counts + b"".join(key_values) + b"".join(tensors) + b"\0" * 64


def tensor(name="t", dims=(4,), kind=0, offset=0):
    return gguf_string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


HUGE = 2**62
BAD = {
    "no magic": (b"GGML" + b"\0" * 60, "does not begin with GGUF"),
    "version": (gguf_bytes(version=1), "version 1 is not supported"),
    "big-endian": (gguf_bytes(version=3 << 24), "is not supported, only little-endian"),
    "keys": (gguf_bytes(n_keys=HUGE), f"claims {HUGE} keys"),
    "tensors": (gguf_bytes(n_tensors=HUGE), f"claims {HUGE} tensors"),
    "string": (gguf_bytes([struct.pack("<Q", HUGE)]), f"claims {HUGE} bytes"),
    "array": (gguf_bytes([key_value("a", 9, struct.pack("<IQ", 4, HUGE))]), f"claims {HUGE} elements of a"),
    "texts": (gguf_bytes([key_value("a", 9, struct.pack("<IQ", 8, HUGE))]), f"claims {HUGE} elements of a"),
    "array of arrays": (gguf_bytes([key_value("a", 9, struct.pack("<IQ", 9, 1))]), "a is an array of type 9"),
    "type": (gguf_bytes([key_value("a", 77, b"")]), "a has the unknown type 77"),
    "twice": (gguf_bytes([key_value("a", 7, b"\1")] * 2), "the key 'a' appears twice"),
    "not UTF-8": (gguf_bytes([struct.pack("<Q", 2) + b"\xff\xff"]), "a key is not UTF-8"),
    "dims": (gguf_bytes(tensors=[tensor(dims=(1,) * 9)]), "t has 9 dimensions"),
    "size": (gguf_bytes(tensors=[tensor(dims=(HUGE, HUGE))]), "end after the end of the file"),
    "offset": (gguf_bytes(tensors=[tensor(offset=HUGE)]), f"t is at offset {HUGE}, expected 0"),
    "unaligned": (gguf_bytes(tensors=[tensor(offset=3)]), "t is at offset 3, expected 0"),
    "overlap": (gguf_bytes(tensors=[tensor("a"), tensor("b")]), "b is at offset 0, expected 32"),
    "overlap in part": (
        gguf_bytes(tensors=[tensor("a", (12,)), tensor("b", offset=32)]),
        "at offset 32, expected 64",
    ),
    "gap": (gguf_bytes(tensors=[tensor("a"), tensor("b", offset=64)]), "b is at offset 64, expected 32"),
    "order": (gguf_bytes(tensors=[tensor("a", offset=32), tensor("b")]), "a is at offset 32, expected 0"),
    "beyond": (gguf_bytes(tensors=[tensor("a"), tensor("b", (64,), offset=32)]), "b is .* end after the end"),
    "kind": (gguf_bytes(tensors=[tensor(kind=200)]), "t has the unknown type 200"),
    "blocks": (gguf_bytes(tensors=[tensor(dims=(33,), kind=8)]), "multiples of 32"),
    "tensor twice": (gguf_bytes(tensors=[tensor()] * 2), "the tensor 't' appears twice"),
    "alignment": (gguf_bytes([key_value("general.alignment", 4, struct.pack("<I", 3))]), "power of two"),
    "empty": (b"", "it is empty"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_gguf_header_raises(name, tmp_path):
    """The error is raised before the claimed amount of memory is allocated."""
    (tmp_path / "a.gguf").write_bytes(BAD[name][0])
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=BAD[name][1]) as error:
            load_decoder(tmp_path / "a.gguf")
        assert tracemalloc.get_traced_memory()[1] < 30e6
    finally:
        tracemalloc.stop()
    assert "a.gguf" in str(error.value)


@pytest.mark.parametrize(("size", "header"), [
    (HUGE, {}),
    (2, {}),
    (100, {"a": {"dtype": "F32", "shape": [HUGE], "data_offsets": [0, 4 * HUGE]}}),
    (70, {"a": {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 4]}}),
])  # fmt: skip
def test_absurd_safetensors_size_raises(size, header, files, tmp_path):
    text = json.dumps(header).encode().ljust(min(size, 100))
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", max(size, len(text))) + text)
    (tmp_path / "config.json").write_bytes((files / "config.json").read_bytes())
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=str(tmp_path)):
            load_decoder(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 30e6
    finally:
        tracemalloc.stop()
