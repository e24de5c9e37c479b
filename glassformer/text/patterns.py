"""What byte-level tokenizers share: how text is cut into words, and how bytes are written as characters."""

from typing import Any

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""GPT-2's split (Radford et al. 2019, `encoder.py`): a word keeps the one space before it; merges never cross a cut."""

QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen2's split: every digit alone, line ends apart, contractions in either case.  (Its NFC step is not part of it.)"""

LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
"""Llama 3's split: Qwen2's, with up to three digits together."""

SEED_CODER = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1}|").replace(r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}\r\n]+")
"""Seed-Coder's: Qwen2's, where line ends are never joined with the signs before them."""

CL100K = LLAMA3.replace(r"|\s*[\r\n]+|", r"|\s+(?![\s\S])|\s*[\r\n]+|")
"""OpenAI's cl100k (GPT-4): Llama 3's, where the white space that ends a text is one word."""

_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENDING}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENDING}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""OpenAI's o200k (GPT-4o, gpt-oss): a word ends where small letters are followed by a capital one."""

TEKKEN = O200K.replace(_ENDING, "").replace(r"|\p{N}{1,3}|", r"|\p{N}|")
"""Mistral's tekken: OpenAI's o200k without contractions, every digit alone."""

PATTERNS = {"gpt2": GPT2, "qwen2": QWEN2, "llama3": LLAMA3, "cl100k": CL100K, "o200k": O200K}
DIGITS_TOGETHER, DIGITS_APART = "gpt2", "qwen2"

WORD = r" ?\w+| ?[^\w\s]+|\s"
"""The word-level picture: a word or a run of punctuation with the one space before it, or one space of any kind."""


def byte_alphabet() -> dict[int, str]:
    """The visible character that stands for each of the 256 bytes in a byte-level vocabulary (GPT-2).

    A byte that is a visible Latin-1 character stands for itself (33 -> "!"); the other 68, in order, are written as the
    characters from U+0100 on, so that a space (32) is "Ġ" and a line end (10) is "Ċ".
    """
    visible = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


FALCON: dict[str, Any] = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Punctuation", "behavior": "Contiguous"},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        {"type": "Digits", "individual_digits": False},
        _split("[0-9][0-9][0-9]"),
    ],
}
"""Falcon's `pre_tokenizer`: runs of punctuation and of digits apart, of these three at a time; else as GPT-2."""


# Letters of scripts that have small and capital ones, as DeepSeek's first tokenizer lists them, and what stands without
# spaces between words.
_CASED = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-"
    "\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-"
    "ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻\U00010c80-\U00010cb2\U00010cc0-\U00010cf2𑢠-𑣟\U0001e900-"
    "\U0001e943"
)
_SPACELESS = "[一-龥\u0800-一가-\ud7ff]+"


def splits(*patterns: str, digits: bool = False) -> dict[str, Any]:
    """The `pre_tokenizer` that cuts out what each pattern finds, one after the other, and writes bytes as characters.

    digits: at last every digit is cut out.
    """
    cuts = [*map(_split, patterns), *([{"type": "Digits", "individual_digits": True}] if digits else [])]
    spelled = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [*cuts, spelled]}


DEEPSEEK_CODER = splits(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _SPACELESS, digits=True)
"""DeepSeek-Coder's `pre_tokenizer`: line ends, words, punctuation and digits apart, with the one space before."""

DEEPSEEK_LLM = splits(
    r"[\r\n]", rf"\s?[{_CASED}]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", _SPACELESS, digits=True
)
"""DeepSeek's first, of DeepSeek-V2 too: as DeepSeek-Coder's, by lists of letters and punctuation."""

DEEPSEEK_V3 = splits(
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
"""DeepSeek-V3's and R1's: up to three digits, then Chinese and kana, then the rest, where a sign begins a word."""


def byte_level(pattern: str, *, digits: bool = False, prefix_space: bool = False) -> dict[str, Any]:
    """The `pre_tokenizer` of a `tokenizer.json` that cuts by `pattern` and writes bytes as characters.

    digits: every digit is cut out first (StarCoder, SmolLM);  prefix_space: a text begins with a space.
    """
    spelled = {
        "type": "ByteLevel",
        "add_prefix_space": prefix_space,
        "trim_offsets": False,
        "use_regex": pattern == GPT2,
    }
    cuts: list[dict[str, Any]] = [{"type": "Digits", "individual_digits": True}] if digits else []
    if pattern != GPT2:
        cuts.append(_split(pattern))
    return {"type": "Sequence", "pretokenizers": [*cuts, spelled]} if cuts else spelled
