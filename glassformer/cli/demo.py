"""`glassformer demo`: the main job, from nothing to a Transformer that writes."""

from __future__ import annotations

import json as json_module
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter
from rich.table import Table

from glassformer.cli.common import Json, out, print_json, say, working

if TYPE_CHECKING:
    from glassformer.models.language_model import LanguageModel

app = App(name="demo", help="Train a model here and now, measure what it has learned, and read what it writes.")
app.command(
    "glassformer.cli.demo_seq2seq:seq2seq",
    name="seq2seq",
    help="An RNN, an RNN with attention and a Transformer translate: trained for the same time, measured, drawn.",
)

COLUMNS = ("answers", "who", "what", "where", "wellformed", "consistent")
EXPECTED, ENOUGH = 2_200_000, 4_000_000  # tokens that two minutes on two cores read, and never more than


@app.default
def stories(
    *,
    seconds: float = 120.0,
    folder: Annotated[Path, Parameter(name="--out")] = Path("runs/demo"),
    seed: int = 0,
    threads: int = 0,
    serve: Annotated[bool | None, Parameter(negative="--no-serve")] = None,
    json: Json = False,
) -> None:
    """Train a tokenizer and a Transformer on little stories, measure what it has learned, and look inside.

    Parameters
    ----------
    seconds
        How long to train.
    folder
        The run's folder; where one stands already, the next free name beside it.
    seed
        Of the stories and of the weights.
    threads
        CPU threads; 0 is all cores.
    serve
        Serve the page on the trained model at the end, until Ctrl-C; by default where this is run in a terminal.
    """
    import glassformer
    from glassformer.cli.training_reporter import make_reporter
    from glassformer.formats.find import find_model
    from glassformer.toys import stories_recipe as recipe

    begin, folder = time.monotonic(), free_name(folder)
    expected, enough = (int(tokens * max(0.1, seconds / 120)) for tokens in (EXPECTED, ENOUGH))
    config = replace(recipe.train_config(str(folder), seconds=seconds, seed=seed), threads=threads)
    if not json:
        say("A world of little stories, made as they are needed. First a tokenizer learns their words, then a")
        say("Transformer learns to write them, and to answer questions about them. One of them:")
        out.print("\n" + next(recipe.held_out_documents(1)) + "\n", markup=False)
    with make_reporter(quiet=json) as reporter:
        run = glassformer.train(
            config,
            documents=lambda: recipe.training_documents(seed, enough, expected),
            held_out=recipe.held_out_documents,
            reporter=reporter,
        )
    if run.stopped:
        say(f"stopped: glassformer train --out {folder} --resume goes on")
        return
    with working("scoring", quiet=json):
        lm = glassformer.LanguageModel.load(run.last)
        rows: dict[str, dict[str, float]] = {
            "your model": asdict(recipe.score(lm, questions=150, texts=60)),
            "your model, untrained": asdict(recipe.score(recipe.untrained(lm, seed), questions=20, texts=10)),
        }
        rows |= {name: {"answers": share} for name, share in recipe.baseline_answers(100, 5_000).items()}
        shipped = json_module.loads((find_model("stories") / "scores.json").read_text("utf-8"))
        rows["`stories` (in the package)"] = shipped["trained"]
    written = recipe.write_stories(lm, 3, seed=seed)
    total = time.monotonic() - begin
    if json:
        print_json({"folder": str(folder), "run": run, "scores": rows, "stories": written, "seconds": total})
        if serve:
            look_inside(folder, lm, json=True)
        return
    out.print(score_table(rows))
    out.print("answers: to questions about held-out stories, word for word, who, what and where.")
    out.print("wellformed: sentences of its own that the grammar allows. consistent: whole stories of its own,")
    out.print(f"at temperature {recipe.TEMPERATURE}, that contradict nothing.\n")
    for text in written:
        out.print(text + "\n", markup=False)
    say(f"{run.tokens:,} tokens in {run.seconds:.0f} s of training, {total:.0f} s in all. The run is in {folder}.")
    out.print("What next:")
    out.print(f"  glassformer serve {folder}        the page in which every number is this model's own")
    out.print(f'  glassformer generate {folder} "One day Mia" --temperature 0.7')
    out.print(f"  glassformer train YOUR.txt --out runs/mine --seconds 300        and open {folder}/loss.svg")
    if wants_page(serve, terminal=sys.stdin.isatty() and sys.stdout.isatty()):
        look_inside(folder, lm)


def wants_page(asked: bool | None, *, terminal: bool) -> bool:
    """Whether to serve at the end. A script, which nobody could end with Ctrl-C, gets its result and goes on."""
    return terminal if asked is None else asked


def look_inside(folder: Path, lm: LanguageModel, *, json: bool = False) -> None:
    """Serve the page on a model until Ctrl-C: at the usual port, or at any where that one is in use."""
    from glassformer.cli import serve
    from glassformer.server.run import is_free

    port = serve.PORT if is_free(serve.HOST, serve.PORT) else 0
    serve.run(lambda: [(folder.name, lm)], port=port, json=json)


def free_name(folder: Path) -> Path:
    """The folder, or the first of folder-2, folder-3, ... that is not there."""
    names = [folder, *(folder.with_name(f"{folder.name}-{n}") for n in range(2, 10_000))]
    return next(name for name in names if not name.exists())


def score_table(rows: dict[str, dict[str, Any]]) -> Table:
    """Scores in percent, a row each."""
    table = Table(box=None, padding=(0, 1))
    table.add_column("")
    for name in COLUMNS:
        table.add_column(name, justify="right")
    for name, scores in rows.items():
        table.add_row(name, *(f"{100 * scores[c]:.0f}%" if c in scores else "" for c in COLUMNS))
    return table
