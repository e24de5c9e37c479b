"""Marian's tokenizer: a SentencePiece model for each side, and one vocabulary that numbers the pieces of both.

    "It's" -> source.spm -> ▁It 's -> vocab.json -> ids </s>

The target side may have a vocabulary of its own (target_vocab.json).

The ids are those of the vocabulary, not of the models. A piece that is not in the vocabulary becomes <unk>; a character
that the model lacks may still be a piece of the other side. A text may begin with the target language, ">>fra<<", which
is one token. Unlike special tokens, users may write it in the text.
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from glassformer.errors import TokenizerError
from glassformer.json_file import parse_json
from glassformer.text.files.find import SOURCE_TARGET_FILES, TARGET_VOCAB
from glassformer.text.sentencepiece.model_file import byte_pieces, parse_sentencepiece
from glassformer.text.sentencepiece.normalizer import SPACE
from glassformer.text.sentencepiece.segmenter import Segmenter
from glassformer.text.sentencepiece.tokenizer import check_text
from glassformer.text.special_tokens import AddedToken, SpecialTokenSplitter, Vocabulary, find_special_tokens

SPECIAL_TOKENS = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
_FILES = (*SOURCE_TARGET_FILES, TARGET_VOCAB)
_LANGUAGE = re.compile(r">>.*?<<", re.DOTALL)


class SourceTargetTokenizer:
    """One side of Marian's tokenizer: the source side, or the target side if `is_target`."""

    kind = "SentencePiece source-target"
    drops_first_space = True
    drops_last_space = False

    def __init__(
        self,
        data: tuple[bytes, ...],
        names: Mapping[str, str] | None = None,
        added: Sequence[AddedToken] = (),
        is_target: bool = False,
    ):
        """Create the backend.

        Args:
            data: The contents of source.spm, target.spm and vocab.json, and of target_vocab.json if it exists.
            names: Texts of the special tokens, where they differ from SPECIAL_TOKENS.
            added: Other added tokens, and special tokens with flags.
            is_target: Whether it segments target texts.

        Raises:
            TokenizerError: A file is malformed, or the vocabulary lacks a special token.
        """
        self.data, self.names, self.is_target = data, {**SPECIAL_TOKENS, **(names or {})}, is_target
        separate = len(data) > len(SOURCE_TARGET_FILES)
        index = 3 if is_target and separate else 2
        self.vocab = _parse_vocab(data[index], _FILES[index])
        if missing := [name for name in self.names.values() if name not in self.vocab]:
            raise TokenizerError(f"{_FILES[index]} lacks {', '.join(map(repr, missing))}")
        tokens = {name: AddedToken(self.vocab[name], name, special=True) for name in self.names.values()}
        tokens |= {token.text: token for token in added}
        self._added, self.added_tokens = tuple(added), list(tokens.values())
        for token in added:
            if self.vocab.setdefault(token.text, token.id) != token.id:
                raise TokenizerError(
                    f"the added token {token.text!r} has the id {token.id}, but {_FILES[index]} gives it "
                    f"{self.vocab[token.text]}"
                )
        if len(set(self.vocab.values())) < len(self.vocab):
            raise TokenizerError(f"an added token has the id of another token in {_FILES[index]}")
        self.special_tokens = find_special_tokens(self.added_tokens, "")
        self.unknown = self.vocab[self.names["unk_token"]]
        try:
            self.segmenter = Segmenter(parse_sentencepiece(data[is_target]))
        except TokenizerError as error:
            raise TokenizerError(f"{_FILES[is_target]}: {error}") from error
        plain = [token for token in self.added_tokens if token.text not in self.special_tokens]
        self._split_plain, self._split_all = SpecialTokenSplitter(plain), SpecialTokenSplitter(self.added_tokens)
        self.prefix_ids: list[int] = []
        self.suffix_ids: list[int] = []
        self.defaults: Mapping[str, Any] = {
            **self.names,
            "tokenizer_class": "MarianTokenizer",
            "add_bos_token": False,
            "add_eos_token": True,
            **({"separate_vocabs": True} if separate else {}),
        }

    def target_tokenizer(self) -> "SourceTargetTokenizer":
        """Return the tokenizer of the target side."""
        return SourceTargetTokenizer(self.data, self.names, self._added, is_target=True)

    def encode(self, texts: Sequence[str], *, parse_special: bool) -> list[list[int]]:
        return [self.encode_offsets(text, parse_special=parse_special)[0] for text in texts]

    def encode_continuations(self, texts: Sequence[str]) -> list[list[int]]:
        return self.encode(texts, parse_special=False)

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        raise TokenizerError("SentencePiece models do not define how to join two texts: tokenizer.json is required")

    def encode_offsets(self, text: str, *, parse_special: bool) -> tuple[list[int], list[tuple[int, int]]]:
        check_text(text)
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        for start, end, token in (self._split_all if parse_special else self._split_plain)(text):
            if token is not None:
                ids.append(token)
                offsets.append((start, end))
                continue
            if language := _LANGUAGE.match(text, start, end):
                ids.append(self._id(language[0]))
                offsets.append(language.span())
                start = language.end()
            for piece, (first, last) in self.segmenter.pieces(text[start:end]):
                ids.append(self._id(piece))
                offsets.append((start + first, start + last))
        return ids, offsets

    def _id(self, piece: str) -> int:
        """Return the id of a piece of a text; it is never a special token other than <unk>."""
        return self.unknown if piece in self.special_tokens else self.vocab.get(piece, self.unknown)

    def token_table(self) -> list[bytes | None]:
        table: list[bytes | None] = [None] * (max(self.vocab.values()) + 1)
        byte_of = {piece: bytes([i]) for i, piece in enumerate(byte_pieces())} if self.segmenter.byte_ids else {}
        for piece, index in self.vocab.items():
            text = piece if piece in self.special_tokens else piece.replace(SPACE, " ")
            table[index] = byte_of.get(piece, text.encode())
        return table

    def files(self, prefix_ids: list[int], suffix_ids: list[int]) -> dict[str, bytes]:
        """Return the files, unchanged. The format itself defines the ids around a text."""
        return dict(zip(_FILES, self.data, strict=False))

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(SourceTargetTokenizer, is_target=self.is_target), (self.data, self.names, self._added)


def _parse_vocab(data: bytes, file: str) -> dict[str, int]:
    vocab = parse_json(data, file, Vocabulary, error_type=TokenizerError)
    if len(set(vocab.values())) < len(vocab):
        raise TokenizerError(f"{file} gives several tokens the same id")
    return vocab
