"""A tokenizer: text -> token ids -> text, with the bytes and the characters that each token covers."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers

from glassformer.errors import TokenizerError
from glassformer.text.files import write_atomic
from glassformer.text.pieces import StreamDecoder, drops_first_space, token_table

if TYPE_CHECKING:
    from glassformer.text.train import TrainReport

JSON, CONFIG, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"

_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile(r"<\|.*\|>\Z", re.DOTALL)  # <|endoftext|>, <|fim_prefix|>, ...
_MARKUP = re.compile(r"<.*>\Z|\[.*\]\Z", re.DOTALL)  # <tool_call>, [INST], ...: control where the template writes them


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
    """Text <-> token ids, over a `tokenizer.json` of the Hugging Face `tokenizers` library.

    vocab_size   one more than the largest token id
    eos_id       the id that ends a text, bos_id the one that begins it; None where there is none
    special      control tokens, text -> id: those marked special, those spelled <|...|>, and added <...> or [...] that
                 the chat template writes.  Text never becomes one of them unless `special=True` is given.
    add_bos      whether `encode` puts bos_id first: what `add_bos_token` says, else what the post-processor does
    report       how it was trained, when `train_tokenizer` made it in this process
    """

    def __init__(
        self, tokenizer_json: str, config: Mapping[str, Any] | None = None, *, chat_template: str | None = None
    ):
        """tokenizer_json, config: the contents of `tokenizer.json` and (parsed) of `tokenizer_config.json`.

        Raises TokenizerError when the library cannot read it, or when config names a token that it does not hold.
        """
        self._json = tokenizer_json
        self.config = dict(config or {})
        self.chat_template = chat_template
        self.report: TrainReport | None = None
        try:
            self._layout: dict[str, Any] = json.loads(tokenizer_json)
        except json.JSONDecodeError as error:
            raise TokenizerError(f"{JSON} is not JSON: {error}") from error
        layout = self._layout | {"post_processor": _untrimmed(self._layout.get("post_processor"))}
        self._marked = _open(layout)  # reads control tokens out of the text

        vocab = self._marked.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocab.values(), default=-1) + 1
        template = chat_template or str(self.config.get("chat_template") or "")
        added = {index: token.content for index, token in self._marked.get_added_tokens_decoder().items()}
        flagged = {t["content"] for t in self._layout.get("added_tokens", []) if t["special"]}
        self.special = {
            text: index
            for index, text in sorted(added.items())
            if text in flagged or _CONTROL.match(text) or (_MARKUP.match(text) and text in template)
        }
        self._added = added
        passed = [token | {"special": token["content"] in self.special} for token in layout.get("added_tokens", [])]
        self._plain = _open(layout | {"added_tokens": passed})  # another one, since a switch would not be thread-safe
        self._plain.encode_special_tokens = True  # passes by all that is marked special

        self.eos_id, self.bos_id = self._named("eos_token"), self._named("bos_token")
        self._before, self._after = self._frame()
        said = self.config.get("add_bos_token")
        self.add_bos: bool = said if isinstance(said, bool) else self.bos_id is not None and self.bos_id in self._before
        if self.add_bos and self.bos_id is None:
            raise TokenizerError(f"{CONFIG} says add_bos_token, but no bos_token")
        if self.add_bos != (self.bos_id is not None and self.bos_id in self._before):
            self._before = [self.bos_id] if self.add_bos and self.bos_id is not None else []

    def __repr__(self) -> str:
        return f"Tokenizer({self._layout['model']['type']}, vocab_size={self.vocab_size}, eos_id={self.eos_id})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Copied and pickled by its files: the library would forget which of its two tokenizers reads plain text."""
        return _rebuild, (self._json, self.config, self.chat_template)

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
        core = self._marked if special else self._plain
        texts = list(texts)
        try:
            encodings = core.encode_batch_fast(texts, add_special_tokens=False)
        except TypeError:
            _refuse_surrogates(texts)
            raise
        if bare or not (self._before or self._after):
            return [encoding.ids for encoding in encodings]
        return [self._before + encoding.ids + self._after for encoding in encodings]

    def encode_offsets(self, text: str, *, special: bool = False, bare: bool = False) -> Encoding:
        """`encode`, with the bytes of each token and the characters that it covers."""
        core = self._marked if special else self._plain
        try:
            found = core.encode(text, add_special_tokens=False)
        except TypeError:
            _refuse_surrogates([text])
            raise
        before, after = ([], []) if bare else (self._before, self._after)
        ids = before + found.ids + after
        offsets = [(0, 0)] * len(before) + found.offsets + [(0, 0)] * len(after)
        return Encoding(ids, [self.token_bytes(index) for index in ids], offsets)

    # ---- ids to text

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """The text of `ids`.  Bytes that are not UTF-8 become U+FFFD, and nothing else does.

        skip_special: leave out control tokens.  Raises TokenizerError for an id that is not in the vocabulary.
        """
        data = b"".join([self._bytes_of(index, skip_special) for index in ids])
        return (data.removeprefix(b" ") if self._drop_first_space else data).decode("utf-8", "replace")

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
        return StreamDecoder(lambda index: self._bytes_of(index, skip_special), drop_first_space=self._drop_first_space)

    def _bytes_of(self, index: int, skip_special: bool) -> bytes:
        data = self.token_bytes(index)
        return b"" if skip_special and index in self._special_ids else data

    @cached_property
    def _table(self) -> list[bytes | None]:
        return token_table(self._layout, self._marked.get_vocab(with_added_tokens=True), self._added)

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        return frozenset(self.special.values())

    @cached_property
    def _drop_first_space(self) -> bool:
        return drops_first_space(self._layout)

    # ---- on disk

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """Open the tokenizer of a model folder: `tokenizer.json`, `tokenizer_config.json`, and a chat template if any.

        Raises TokenizerError naming the file that is missing or damaged.
        """
        folder = Path(folder)
        text = _read(folder / JSON)
        try:
            config = json.loads(_read(folder / CONFIG))
        except json.JSONDecodeError as error:
            raise TokenizerError(f"{folder / CONFIG} is not JSON: {error}") from error
        if not isinstance(config, dict):
            raise TokenizerError(f"{folder / CONFIG} must hold a JSON object, not {type(config).__name__}")
        template = _read(folder / TEMPLATE) if (folder / TEMPLATE).exists() else None
        try:
            return cls(text, config, chat_template=template)
        except TokenizerError as error:
            raise TokenizerError(f"{folder}: {error}") from error

    def save(self, folder: str | Path) -> None:
        """Write the files that `load` reads, each atomically, so that `transformers.AutoTokenizer` gives the same ids.

        Raises TokenizerError naming the file that could not be written; the one that stood there is then still whole.
        """
        folder = Path(folder)
        dropped = ("auto_map", "tokenizer_file", "name_or_path")
        config = {key: _name(value) for key, value in self.config.items() if key not in dropped}
        config |= {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": self.add_bos}
        config.setdefault("clean_up_tokenization_spaces", False)
        config.setdefault("model_max_length", 10**30)  # transformers' spelling of "the model's business"
        files = {CONFIG: json.dumps(config, ensure_ascii=False, indent=2) + "\n", JSON: self._json_with_bos()}
        if self.chat_template is not None:
            files[TEMPLATE] = self.chat_template
        path = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in files.items():
                path = folder / name
                write_atomic(path, text.encode())
        except OSError as error:
            raise TokenizerError(f"{path} could not be written: {error.strerror or error}") from error

    # ---- reading the files

    def _named(self, key: str) -> int | None:
        """The id of the token that the config names under `key`, if it does."""
        name = _name(self.config.get(key))
        if name is None:
            return None
        index = self._marked.token_to_id(name)
        if index is None:
            raise TokenizerError(f"{CONFIG}: {key} is {name!r}, which is not in the vocabulary of {JSON}")
        return index

    def _frame(self) -> tuple[list[int], list[int]]:
        """The ids that the post-processor puts before and after a text: Llama's BOS, BERT's [CLS] and [SEP]."""
        plain = self._marked.encode("a", add_special_tokens=False).ids
        framed = self._marked.encode("a", add_special_tokens=True).ids
        extra = len(framed) - len(plain)
        start = next(i for i in range(extra + 1) if framed[i : i + len(plain)] == plain)
        return framed[:start], framed[start + len(plain) :]

    def _json_with_bos(self) -> str:
        """`tokenizer.json`, whose post-processor adds the BOS exactly when `add_bos` says so."""
        if (self._before, self._after) == self._frame():
            return self._json
        frame = [(index, self._marked.id_to_token(index)) for index in self._before + self._after]
        pieces = [{"SpecialToken": {"id": token, "type_id": 0}} for _, token in frame]
        pieces.insert(len(self._before), {"Sequence": {"id": "A", "type_id": 0}})
        names = {token: {"id": token, "ids": [index], "tokens": [token]} for index, token in frame}
        pair = [*pieces, {"Sequence": {"id": "B", "type_id": 0}}]
        processor = {"type": "TemplateProcessing", "single": pieces, "pair": pair, "special_tokens": names}
        return json.dumps(self._layout | {"post_processor": processor}, ensure_ascii=False)


def _rebuild(tokenizer_json: str, config: dict[str, Any], chat_template: str | None) -> Tokenizer:
    return Tokenizer(tokenizer_json, config, chat_template=chat_template)


def _name(entry: Any) -> Any:
    """A token's text, where a config spells it as an object with `content`; anything else as it is."""
    return entry["content"] if isinstance(entry, dict) and "content" in entry else entry


def _open(layout: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """The library's tokenizer, without the truncation and padding that some files carry."""
    try:
        core = tokenizers.Tokenizer.from_str(json.dumps(layout))
    except Exception as error:  # the library raises plain Exception
        raise TokenizerError(f"{JSON} cannot be read: {error}") from error
    core.no_truncation()
    core.no_padding()
    return core


def _untrimmed(part: Any) -> Any:
    """The same post-processor with offsets that keep a token's leading space (`trim_offsets` changes no id)."""
    if isinstance(part, dict):
        return {key: False if key == "trim_offsets" else _untrimmed(value) for key, value in part.items()}
    return [_untrimmed(item) for item in part] if isinstance(part, list) else part


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError as error:
        raise TokenizerError(f"{path} is missing") from error
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{path} cannot be read: {error}") from error


def _refuse_surrogates(texts: Sequence[str]) -> None:
    """Raise TokenizerError for the first lone surrogate, if there is one."""
    for number, text in enumerate(texts):
        if isinstance(text, str) and (found := _SURROGATE.search(text)):
            where = f" of text {number}" if len(texts) > 1 else ""
            raise TokenizerError(
                f"character {found.start()}{where} is a lone surrogate (U+{ord(found[0]):04X}): not valid Unicode text"
            )
