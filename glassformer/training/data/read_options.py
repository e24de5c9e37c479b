"""The options by which files become training text, the same for every command that reads DATA."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass

from glassformer.errors import ConfigError

NOT_ENCODINGS = {"idna", "punycode", "undefined", "unicode_escape", "raw_unicode_escape"}  # codecs of other things


@dataclass(frozen=True)
class ReadOptions:
    """How files are read. Raises ConfigError for an unknown encoding, or a value that matches nothing."""

    text_field: str = "text"
    "field of a JSON object, or column of a table, with the text of a document"
    separator: str | None = None
    "text between two documents of a plain text file, such as <|endoftext|>; without it each file is one document"
    ext: tuple[str, ...] = ()
    "file type to read in folders, such as .py, instead of all known types; may be given several times"
    encoding: str = "utf-8"
    "encoding of the text files, such as utf-16 or cp1252"

    def __post_init__(self):
        if not isinstance(self.text_field, str) or not self.text_field:
            raise ConfigError(f"text_field must name a field, got {self.text_field!r}")
        if self.separator is not None and (not isinstance(self.separator, str) or not self.separator):
            raise ConfigError(
                f"separator must be a text, got {self.separator!r}: leave it out to take each file as one document"
            )
        ext = [self.ext] if isinstance(self.ext, str) else list(self.ext)
        for value in ext:
            if not isinstance(value, str) or not re.fullmatch(r"[\w.+-]*\w", value):
                raise ConfigError(f"ext must be a file type such as .py, got {value!r}")
        object.__setattr__(self, "ext", tuple(f".{value.lower().lstrip('.')}" for value in ext))
        try:
            codec = codecs.lookup(self.encoding)
            "".encode(codec.name)  # LookupError for a codec between bytes, such as base64
        except (LookupError, TypeError, ValueError) as error:
            raise ConfigError(
                f"encoding must be one that Python knows, such as utf-8, utf-16, cp1252 or shift_jis, "
                f"got {self.encoding!r}"
            ) from error
        name = codec.name.replace("-", "_")
        if name in NOT_ENCODINGS or codec.incrementaldecoder is None:
            raise ConfigError(f"encoding must be an encoding of text files, got {self.encoding!r}")
        object.__setattr__(self, "encoding", "utf-8" if name == "utf_8_sig" else codec.name)

    def check_for_examples(self) -> None:
        """Raise ConfigError for an option that has no meaning for source-target pairs."""
        for name in ("text_field", "separator"):
            if getattr(self, name) != getattr(ReadOptions, name):
                raise ConfigError(f"{name} is an option of task lm: source-target pairs have a source and a target")


DEFAULT_READ = ReadOptions()
