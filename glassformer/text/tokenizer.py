"""A tokenizer: text -> token ids -> text, with the bytes and the characters that each token covers."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glassformer.errors import TokenizerError
from glassformer.text.files.find import write_atomic
from glassformer.text.hf_tokenizer import JSON, HFTokenizer, TokenizerBackend
from glassformer.text.special_tokens import AddedToken, SpecialTokenSplitter
from glassformer.text.stream_decoder import StreamDecoder

if TYPE_CHECKING:
    from glassformer.text.train import TrainReport

CONFIG, TEMPLATE = "tokenizer_config.json", "chat_template.jinja"

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Encoding:
    """A text's tokens: three lists of the same length, token by token.

    ids: token ids;  tokens: the bytes each stands for;  offsets: (start, end) in characters of the Python str.
    `text[start:end]` holds the token's bytes: exactly them, or, where a token is a part of a character's bytes, the
    whole of that character (its neighbours then have the same offsets).  A token that stands for no text, such as a
    BOS put before it, has (0, 0).
    """

    ids: list[int]
    tokens: list[bytes]
    offsets: list[tuple[int, int]]


class Tokenizer:
    """Text <-> token ids, over a `tokenizer.json` of the Hugging Face `tokenizers` library or a SentencePiece model.

    vocab_size   one more than the largest token id
    eos_id       the id that ends a text, bos_id the one that begins it; None where there is none
    special      control tokens, text -> id: those marked special, those spelled <|...|>, and added <...> or [...] that
                 the chat template writes.  Text never becomes one of them unless `special=True` is given.
    add_bos      whether `encode` puts bos_id first: what `add_bos_token` says, else what the post-processor does
    report       how it was trained, when `train_tokenizer` made it in this process
    """

    def __init__(
        self,
        source: str | TokenizerBackend,
        config: Mapping[str, Any] | None = None,
        *,
        chat_template: str | None = None,
    ):
        """source, config: the contents of `tokenizer.json` (or what was read of another format) and, parsed, of
        `tokenizer_config.json`.

        Raises TokenizerError when the library cannot read it, or when config names a token that it does not hold.
        """
        given = dict(config or {})
        self.chat_template = chat_template
        core = HFTokenizer(source, template_text(given, chat_template)) if isinstance(source, str) else source
        self.core = core
        self.config = {**core.defaults, **given}
        self.report: TrainReport | None = None
        self.vocab_size = max(core.vocab.values(), default=-1) + 1
        self.special = core.special

        self.eos_id, self.bos_id = self._named("eos_token"), self._named("bos_token")
        self._before, self._after = map(list, core.frame)
        if "add_eos_token" in core.defaults and self.config["add_eos_token"] and self.eos_id is not None:
            self._after = [self.eos_id]
        said = self.config.get("add_bos_token")
        self.add_bos: bool = said if isinstance(said, bool) else self.bos_id is not None and self.bos_id in self._before
        if self.add_bos and self.bos_id is None:
            raise TokenizerError(f"{CONFIG} says add_bos_token, but no bos_token")
        if self.add_bos != (self.bos_id is not None and self.bos_id in self._before):
            self._before = [self.bos_id] if self.add_bos and self.bos_id is not None else []

    def __repr__(self) -> str:
        return f"Tokenizer({self.core.kind}, vocab_size={self.vocab_size}, eos_id={self.eos_id})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Copied and pickled by its files."""
        make, arguments = self.core.rebuild()
        return _rebuild, (make, arguments, self.config, self.chat_template)

    @property
    def frame(self) -> tuple[list[int], list[int]]:
        """The ids that `encode` puts before and after a text."""
        return list(self._before), list(self._after)

    @property
    def mask_id(self) -> int | None:
        """The id that hides a place from a masked language model."""
        return self._named("mask_token")

    # ---- text to ids

    def encode(self, text: str, *, special: bool = False, bare: bool = False) -> list[int]:
        """The ids of `text`.

        special: whether text such as "<|endoftext|>" becomes that control token; by default it stays plain text.
        bare: leave out the BOS (and whatever else this tokenizer puts around a text).
        Raises TokenizerError for half a surrogate pair, which no UTF-8 can hold, naming where it stands.
        """
        return self.encode_batch([text], special=special, bare=bare)[0]

    def encode_batch(self, texts: Sequence[str], *, special: bool = False, bare: bool = False) -> list[list[int]]:
        """`encode` of many texts at once, in parallel inside the library."""
        texts = list(texts)
        try:
            rows = self.core.encode(texts, special=special)
        except TypeError:
            _refuse_surrogates(texts)
            raise
        if bare or not (self._before or self._after):
            return rows
        return [self._before + ids + self._after for ids in rows]

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        """Texts two by two, as one row each: the ids, and the type of every token (0 of the first text's, 1 of the
        second's, where the tokenizer tells them apart).

        Raises TokenizerError where the tokenizer does not say how two texts stand in a row.
        """
        if (self._before, self._after) != self.core.frame:
            raise TokenizerError(f"{CONFIG} and the tokenizer disagree about add_bos_token: pairs have no frame")
        try:
            return self.core.encode_pairs(list(pairs))
        except TypeError:
            _refuse_surrogates([text for pair in pairs for text in pair])
            raise

    def encode_hidden(self, text: str) -> list[int]:
        """`encode` of a text in which the name of the mask token ("[MASK]", "<mask>") stands for a hidden place.

        All else in it is plain text. Raises TokenizerError where the tokenizer has no such token.
        """
        mask = self.mask_id
        if mask is None:
            raise TokenizerError("the tokenizer has no token that hides a place (mask_token)")
        name = next(token for token, index in self.core.vocab.items() if index == mask)
        added = next((token for token in self.core.added if token.id == mask), AddedToken(mask, name))
        ids: list[int] = []
        for start, end, token in SpecialTokenSplitter([added])(text):
            part = text[start:end]
            if token is not None:
                ids.append(token)
            else:
                ids += self.core.encode_inside(part) if start else self.encode(part, bare=True)
        return self._before + ids + self._after

    def encode_offsets(self, text: str, *, special: bool = False, bare: bool = False) -> Encoding:
        """`encode`, with the bytes of each token and the characters that it covers."""
        try:
            found, places = self.core.encode_offsets(text, special=special)
        except TypeError:
            _refuse_surrogates([text])
            raise
        before, after = ([], []) if bare else (self._before, self._after)
        ids = before + found + after
        offsets = [(0, 0)] * len(before) + places + [(0, 0)] * len(after)
        return Encoding(ids, [self.token_bytes(index) for index in ids], offsets)

    # ---- ids to text

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """The text of `ids`.  Bytes that are not UTF-8 become U+FFFD, and nothing else does.

        skip_special: leave out control tokens.  Raises TokenizerError for an id that is not in the vocabulary.
        """
        data = b"".join([self._bytes_of(index, skip_special) for index in ids])
        return (data.removeprefix(b" ") if self.core.drops_first_space else data).decode("utf-8", "replace")

    def token_bytes(self, index: int) -> bytes:
        """The bytes that a token stands for (a control token: its name in UTF-8).

        Raises TokenizerError for an id that is not in the vocabulary.
        """
        if not 0 <= index < self.vocab_size:
            raise TokenizerError(f"token id {index} is out of range: allowed are 0 to {self.vocab_size - 1}")
        data = self._table[index]
        if data is None:
            raise TokenizerError(f"token id {index} is in the range 0 to {self.vocab_size - 1}, but no token has it")
        return data

    def stream(self, *, skip_special: bool = False) -> StreamDecoder:
        """A decoder that takes one id at a time and never gives out half a character."""
        return StreamDecoder(
            lambda index: self._bytes_of(index, skip_special), drop_first_space=self.core.drops_first_space
        )

    def _bytes_of(self, index: int, skip_special: bool) -> bytes:
        data = self.token_bytes(index)
        return b"" if skip_special and index in self._special_ids else data

    @cached_property
    def _table(self) -> list[bytes | None]:
        return self.core.table()

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        return frozenset(self.special.values())

    def of_targets(self) -> "Tokenizer":
        """The tokenizer of what a translator writes: another one where each side has a SentencePiece model, and perhaps
        a vocabulary."""
        from glassformer.text.sentencepiece.source_target import SourceTargetTokenizer

        if not isinstance(self.core, SourceTargetTokenizer):
            return self
        return Tokenizer(self.core.of_targets(), self.config, chat_template=self.chat_template)

    # ---- on disk

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """Open the tokenizer of a model folder, in whichever of the formats of `files.find_tokenizer` it is.

        Raises TokenizerError naming the file that is missing or damaged.
        """
        from glassformer.text.files.load import open_folder

        return open_folder(Path(folder))

    def save(self, folder: str | Path) -> None:
        """Write the files that `load` reads, each atomically, so that `transformers.AutoTokenizer` gives the same ids.

        A SentencePiece model is written as it is; all else as a `tokenizer.json`.
        Raises TokenizerError naming the file that could not be written; the one that stood there is then still whole.
        """
        folder = Path(folder)
        dropped = ("auto_map", "tokenizer_file", "name_or_path")
        config = {key: _name(value) for key, value in self.config.items() if key not in dropped}
        config["add_bos_token"] = self.add_bos
        if isinstance(self.core, HFTokenizer):
            config["tokenizer_class"] = "PreTrainedTokenizerFast"
        config.setdefault("clean_up_tokenization_spaces", False)
        config.setdefault("model_max_length", 10**30)  # transformers' spelling of "the model's business"
        files = {CONFIG: (json.dumps(config, ensure_ascii=False, indent=2) + "\n").encode()}
        files |= self.core.files((self._before, self._after))
        if self.chat_template is not None:
            files[TEMPLATE] = self.chat_template.encode()
        path = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, data in files.items():
                path = folder / name
                write_atomic(path, data)
            if JSON not in files:
                (folder / JSON).unlink(missing_ok=True)  # of another tokenizer, which would be found first
        except OSError as error:
            raise TokenizerError(f"{path} could not be written: {error.strerror or error}") from error

    # ---- reading the files

    def _named(self, key: str) -> int | None:
        """The id of the token that the config names under `key`, if it does."""
        name = _name(self.config.get(key))
        if name is None:
            return None
        index = self.core.vocab.get(name)
        if index is None:
            raise TokenizerError(f"{CONFIG}: {key} is {name!r}, which is not in the vocabulary")
        return index


def template_text(config: Mapping[str, Any], template: str | None) -> str:
    """All that the chat templates say, whichever way they are kept: it tells which added tokens are control tokens."""
    kept = config.get("chat_template")
    named = [str(one.get("template")) for one in kept if isinstance(one, dict)] if isinstance(kept, list) else [kept]
    return "\n".join(filter(None, [template, *named]))


def _rebuild(
    make: Callable[..., TokenizerBackend], arguments: tuple[Any, ...], config: dict[str, Any], template: str | None
) -> Tokenizer:
    return Tokenizer(make(*arguments), config, chat_template=template)


def _name(entry: Any) -> Any:
    """A token's text, where a config spells it as an object with `content`; anything else as it is."""
    return entry["content"] if isinstance(entry, dict) and "content" in entry else entry


def _refuse_surrogates(texts: Sequence[str]) -> None:
    """Raise TokenizerError for the first lone surrogate, if there is one."""
    for number, text in enumerate(texts):
        if isinstance(text, str) and (found := _SURROGATE.search(text)):
            where = f" of text {number}" if len(texts) > 1 else ""
            raise TokenizerError(
                f"character {found.start()}{where} is a lone surrogate (U+{ord(found[0]):04X}): not valid Unicode text"
            )
