"""How a Hugging Face folder's weights are quantized, from config.json.

One module per format reads its settings and returns the function that replaces the parts of each quantized matrix, in a
reader, by one tensor. `--ignore-key` cannot skip the settings: without them the stored numbers mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from glassformer.errors import ConfigError
from glassformer.families.common.family import QUANTIZATION, ConfigFields
from glassformer.formats import awq, compressed_tensors, fp8, gptq, mxfp4
from glassformer.formats.reader import TensorReader

Unpack = Callable[[TensorReader], None]
READERS: dict[str, Callable[[ConfigFields], Unpack]] = {
    "awq": awq.read,
    "compressed-tensors": compressed_tensors.read,
    "fp8": fp8.read,
    "gptq": gptq.read,
    "mxfp4": mxfp4.read,
}
# Methods by a key that they alone have, for settings without `quant_method`.
METHOD_KEYS = {
    "load_in_4bit": "bitsandbytes", "load_in_8bit": "bitsandbytes", "desc_act": "gptq", "zero_point": "awq",
    "config_groups": "compressed-tensors",
}  # fmt: skip


def take_quantization(raw: dict[str, Any], source: str, ignore: tuple[str, ...] = ()) -> Unpack:
    """Remove the settings of quantization from a config.json.

    Args:
        raw: the JSON object.
        source: its file, for messages.
        ignore: keys of the settings that do not matter.

    Returns:
        The function that prepares a reader of the weights; it raises CheckpointError for tensors that do not fit.

    Raises:
        ConfigError: the weights have a format, or a setting a value, that is not supported.
    """
    settings = {key: raw.pop(key) for key in sorted(QUANTIZATION) if key in raw}
    settings = {key: value for key, value in settings.items() if value is not None}
    if "quantization" in settings:
        raise ConfigError(f"{source}: quantization: {_unsupported('MLX')}")
    if not settings:
        return lambda reader: None
    (key, stated), *_ = settings.items()
    method = _method(stated)
    if key != "quantization_config" or method not in READERS:
        raise ConfigError(f"{source}: {key}: {_unsupported(method)}")
    fields = ConfigFields(stated, f"{source}: {key}", ignore)
    fields.take("quant_method", None)
    fields.expect("method", None, method)  # GPTQModel states the method twice
    unpack = READERS[method](fields)
    fields.close()
    return unpack


def _unsupported(method: str) -> str:
    return (
        f"the weights are quantized by {method}, which cannot be read; only {', '.join(READERS)} can. "
        "Use the unquantized model, or a GGUF file of it"
    )


def _method(stated: Any) -> str:
    if not isinstance(stated, dict):
        return repr(stated)
    known = next((method for key, method in METHOD_KEYS.items() if key in stated), "an unnamed method")
    return str(stated.get("quant_method") or known)
