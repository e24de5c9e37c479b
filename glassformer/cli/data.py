"""`glassformer data check`: report on training data."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import App, Parameter

from glassformer.cli.common import DataName, Json, Read, out, print_json, progress, say
from glassformer.errors import ConfigError
from glassformer.training.data.read_options import DEFAULT_READ

app = App(name="data", help="Check training data.")


@app.command(usage="Usage: glassformer data check [OPTIONS] DATA...")
def check(
    *data: DataName,
    task: Literal["lm", "seq2seq"] = "lm",
    tokenizer: str | None = None,
    read: Read = DEFAULT_READ,
    held_out: float = 0.05,
    context: int | None = None,
    source_context: int | None = None,
    strict: Annotated[bool, Parameter(negative="")] = False,
    json: Json = False,
) -> None:
    """Report documents or examples, tokens, duplicates, skipped files and lines, and a training sample.

    Parameters
    ----------
    data
        Files, folders, globs, pipes, or `-` for stdin: text, JSONL, JSON, CSV, TSV, Parquet or Arrow, also with .gz or
        .zst.
    task
        lm: documents. seq2seq: source-target pairs, as for `train --task seq2seq`.
    tokenizer
        A model or tokenizer folder to count tokens; without one seq2seq counts characters.
    held_out
        The fraction held out for evaluation.
    context
        lm: tokens of a training sequence; 256 by default. seq2seq: tokens of the longest target including its start
        token; 128 by default.
    source_context
        seq2seq: tokens of the longest source; by default as --context.
    strict
        Raise an error for anything that would be skipped.
    """
    from glassformer.cli.tokenizer import open_tokenizer
    from glassformer.training.config import LanguageModelTaskConfig, Seq2SeqTaskConfig

    found = open_tokenizer(tokenizer) if tokenizer else None
    names = [str(name) for name in data]
    with progress(quiet=json) as advance:
        if task == "seq2seq":
            from glassformer.training.data.check_examples import check_examples

            contexts = {
                "context": Seq2SeqTaskConfig().context if context is None else context,
                "source_context": source_context or 0,
            }
            report = check_examples(
                names, found, **contexts, read=read, held_out=held_out, strict=strict, progress=advance
            )
        else:
            from glassformer.training.data.check_documents import check_documents
            from glassformer.training.data.sources import DocumentFiles

            if source_context is not None:
                raise ConfigError("--source-context is an option of --task seq2seq, got --task lm")
            files = DocumentFiles(names, read, strict=strict, announce=None if json else say)
            if context is None:
                context = LanguageModelTaskConfig().context
            report = check_documents(files, found, context=context, held_out=held_out, progress=advance)
    print_json(report) if json else out.print(report.render(), markup=False)
