"""Tokenizer backends: the protocol, and the one over the Hugging Face `tokenizers` library."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import tokenizers

from glassformer.errors import TokenizerError
from glassformer.text.special_tokens import AddedToken, find_special_tokens
from glassformer.text.stream_decoder import drops_first_space, token_table

JSON = "tokenizer.json"
SPACE = "▁"  # SentencePiece's; Gemma has added tokens for runs of it


@runtime_checkable
class TokenizerBackend(Protocol):
    """The interface between `Tokenizer` and its implementations. Backends can be copied and pickled.

    kind: the algorithm, for messages
    vocab: token -> id
    added_tokens: tokens that are matched in the text before all others
    special_tokens: text -> id of the tokens that plain text never becomes
    prefix_ids, suffix_ids: ids that the files put before and after a text
    drops_first_space: whether decoding removes one space at the start
    defaults: config values that apply where the config has none
    """

    kind: str
    vocab: dict[str, int]
    added_tokens: list[AddedToken]
    special_tokens: dict[str, int]
    prefix_ids: list[int]
    suffix_ids: list[int]
    drops_first_space: bool
    defaults: Mapping[str, Any]

    def encode(self, texts: Sequence[str], *, parse_special: bool) -> list[list[int]]:
        """Return the ids of each text, without prefix and suffix. Raises TypeError for a lone surrogate.

        parse_special: Whether the text of a special token becomes that token.
        """
        ...

    def encode_continuation(self, text: str) -> list[int]:
        """Return the ids of plain text that follows a special token."""
        ...

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        """Return the ids and token types of each text pair, with the special tokens between and around the texts."""
        ...

    def encode_offsets(self, text: str, *, parse_special: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the ids of a text, and the range of characters of each token."""
        ...

    def token_table(self) -> list[bytes | None]:
        """Return the bytes of every token by id; None where an id has no token."""
        ...

    def files(self, prefix_ids: list[int], suffix_ids: list[int]) -> dict[str, bytes]:
        """Return the files to save (name -> contents), for a tokenizer that adds these ids around a text."""
        ...


class HFTokenizer:
    """A `tokenizer.json` in the `tokenizers` library, in two copies: one parses special tokens, the other does not.

    (A switch on one copy would not be thread-safe.)
    """

    defaults: Mapping[str, Any] = {}

    def __init__(self, tokenizer_json: str, template: str = ""):
        """Open the contents of a `tokenizer.json`.

        Args:
            tokenizer_json: The contents of the file.
            template: The chat template; it decides whether tokens such as <think> are special.

        Raises:
            TokenizerError: The library cannot read the contents.
        """
        self.json, self.template = tokenizer_json, template
        try:
            self.layout: dict[str, Any] = json.loads(tokenizer_json)
        except json.JSONDecodeError as error:
            raise TokenizerError(f"{JSON} is not JSON: {error}") from error
        if not isinstance(self.layout, dict):
            raise TokenizerError(f"{JSON} must hold a JSON object, not {type(self.layout).__name__}")
        layout = self.layout | {"post_processor": _without_trim(self.layout.get("post_processor"))}
        self.parsing = _open(layout)
        self.kind = str(self.layout["model"].get("type", "model"))
        self.vocab: dict[str, int] = self.parsing.get_vocab(with_added_tokens=True)
        self.added_tokens = [
            AddedToken(index, token.content, token.special, token.lstrip, token.rstrip)
            for index, token in self.parsing.get_added_tokens_decoder().items()
        ]
        self.special_tokens = find_special_tokens(self.added_tokens, template)
        added = [
            token | {"special": token["content"] in self.special_tokens} for token in layout.get("added_tokens", [])
        ]
        self._plain_layout = _rename_special(layout | {"added_tokens": added}, self.special_tokens)
        self.plain = _open_plain(self._plain_layout)
        self.prefix_ids, self.suffix_ids = self._added_ids()
        self.drops_first_space = drops_first_space(self.layout)

    def encode(self, texts: Sequence[str], *, parse_special: bool) -> list[list[int]]:
        tokenizer = self.parsing if parse_special else self.plain
        return [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_continuation(self, text: str) -> list[int]:
        return self._continuing.encode(text, add_special_tokens=False).ids

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        encodings = self.plain.encode_batch(list(pairs), add_special_tokens=True)
        return [(encoding.ids, encoding.type_ids) for encoding in encodings]

    def encode_offsets(self, text: str, *, parse_special: bool) -> tuple[list[int], list[tuple[int, int]]]:
        encoding = (self.parsing if parse_special else self.plain).encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def token_table(self) -> list[bytes | None]:
        verbatim = (
            token for token in self.added_tokens if token.text in self.special_tokens or SPACE not in token.text
        )
        return token_table(self.layout, self.vocab, {token.id: token.text for token in verbatim})

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild from the JSON text: the library's own pickles lose `encode_special_tokens`."""
        return HFTokenizer, (self.json, self.template)

    @cached_property
    def _continuing(self) -> tokenizers.Tokenizer:
        """The plain copy, without the space that some files put before the first word of a text."""
        return _open_plain(_without_first_space(self._plain_layout))

    def _added_ids(self) -> tuple[list[int], list[int]]:
        """Return the ids that the post-processor adds before and after a text: Llama's BOS, BERT's [CLS] and [SEP]."""
        plain = self.parsing.encode("a", add_special_tokens=False).ids
        full = self.parsing.encode("a", add_special_tokens=True).ids
        n_added = len(full) - len(plain)
        start = next(i for i in range(n_added + 1) if full[i : i + len(plain)] == plain)
        return full[:start], full[start + len(plain) :]

    def files(self, prefix_ids: list[int], suffix_ids: list[int]) -> dict[str, bytes]:
        if (prefix_ids, suffix_ids) == (self.prefix_ids, self.suffix_ids):
            return {JSON: self.json.encode()}
        tokens = {index: self.parsing.id_to_token(index) for index in prefix_ids + suffix_ids}
        before, after = (
            [{"SpecialToken": {"id": tokens[index], "type_id": 0}} for index in ids] for ids in (prefix_ids, suffix_ids)
        )
        single = [*before, {"Sequence": {"id": "A", "type_id": 0}}, *after]
        processor = {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {token: {"id": token, "ids": [i], "tokens": [token]} for i, token in tokens.items()},
        }
        return {JSON: json.dumps(self.layout | {"post_processor": processor}, ensure_ascii=False).encode()}


def _open(layout: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Return the library's tokenizer, without the truncation and padding that some files set."""
    try:
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(layout))
    except Exception as error:  # the library raises plain Exception
        raise TokenizerError(f"{JSON} cannot be read: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _open_plain(layout: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Return the library's tokenizer that never turns text into a special token."""
    tokenizer = _open(layout)
    tokenizer.encode_special_tokens = True
    return tokenizer


def _rename_special(layout: Mapping[str, Any], special_tokens: Mapping[str, int]) -> Mapping[str, Any]:
    """Return the layout with the special tokens of a Unigram model renamed, so that no text matches them.

    The new names contain a space, which is ▁ in any text that the model sees.
    """
    if layout["model"].get("type") != "Unigram":
        return layout
    renamed = {name: f"{name} " for name in special_tokens}
    vocab = [[renamed.get(piece, piece), score] for piece, score in layout["model"]["vocab"]]
    added = [token | {"content": renamed.get(token["content"], token["content"])} for token in layout["added_tokens"]]
    return {**layout, "model": layout["model"] | {"vocab": vocab}, "added_tokens": added}


def _without_trim(part: Any) -> Any:
    """Return the post-processor with offsets that include a token's leading space (`trim_offsets` changes no id)."""
    if isinstance(part, dict):
        return {key: False if key == "trim_offsets" else _without_trim(value) for key, value in part.items()}
    return [_without_trim(item) for item in part] if isinstance(part, list) else part


def _without_first_space(layout: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the layout with every `"prepend_scheme": "first"` replaced by "never"."""

    def replaced(part: Any) -> Any:
        if isinstance(part, dict):
            new = {key: replaced(value) for key, value in part.items()}
            return new | {"prepend_scheme": "never"} if new.get("prepend_scheme") == "first" else new
        return [replaced(item) for item in part] if isinstance(part, list) else part

    return {key: value if key == "model" else replaced(value) for key, value in layout.items()}
