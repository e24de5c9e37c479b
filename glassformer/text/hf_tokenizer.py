"""Tokenizer backends: the protocol, and the one over the Hugging Face `tokenizers` library."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import tokenizers
from typing_extensions import TypedDict

from glassformer.errors import TokenizerError
from glassformer.json_file import check_schema, parse_json
from glassformer.text.encoder_process import EncoderPool
from glassformer.text.hf_encoder import JSON, HFEncoder, library_errors, open_library
from glassformer.text.patterns import find_regexes, is_linear
from glassformer.text.special_tokens import AddedToken, check_ids, find_special_tokens, token_entry
from glassformer.text.stream_decoder import TokenDecoder

SPACE = "▁"  # SentencePiece's; Gemma has added tokens for runs of it
TEXT_PARTS = dict.fromkeys(("normalizer", "pre_tokenizer"))  # may contain regular expressions
PARTS = (*TEXT_PARTS, "post_processor", "decoder")


class _TokenizerJson(TypedDict):
    """What this module uses before the library has checked the file."""

    model: dict[str, Any]


@runtime_checkable
class TokenizerBackend(Protocol):
    """The interface between `Tokenizer` and its implementations. Backends can be copied and pickled.

    kind: the algorithm, for messages
    vocab: token -> id
    added_tokens: tokens that are matched in the text before all others
    special_tokens: text -> id of the tokens that plain text never becomes
    prefix_ids, suffix_ids: ids that the files put before and after a text
    drops_first_space, drops_last_space: whether decoding removes one space at the start, or at the end
    defaults: config values that apply where the config has none
    """

    kind: str
    vocab: dict[str, int]
    added_tokens: list[AddedToken]
    special_tokens: dict[str, int]
    prefix_ids: list[int]
    suffix_ids: list[int]
    drops_first_space: bool
    drops_last_space: bool
    defaults: Mapping[str, Any]

    def encode(self, texts: Sequence[str], *, parse_special: bool) -> list[list[int]]:
        """Return the ids of each text, without prefix and suffix. Raises TypeError for a lone surrogate.

        parse_special: Whether the text of a special token becomes that token.
        """
        ...

    def encode_continuations(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each plain text; each follows a special token."""
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
    """A `tokenizer.json` in the `tokenizers` library.

    A regular expression that may need exponential time is only applied in a child process; see `EncoderPool`.

    core: the library's tokenizer, for its vocabulary; without the parts that work on text if these need a child process
    """

    defaults: Mapping[str, Any] = {}

    def __init__(self, tokenizer_json: str, template: str = "", added: Sequence[AddedToken] = ()):
        """Open the contents of a `tokenizer.json`.

        Args:
            tokenizer_json: The contents of the file.
            template: The chat template; it decides whether tokens such as <think> are special.
            added: Tokens that other files add to it, or whose flags they set.

        Raises:
            TokenizerError: The library cannot read the contents, or it gives an added token another id.
        """
        self.template = template
        layout = parse_json(tokenizer_json, JSON, error_type=TokenizerError)
        check_schema(layout, JSON, _TokenizerJson, error_type=TokenizerError)
        layout |= _checked_parts(layout)
        if added:
            layout["added_tokens"] = _with_added_tokens(layout, added)
            tokenizer_json = json.dumps(layout, ensure_ascii=False)
        self.json, self.layout = tokenizer_json, layout
        opened = layout | {"post_processor": _without_trim(layout["post_processor"])}
        costly = [regex for name in TEXT_PARTS for regex in find_regexes(layout[name]) if not is_linear(regex)]
        self.core = open_library(opened | TEXT_PARTS if costly else opened)
        self.kind = str(layout["model"].get("type", "model"))
        self.vocab: dict[str, int] = self.core.get_vocab(with_added_tokens=True)
        check_ids(self.vocab, JSON)
        self.added_tokens = _added_tokens(self.core)
        self.special_tokens = find_special_tokens(self.added_tokens, template)
        plain = _rename_special(
            opened
            | {
                "added_tokens": [
                    {"id": token.id, **token_entry(token), "special": token.text in self.special_tokens}
                    for token in self.added_tokens
                ]
            },
            self.special_tokens,
        )
        self._encoder = EncoderPool(opened, plain, costly) if costly else HFEncoder(self.core, plain)
        self.prefix_ids, self.suffix_ids = self._frame()
        self.decoder = TokenDecoder(layout["decoder"])
        self.drops_first_space, self.drops_last_space = self.decoder.drops_first_space, self.decoder.drops_last_space

    def encode(self, texts: Sequence[str], *, parse_special: bool) -> list[list[int]]:
        return self._encoder.encode(texts, parse_special)

    def encode_continuations(self, texts: Sequence[str]) -> list[list[int]]:
        return self._encoder.encode_continuations(texts)

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        return self._encoder.encode_pairs(pairs)

    def encode_offsets(self, text: str, *, parse_special: bool) -> tuple[list[int], list[tuple[int, int]]]:
        return self._encoder.encode_offsets(text, parse_special)

    def token_table(self) -> list[bytes | None]:
        verbatim = {
            token.id for token in self.added_tokens if token.text in self.special_tokens or SPACE not in token.text
        }
        table: list[bytes | None] = [None] * (max(self.vocab.values(), default=-1) + 1)
        for token, index in self.vocab.items():
            table[index] = token.encode() if index in verbatim else self.decoder.token_bytes(token)
        return table

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild from the JSON text: the library's own pickles lose `encode_special_tokens`."""
        return HFTokenizer, (self.json, self.template)

    def _frame(self) -> tuple[list[int], list[int]]:
        """Return the ids that the post-processor adds before and after a text: Llama's BOS, BERT's [CLS] and [SEP].

        Raises:
            TokenizerError: The post-processor drops or repeats the text, or adds an id that no token has.
        """
        probe = open_library(_PROBE | {"post_processor": self.layout["post_processor"]})
        with library_errors("frame a text"):
            encoding = probe.encode("a", add_special_tokens=True)
        if encoding.special_tokens_mask.count(0) != 1:
            raise TokenizerError(f"the post_processor of {JSON} must contain the text once, with tokens around it")
        at = encoding.special_tokens_mask.index(0)
        prefix, suffix = encoding.ids[:at], encoding.ids[at + 1 :]
        if unknown := {*prefix, *suffix} - {*self.vocab.values()}:
            raise TokenizerError(f"the post_processor of {JSON} adds the id {min(unknown)}, which no token has")
        return prefix, suffix

    def files(self, prefix_ids: list[int], suffix_ids: list[int]) -> dict[str, bytes]:
        if (prefix_ids, suffix_ids) == (self.prefix_ids, self.suffix_ids):
            return {JSON: self.json.encode()}
        tokens = {index: self.core.id_to_token(index) for index in prefix_ids + suffix_ids}
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


_PROBE: dict[str, Any] = {
    "version": "1.0",
    **dict.fromkeys(("truncation", "padding", *PARTS)),
    "added_tokens": [],
    "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"},
}
"""A tokenizer of one token, to examine the parts of another one without its model."""


def _checked_parts(layout: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts around the model as the library understands them: complete, with the right types."""
    parts = {name: layout.get(name) for name in PARTS}
    return {name: part for name, part in json.loads(open_library(_PROBE | parts).to_str()).items() if name in PARTS}


def _with_added_tokens(layout: Mapping[str, Any], added: Sequence[AddedToken]) -> list[dict[str, Any]]:
    """Return the layout's `added_tokens` with `added`. Raises TokenizerError if the library gives one another id."""
    tokens = {token.text: token for token in (*_added_tokens(open_library({**layout, **TEXT_PARTS})), *added)}
    entries = [{"id": token.id, **token_entry(token)} for token in sorted(tokens.values(), key=lambda token: token.id)]
    opened = {
        token.text: token for token in _added_tokens(open_library({**layout, **TEXT_PARTS, "added_tokens": entries}))
    }
    for token in added:
        if (index := opened[token.text].id) != token.id:
            raise TokenizerError(
                f"the added token {token.text!r} has the id {token.id}, but with {JSON} its id would be {index}"
            )
    if len({token.id for token in opened.values()}) < len(opened):
        raise TokenizerError(f"two added tokens have the same id with {JSON}")
    return entries


def _added_tokens(core: tokenizers.Tokenizer) -> list[AddedToken]:
    return [
        AddedToken(index, t.content, t.special, t.lstrip, t.rstrip, t.single_word, t.normalized)
        for index, t in core.get_added_tokens_decoder().items()
    ]


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
