"""The type of each tensor of a GGUF file. Mixed types follow `llama_tensor_get_type` of llama.cpp."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from glassformer.formats.gguf.header import TensorInfo
from glassformer.formats.gguf.tensor_names import EMBED, HEAD
from glassformer.formats.save import GgufKind

FLOAT32_TENSORS = ("_norm.", "position_embd.", "ffn_gate_inp.", "token_types.", "attn_rel_b.")
F16 = GGMLQuantizationType.F16
FALLBACKS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}  # for rows that are no multiple of 256


@dataclass(frozen=True)
class FileType:
    """A kind of GGUF file: its number in `general.file_type`, and the type of most matrices."""

    number: int
    matrices: str
    mixed: bool = False  # whether some matrices have another type


FILE_TYPES: dict[GgufKind, FileType] = {
    "F32": FileType(0, "F32"),
    "F16": FileType(1, "F16"),
    "BF16": FileType(32, "BF16"),
    "Q8_0": FileType(7, "Q8_0"),
    "Q6_K": FileType(18, "Q6_K", mixed=True),
    "Q4_K_M": FileType(15, "Q4_K", mixed=True),
    "Q4_0": FileType(2, "Q4_0"),
}


def tensor_types(
    shapes: Mapping[str, tuple[int, ...]], kind: GgufKind, metadata: Mapping[str, Any]
) -> dict[str, GGMLQuantizationType]:
    """Return the type of each tensor. Norms, biases, routers and position tables are small and stay float32.

    A matrix whose rows are no multiple of a type's block has the type's fallback, or F16.

    Args:
        shapes: the shape of each tensor of the file by its name.
        metadata: the metadata of the file, which has the numbers of layers, heads and experts.
    """
    types = {}
    for name, shape in shapes.items():
        wanted = FILE_TYPES[kind].matrices
        if len(shape) == 1 or not name.endswith(".weight") or any(part in name for part in FLOAT32_TENSORS):
            wanted = "F32"
        elif FILE_TYPES[kind].mixed:
            wanted = _mixed_type(name, kind, metadata, tied=HEAD not in shapes)
        types[name] = next(
            one
            for one in (GGMLQuantizationType[wanted], GGMLQuantizationType[FALLBACKS.get(wanted, "F16")], F16)
            if shape[-1] % GGML_QUANT_SIZES[one][0] == 0
        )
    return types


def fallback_types(tensors: Mapping[str, TensorInfo], kind: GgufKind) -> dict[str, str]:
    """Return the types of a file's matrices whose rows are no multiple of the block of the file's kind, by name."""
    block = GGML_QUANT_SIZES[GGMLQuantizationType[FILE_TYPES[kind].matrices]][0]
    return {name: info.type for name, info in tensors.items() if info.type != "F32" and info.shape[-1] % block}


def _mixed_type(name: str, kind: GgufKind, metadata: Mapping[str, Any], *, tied: bool) -> str:
    """Return the type of a matrix of a Q4_K_M or Q6_K file: matrices that cost more accuracy get more bits."""
    architecture, medium = metadata["general.architecture"], kind == "Q4_K_M"
    number = re.search(r"blk\.(\d+)\.", name)
    layer, n_layers = int(number[1]) if number else 0, metadata[f"{architecture}.block_count"]
    if name.startswith("dec."):
        n_layers = metadata.get(f"{architecture}.decoder_block_count", n_layers)
    first, last = n_layers // 8, 7 * n_layers // 8
    sensitive = layer < first or layer >= last or (layer - first) % 3 == 2
    eight_experts = metadata.get(f"{architecture}.expert_count") == 8
    falcon = architecture == "falcon"
    if name == HEAD or (tied and name == EMBED):
        return "Q8_0" if falcon else "Q6_K"
    if any(part in name for part in ("attn_v.weight", "attn_qkv.weight", "attn_kv_b.weight")):
        if eight_experts:
            return "Q8_0"
        if medium:
            return "Q6_K" if sensitive else "Q5_K" if _is_70b(metadata) else "Q4_K"
    if "attn_k.weight" in name and eight_experts:
        return "Q8_0"
    if medium and "ffn_down" in name:
        if falcon:
            return "Q6_K" if layer < n_layers // 16 else "Q5_K" if sensitive else "Q4_K"
        return "Q6_K" if sensitive else "Q4_K"
    if medium and "attn_output.weight" in name and eight_experts:
        return "Q5_K"
    return FILE_TYPES[kind].matrices


def _is_70b(metadata: Mapping[str, Any]) -> bool:
    """Whether llama.cpp calls this model 70B: its key/value heads are few, and so are its attn_v matrices."""
    architecture = metadata["general.architecture"]
    heads, kv_heads = (metadata.get(f"{architecture}.attention.head_count{part}") for part in ("", "_kv"))
    return architecture in ("llama", "qwen2") and metadata[f"{architecture}.block_count"] == 80 and heads != kv_heads
