"""`glassformer demo`: train a Transformer on generated stories and score it."""

from __future__ import annotations

import json as json_module
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter
from rich.table import Table

from glassformer.cli.common import Json, OutFolder, out, print_json, say, stop, working
from glassformer.counted import counted

if TYPE_CHECKING:
    from glassformer.models.language_model import LanguageModel

app = App(name="demo", help="Train a small model, score it, and read its samples.")
app.command(
    "glassformer.cli.demo_seq2seq:seq2seq",
    name="seq2seq",
    help="Train an RNN, an RNN with attention and a Transformer to translate, and compare them.",
)

COLUMNS = ("answers", "who", "what", "where", "wellformed", "consistent")
EXPECTED, MAXIMUM = 2_200_000, 4_000_000  # training tokens of two minutes on two cores


@app.default
def stories(
    *,
    seconds: float = 120.0,
    folder: OutFolder = Path("runs/demo"),
    seed: int = 0,
    threads: int = 0,
    serve: Annotated[bool | None, Parameter(negative="--no-serve")] = None,
    json: Json = False,
) -> None:
    """Train a tokenizer and a Transformer on generated stories, score it, and inspect it.

    Parameters
    ----------
    seconds
        How long to train.
    folder
        The run folder; if it exists, the next free name.
    seed
        Seed of the stories and of the weights.
    threads
        CPU threads; 0 is all cores.
    serve
        Serve the page with the trained model at the end, until Ctrl-C; by default on a terminal.
    """
    import glassformer
    from glassformer.cli.training_reporter import make_reporter
    from glassformer.formats.find import find_model
    from glassformer.toys import stories_recipe as recipe

    begin, folder = time.monotonic(), free_name(folder)
    config = replace(recipe.train_config(str(folder), seconds=seconds, seed=seed), threads=threads)
    expected, maximum = (int(tokens * max(0.1, seconds / 120)) for tokens in (EXPECTED, MAXIMUM))
    if not json:
        say("Generated stories about a small world. First a tokenizer is trained on their words, then a Transformer")
        say("on the stories and on questions about them. An example:")
        out.print("\n" + next(recipe.held_out_documents(1)) + "\n", markup=False)
    with make_reporter(quiet=json) as reporter:
        run = glassformer.train(
            config,
            documents=lambda: recipe.training_documents(seed, maximum, expected),
            held_out=recipe.held_out_documents,
            reporter=reporter,
        )
    if run.stopped:
        stop(run, "stopped", folder)
    with working("scoring", quiet=json):
        lm = glassformer.LanguageModel.load(run.last)
        rows: dict[str, dict[str, float]] = {
            "your model": asdict(recipe.score(lm, questions=150, texts=60)),
            "your model, untrained": asdict(recipe.score(recipe.untrained(lm, seed), questions=20, texts=10)),
        }
        rows |= {name: {"answers": share} for name, share in recipe.baseline_answers(100, 5_000).items()}
        shipped = json_module.loads((find_model("stories") / "scores.json").read_text("utf-8"))
        rows["`stories` (in the package)"] = shipped["trained"]
    samples = recipe.generate_stories(lm, 3, seed=seed)
    total = time.monotonic() - begin
    if json:
        print_json({"folder": str(folder), "run": run, "scores": rows, "stories": samples, "seconds": total})
        if serve:
            serve_page(folder, lm, json=True)
        return
    out.print(score_table(rows))
    out.print("answers: exact answers to questions about held-out stories, in all and by kind (who, what, where).")
    out.print("wellformed: generated sentences that are in the grammar. consistent: generated stories,")
    out.print(f"at temperature {recipe.TEMPERATURE}, without contradictions.\n")
    for text in samples:
        out.print(text + "\n", markup=False)
    tokens = counted(run.tokens, "token")
    say(f"{tokens} in {run.seconds:.0f} s of training, {total:.0f} s in all. The run is in {folder}.")
    out.print("Next:")
    out.print(f"  glassformer serve {folder}        inspect this model on a page")
    out.print(f'  glassformer generate {folder} "One day Mia" --temperature 0.7')
    out.print(f"  glassformer train YOUR.txt --out runs/mine --seconds 300        and open {folder}/loss.svg")
    if wants_page(serve, terminal=sys.stdin.isatty() and sys.stdout.isatty()):
        serve_page(folder, lm)


def wants_page(requested: bool | None, *, terminal: bool) -> bool:
    """Return whether to serve at the end; a script, which cannot send Ctrl-C, does not by default."""
    return terminal if requested is None else requested


def serve_page(folder: Path, lm: LanguageModel, *, json: bool = False) -> None:
    """Serve the page with a model until Ctrl-C, at the default port or a free one."""
    from glassformer.cli import serve
    from glassformer.server.run import is_free

    port = serve.PORT if is_free(serve.HOST, serve.PORT) else 0
    serve.run(lambda: [(folder.name, lm)], port=port, json=json)


def free_name(folder: Path) -> Path:
    """Return the folder, or the first of folder-2, folder-3, ... that does not exist."""
    names = [folder, *(folder.with_name(f"{folder.name}-{n}") for n in range(2, 10_000))]
    return next(name for name in names if not name.exists())


def score_table(rows: dict[str, dict[str, Any]]) -> Table:
    """Return a table of scores in percent."""
    table = Table(box=None, padding=(0, 1))
    table.add_column("")
    for name in COLUMNS:
        table.add_column(name, justify="right")
    for name, scores in rows.items():
        table.add_row(name, *(f"{100 * scores[c]:.0f}%" if c in scores else "" for c in COLUMNS))
    return table
