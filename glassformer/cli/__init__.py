"""The command line: `glassformer VERB ...`. One file per verb; the only place that prints or reads arguments.

Verbs are imported when they are used, and torch when a verb needs it, so that help is there at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from cyclopts import App, CycloptsError, Parameter
from cyclopts.config import Toml

from glassformer.errors import GlassformerError

HELP = """Glassformer: a whole Transformer language model whose every number can be seen.

MODEL is a model folder or file (GGUF, safetensors), a run folder (its best checkpoint), `owner/name[@revision]` on the
Hugging Face hub, or `stories`, the small model that ships with the package.
"""

VERBS = {
    "demo": ("demo:app", "Train a model here and now, on little stories or on pairs, and read what it writes."),
    "train": ("train:train", "Train a tokenizer and a model on your own text, or continue from a model."),
    "data": ("data:app", "See what would be trained on."),
    "tokenizer": ("tokenizer:app", "Train a tokenizer; encode, decode and show tokens."),
    "generate": ("generate:generate", "Continue a prompt."),
    "inspect": ("inspect:inspect", "See inside a model while it reads a text: terminal, page, picture or JSON."),
    "serve": ("serve:serve", "Serve models: a page in which every number is the model's own, and HTTP routes."),
    "translate": ("translate:translate", "Write one text from another, with a model that was trained on pairs."),
    "embed": ("embed:embed", "Show how alike texts are, or print their vectors, with a model that embeds."),
    "fill": ("fill:fill", "Guess the hidden places of a text, with a masked language model."),
    "chat": ("chat:chat", "Write back and forth with a model."),
    "eval": ("evaluate:evaluate", "Measure loss, perplexity and bits per byte on a text."),
    "show": ("show:show", "Show what a model is: sizes, memory, tokenizer, template."),
    "convert": ("convert:convert", "Write a model as a Hugging Face folder, or as a GGUF file."),
    "verify": ("verify:verify", "Compare a model with transformers, place by place."),
    "bench": ("bench:bench", "Measure prefill and decode speed against this machine's limits."),
}

app = App(
    name="glassformer",
    help=HELP,
    help_format="markdown",
    version_flags=["--version"],
    default_parameter=Parameter(negative_iterable=()),
)
for verb, (target, summary) in VERBS.items():
    app.command(f"glassformer.cli.{target}", name=verb, help=summary)
app.register_install_completion_command(help="Install completion for your shell.")


def main(arguments: list[str] | None = None) -> None:
    """Run one command. Exit status: 0 done, 1 refused with a reason, 2 misused, 130 interrupted."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    try:
        app.config = _config_file(tokens)
        app(_stdin_last(tokens) or ["--help"], exit_on_error=False, print_error=True, result_action="return_value")
    except GlassformerError as error:
        _fail(str(error), 1)
    except CycloptsError:
        sys.exit(2)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # the reader has left: nothing to say, nor to flush
        sys.exit(141)


def _config_file(tokens: list[str]) -> list[Toml]:
    """Take `--config FILE.toml` out of the arguments: its keys are the verb's options, flags given beside it win."""
    for i, token in enumerate(tokens):
        name, equals, value = token.partition("=")
        if token == "--":
            break
        if name != "--config":
            continue
        if not equals:
            if i + 1 == len(tokens):
                _fail("--config needs a file: --config FILE.toml", 2)
            value = tokens[i + 1]
        if not Path(value).is_file():
            _fail(f"--config: {value} is not a file", 2)
        del tokens[i : i + (1 if equals else 2)]
        return [Toml(value, must_exist=True, use_commands_as_keys=False)]
    return []


def _stdin_last(tokens: list[str]) -> list[str]:
    """A lone `-`, which the parser would take for an option, put where it takes everything as it is: behind `--`."""
    end = tokens.index("--") if "--" in tokens else len(tokens)
    options, rest = tokens[:end], tokens[end + 1 :]
    lone = [token for token in options if token == "-"]
    return [*(token for token in options if token != "-"), "--", *lone, *rest] if lone else tokens


def _fail(message: str, status: int) -> None:
    print(f"glassformer: {message}", file=sys.stderr)
    sys.exit(status)
