"""Split patterns and the byte alphabet of byte-level tokenizers."""

import re
from collections.abc import Iterator
from typing import Any

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""GPT-2 (Radford et al. 2019, `encoder.py`): a word includes the space before it. Merges stay inside words."""

QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen2: single digits, separate line ends, case-insensitive contractions. (Its NFC normalization is not included.)"""

LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
"""Llama 3: Qwen2's pattern with groups of up to three digits."""

SEED_CODER = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1}|").replace(r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}\r\n]+")
"""Seed-Coder: Qwen2's pattern with line ends separate from the punctuation before them."""

CL100K = LLAMA3.replace(r"|\s*[\r\n]+|", r"|\s+(?![\s\S])|\s*[\r\n]+|")
"""OpenAI's cl100k (GPT-4): Llama 3's pattern with the white space at the end of a text as one word."""

_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENDING}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENDING}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""OpenAI's o200k (GPT-4o, gpt-oss): a word ends where a lowercase letter is followed by an uppercase one."""

TEKKEN = O200K.replace(_ENDING, "").replace(r"|\p{N}{1,3}|", r"|\p{N}|")
"""Mistral's tekken: o200k without contractions and with single digits."""

PATTERNS = {"gpt2": GPT2, "qwen2": QWEN2, "llama3": LLAMA3, "cl100k": CL100K, "o200k": O200K}
DIGITS_TOGETHER, DIGITS_APART = "gpt2", "qwen2"

WORD = r" ?\w+| ?[^\w\s]+|\s"
"""Word-level tokenizer: a word or a run of punctuation with the space before it, or one white-space character."""


def byte_alphabet() -> dict[int, str]:
    """Return byte -> the visible character that represents it in a byte-level vocabulary (GPT-2).

    A byte that is a visible Latin-1 character maps to itself (33 -> "!"). The other 68 bytes, in order, map to the
    characters from U+0100 on: a space (32) is "Ġ" and a line feed (10) is "Ċ".
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
"""Falcon's `pre_tokenizer`: GPT-2's with separate runs of punctuation, and digits in groups of three."""


# Letters of scripts that have upper and lower case, as DeepSeek's first tokenizer lists them, and the scripts that put
# no spaces between words.
_CASED = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-"
    "\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-"
    "ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻\U00010c80-\U00010cb2\U00010cc0-\U00010cf2𑢠-𑣟\U0001e900-"
    "\U0001e943"
)
_SPACELESS = "[一-龥\u0800-一가-\ud7ff]+"


def splits(*patterns: str, digits: bool = False) -> dict[str, Any]:
    """Return the `pre_tokenizer` that splits by each pattern in turn and maps bytes to characters.

    digits: Whether every digit then becomes a word of its own.
    """
    steps = [*map(_split, patterns), *([{"type": "Digits", "individual_digits": True}] if digits else [])]
    to_chars = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [*steps, to_chars]}


DEEPSEEK_CODER = splits(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _SPACELESS, digits=True)
"""DeepSeek-Coder: separate line ends, words, punctuation and digits; words include the space before them."""

DEEPSEEK_LLM = splits(
    r"[\r\n]", rf"\s?[{_CASED}]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", _SPACELESS, digits=True
)
"""DeepSeek LLM and DeepSeek-V2: as DeepSeek-Coder, with explicit lists of letters and punctuation."""

DEEPSEEK_V3 = splits(
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
"""DeepSeek-V3 and R1: up to three digits, then Chinese and kana, then the rest; punctuation may begin a word."""


def byte_level(pattern: str, *, digits: bool = False, prefix_space: bool = False) -> dict[str, Any]:
    """Return the `pre_tokenizer` that splits by `pattern` and maps bytes to characters.

    Args:
        pattern: One of the patterns above, or any regular expression.
        digits: Whether every digit is split off first (StarCoder, SmolLM).
        prefix_space: Whether a space is put before the text.
    """
    to_chars = {
        "type": "ByteLevel",
        "add_prefix_space": prefix_space,
        "trim_offsets": False,
        "use_regex": pattern == GPT2,
    }
    steps: list[dict[str, Any]] = [{"type": "Digits", "individual_digits": True}] if digits else []
    if pattern != GPT2:
        steps.append(_split(pattern))
    return {"type": "Sequence", "pretokenizers": [*steps, to_chars]} if steps else to_chars


def find_regexes(part: Any) -> Iterator[str]:
    """Yield the regular expressions in a part of a `tokenizer.json`."""
    if isinstance(part, dict):
        for key, value in part.items():
            yield from [value] if key == "Regex" else find_regexes(value)
    elif isinstance(part, list):
        for item in part:
            yield from find_regexes(item)


_KNOWN = {*PATTERNS.values(), SEED_CODER, TEKKEN, WORD}
_KNOWN |= {*find_regexes([FALCON, DEEPSEEK_CODER, DEEPSEEK_LLM, DEEPSEEK_V3])}

# Each pattern has at most one parse in this grammar, so matching it takes linear time, too.
_ESCAPE = r"\\(?:[dDsSwWnrt]|[pP]\{\^?\w+\}|[^\w\s])"
_CHARACTER = rf"(?:{_ESCAPE}|\[(?:\^|(?!\^))(?:{_ESCAPE}|[^\\\[\]])+\]|[^\\\[\](){{}}.*+?^$|])"
_BRANCH = rf"(?:{_CHARACTER}\?)?{_CHARACTER}*(?:{_CHARACTER}(?:[+*]|\{{\d\d?(?:,(?:\d\d?)?)?\}}))?"
_LINEAR = re.compile(rf"(?=[^|]){_BRANCH}(?:\|(?=[^|]){_BRANCH})*", re.ASCII)


def is_linear(pattern: str) -> bool:
    """Return whether a regular expression certainly needs time in proportion to the length of the text.

    It is one of the patterns above, or alternatives of characters and character classes in which only the first may be
    optional and only the last may be repeated. Such an alternative fails after a bounded number of steps, or it matches
    all characters that it has examined but one.
    """
    return pattern in _KNOWN or (len(pattern) <= 1000 and _LINEAR.fullmatch(pattern) is not None)
