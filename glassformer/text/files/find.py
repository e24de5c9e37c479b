"""Files: which of them hold a folder's tokenizer; and writing one so that a kill at any moment leaves it whole."""

import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from glassformer.errors import TokenizerError

SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "sentencepiece.model", "spm.model")
SIDES = ("source.spm", "target.spm", "vocab.json")
TARGETS = "target_vocab.json"  # beside these, where what is written has a vocabulary of its own
PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))


@dataclass(frozen=True)
class TokenizerFiles:
    """The files of a folder's tokenizer, and their format: json, sentencepiece, sides, ranks, bpe or wordpiece."""

    format: str
    paths: tuple[Path, ...]


def find_tokenizer(folder: Path) -> TokenizerFiles | None:
    """What a folder's tokenizer is kept in, the first of these that is there; None where there is none of them.

    1. `tokenizer.json`, of the `tokenizers` library;
    2. a SentencePiece model, under one of the names of SENTENCEPIECE; where it is a text, the ranks of 5;
    3. `source.spm`, `target.spm` and `vocab.json`: a SentencePiece model for each side of a translator;
    4. `vocab.json` and `merges.txt`, or `encoder.json` and `vocab.bpe`: byte-level BPE as GPT-2 kept it;
    5. one `*.tiktoken`: tokens in base64, each with its rank;
    6. `vocab.txt`: WordPiece, as BERT kept it.

    Raises TokenizerError for half of a pair, and for several files of ranks.
    """
    if (path := folder / "tokenizer.json").exists():
        return TokenizerFiles("json", (path,))
    for name in SENTENCEPIECE:
        if (path := folder / name).exists():
            return TokenizerFiles("ranks" if _is_ranks(path) else "sentencepiece", (path,))
    for pair in (SIDES, *PAIRS):
        paths = tuple(folder / name for name in pair)
        there = [path.exists() for path in paths]
        if all(there):
            return TokenizerFiles("sides" if pair is SIDES else "bpe", paths)
        if any(there[:2] if pair is SIDES else there):
            raise TokenizerError(f"{paths[there.index(False)]} is missing beside {paths[there.index(True)].name}")
    ranks = sorted(folder.glob("*.tiktoken"))
    if len(ranks) > 1:
        raise TokenizerError(f"{folder} has several files of ranks: {', '.join(path.name for path in ranks)}")
    if ranks:
        return TokenizerFiles("ranks", tuple(ranks))
    if (path := folder / "vocab.txt").exists():
        return TokenizerFiles("wordpiece", (path,))
    return None


def _is_ranks(path: Path) -> bool:
    """Whether a file begins with a line "base64 rank"; a SentencePiece model begins with the byte 10, a line end."""
    with open(path, "rb") as file:
        first = file.readline(1000)
    word, _, rank = first.rstrip().partition(b" ")
    return bool(word) and rank.isdigit()


def read_text(path: Path) -> str:
    """The text of a file.  TokenizerError where it is missing or no UTF-8."""
    try:
        return path.read_text("utf-8")
    except FileNotFoundError as error:
        raise TokenizerError(f"{path} is missing") from error
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{path} cannot be read: {error}") from error


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` beside `path` under a temporary name, fsync it, and rename it into place (then fsync the folder).

    Raises OSError; whatever stood at `path` is then still whole, and the temporary file is gone.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, where the system lets folders be opened (Windows does not)."""
    with suppress(PermissionError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
