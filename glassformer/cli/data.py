"""`glassformer data check`: report on training data."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import App, Parameter

from glassformer.cli.common import Json, out, print_json, progress
from glassformer.errors import ConfigError

app = App(name="data", help="Check training data.")


@app.command
def check(
    *data: str,
    task: Literal["lm", "seq2seq"] = "lm",
    tokenizer: str | None = None,
    text_field: str | None = None,
    separator: str | None = None,
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
        Files, folders, globs, JSONL, or `-` for stdin.
    task
        lm: documents. seq2seq: source-target pairs, TSV or JSONL, as for `train --task seq2seq`.
    tokenizer
        A model or tokenizer folder to count tokens; without one seq2seq counts characters.
    text_field
        lm: the field of a JSONL line with the text; `text` by default.
    separator
        lm: the text between two documents of a plain text file; without it each file is one document.
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
    common = {"held_out": held_out, "strict": strict}
    with progress(quiet=json) as advance:
        if task == "seq2seq":
            from glassformer.training.data.check_examples import check_examples

            for name, value in (("--text-field", text_field), ("--separator", separator)):
                if value is not None:
                    raise ConfigError(f"{name} is an option of --task lm, got --task seq2seq")
            contexts = {
                "context": Seq2SeqTaskConfig().context if context is None else context,
                "source_context": source_context or 0,
            }
            report = check_examples(data, found, **contexts, **common, progress=advance)
        else:
            from glassformer.training.data.check_documents import check_documents

            if source_context is not None:
                raise ConfigError("--source-context is an option of --task seq2seq, got --task lm")
            options = {
                "context": LanguageModelTaskConfig().context if context is None else context,
                "text_field": "text" if text_field is None else text_field,
                "separator": separator,
            }
            report = check_documents(data, found, **options, **common, progress=advance)
    print_json(report) if json else out.print(report.render(), markup=False)
