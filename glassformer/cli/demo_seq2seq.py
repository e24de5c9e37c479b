"""`glassformer demo seq2seq`: compare an RNN, an RNN with attention, and a Transformer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.table import Table

from glassformer.cli.common import Json, OutFolder, out, print_json, say, stop, working

if TYPE_CHECKING:
    from glassformer.models.translator import Translator
    from glassformer.training.run.train import RunResult
    from glassformer.training.tasks.seq2seq_scores import Seq2SeqScores

NAMES = {"rnn": "RNN", "rnn-attention": "RNN + attention", "transformer": "Transformer"}


def seq2seq(
    *,
    task: Literal["dates", "numbers", "reverse", "copy"] = "dates",
    seconds: float = 180.0,
    folder: OutFolder = Path("runs/seq2seq"),
    seed: int = 0,
    threads: int = 0,
    json: Json = False,
) -> None:
    """Train an RNN, an RNN with attention and a Transformer for the same time, and compare their translations.

    Parameters
    ----------
    task
        dates (and times) or numbers, from written forms to one standard form; or letters to reverse or to copy.
    seconds
        Training time of each model.
    folder
        The folder of the three runs; if it exists, the next free name.
    seed
        Seed of the examples and of the weights.
    threads
        CPU threads; 0 is all cores.
    """
    import glassformer
    from glassformer.atomic import write_text
    from glassformer.cli.demo import free_name
    from glassformer.cli.translate import draw
    from glassformer.inspect.drawing.alignment_svg import alignment_svg
    from glassformer.toys import dates_recipe as recipe

    folder, shown = free_name(folder), recipe.sample_example(task)
    if not json:
        say(f"Three models learn to translate {task} to a standard form, {seconds:g} seconds each. An example:")
        out.print(f"\n  {shown.source}\n  -> {shown.target}\n", markup=False)
    rows: list[dict[str, Any]] = []
    for system, name in NAMES.items():
        if not json:
            say(f"{name}:")
        run = train(system, task, folder / system, seconds, seed, threads, quiet=json)
        if run.stopped:
            stop(run, "stopped", folder / system)
        with working("scoring", quiet=json):
            translator = glassformer.Translator.load(run.best)
            scores = recipe.score(translator, task)
        rows.append(table_row(name, translator, run, scores) | {"run": str(folder / system)})
        if system == "rnn":  # without attention there is no alignment
            continue
        found = translator.translate(shown.source)[0].targets[0]
        alignment = translator.align(shown.source, found.ids, ended=found.finish == "stop")
        path = folder / f"{system}.svg"
        write_text(
            path,
            alignment_svg(*alignment.labels, alignment.mean, f"{name}: attention to the source for each target token"),
        )
        rows[-1]["alignment"] = str(path)
        if not json:
            out.print(f"\n{name}: {found.text!r}. Its attention to the source for each token:\n", markup=False)
            out.print(*draw(alignment, out.width), sep="\n", markup=False)
            out.print(f"\nAs a picture: {path}\n", markup=False)
    if json:
        print_json({"task": task, "folder": str(folder), "example": shown, "systems": rows})
        return
    out.print(score_table(rows))
    out.print(
        "size: parameters. tokens: target tokens of training. exact: exact matches of held-out examples, in all and"
    )
    out.print("by characters of the source. No held-out target occurs in training, in any wording.")
    out.print("\nNext:")
    out.print(f"  glassformer translate {rows[-1]['run']} {shown.source!r} --align", markup=False)
    out.print("  glassformer train --task seq2seq EXAMPLES.tsv --out runs/mine        on your own examples")


def train(system: str, task: str, folder: Path, seconds: float, seed: int, threads: int, *, quiet: bool) -> RunResult:
    """Train one model."""
    from dataclasses import replace

    import glassformer
    from glassformer.cli.training_reporter import make_reporter
    from glassformer.toys import dates_recipe as recipe

    config = replace(recipe.train_config(system, task, str(folder), seconds=seconds, seed=seed), threads=threads)
    with make_reporter(quiet=quiet) as reporter:
        return glassformer.train(
            config,
            documents=lambda: recipe.training_examples(task, seed, seconds),
            held_out=lambda: recipe.held_out_examples(task),
            reporter=reporter,
        )


def table_row(name: str, translator: Translator, run: RunResult, scores: Seq2SeqScores) -> dict[str, Any]:
    """Return the values of one model in the table."""
    return {
        "name": name,
        "parameters": translator.n_parameters,
        "seconds": run.seconds,
        "target_tokens": run.tokens,
        "scores": scores,
    }


def score_table(rows: list[dict[str, Any]]) -> Table:
    """Return a table with the size, time, tokens and exact matches of each model, in all and by source length."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    lengths = (f"{bucket.least}-{bucket.most}" for bucket in rows[0]["scores"].by_length)
    for i, title in enumerate(("", "size", "time", "tokens", "exact", *lengths)):
        table.add_column(title, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        sizes = f"{row['parameters'] / 1e6:.2f}M", f"{row['seconds']:.0f} s", f"{row['target_tokens'] / 1e6:.2f}M"
        shares = (row["scores"].exact, *(bucket.exact for bucket in row["scores"].by_length))
        table.add_row(row["name"], *sizes, *(f"{100 * share:.1f}%" for share in shares))
    return table
