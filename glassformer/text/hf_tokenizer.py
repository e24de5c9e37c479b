"""Encoding by the Hugging Face `tokenizers` library, from the text of a `tokenizer.json`."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import tokenizers

from glassformer.errors import TokenizerError
from glassformer.text.special_tokens import AddedToken, control_tokens
from glassformer.text.stream_decoder import drops_first_space, token_table

JSON = "tokenizer.json"
SPACE = "▁"  # SentencePiece's: Gemma adds tokens for runs of it


@runtime_checkable
class TokenizerBackend(Protocol):
    """What a `Tokenizer` needs of whatever knows its vocabulary: this library's pipeline, or SentencePiece's.

    vocab: token -> id;  added: tokens that are looked for before all others;  special: the control tokens, text -> id;
    frame: ids that the files put before and after a text;  defaults: what the configuration says where it is silent.
    """

    kind: str
    vocab: dict[str, int]
    added: list[AddedToken]
    special: dict[str, int]
    frame: tuple[list[int], list[int]]
    drops_first_space: bool
    defaults: Mapping[str, Any]

    def encode(self, texts: Sequence[str], *, special: bool) -> list[list[int]]:
        """The ids of texts; special: whether control tokens are read out of them.  TypeError for a lone surrogate."""
        ...

    def encode_inside(self, text: str) -> list[int]:
        """The ids of a plain text that stands behind a control token."""
        ...

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        """The ids of plain texts two by two, framed as the files say, and of which type each token is."""
        ...

    def encode_offsets(self, text: str, *, special: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of a text, and the characters that each covers."""
        ...

    def table(self) -> list[bytes | None]:
        """The bytes of every token by id; None where an id has no token."""
        ...

    def files(self, frame: tuple[list[int], list[int]]) -> dict[str, bytes]:
        """The files to save, which put `frame` around a text."""
        ...

    def rebuild(self) -> tuple[Any, ...]:
        """(function, arguments) that make it again, for a copy."""
        ...


class HFTokenizer:
    """A pipeline of the library, twice: one reads control tokens out of the text, the other passes them by."""

    defaults: Mapping[str, Any] = {}

    def __init__(self, tokenizer_json: str, template: str = ""):
        """TokenizerError when the library cannot read it.  template: the chat template, which tells control tokens."""
        self.json, self.template = tokenizer_json, template
        try:
            self.layout: dict[str, Any] = json.loads(tokenizer_json)
        except json.JSONDecodeError as error:
            raise TokenizerError(f"{JSON} is not JSON: {error}") from error
        if not isinstance(self.layout, dict):
            raise TokenizerError(f"{JSON} must hold a JSON object, not {type(self.layout).__name__}")
        layout = self.layout | {"post_processor": _untrimmed(self.layout.get("post_processor"))}
        self.marked = _open(layout)
        self.kind = str(self.layout["model"].get("type", "model"))
        self.vocab: dict[str, int] = self.marked.get_vocab(with_added_tokens=True)
        self.added = [
            AddedToken(index, token.content, token.special, token.lstrip, token.rstrip)
            for index, token in self.marked.get_added_tokens_decoder().items()
        ]
        self.special = control_tokens(self.added, template)
        passed = [token | {"special": token["content"] in self.special} for token in layout.get("added_tokens", [])]
        self._passing = _unspelled(layout | {"added_tokens": passed}, self.special)
        self.plain = _passing_by(self._passing)  # another one, since a switch would not be thread-safe
        self.frame = self._frame()
        self.drops_first_space = drops_first_space(self.layout)

    def encode(self, texts: Sequence[str], *, special: bool) -> list[list[int]]:
        core = self.marked if special else self.plain
        return [encoding.ids for encoding in core.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_inside(self, text: str) -> list[int]:
        return self._inside.encode(text, add_special_tokens=False).ids

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        found = self.plain.encode_batch(list(pairs), add_special_tokens=True)
        return [(encoding.ids, encoding.type_ids) for encoding in found]

    def encode_offsets(self, text: str, *, special: bool) -> tuple[list[int], list[tuple[int, int]]]:
        found = (self.marked if special else self.plain).encode(text, add_special_tokens=False)
        return found.ids, found.offsets

    def table(self) -> list[bytes | None]:
        as_they_are = (token for token in self.added if token.text in self.special or SPACE not in token.text)
        return token_table(self.layout, self.vocab, {token.id: token.text for token in as_they_are})

    def rebuild(self) -> tuple[Any, ...]:
        """Made again from its text: the library would forget which of its two tokenizers reads plain text."""
        return HFTokenizer, (self.json, self.template)

    @cached_property
    def _inside(self) -> tokenizers.Tokenizer:
        """The plain one, which puts a space only before the first words of a text, and so none here."""
        return _passing_by(_never_first(self._passing))

    def _frame(self) -> tuple[list[int], list[int]]:
        """The ids that the post-processor puts before and after a text: Llama's BOS, BERT's [CLS] and [SEP]."""
        plain = self.marked.encode("a", add_special_tokens=False).ids
        framed = self.marked.encode("a", add_special_tokens=True).ids
        extra = len(framed) - len(plain)
        start = next(i for i in range(extra + 1) if framed[i : i + len(plain)] == plain)
        return framed[:start], framed[start + len(plain) :]

    def files(self, frame: tuple[list[int], list[int]]) -> dict[str, bytes]:
        """`tokenizer.json`, whose post-processor adds exactly this frame."""
        if frame == self.frame:
            return {JSON: self.json.encode()}
        before, after = frame
        named = [(index, self.marked.id_to_token(index)) for index in before + after]
        pieces = [{"SpecialToken": {"id": token, "type_id": 0}} for _, token in named]
        pieces.insert(len(before), {"Sequence": {"id": "A", "type_id": 0}})
        names = {token: {"id": token, "ids": [index], "tokens": [token]} for index, token in named}
        pair = [*pieces, {"Sequence": {"id": "B", "type_id": 0}}]
        processor = {"type": "TemplateProcessing", "single": pieces, "pair": pair, "special_tokens": names}
        return {JSON: json.dumps(self.layout | {"post_processor": processor}, ensure_ascii=False).encode()}


def _open(layout: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """The library's tokenizer, without the truncation and padding that some files carry."""
    try:
        core = tokenizers.Tokenizer.from_str(json.dumps(layout))
    except Exception as error:  # the library raises plain Exception
        raise TokenizerError(f"{JSON} cannot be read: {error}") from error
    core.no_truncation()
    core.no_padding()
    return core


def _passing_by(layout: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """The library's tokenizer, which passes by all that is marked special."""
    core = _open(layout)
    core.encode_special_tokens = True
    return core


def _unspelled(layout: Mapping[str, Any], special: Mapping[str, int]) -> Mapping[str, Any]:
    """The same pipeline, where no text spells a control token that stands among a unigram's pieces.

    It is given a name with a space in it, which is ▁ in all that pieces are compared with.
    """
    if layout["model"].get("type") != "Unigram":
        return layout
    hidden = {name: f"{name} " for name in special}
    pieces = [[hidden.get(piece, piece), score] for piece, score in layout["model"]["vocab"]]
    added = [token | {"content": hidden.get(token["content"], token["content"])} for token in layout["added_tokens"]]
    return {**layout, "model": layout["model"] | {"vocab": pieces}, "added_tokens": added}


def _untrimmed(part: Any) -> Any:
    """The same post-processor with offsets that keep a token's leading space (`trim_offsets` changes no id)."""
    if isinstance(part, dict):
        return {key: False if key == "trim_offsets" else _untrimmed(value) for key, value in part.items()}
    return [_untrimmed(item) for item in part] if isinstance(part, list) else part


def _never_first(layout: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same pipeline, where `"prepend_scheme": "first"` is "never"."""

    def changed(part: Any) -> Any:
        if isinstance(part, dict):
            now = {key: changed(value) for key, value in part.items()}
            return now | {"prepend_scheme": "never"} if now.get("prepend_scheme") == "first" else now
        return [changed(item) for item in part] if isinstance(part, list) else part

    return {key: value if key == "model" else changed(value) for key, value in layout.items()}
