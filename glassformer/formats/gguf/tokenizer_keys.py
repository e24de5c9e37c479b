"""GGUF's metadata keys for tokenizers, and its names for pre-tokenizers."""

from typing import Annotated, Any

from annotated_types import Interval

from glassformer.text.patterns import (
    DEEPSEEK_CODER,
    DEEPSEEK_LLM,
    DEEPSEEK_V3,
    FALCON,
    GPT2,
    LLAMA3,
    O200K,
    QWEN2,
    SEED_CODER,
    TEKKEN,
    byte_level,
)

KEY = "tokenizer.ggml."
TEMPLATE, TEMPLATES = "tokenizer.chat_template", "tokenizer.chat_templates"  # the default's text; names of others

# (pre-tokenizer, its names in GGUF); export uses the first name.
PRE_TOKENIZERS: tuple[tuple[dict[str, Any], str], ...] = (
    (
        byte_level(GPT2),
        "gpt-2 phi-2 olmo mpt jais roberta-bpe jina-es jina-de jina-v2-es jina-v2-de exaone4 trillion gigachat mellum "
        "a.x-4.0 granite-docling",
    ),
    (
        byte_level(LLAMA3),
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano dbrx smaug-bpe chatglm-bpe "
        "glm4 glm5",
    ),
    (byte_level(QWEN2), "qwen2 deepseek-r1-qwen stablelm2 hunyuan megrez kormo f2llmv2 grok-2 solar-open"),
    (byte_level(O200K), "gpt-4o llama4 kanana2 talkie minimax-m2"),
    (byte_level(TEKKEN), "tekken"),
    (byte_level(GPT2, digits=True), "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2"),
    (byte_level(SEED_CODER), "seed-coder"),
    (FALCON, "falcon"),
    (DEEPSEEK_CODER, "deepseek-coder"),
    (DEEPSEEK_LLM, "deepseek-llm"),
    (DEEPSEEK_V3, "deepseek-v3 hunyuan-dense joyai-llm hy_v4"),
)
PRE_TOKENIZER_BY_NAME = {name: layout for layout, names in PRE_TOKENIZERS for name in names.split()}
PRE_BY_ARCHITECTURE = {  # of files without a name for the pre-tokenizer: llama.cpp wrote none before May 2024
    "gpt2": "gpt-2",
    "gptneox": "gpt-2",
    "phi2": "gpt-2",
    "mpt": "mpt",
    "olmo": "olmo",
    "qwen2": "qwen2",
    "falcon": "falcon",
    "starcoder": "starcoder",
}
# BOS_BY_DEFAULT: add_bos_token is true by default. IGNORE_MERGES: a word that is a token is not built by merges.
BOS_BY_DEFAULT = set("llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano tekken".split())
IGNORE_MERGES = BOS_BY_DEFAULT | {"glm4", "glm5"}
SEP_BY_DEFAULT = {"roberta-bpe"}  # RoBERTa: by default two EOS separate two texts; the mask absorbs the space before it
DEFAULT_IDS = {"llama": {"bos": 1, "eos": 2}, "t5": {"eos": 1}, "gpt2": {}, "bert": {}}

ID_KEYS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",
    "pad_token": "padding_token_id",
    "cls_token": "cls_token_id",
    "mask_token": "mask_token_id",
}
LOWERCASE, ACCENTS = "normalizer.lowercase", "normalizer.strip_accents"  # WordPiece; most files lack them
NO_TOKEN = (-1, 2**32 - 1)  # ids that mean: there is no such token

_ID_TYPES: dict[str, Any] = {KEY + key: int for key in ID_KEYS.values()}
_FLAGS = ("add_bos_token", "add_eos_token", "add_sep_token", "add_space_prefix", "remove_extra_whitespaces")
_FLAG_TYPES: dict[str, Any] = {KEY + key: bool | int for key in (*_FLAGS, LOWERCASE, ACCENTS)}
TYPES: dict[str, Any] = {
    **_ID_TYPES,
    **_FLAG_TYPES,
    KEY + "model": str,
    KEY + "pre": str,
    KEY + "tokens": list[str],
    KEY + "token_type": list[int],
    KEY + "scores": list[float],
    KEY + "merges": list[str],
    KEY + "precompiled_charsmap": list[Annotated[int, Interval(ge=-128, le=255)]],
    TEMPLATE: str,
    TEMPLATES: list[str],
    "general.architecture": str,
}
"""The types of the metadata that `tokenizer_from_gguf` uses."""
