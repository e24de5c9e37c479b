"""The JSON files beside a vocabulary: tokenizer_config.json, special_tokens_map.json, added_tokens.json, config.json.

They say which tokens are added to the vocabulary, how they are matched, and which roles they have. The order and the
precedence are those of `transformers`, so that the ids are equal.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Required

from annotated_types import Interval
from typing_extensions import TypedDict

from glassformer.errors import TokenizerError
from glassformer.json_file import check_schema, read_json
from glassformer.text.special_tokens import MAX_ID, TOKEN_NAMES, AddedToken, Vocabulary, entry_text
from glassformer.text.tokenizer import CONFIG

TOKEN_LISTS = ("additional_special_tokens", "extra_special_tokens")
CLASS_OF_MODEL_TYPE = {"bart": "BartTokenizer", "roberta": "RobertaTokenizer", "t5": "T5Tokenizer"}
MAX_SENTINELS = 10_000


class TokenEntry(TypedDict, total=False):
    """A token with its flags, as `transformers` saves an AddedToken."""

    content: Required[str]
    special: bool
    lstrip: bool
    rstrip: bool
    single_word: bool
    normalized: bool


class NamedTemplate(TypedDict):
    """One of several chat templates."""

    name: str
    template: str


Token = str | TokenEntry


class TokenRoles(TypedDict, total=False):
    """The keys that name tokens, in tokenizer_config.json and special_tokens_map.json."""

    bos_token: Token | None
    eos_token: Token | None
    unk_token: Token | None
    sep_token: Token | None
    pad_token: Token | None
    cls_token: Token | None
    mask_token: Token | None
    additional_special_tokens: list[Token] | None
    extra_special_tokens: list[Token] | dict[str, Token] | None


class ConfigKeys(TokenRoles, total=False):
    """The keys of tokenizer_config.json that have an effect here; others are preserved."""

    added_tokens_decoder: dict[str, TokenEntry]
    chat_template: str | list[NamedTemplate] | dict[str, str] | None
    tokenizer_class: str | None
    pattern: str
    add_bos_token: bool | None
    add_eos_token: bool | None
    add_prefix_space: bool | None
    do_lower_case: bool | None
    strip_accents: bool | None
    tokenize_chinese_chars: bool | None
    legacy: bool | None
    separate_vocabs: bool | None
    extra_ids: Annotated[int, Interval(ge=0, le=MAX_SENTINELS)]


def read_config(folder: Path) -> tuple[dict[str, Any], int | None]:
    """Read the JSON files beside a vocabulary.

    Returns:
        The tokenizer's config, merged with the older files and config.json's model type; the model's number of rows,
        or None.

    Raises:
        TokenizerError: A file is malformed; the message names the file and the field.
    """
    config: dict[str, Any] = _read(folder / CONFIG, ConfigKeys)
    if isinstance(template := config.get("chat_template"), dict):
        config["chat_template"] = [{"name": name, "template": text} for name, text in template.items()]
    if "added_tokens_decoder" not in config:  # transformers reads the older files only without this key
        config |= _read(folder / "special_tokens_map.json", TokenRoles)
        special = {entry_text(token) for token in _named_tokens(config)}
        config["added_tokens_decoder"] = {
            str(index): {"content": text, "special": text in special, "normalized": text not in special}
            for text, index in _read(folder / "added_tokens.json", Vocabulary).items()
        }
    model = _read(folder / "config.json", dict[str, Any])
    if isinstance(model_type := model.get("model_type"), str) and model_type in CLASS_OF_MODEL_TYPE:
        config.setdefault("tokenizer_class", CLASS_OF_MODEL_TYPE[model_type])
    text_config = model.get("text_config")
    size = (text_config if isinstance(text_config, dict) else {}) | model
    n_rows = size.get("vocab_size")
    return config, n_rows if type(n_rows) is int and n_rows > 0 else None


def _read(path: Path, schema: Any) -> dict[str, Any]:
    """Return the contents of a JSON file with all its keys, also those that the schema lacks; {} without a file."""
    if not path.exists():
        return {}
    contents = read_json(path, error_type=TokenizerError)
    check_schema(contents, path, schema, error_type=TokenizerError)
    return contents


def _named_tokens(config: Mapping[str, Any]) -> list[Token]:
    """Return the tokens with a role: the usual ones, the model's own (`image_token`), and the lists."""
    own = [key for key in config if key.endswith("_token") and key not in TOKEN_NAMES]
    tokens: list[Any] = [config.get(key) for key in (*TOKEN_NAMES, *own)]
    for key in TOKEN_LISTS:
        entry = config.get(key) or []
        tokens += entry.values() if isinstance(entry, dict) else entry
    return [token for token in tokens if isinstance(entry_text(token), str) and entry_text(token)]


def added_tokens(
    config: Mapping[str, Any], vocab: Mapping[str, int], known: Iterable[AddedToken] = (), n_rows: int | None = None
) -> list[AddedToken]:
    """Return the tokens that a config adds to a vocabulary, or whose flags it sets. Tokens with a role are special.

    Args:
        config: The config that `read_config` returns.
        vocab: Token -> id.
        known: The added tokens of the vocabulary's own file. A token's flags come from the config's
            `added_tokens_decoder`, else from here, else from the entry that names its role.
        n_rows: Number of rows of the model's embedding. A token with a role and without an id is not added beyond them.

    Raises:
        TokenizerError: An id is not a number from 0 to MAX_ID.
    """
    found: dict[str, AddedToken] = {}
    for key, entry in config.get("added_tokens_decoder", {}).items():
        if not (key.isascii() and key.isdigit() and len(key) < 10 and int(key) <= MAX_ID):
            raise TokenizerError(f"{CONFIG}: added_tokens_decoder has the id {key[:40]!r}; allowed are 0 to {MAX_ID}")
        if entry["content"]:
            found[entry["content"]] = _with_flags(int(key), entry)
    found = {token.text: token for token in sorted(found.values(), key=lambda token: token.id)}
    known_tokens = {token.text: token for token in known}
    next_id = max([*vocab.values(), *(token.id for token in found.values())], default=-1) + 1
    for entry in _named_tokens(config):
        text = entry_text(entry)
        token = found.get(text) or known_tokens.get(text)
        if token is None:
            index = vocab.get(text, next_id)
            if text not in vocab and n_rows is not None and index >= n_rows:
                continue
            flags = entry if isinstance(entry, dict) else {}
            token = _with_flags(index, {**flags, "content": text, "special": True})
            next_id = max(next_id, index + 1)
        found[text] = replace(token, special=True)
    return [token for token in found.values() if token != known_tokens.get(token.text)]


def _with_flags(index: int, entry: Mapping[str, Any]) -> AddedToken:
    special = entry.get("special", False)
    flags = {key: entry.get(key, False) for key in ("lstrip", "rstrip", "single_word")}
    return AddedToken(index, entry["content"], special, **flags, normalized=entry.get("normalized", not special))
