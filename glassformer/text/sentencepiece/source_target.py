"""Marian's tokenizer: one SentencePiece model cuts what is read, another what is written, a vocabulary numbers both.

    "It's" -> source.spm -> ▁It 's -> vocab.json -> ids </s>

There may be one more vocabulary, of what is written (target_vocab.json).

The vocabulary's numbers are not the models'. A piece that it lacks is <unk>, and what neither model spells may still be
one of the other side's pieces. A text may begin with the language to write, ">>fra<<", which is one token: unlike what
ends a text, it is the person's to write.
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from glassformer.errors import TokenizerError
from glassformer.text.files.find import SIDES as FILES
from glassformer.text.files.find import TARGETS
from glassformer.text.sentencepiece.model_file import byte_pieces, read_sentencepiece
from glassformer.text.sentencepiece.normalizer import SPACE
from glassformer.text.sentencepiece.segmenter import Segmenter
from glassformer.text.sentencepiece.tokenizer import check_text
from glassformer.text.special_tokens import AddedToken, SpecialTokenSplitter

CONTROL = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
ALL = (*FILES, TARGETS)
_LANGUAGE = re.compile(r">>.*?<<", re.DOTALL)


class SourceTargetTokenizer:
    """`data`: the contents of FILES, and of TARGETS where there is one; `names`: of the control tokens, where they
    are not as in CONTROL.

    `writes`: it cuts what is written. TokenizerError where a file is damaged, or the vocabulary lacks a control token.
    """

    kind = "SentencePiece pair"
    drops_first_space = True

    def __init__(self, data: tuple[bytes, ...], names: Mapping[str, str] | None = None, writes: bool = False):
        self.data, self.names, self.writes = data, {**CONTROL, **(names or {})}, writes
        self.apart = len(data) > len(FILES)
        which = 3 if writes and self.apart else 2
        self.vocab = _read_vocab(data[which], ALL[which])
        if missing := [name for name in self.names.values() if name not in self.vocab]:
            raise TokenizerError(f"{ALL[which]} lacks {', '.join(map(repr, missing))}")
        self.special = {name: self.vocab[name] for name in self.names.values()}
        self.added = [AddedToken(index, name, special=True) for name, index in self.special.items()]
        self.unknown = self.vocab[self.names["unk_token"]]
        file = FILES[1] if writes else FILES[0]
        try:
            self.cutter = Segmenter(read_sentencepiece(data[1 if writes else 0]))
        except TokenizerError as error:
            raise TokenizerError(f"{file}: {error}") from error
        self._cut, self._cut_all = SpecialTokenSplitter([]), SpecialTokenSplitter(self.added)
        self.frame: tuple[list[int], list[int]] = ([], [])
        ends = {"add_bos_token": False, "add_eos_token": True, **({"separate_vocabs": True} if self.apart else {})}
        self.defaults: Mapping[str, Any] = {**self.names, "tokenizer_class": "MarianTokenizer", **ends}

    def of_targets(self) -> "SourceTargetTokenizer":
        """The same, which cuts what is written."""
        return SourceTargetTokenizer(self.data, self.names, writes=True)

    def encode(self, texts: Sequence[str], *, special: bool) -> list[list[int]]:
        return [self.encode_offsets(text, special=special)[0] for text in texts]

    def encode_inside(self, text: str) -> list[int]:
        return self.encode([text], special=False)[0]

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        raise TokenizerError("SentencePiece models do not say how two texts stand in a row: a tokenizer.json does")

    def encode_offsets(self, text: str, *, special: bool) -> tuple[list[int], list[tuple[int, int]]]:
        check_text(text)
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        for start, end, token in (self._cut_all if special else self._cut)(text):
            if token is not None:
                ids.append(token)
                offsets.append((start, end))
                continue
            if language := _LANGUAGE.match(text, start, end):
                ids.append(self._id(language[0]))
                offsets.append(language.span())
                start = language.end()
            for piece, (first, last) in self.cutter.pieces(text[start:end]):
                ids.append(self._id(piece))
                offsets.append((start + first, start + last))
        return ids, offsets

    def _id(self, piece: str) -> int:
        """What the vocabulary says of a piece that text became: never a control token."""
        return self.unknown if piece in self.special else self.vocab.get(piece, self.unknown)

    def table(self) -> list[bytes | None]:
        found: list[bytes | None] = [None] * (max(self.vocab.values()) + 1)
        spelled = (
            dict(zip(byte_pieces(), (bytes([byte]) for byte in range(256)), strict=True)) if self.cutter.bytes else {}
        )
        for piece, index in self.vocab.items():
            text = piece if piece in self.special else piece.replace(SPACE, " ")
            found[index] = spelled.get(piece, text.encode())
        return found

    def files(self, frame: tuple[list[int], list[int]]) -> dict[str, bytes]:
        """As they came; what stands around a text, the format itself says."""
        return dict(zip(ALL, self.data, strict=False))

    def rebuild(self) -> tuple[Any, ...]:
        return partial(SourceTargetTokenizer, writes=self.writes), (self.data, self.names)


def _read_vocab(data: bytes, file: str) -> dict[str, int]:
    try:
        vocab = json.loads(data)
    except ValueError as error:
        raise TokenizerError(f"{file} is not JSON: {error}") from error
    if not isinstance(vocab, dict) or not all(type(index) is int and index >= 0 for index in vocab.values()):
        raise TokenizerError(f"{file} must be an object of tokens, each with its id")
    if len(set(vocab.values())) < len(vocab):
        raise TokenizerError(f"{file} gives several tokens the same id")
    return vocab
