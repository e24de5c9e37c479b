"""`glassformer data check`: what would be trained on."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from glassformer.cli.common import Json, out, print_json, progress

app = App(name="data", help="See what would be trained on.")


@app.command
def check(
    *data: str,
    tokenizer: str | None = None,
    text_field: str = "text",
    separator: str | None = None,
    held_out: float = 0.05,
    context: int = 256,
    strict: Annotated[bool, Parameter(negative="")] = False,
    json: Json = False,
) -> None:
    """Documents, tokens, duplicates, what is skipped and why, and a sample as the model will see it.

    Parameters
    ----------
    data
        Files, folders, globs, JSONL, or `-` for stdin.
    tokenizer
        A model or tokenizer folder, to count tokens.
    text_field
        Where a line of JSONL has its text.
    separator
        What stands between two documents of a plain text file; without it each file is one document.
    strict
        Refuse what would be skipped.
    """
    from glassformer.cli.tokenizer import open_tokenizer
    from glassformer.training.check import check_data

    with progress(quiet=json) as advance:
        report = check_data(
            data,
            open_tokenizer(tokenizer) if tokenizer else None,
            text_field=text_field,
            separator=separator,
            held_out=held_out,
            context=context,
            strict=strict,
            progress=advance,
        )
    print_json(report) if json else out.print(report.render(), markup=False)
