"""`glassformer tokenizer train|encode|decode|show`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from glassformer.cli.common import Json, out, print_json, progress, say
from glassformer.errors import TokenizerError

if TYPE_CHECKING:
    from glassformer.text.tokenizer import Tokenizer

app = App(name="tokenizer", help="Train a tokenizer; encode, decode and show tokens.")
Special = Annotated[bool, Parameter(negative="", help="Read <|endoftext|> and its like as control tokens.")]


Offline = Annotated[bool, Parameter(negative="", help="Use no network.")]


def open_tokenizer(model: str, offline: bool = False) -> Tokenizer:
    """The tokenizer of a model, of a run, or of a folder that holds nothing else."""
    from glassformer.formats.find import find_model, tokenizer_of
    from glassformer.text.files.find import find_tokenizer
    from glassformer.text.tokenizer import Tokenizer

    if Path(model).is_dir() and find_tokenizer(Path(model)):
        return Tokenizer.load(model)
    found = tokenizer_of(find_model(model, offline=offline))
    if found is None:
        raise TokenizerError(f"{model} has no tokenizer")
    return found


def _read(text: str) -> str:
    return sys.stdin.read() if text == "-" else text


@app.command
def train(
    *data: str,
    out: Path,
    kind: Literal["bpe", "char", "word"] = "bpe",
    vocab_size: int = 4096,
    max_bytes: int = 100_000_000,
    seed: int = 0,
    json: Json = False,
) -> None:
    """Train a tokenizer on files, folders, globs, JSONL or `-` for stdin, into the folder OUT.

    Parameters
    ----------
    kind
        bpe: byte-level byte-pair encoding. char: every character a token. word: every word.
    vocab_size
        At most this many tokens.
    max_bytes
        Documents are sampled to at most this much text.
    """
    import glassformer
    from glassformer.training.data.sources import DocumentFiles

    if not data:
        raise TokenizerError("there is no DATA to train on: name files, folders, globs, JSONL, or - for stdin")
    with progress(quiet=json) as advance:
        texts = (document.text for document in DocumentFiles(data))
        tokenizer = glassformer.train_tokenizer(
            texts, kind=kind, vocab_size=vocab_size, max_bytes=max_bytes, seed=seed, progress=advance
        )
    tokenizer.save(out)
    if json:
        print_json({"folder": str(out), "vocab_size": tokenizer.vocab_size, "report": tokenizer.report})
    else:
        say(f"{out}: {tokenizer.vocab_size} tokens, {tokenizer.report}")


@app.command
def encode(model: str, text: str, *, special: Special = False, json: Json = False, offline: Offline = False) -> None:
    """The token ids of a text (`-` reads stdin)."""
    ids = open_tokenizer(model, offline).encode(_read(text), special=special)
    print_json(ids) if json else out.print(*ids)


@app.command
def decode(model: str, *ids: int, json: Json = False, offline: Offline = False) -> None:
    """The text of token ids."""
    text = open_tokenizer(model, offline).decode(ids)
    print_json(text) if json else out.print(text, markup=False)


@app.command
def show(model: str, text: str = "", *, special: Special = False, json: Json = False, offline: Offline = False) -> None:
    """A text's tokens, one a line: id, characters from and to, bytes. Without a text: what the tokenizer is."""
    tokenizer = open_tokenizer(model, offline)
    if not text:
        facts = {"vocab_size": tokenizer.vocab_size, "eos_id": tokenizer.eos_id, "special": tokenizer.special}
        print_json(facts) if json else out.print("\n".join(f"{k}: {v}" for k, v in facts.items()), markup=False)
        return
    found = tokenizer.encode_offsets(_read(text), special=special)
    rows = list(zip(found.ids, found.offsets, found.tokens, strict=True))
    if json:
        print_json([{"id": i, "start": a, "end": b, "bytes": list(data)} for i, (a, b), data in rows])
        return
    for index, (start, end), data in rows:
        out.print(f"{index:>8}  {start:>5}-{end:<5}  {data.decode('utf-8', 'backslashreplace')!r}", markup=False)
