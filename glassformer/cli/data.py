"""`glassformer data check`: what would be trained on."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import App, Parameter

from glassformer.cli.common import Json, out, print_json, progress
from glassformer.errors import ConfigError

app = App(name="data", help="See what would be trained on.")


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
    """Documents or pairs, tokens, duplicates, what is skipped and why, and a sample as the model will see it.

    Parameters
    ----------
    data
        Files, folders, globs, JSONL, or `-` for stdin.
    task
        lm: documents to continue. seq2seq: pairs of source and target, TSV or JSONL, as `train --task seq2seq` reads.
    tokenizer
        A model or tokenizer folder, to count tokens; without one seq2seq counts characters.
    text_field
        lm: where a line of JSONL has its text; `text` by default.
    separator
        lm: what stands between two documents of a plain text file; without it each file is one document.
    held_out
        The share that is kept for evaluation.
    context
        lm: tokens of a row; 256 by default. seq2seq: of the longest target and what begins it; 128 by default.
    source_context
        seq2seq: tokens of the longest source; as --context, unless given.
    strict
        Refuse what would be skipped.
    """
    from glassformer.cli.tokenizer import open_tokenizer

    found = open_tokenizer(tokenizer) if tokenizer else None
    common = {"held_out": held_out, "strict": strict}
    with progress(quiet=json) as advance:
        if task == "seq2seq":
            from glassformer.training.data.check_examples import check_examples

            for name, value in (("--text-field", text_field), ("--separator", separator)):
                if value is not None:
                    raise ConfigError(f"{name} is an option of --task lm, got --task seq2seq")
            contexts = {"context": 128 if context is None else context, "source_context": source_context or 0}
            report = check_examples(data, found, **contexts, **common, progress=advance)
        else:
            from glassformer.training.data.check_documents import check_documents

            if source_context is not None:
                raise ConfigError("--source-context is an option of --task seq2seq, got --task lm")
            rows = {
                "context": 256 if context is None else context,
                "text_field": "text" if text_field is None else text_field,
                "separator": separator,
            }
            report = check_documents(data, found, **rows, **common, progress=advance)
    print_json(report) if json else out.print(report.render(), markup=False)
