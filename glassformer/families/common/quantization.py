"""Check how a checkpoint's weights are quantized, from config.json.

Of the quantized formats, FP8 in blocks of 128 x 128 (DeepSeek, Qwen3) is read for every family, and MXFP4 for gpt-oss,
whose own reader checks it. All others raise an error: `--ignore-key` cannot skip it, because without the settings the
stored numbers mean nothing.
"""

from __future__ import annotations

from typing import Any

from glassformer.errors import ConfigError
from glassformer.families.common.family import QUANTIZATION, ConfigFields

# Methods by a key that they alone have, for settings without `quant_method`.
METHOD_KEYS = {"load_in_4bit": "bitsandbytes", "load_in_8bit": "bitsandbytes", "desc_act": "gptq", "zero_point": "awq"}
FP8_DETAILS = ("activation_scheme", "modules_to_not_convert", "ignored_layers", "scale_fmt", "dequantize")


def check_quantization(raw: ConfigFields) -> None:
    """Check the settings of quantization that the family has not read. ConfigError: the weights cannot be read."""
    for key in QUANTIZATION & raw.unread:
        packed = raw.take(key)
        if packed is None:
            continue
        if key != "quantization_config" or not isinstance(packed, dict) or packed.get("quant_method") != "fp8":
            method = "MLX" if key == "quantization" else _method(packed)
            raise ConfigError(f"{raw.source}: {key}: {unsupported(method)}")
        check_fp8(packed, f"{raw.source}: quantization_config")


def check_fp8(packed: dict[str, Any], source: str) -> None:
    """Check that FP8 weights are E4M3 in blocks of 128 x 128. Activations are not quantized here."""
    rest = ConfigFields(packed, source)
    rest.take("quant_method")
    rest.expect("fmt", "e4m3", None)
    if (block := rest.take("weight_block_size", None)) != [128, 128]:
        raise ConfigError(f"{source}: {unsupported(f'fp8 with weight_block_size {block}')}")
    for name in FP8_DETAILS:
        rest.take(name, None)
    rest.close()


def unsupported(method: str) -> str:
    """Return the message about weights that are quantized by a method that is not supported."""
    return (
        f"the weights are quantized by {method}, which cannot be read; only fp8 with a weight_block_size of [128, 128] "
        "and gpt-oss's mxfp4 can. Use the unquantized model, or a GGUF file of it"
    )


def _method(packed: Any) -> str:
    if not isinstance(packed, dict):
        return repr(packed)
    known = next((method for key, method in METHOD_KEYS.items() if key in packed), "an unnamed method")
    return str(packed.get("quant_method") or known)
