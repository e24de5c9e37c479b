"""What byte-level tokenizers share: how text is cut into words, and how bytes are written as characters."""

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""GPT-2's split (Radford et al. 2019, `encoder.py`): a word keeps the one space before it; merges never cross a cut."""

QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen2's split: every digit alone, line ends apart, contractions in either case.  (Its NFC step is not part of it.)"""

PATTERNS = {"gpt2": GPT2, "qwen2": QWEN2}
DIGITS_TOGETHER, DIGITS_APART = PATTERNS

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
