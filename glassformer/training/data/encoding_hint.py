"""Name the likely encoding of text that is not UTF-8, for error messages."""

from __future__ import annotations

import codecs

SAMPLE = 4096  # bytes
FEW = 4  # characters outside ASCII; fewer show no encoding but Latin
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Frequent characters of the texts that are written in each encoding. Of the characters outside ASCII in a text of one
# language, at least a fifth is in its line.
FREQUENT = {
    "shift_jis": "のにはをたがでとしれさあいうもなすまりるてっ。、ーンス",
    "euc_jp": "のにはをたがでとしれさあいうもなすまりるてっ。、ーンス",
    "gb18030": "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会。，、",
    "big5": "的一是不了在人有我他這個們中來上大為和國地到以說時要就出會。，、",
    "euc_kr": "이다는의가에을은를고하지도로사기한서있나리자어인그",
    "cp1251": "оеаинтсрвлкмдпуя",
    "koi8_r": "оеаинтсрвлкмдпуя",
    "cp1253": "αοιετνσρηκπυςμλό",
}
LATIN = "cp1252"


def utf16_or_32(head: bytes) -> str | None:
    """Return utf-16, utf-16-le, utf-32 or the like where the first bytes of a file show it: by a mark, or by NULs."""
    for mark, name in MARKS:
        if head.startswith(mark):
            return name
    head = head[: len(head) // 4 * 4]
    if not head:
        return None
    nul = [head[i::4].count(0) / (len(head) // 4) for i in range(4)]
    for name, pattern in (("utf-32-le", "0111"), ("utf-32-be", "1110"), ("utf-16-le", "0101"), ("utf-16-be", "1010")):
        if all(share > 0.6 if one == "1" else share == 0 for share, one in zip(nul, pattern, strict=True)):
            text = head.decode(name, "replace")
            return name if sum(c.isprintable() or c.isspace() for c in text) > 0.9 * len(text) else None
    return None


def likely_encoding(data: bytes) -> str | None:
    """Return the likely encoding of bytes that are not UTF-8; None where no guess fits."""
    sample = data[:SAMPLE]
    high = sum(byte >= 0x80 for byte in sample)
    letters = sum(chr(byte).isalpha() for byte in sample if byte < 0x80)
    scores: dict[str, float] = {}
    for name, frequent in FREQUENT.items():
        try:
            text = codecs.getincrementaldecoder(name)().decode(sample)  # the sample may end inside a character
        except UnicodeDecodeError:
            continue
        outside = [character for character in text if not character.isascii()]
        if len(outside) >= FEW:
            scores[name] = sum(character in frequent for character in outside) / len(outside)
    best = max(scores, key=lambda name: scores[name], default=LATIN)
    if scores.get(best, 0) >= 0.2 and high > letters / 2:
        return best
    try:
        printable = "".join(sample.decode(LATIN).split()).isprintable()
    except UnicodeDecodeError:
        return None
    return LATIN if printable and high <= letters / 2 else None


def encoding_hint(name: str | None) -> str:
    """Return what a message about text of another encoding adds."""
    return f", it looks like {name}: give --encoding {name}" if name else ""
