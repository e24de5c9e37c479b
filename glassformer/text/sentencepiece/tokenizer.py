"""A SentencePiece model as a tokenizer backend: its pieces, and the tokens added to them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from glassformer.errors import TokenizerError
from glassformer.text.sentencepiece.model_file import (
    CONTROL,
    KINDS,
    UNKNOWN,
    USER_DEFINED,
    SentencePieceModel,
    SentencePiecePiece,
    parse_sentencepiece,
    serialize_sentencepiece,
)
from glassformer.text.sentencepiece.segmenter import Segmenter, piece_bytes
from glassformer.text.special_tokens import AddedToken, SpecialTokenSplitter, find_special_tokens


class SentencePieceTokenizer:
    """The pieces of a model, and added tokens that are matched in the text first.

    Text never becomes a control piece, or a user-defined piece that is spelled like a special token.
    """

    def __init__(
        self,
        data: bytes | SentencePieceModel,
        added: Sequence[AddedToken] = (),
        *,
        name: str = "tokenizer.model",
        template: str = "",
        prefix_after_special: bool = True,
    ):
        """Create the backend.

        Args:
            data: The contents of a model file, or the parsed model.
            added: Tokens with ids of their own, or flags for tokens of the model.
            name: The name of the file that `files` returns.
            template: The chat template; it decides whether tokens such as <think> are special.
            prefix_after_special: Whether text after a special token begins with a dummy space, as a new text does.

        Raises:
            TokenizerError: The model is malformed, or an added token has the id of another token.
        """
        model = parse_sentencepiece(data) if isinstance(data, bytes) else data
        model.check()
        self._added = tuple(added)
        self._options = {"name": name, "template": template, "prefix_after_special": prefix_after_special}
        self.data, self.name, self.prefix_after_special = data, name, prefix_after_special
        own = {
            piece.text: AddedToken(index, piece.text, piece.type != USER_DEFINED)
            for index, piece in enumerate(model.pieces)
            if piece.type in (CONTROL, UNKNOWN, USER_DEFINED)
        }
        ids = {piece.text: index for index, piece in enumerate(model.pieces)}
        texts = {index: piece.text for index, piece in enumerate(model.pieces)}
        for token in added:
            if texts.setdefault(token.id, token.text) != token.text or ids.get(token.text, token.id) != token.id:
                raise TokenizerError(
                    f"the added token {token.text!r} has the id {token.id}, which belongs to {texts[token.id]!r}"
                )
        self.kind = f"SentencePiece {KINDS[model.kind]}"
        self.vocab = ids | {token.text: token.id for token in added}
        self.added_tokens = list((own | {token.text: token for token in added}).values())
        self.special_tokens = find_special_tokens(self.added_tokens, template)
        outside = [token for token in self.added_tokens if token.text not in own]
        special = [token for token in self.added_tokens if token.text in self.special_tokens]
        plain = [token for token in outside if token.text not in self.special_tokens]
        self._split_plain, self._split_all = SpecialTokenSplitter(plain), SpecialTokenSplitter(special + plain)
        self._bytes: list[bytes | None] = [*piece_bytes(model)]
        self._bytes += [None] * (max(self.vocab.values()) + 1 - len(self._bytes))
        for token in (*special, *plain):
            self._bytes[token.id] = token.text.encode()
        self.original_model = model
        self.model = replace(model, pieces=tuple(map(self._guarded, model.pieces)))
        self.segmenter = Segmenter(self.model)
        self.drops_first_space, self.drops_last_space = model.dummy_prefix and not model.suffix, False
        self.defaults: Mapping[str, Any] = _config_defaults(model)
        self.prefix_ids: list[int] = []
        self.suffix_ids: list[int] = []

    def encode(self, texts: Sequence[str], *, parse_special: bool) -> list[list[int]]:
        cache: dict[str, list[int]] = {}  # texts repeat words
        return [self._encode(text, self._split_all if parse_special else self._split_plain, cache) for text in texts]

    def _encode(
        self, text: str, split: SpecialTokenSplitter, cache: dict[str, list[int]], continuation: bool = False
    ) -> list[int]:
        check_text(text)
        ids: list[int] = []
        for start, end, token in split(text):
            if token is None:
                prefix = self._has_prefix(start, continuation)
                ids += self.segmenter.encode(text[start:end], prefix=prefix, cache=cache)
            else:
                ids.append(token)
        return ids

    def encode_continuations(self, texts: Sequence[str]) -> list[list[int]]:
        cache: dict[str, list[int]] = {}
        return [self._encode(text, self._split_plain, cache, continuation=True) for text in texts]

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        raise TokenizerError("a SentencePiece model does not define how to join two texts: tokenizer.json is required")

    def _has_prefix(self, start: int, continuation: bool) -> bool:
        return self.prefix_after_special or (start == 0 and not continuation)

    def encode_offsets(self, text: str, *, parse_special: bool) -> tuple[list[int], list[tuple[int, int]]]:
        check_text(text)
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        for start, end, token in (self._split_all if parse_special else self._split_plain)(text):
            if token is None:
                prefix = self._has_prefix(start, continuation=False)
                part_ids, part_offsets = self.segmenter.encode_offsets(text[start:end], prefix=prefix)
                ids += part_ids
                offsets += [(start + a, start + b) for a, b in part_offsets]
            else:
                ids.append(token)
                offsets.append((start, end))
        return ids, offsets

    def token_table(self) -> list[bytes | None]:
        return self._bytes

    def files(self, prefix_ids: list[int], suffix_ids: list[int]) -> dict[str, bytes]:
        """Return the model file, unchanged. The config file defines the ids around a text."""
        return {self.name: self.data if isinstance(self.data, bytes) else serialize_sentencepiece(self.data)}

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(SentencePieceTokenizer, **self._options), (self.data, self._added)

    def _guarded(self, piece: SentencePiecePiece) -> SentencePiecePiece:
        """Return the piece, as a control piece if it is a user-defined special token."""
        forgeable = piece.type == USER_DEFINED and piece.text in self.special_tokens
        return replace(piece, type=CONTROL) if forgeable else piece


def _config_defaults(model: SentencePieceModel) -> dict[str, Any]:
    """Return the BOS and EOS of the model, and whether they are added to a text.

    A model with a BOS puts it before the text. A model with only an EOS (T5, Marian) puts it after the text.
    """
    control = {piece.text for piece in model.pieces if piece.type == CONTROL}
    defaults: dict[str, Any] = {}
    if model.bos in control:
        defaults["bos_token"] = model.bos
    if model.eos in control:
        defaults["eos_token"] = model.eos
    defaults["add_bos_token"] = "bos_token" in defaults
    defaults["add_eos_token"] = "eos_token" in defaults and "bos_token" not in defaults
    return defaults


def check_text(text: str) -> None:
    """Raise TypeError for a lone surrogate, as the `tokenizers` library does."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TypeError(str(error)) from error
