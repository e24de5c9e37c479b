"""Detection of the tokenizer format of a model folder."""

from dataclasses import dataclass
from pathlib import Path

from glassformer.errors import TokenizerError
from glassformer.json_file import read_file

SENTENCEPIECE_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "sentencepiece.model", "spm.model")
SOURCE_TARGET_FILES = ("source.spm", "target.spm", "vocab.json")
TARGET_VOCAB = "target_vocab.json"  # only where source and target have separate vocabularies
BPE_FILES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))


@dataclass(frozen=True)
class TokenizerFiles:
    """The tokenizer files of a folder, as `find_tokenizer` returns them.

    format: json, sentencepiece, source_target, tiktoken, bpe or wordpiece.
    """

    format: str
    paths: tuple[Path, ...]


def find_tokenizer(folder: Path) -> TokenizerFiles | None:
    """Return the tokenizer files of a folder, or None if it has none. The first match wins:

    1. `tokenizer.json` of the Hugging Face `tokenizers` library;
    2. a SentencePiece model under one of SENTENCEPIECE_FILES, or a tiktoken file under the same name (Llama 3);
    3. `source.spm`, `target.spm` and `vocab.json`: Marian's SentencePiece model for each side;
    4. `vocab.json` and `merges.txt`, or `encoder.json` and `vocab.bpe`: byte-level BPE in GPT-2's format;
    5. one `*.tiktoken` file: base64 tokens with their ranks;
    6. `vocab.txt`: WordPiece in BERT's format.

    Raises:
        TokenizerError: A required file of 3 or 4 is missing, or there are several `*.tiktoken` files.
    """
    if (path := folder / "tokenizer.json").exists():
        return TokenizerFiles("json", (path,))
    for name in SENTENCEPIECE_FILES:
        if (path := folder / name).exists():
            return TokenizerFiles("tiktoken" if _is_tiktoken(path) else "sentencepiece", (path,))
    for names in (SOURCE_TARGET_FILES, *BPE_FILES):
        paths = tuple(folder / name for name in names)
        exist = [path.exists() for path in paths]
        source_target = names is SOURCE_TARGET_FILES
        if all(exist):
            return TokenizerFiles("source_target" if source_target else "bpe", paths)
        if any(exist[:2] if source_target else exist):
            raise TokenizerError(
                f"{paths[exist.index(False)]} is missing, but {paths[exist.index(True)].name} exists: both are required"
            )
    tiktoken_files = sorted(folder.glob("*.tiktoken"))
    if len(tiktoken_files) > 1:
        names = ", ".join(path.name for path in tiktoken_files)
        raise TokenizerError(f"{folder} has several tiktoken files, only one is allowed: {names}")
    if tiktoken_files:
        return TokenizerFiles("tiktoken", tuple(tiktoken_files))
    if (path := folder / "vocab.txt").exists():
        return TokenizerFiles("wordpiece", (path,))
    return None


def _is_tiktoken(path: Path) -> bool:
    """Return whether a file begins with a line "base64 rank"; a SentencePiece model begins with byte 10, a newline."""
    first = read_file(path, error_type=TokenizerError)[:1000].partition(b"\n")[0]
    word, _, rank = first.rstrip().partition(b" ")
    return bool(word) and rank.isdigit()


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file. Raises TokenizerError if it is missing, too large or not UTF-8."""
    data = read_file(path, error_type=TokenizerError)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path} is not UTF-8: byte {error.start} is {data[error.start]:#04x}") from error
