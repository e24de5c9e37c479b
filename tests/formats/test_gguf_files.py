"""GGUF files against the `gguf` package: its writer, its reader, its quantizers."""

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from tiny import FAMILIES, assert_near, random_ids, run, tiny
from tiny_gguf import gguf_model

from glassformer.families import family_of
from glassformer.formats import load_decoder
from glassformer.formats.gguf.file import DECODABLE, GgufFile
from glassformer.formats.gguf.header import read_header
from glassformer.formats.gguf.metadata import gguf_family
from glassformer.formats.gguf.save import save_gguf
from glassformer.formats.reader import FLOAT_DTYPES, ReadBuffer
from glassformer.formats.tensor_mapping import map_tensors

KINDS = [kind for kind in Kind if kind.name in DECODABLE or kind.name in FLOAT_DTYPES]


def raw_rows(kind, n_rows=7, blocks=3, seed=0):
    """Return random rows of a GGUF type, as bytes."""
    size = gguf.GGML_QUANT_SIZES[kind][1]
    return np.random.default_rng(seed).integers(0, 256, (n_rows, blocks * size), dtype=np.uint8)


def write(path, tensors, metadata=None):
    """Write a file with the package's writer. `tensors`: name -> (bytes [rows, bytes per row], type)."""
    writer = gguf.GGUFWriter(path, "none")
    for key, (value, kind) in (metadata or {}).items():
        writer.add_key_value(key, value, kind)
    for name, (rows, kind) in tensors.items():
        writer.add_tensor(name, rows, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_decodable_types():
    assert {"Q4_0", "Q8_0", "Q4_K", "Q6_K", "IQ4_XS", "MXFP4", "TQ2_0"} <= DECODABLE
    assert len(DECODABLE) >= 23


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_decode_equals_the_gguf_package(kind, tmp_path, monkeypatch):
    rows = raw_rows(kind)
    file = GgufFile(write(tmp_path / "a.gguf", {"a": (rows, kind), "b": (rows[0], kind)}))
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    for size in (1, 1 << 20):
        monkeypatch.setattr("glassformer.formats.reader.CHUNK_BYTES", size)
        for name in "ab":
            with np.errstate(all="ignore"):
                data = theirs[name].data
                expected = data if kind == Kind.F64 else gguf.quants.dequantize(data, kind)
            chunks = [chunk.clone() for _, chunk in file.rows(name, ReadBuffer())]
            for got in (file[name], torch.cat(chunks)):
                assert got.shape == file.shape(name) == tuple(reversed(theirs[name].shape.tolist()))
                np.testing.assert_array_equal(got.double().numpy(), expected.astype(np.float64))
        assert len(list(file.rows("a", ReadBuffer()))) == (7 if size == 1 else 1)


def test_metadata_of_every_type(tmp_path):
    types = gguf.GGUFValueType
    values = {
        "u8": (250, types.UINT8), "i8": (-3, types.INT8), "u16": (65535, types.UINT16), "i16": (-9, types.INT16),
        "u32": (4_000_000_000, types.UINT32), "i32": (-5, types.INT32), "u64": (2**63, types.UINT64),
        "i64": (-(2**62), types.INT64), "f32": (1e-5, types.FLOAT32), "f64": (0.1, types.FLOAT64),
        "bool": (True, types.BOOL), "text": ("naïve ✓", types.STRING), "numbers": ([1, 2, 300], types.ARRAY),
        "texts": (["a", "", "ü"], types.ARRAY), "flags": ([True, False], types.ARRAY),
        "floats": ([0.5, 1e-5], types.ARRAY),
    }  # fmt: skip
    read = read_header(write(tmp_path / "a.gguf", {}, values)).metadata
    assert read.pop("general.architecture") == "none"
    assert read == {key: value for key, (value, _) in values.items()}


BACK = {
    "F32": 0.0,
    "F16": 1e-3,
    "BF16": 1e-2,
    "Q8_0": 2e-2,
    "Q4_0": 0.2,
}  # error, relative to the largest value of the tensor


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", BACK)
def test_saved_gguf_round_trips(family, kind, tmp_path):
    """Metadata, names, types and quantized values agree with ours and with the package's."""
    model = gguf_model(family)
    save_gguf(model, tmp_path / "a.gguf", kind, extra={"general.name": "tiny", "x.list": [1, 2]})
    again = load_decoder(tmp_path / "a.gguf")
    assert again.config == model.config
    for name, p in model.named_parameters():
        off = (again.get_parameter(name).float() - p).abs().max() / p.abs().max()
        assert off <= (BACK[kind] if p.ndim > 1 and "positions" not in name else 0), name
        assert off > 0 or kind == "F32" or p.ndim == 1 or "positions" in name
    theirs = gguf.GGUFReader(tmp_path / "a.gguf")
    assert theirs.fields["general.name"].contents() == "tiny"
    assert theirs.fields["general.file_type"].contents() == {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32}[kind]
    parameters = dict(model.named_parameters())
    entry = {
        one.tensor_name: one for one in map_tensors(gguf_family(family_of(model.config)), model.config, parameters)
    }
    assert {t.name for t in theirs.tensors} == set(entry)
    for tensor in theirs.tensors:
        matrix = len(tensor.shape) > 1 and not tensor.name.startswith("position") and not tensor.name.endswith(".bias")
        assert tensor.tensor_type.name == (kind if matrix else "F32")
        ours = entry[tensor.name].join(parameters).numpy()
        expected = gguf.quants.quantize(ours, tensor.tensor_type)
        np.testing.assert_array_equal(np.asarray(tensor.data).view(np.uint8).ravel(), expected.view(np.uint8).ravel())
    save_gguf(again, tmp_path / "b.gguf", kind, extra={"general.name": "tiny", "x.list": [1, 2]})
    if kind != "Q4_0":  # requantizing is exact, except for the sign of Q4_0's scale
        assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_rows_not_divisible_into_blocks_are_f16(tmp_path):
    model = tiny("llama")  # rows of 48
    save_gguf(model, tmp_path / "a.gguf", "Q8_0")
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    assert kinds["blk.0.attn_q.weight"] == "F16"
    assert_near(run(load_decoder(tmp_path / "a.gguf", dtype=torch.float32), random_ids(model.config, 2, 40)),
                run(model, random_ids(model.config, 2, 40)), 2e-2)  # fmt: skip


@pytest.mark.parametrize("options", [{"copy": True}, {"dtype": torch.bfloat16}, {"dtype": torch.float64}], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [1, 700, 1 << 20])
def test_loading_options(family, options, size, tmp_path, monkeypatch):
    """Chunks of one row and of several, with and without permuted heads."""
    monkeypatch.setattr("glassformer.formats.reader.CHUNK_BYTES", size)
    model = gguf_model(family)
    for kind, reference in (("F32", model), ("Q8_0", None)):
        save_gguf(model, tmp_path / "a.gguf", kind)
        reference = reference or load_decoder(tmp_path / "a.gguf")
        loaded = load_decoder(tmp_path / "a.gguf", **options)
        for name, p in reference.named_parameters():
            assert torch.equal(loaded.get_parameter(name), p.to(options.get("dtype", p.dtype))), name
