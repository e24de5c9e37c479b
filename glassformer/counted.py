"""Numbers with their nouns in messages: "1 token", "1,234 tokens"."""


def counted(n: int, noun: str) -> str:
    """Return a number with its noun, in the plural (with -s) unless it is 1: "1 usable file", "2 usable files"."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
