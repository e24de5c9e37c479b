"""`glassformer tokenizer train|encode|decode|show`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from glassformer.cli.common import DataName, Json, Read, out, print_json, progress, say
from glassformer.errors import TokenizerError
from glassformer.training.data.read_options import DEFAULT_READ

if TYPE_CHECKING:
    from glassformer.text.tokenizer import Tokenizer
    from glassformer.text.train import TrainReport

app = App(name="tokenizer", help="Train a tokenizer; encode, decode and show tokens.")
Special = Annotated[bool, Parameter(negative="", help="Parse <|endoftext|> and the like as special tokens.")]
Offline = Annotated[bool, Parameter(negative="", help="Do not use the network.")]


def open_tokenizer(model: str, offline: bool = False) -> Tokenizer:
    """Return the tokenizer of a model, of a run, or of a folder that contains only a tokenizer."""
    from glassformer.formats.find import find_model, tokenizer_of
    from glassformer.text.files.find import find_tokenizer
    from glassformer.text.files.load import load_tokenizer

    if Path(model).is_dir() and find_tokenizer(Path(model)):
        return load_tokenizer(model)
    tokenizer = tokenizer_of(find_model(model, offline=offline))
    if tokenizer is None:
        raise TokenizerError(f"{model} has no tokenizer")
    return tokenizer


def _text_or_stdin(text: str) -> str:
    return sys.stdin.read() if text == "-" else text


@app.command(usage="Usage: glassformer tokenizer train --out PATH [OPTIONS] DATA...")
def train(
    *data: DataName,
    out: Path,
    read: Read = DEFAULT_READ,
    kind: Literal["bpe", "char", "word"] = "bpe",
    vocab_size: int = 4096,
    max_bytes: int = 100_000_000,
    seed: int = 0,
    json: Json = False,
) -> None:
    """Train a tokenizer on text, and save it to the folder OUT.

    Parameters
    ----------
    data
        Files, folders, globs, pipes, or `-` for stdin: text, JSONL, JSON, CSV, TSV, Parquet or Arrow, also with .gz or
        .zst.
    kind
        bpe: byte-level byte-pair encoding. char: each character is a token. word: each word is a token.
    vocab_size
        Maximum number of tokens.
    max_bytes
        Maximum size of the training text; larger data is sampled.
    """
    import glassformer
    from glassformer.training.data.sources import DocumentFiles

    if not data:
        raise TokenizerError("DATA is missing: give files, folders, globs or - for stdin")
    reports: list[TrainReport] = []
    with progress(quiet=json) as advance:
        files = DocumentFiles([str(name) for name in data], read, announce=None if json else say)
        texts = (document.text for document in files)
        tokenizer = glassformer.train_tokenizer(
            texts, kind=kind, vocab_size=vocab_size, max_bytes=max_bytes, seed=seed, progress=advance,
            on_report=reports.append,
        )  # fmt: skip
    tokenizer.save(out)
    if json:
        facts = {"folder": str(out), "vocab_size": tokenizer.vocab_size, "report": reports[0]}
        print_json(facts | {"skipped": files.skipped.as_json(), "notes": files.notes})
    else:
        for line in [*(f"skipped: {line}" for line in files.skipped.lines()), *files.notes]:
            say(line)
        say(f"{out}: {tokenizer.vocab_size} tokens, {reports[0]}")


@app.command
def encode(model: str, text: str, *, special: Special = False, json: Json = False, offline: Offline = False) -> None:
    """Print the token ids of a text (`-` reads stdin)."""
    ids = open_tokenizer(model, offline).encode(_text_or_stdin(text), parse_special=special)
    print_json(ids) if json else out.print(*ids)


@app.command(usage="Usage: glassformer tokenizer decode [OPTIONS] MODEL ID...")
def decode(model: str, *ids: int, json: Json = False, offline: Offline = False) -> None:
    """Print the text of token ids."""
    tokenizer = open_tokenizer(model, offline)
    for index in ids:
        tokenizer.token_bytes(index)  # raises TokenizerError for an id without a token
    text = tokenizer.decode(ids)
    print_json(text) if json else out.print(text, markup=False)


@app.command(usage="Usage: glassformer tokenizer show [OPTIONS] MODEL [TEXT]")
def show(model: str, text: str = "", *, special: Special = False, json: Json = False, offline: Offline = False) -> None:
    """Print the tokens of a text: id, character range and bytes. Without a text: a summary of the tokenizer."""
    tokenizer = open_tokenizer(model, offline)
    if not text:
        facts = {"vocab_size": tokenizer.vocab_size, "eos_id": tokenizer.eos_id, "special": tokenizer.special_tokens}
        print_json(facts) if json else out.print("\n".join(f"{k}: {v}" for k, v in facts.items()), markup=False)
        return
    encoding = tokenizer.encode_offsets(_text_or_stdin(text), parse_special=special)
    tokens = list(zip(encoding.ids, encoding.offsets, encoding.tokens, strict=True))
    if json:
        print_json([{"id": i, "start": a, "end": b, "bytes": list(data)} for i, (a, b), data in tokens])
        return
    for index, (start, end), data in tokens:
        out.print(f"{index:>8}  {start:>5}-{end:<5}  {data.decode('utf-8', 'backslashreplace')!r}", markup=False)
