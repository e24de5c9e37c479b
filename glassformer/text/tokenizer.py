"""The tokenizer: text -> token ids -> text, with the bytes and the characters of each token."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from glassformer.atomic import write_bytes
from glassformer.errors import TokenizerError
from glassformer.text.hf_tokenizer import JSON, HFTokenizer, TokenizerBackend
from glassformer.text.sentencepiece.source_target import SourceTargetTokenizer
from glassformer.text.special_tokens import AddedToken, SpecialTokenSplitter, entry_text
from glassformer.text.stream_decoder import StreamDecoder

CONFIG, TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
TEMPLATE_FOLDER = "additional_chat_templates"  # NAME.jinja: the templates that are not the default

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Encoding:
    """The tokens of a text, as three lists of equal length.

    ids: token ids
    tokens: the bytes of each token
    offsets: (start, end) of each token, in characters of the Python str

    `text[start:end]` holds exactly the token's bytes. If a token is only a part of a character's bytes, the range
    covers the entire character, and the neighbouring tokens have the same range. A token that stands for no text, such
    as a BOS, has (0, 0).
    """

    ids: list[int]
    tokens: list[bytes]
    offsets: list[tuple[int, int]]


class Tokenizer:
    """A tokenizer over a `tokenizer.json`, a SentencePiece model or Marian's pair of them; see `load_tokenizer`.

    vocab_size: one more than the largest token id
    bos_id, eos_id: ids of the tokens that begin and end a text, or None
    special_tokens: text -> id of the tokens that text becomes only with `parse_special=True`: those marked special,
        those spelled <|...|>, and added tokens spelled <...> or [...] that the chat template uses
    prefix_ids, suffix_ids: ids that `encode` puts before and after a text
    add_bos: whether `encode` puts bos_id first: the config's `add_bos_token`, else what the post-processor does
    """

    def __init__(
        self,
        source: str | TokenizerBackend,
        config: Mapping[str, Any] | None = None,
        *,
        chat_template: str | Mapping[str, str] | None = None,
    ):
        """Create a tokenizer.

        Args:
            source: The contents of a `tokenizer.json`, or the backend of another format.
            config: The parsed `tokenizer_config.json`.
            chat_template: The contents of `chat_template.jinja`, or several templates by name.

        Raises:
            TokenizerError: The library cannot read `source`, or `config` names a token that is not in the vocabulary.
        """
        config = dict(config or {})
        self.chat_template = chat_template
        if isinstance(source, str):
            source = HFTokenizer(source, "\n".join(named_templates(config, chat_template).values()))
        self.backend = source
        self.config = {**self.backend.defaults, **config}
        self.vocab_size = max(self.backend.vocab.values(), default=-1) + 1
        self.special_tokens = self.backend.special_tokens

        self.eos_id, self.bos_id = self._named_id("eos_token"), self._named_id("bos_token")
        self.prefix_ids, self.suffix_ids = list(self.backend.prefix_ids), list(self.backend.suffix_ids)
        if "add_eos_token" in self.backend.defaults and self.config["add_eos_token"] and self.eos_id is not None:
            self.suffix_ids = [self.eos_id]
        has_bos = self.bos_id is not None and self.bos_id in self.prefix_ids
        add_bos = self.config.get("add_bos_token")
        self.add_bos: bool = add_bos if isinstance(add_bos, bool) else has_bos
        if self.add_bos and self.bos_id is None:
            raise TokenizerError(f"{CONFIG} sets add_bos_token, but no bos_token")
        if self.add_bos != has_bos:
            self.prefix_ids = [self.bos_id] if self.add_bos and self.bos_id is not None else []

    def __repr__(self) -> str:
        return f"Tokenizer({self.backend.kind}, vocab_size={self.vocab_size}, eos_id={self.eos_id})"

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(Tokenizer, chat_template=self.chat_template), (self.backend, self.config)

    @property
    def chat_templates(self) -> dict[str, str]:
        """The chat templates by name: those of the files, or without files those of the config."""
        return named_templates(self.config, self.chat_template)

    @property
    def mask_id(self) -> int | None:
        """The id of a masked language model's mask token, or None."""
        return self._named_id("mask_token")

    @property
    def unk_id(self) -> int | None:
        """The id of the token that stands for text which the vocabulary cannot spell, or None."""
        name = entry_text(self.config.get("unk_token"))
        index = self.backend.vocab.get(name) if name is not None else None
        return None if index in (self.bos_id, self.eos_id) else index  # GPT-2 names its end token, and never uses it

    # ---- text to ids

    def encode(self, text: str, *, parse_special: bool = False, bare: bool = False) -> list[int]:
        """Return the ids of `text`.

        Args:
            text: Valid Unicode text.
            parse_special: Whether text such as "<|endoftext|>" becomes that special token. Default: it is plain text.
            bare: Whether to leave out `prefix_ids` and `suffix_ids` (BOS and EOS).

        Raises:
            TokenizerError: The text contains a lone surrogate; the message gives its position.
        """
        return self.encode_batch([text], parse_special=parse_special, bare=bare)[0]

    def encode_batch(self, texts: Sequence[str], *, parse_special: bool = False, bare: bool = False) -> list[list[int]]:
        """Return the ids of each text, as `encode` does; the library works on the texts in parallel."""
        texts = list(texts)
        try:
            batch = self.backend.encode(texts, parse_special=parse_special)
        except TypeError:
            _check_surrogates(texts)
            raise
        if bare or not (self.prefix_ids or self.suffix_ids):
            return batch
        return [self.prefix_ids + ids + self.suffix_ids for ids in batch]

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        """Encode each pair of texts as one sequence, for encoder-only models.

        Returns:
            For each pair the ids and the type of every token: 1 for the second text of models that distinguish the
            texts, else 0.

        Raises:
            TokenizerError: The tokenizer does not define how to join two texts.
        """
        if (self.prefix_ids, self.suffix_ids) != (self.backend.prefix_ids, self.backend.suffix_ids):
            raise TokenizerError(f"{CONFIG} and {JSON} disagree about add_bos_token: text pairs cannot be encoded")
        try:
            return self.backend.encode_pairs(list(pairs))
        except TypeError:
            _check_surrogates([text for pair in pairs for text in pair])
            raise

    def encode_masked(self, text: str) -> list[int]:
        """Return the ids of a text in which the mask token's text ("[MASK]", "<mask>") becomes the mask token.

        Everything else is plain text.

        Raises:
            TokenizerError: The tokenizer has no mask token.
        """
        mask = self.mask_id
        if mask is None:
            raise TokenizerError("the tokenizer has no mask token (mask_token)")
        name = next(token for token, index in self.backend.vocab.items() if index == mask)
        added = next((token for token in self.backend.added_tokens if token.id == mask), AddedToken(mask, name))
        return self.prefix_ids + self.encode_parts(text, SpecialTokenSplitter([added])(text)) + self.suffix_ids

    def encode_parts(self, text: str, parts: Iterable[tuple[int, int, int | None]]) -> list[int]:
        """Return the ids of a text that special tokens divide, without prefix and suffix.

        Args:
            text: The text.
            parts: (start, end, id) of each special token, and (start, end, None) of the plain text between them.
        """
        parts = list(parts)
        first = [text[:end] for start, end, token in parts if token is None and start == 0]
        others = [text[start:end] for start, end, token in parts if token is None and start > 0]
        try:
            batch = self.backend.encode(first, parse_special=False) if first else []
            plain = iter(batch + self.backend.encode_continuations(others))
        except TypeError:
            _check_surrogates([text])
            raise
        return [index for _, _, token in parts for index in (next(plain) if token is None else [token])]

    def encode_offsets(self, text: str, *, parse_special: bool = False, bare: bool = False) -> Encoding:
        """Encode as `encode` does, with the bytes and the character range of each token."""
        try:
            text_ids, text_offsets = self.backend.encode_offsets(text, parse_special=parse_special)
        except TypeError:
            _check_surrogates([text])
            raise
        prefix, suffix = ([], []) if bare else (self.prefix_ids, self.suffix_ids)
        ids = prefix + text_ids + suffix
        offsets = [(0, 0)] * len(prefix) + text_offsets + [(0, 0)] * len(suffix)
        return Encoding(ids, [self.token_bytes(index) for index in ids], offsets)

    # ---- ids to text

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """Return the text of `ids`. Bytes that are not valid UTF-8 become U+FFFD.

        An id without a token, such as that of a padding row of a model's embedding, has no text, as in `transformers`.

        skip_special: Whether to leave out special tokens.

        Raises:
            TokenizerError: An id is negative.
        """
        data = b"".join([self._decoded_bytes(index, skip_special) for index in ids])
        data = data.removeprefix(b" ") if self.backend.drops_first_space else data
        return (data.removesuffix(b" ") if self.backend.drops_last_space else data).decode("utf-8", "replace")

    def token_bytes(self, index: int) -> bytes:
        """Return the bytes of a token; for a special token, its text in UTF-8.

        Raises:
            TokenizerError: The id is not in the vocabulary.
        """
        data = self.find_bytes(index)
        if data is None:
            last = self.vocab_size - 1
            if 0 <= index <= last:
                raise TokenizerError(f"token id {index} is in the range 0 to {last}, but no token has it")
            raise TokenizerError(f"token id {index} is out of range: allowed are 0 to {last}")
        return data

    @cached_property
    def longest_token(self) -> int:
        """The number of bytes of the longest token."""
        return max(len(data) for data in self._table if data is not None)

    def find_bytes(self, index: int) -> bytes | None:
        """Return the bytes of a token, or None if no token has this id."""
        return self._table[index] if 0 <= index < self.vocab_size else None

    def token_text(self, index: int) -> str:
        """Return the text of a token, or "#17" if no token has this id. Bytes that are not UTF-8 become U+FFFD."""
        data = self.find_bytes(index)
        return f"#{index}" if data is None else data.decode("utf-8", "replace")

    def stream(self, *, skip_special: bool = False) -> StreamDecoder:
        """Return an incremental decoder: it takes one id at a time and returns only complete characters."""
        return StreamDecoder(
            lambda index: self._decoded_bytes(index, skip_special),
            drop_first_space=self.backend.drops_first_space,
            drop_last_space=self.backend.drops_last_space,
        )

    def _decoded_bytes(self, index: int, skip_special: bool) -> bytes:
        if index < 0:
            raise TokenizerError(f"token id {index} is out of range: allowed are 0 to {self.vocab_size - 1}")
        return b"" if skip_special and index in self._special_ids else self.find_bytes(index) or b""

    @cached_property
    def _table(self) -> list[bytes | None]:
        return self.backend.token_table()

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        return frozenset(self.special_tokens.values())

    def target_tokenizer(self) -> "Tokenizer":
        """Return the tokenizer of the target side; the same tokenizer unless each side has a SentencePiece model."""
        if not isinstance(self.backend, SourceTargetTokenizer):
            return self
        return Tokenizer(self.backend.target_tokenizer(), self.config, chat_template=self.chat_template)

    # ---- on disk

    def save(self, folder: str | Path) -> None:
        """Save to a folder; `load_tokenizer` and `transformers.AutoTokenizer` then give the same ids.

        A SentencePiece model is saved unchanged, every other format as a `tokenizer.json`.

        Raises:
            TokenizerError: A file cannot be written; the message names it. Each file is written atomically.
        """
        folder = Path(folder)
        dropped = ("auto_map", "tokenizer_file", "name_or_path")
        config = {
            key: entry_text(value) if isinstance(value, dict) and "content" in value else value
            for key, value in self.config.items()
            if key not in dropped
        }
        config["add_bos_token"] = self.add_bos
        if isinstance(self.backend, HFTokenizer):
            config["tokenizer_class"] = "PreTrainedTokenizerFast"
        config.setdefault("clean_up_tokenization_spaces", False)
        config.setdefault("model_max_length", 10**30)  # transformers' value for "not set"
        files = {CONFIG: (json.dumps(config, ensure_ascii=False, indent=2) + "\n").encode()}
        files |= self.backend.files(self.prefix_ids, self.suffix_ids)
        for name, template in named_templates({}, self.chat_template).items():
            if not name or "/" in name or "\0" in name:
                raise TokenizerError(f"the name of a chat template must be a file name without /, got {name!r}")
            files[TEMPLATE if name == "default" else f"{TEMPLATE_FOLDER}/{name}.jinja"] = template.encode()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if any(name.startswith(TEMPLATE_FOLDER) for name in files):
                (folder / TEMPLATE_FOLDER).mkdir(exist_ok=True)
            for name, data in files.items():
                write_bytes(folder / name, data, error_type=TokenizerError)
            if JSON not in files:
                (folder / JSON).unlink(missing_ok=True)  # of another tokenizer; it would take precedence
        except OSError as error:
            raise TokenizerError(f"{folder} could not be written: {error.strerror or error}") from error

    def _named_id(self, key: str) -> int | None:
        """Return the id of the token that the config names under `key`, or None."""
        name = entry_text(self.config.get(key))
        if not name:
            return None
        index = self.backend.vocab.get(name)
        if index is None:
            raise TokenizerError(f"{CONFIG}: {key} is {name!r}, which is not in the vocabulary")
        return index


def named_templates(config: Mapping[str, Any], files: str | Mapping[str, str] | None) -> dict[str, str]:
    """Return the chat templates by name: those of the files, or without files those of the config.

    files: The contents of `chat_template.jinja`, or several templates by name.
    """
    entry = files or config.get("chat_template")
    if isinstance(entry, str):
        return {"default": entry}
    if isinstance(entry, list):  # the layout of tokenizer_config.json
        return {item["name"]: item["template"] for item in entry}
    return dict(entry or {})


def _check_surrogates(texts: Sequence[str]) -> None:
    """Raise TokenizerError for the first lone surrogate, if there is one."""
    for number, text in enumerate(texts):
        if isinstance(text, str) and (match := _SURROGATE.search(text)):
            where = f" of text {number}" if len(texts) > 1 else ""
            raise TokenizerError(
                f"character {match.start()}{where} is a lone surrogate (U+{ord(match[0]):04X}): not valid Unicode text"
            )
