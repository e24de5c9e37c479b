"""Encode texts with the Hugging Face `tokenizers` library."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import tokenizers

from glassformer.errors import GlassformerError, TokenizerError

JSON = "tokenizer.json"


class HFEncoder:
    """A tokenizer of the library in two copies: one parses special tokens, the other does not.

    (A switch on one copy would not be thread-safe.) The methods are those of `TokenizerBackend`.
    """

    def __init__(self, parsing: tokenizers.Tokenizer, plain: Mapping[str, Any]):
        """Create the plain copy from its layout. Raises TokenizerError if the library cannot read it."""
        self._plain_layout = plain
        self.parsing, self.plain = parsing, _open_plain(plain)

    def encode(self, texts: Sequence[str], parse_special: bool) -> list[list[int]]:
        tokenizer = self.parsing if parse_special else self.plain
        with library_errors("encode a text"):
            return [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_continuations(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []  # without another copy of the tokenizer
        with library_errors("encode a text"):
            batch = self._continuing.encode_batch_fast(list(texts), add_special_tokens=False)  # releases the GIL
            return [encoding.ids for encoding in batch]

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        with library_errors("encode a text pair"):
            encodings = self.plain.encode_batch(list(pairs), add_special_tokens=True)
            return [(encoding.ids, encoding.type_ids) for encoding in encodings]

    def encode_offsets(self, text: str, parse_special: bool) -> tuple[list[int], list[tuple[int, int]]]:
        with library_errors("encode a text"):
            tokenizer = self.parsing if parse_special else self.plain
            (encoding,) = tokenizer.encode_batch([text], add_special_tokens=False)  # releases the GIL
            # The library counts the characters of an end_of_word_suffix, which follow the text.
            return encoding.ids, [(min(a, len(text)), min(b, len(text))) for a, b in encoding.offsets]

    @cached_property
    def _continuing(self) -> tokenizers.Tokenizer:
        """The plain copy, without the space that some files put before the first word of a text."""
        return _open_plain(_without_first_space(self._plain_layout))


@contextmanager
def library_errors(action: str) -> Iterator[None]:
    """Turn the library's exceptions and its panics, which are not Exceptions, into TokenizerError.

    TypeError passes: the library raises it for a text with a lone surrogate.
    """
    try:
        yield
    except (GlassformerError, TypeError):
        raise
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise TokenizerError(f"{JSON}: the tokenizers library cannot {action}: {error}") from error
        raise


def open_library(layout: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Return the library's tokenizer, without the truncation and padding that some files set."""
    try:
        text = json.dumps({**layout, "truncation": None, "padding": None})
    except ValueError as error:
        raise TokenizerError(f"{JSON} cannot be read: {error}") from error
    with library_errors("read it"):
        return tokenizers.Tokenizer.from_str(text)


def _open_plain(layout: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Return the library's tokenizer that never turns text into a special token."""
    tokenizer = open_library(layout)
    tokenizer.encode_special_tokens = True
    return tokenizer


def _without_first_space(layout: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the layout with every `"prepend_scheme": "first"` replaced by "never"."""

    def replaced(part: Any) -> Any:
        if isinstance(part, dict):
            new = {key: replaced(value) for key, value in part.items()}
            return new | {"prepend_scheme": "never"} if new.get("prepend_scheme") == "first" else new
        return [replaced(item) for item in part] if isinstance(part, list) else part

    return {key: value if key == "model" else replaced(value) for key, value in layout.items()}
