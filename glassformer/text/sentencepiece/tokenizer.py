"""A SentencePiece model as a tokenizer: its pieces, and the tokens that were added to them."""

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
    read_sentencepiece,
    write_sentencepiece,
)
from glassformer.text.sentencepiece.segmenter import Segmenter, piece_bytes
from glassformer.text.special_tokens import AddedToken, SpecialTokenSplitter, control_tokens


class SentencePieceTokenizer:
    """The pieces of a model, and added tokens that are cut out of the text first.

    Control pieces, and user-defined ones that are spelled like control tokens, are never made from text.
    """

    def __init__(
        self,
        data: bytes | SentencePieceModel,
        added: Sequence[AddedToken] = (),
        *,
        name: str = "tokenizer.model",
        template: str = "",
        prefix_inside: bool = True,
    ):
        """data: the file, or what it says;  added: tokens with ids of their own, or flags for those of the model.

        prefix_inside: whether a text behind a control token begins with a space of its own, as a text does.
        """
        model = read_sentencepiece(data) if isinstance(data, bytes) else data
        self._given, self._options = tuple(added), {"name": name, "template": template, "prefix_inside": prefix_inside}
        self.data, self.name, self.prefix_inside = data, name, prefix_inside
        own = {
            piece.text: AddedToken(index, piece.text, piece.type != USER_DEFINED)
            for index, piece in enumerate(model.pieces)
            if piece.type in (CONTROL, UNKNOWN, USER_DEFINED)
        }
        ids = {piece.text: index for index, piece in enumerate(model.pieces)}
        taken = {index: piece.text for index, piece in enumerate(model.pieces)}
        for token in added:
            if taken.setdefault(token.id, token.text) != token.text or ids.get(token.text, token.id) != token.id:
                raise TokenizerError(f"the added token {token.text!r} has the id {token.id} of {taken[token.id]!r}")
        self.kind = f"SentencePiece {KINDS[model.kind]}"
        self.vocab = ids | {token.text: token.id for token in added}
        merged = own | {token.text: token for token in added}
        self.added = list(merged.values())
        self.special = control_tokens(self.added, template)
        outside = [token for token in self.added if token.text not in own]  # the model knows its own user-defined ones
        self._cut = SpecialTokenSplitter([token for token in outside if token.text not in self.special])
        self._cut_all = SpecialTokenSplitter(
            [*(token for token in self.added if token.text in self.special), *self._cut.tokens.values()]
        )
        self._bytes: list[bytes | None] = [*piece_bytes(model)]
        self._bytes += [None] * (max(self.vocab.values()) + 1 - len(self._bytes))
        for token in self.added:
            if token.text in self.special or token in outside:
                self._bytes[token.id] = token.text.encode()
        self.given_model = model
        self.model = replace(model, pieces=tuple(map(self._guarded, model.pieces)))
        self.cutter = Segmenter(self.model)
        self.drops_first_space = model.dummy_prefix and not model.suffix
        self.defaults: Mapping[str, Any] = _defaults(model)
        self.frame: tuple[list[int], list[int]] = ([], [])

    def encode(self, texts: Sequence[str], *, special: bool) -> list[list[int]]:
        known: dict[str, list[int]] = {}  # texts repeat their words
        return [self._encode(text, self._cut_all if special else self._cut, known) for text in texts]

    def _encode(
        self, text: str, cut: SpecialTokenSplitter, known: dict[str, list[int]], inside: bool = False
    ) -> list[int]:
        check_text(text)
        ids: list[int] = []
        for start, end, token in cut(text):
            if token is None:
                ids += self.cutter.encode(text[start:end], prefix=self._prefix(start, inside), known=known)
            else:
                ids.append(token)
        return ids

    def encode_inside(self, text: str) -> list[int]:
        return self._encode(text, self._cut, {}, inside=True)

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        raise TokenizerError("a SentencePiece model does not say how two texts stand in a row: a tokenizer.json does")

    def _prefix(self, start: int, inside: bool) -> bool:
        return self.prefix_inside or (start == 0 and not inside)

    def encode_offsets(self, text: str, *, special: bool) -> tuple[list[int], list[tuple[int, int]]]:
        check_text(text)
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        for start, end, token in (self._cut_all if special else self._cut)(text):
            if token is None:
                new, places = self.cutter.encode_offsets(text[start:end], prefix=self._prefix(start, False))
                ids += new
                offsets += [(start + a, start + b) for a, b in places]
            else:
                ids.append(token)
                offsets.append((start, end))
        return ids, offsets

    def table(self) -> list[bytes | None]:
        return self._bytes

    def files(self, frame: tuple[list[int], list[int]]) -> dict[str, bytes]:
        """The model as it came; what stands around a text is in the configuration."""
        return {self.name: self.data if isinstance(self.data, bytes) else write_sentencepiece(self.data)}

    def rebuild(self) -> tuple[Any, ...]:
        return partial(SentencePieceTokenizer, **self._options), (self.data, self._given)

    def _guarded(self, piece: SentencePiecePiece) -> SentencePiecePiece:
        """A user-defined piece that is a control token is taken as one."""
        forged = piece.type == USER_DEFINED and piece.text in self.special
        return replace(piece, type=CONTROL) if forged else piece


def _defaults(model: SentencePieceModel) -> dict[str, Any]:
    """BOS and EOS as the model names them.  A model with a BOS puts it before a text, one without an EOS behind it
    (T5, Marian), unless its configuration says otherwise."""
    control = {piece.text for piece in model.pieces if piece.type == CONTROL}
    found: dict[str, Any] = {}
    if model.bos in control:
        found["bos_token"] = model.bos
    if model.eos in control:
        found["eos_token"] = model.eos
    found["add_bos_token"] = "bos_token" in found
    found["add_eos_token"] = "eos_token" in found and "bos_token" not in found
    return found


def check_text(text: str) -> None:
    """TypeError for what is not Unicode text, as the other library raises it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TypeError(str(error)) from error
