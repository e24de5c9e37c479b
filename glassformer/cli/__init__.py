"""The command line: `glassformer VERB ...`, one file per verb; no other package parses arguments or prints.

A verb is imported when it is used, and torch when a verb needs it, so that help prints at once.
"""

from __future__ import annotations

import io
import os
import re
import sys
from pathlib import Path

from cyclopts import App, CycloptsError, Parameter
from cyclopts.argument import ArgumentCollection
from cyclopts.config import Toml
from cyclopts.utils import UNSET

from glassformer.errors import GlassformerError

HELP = """Glassformer: train, run, serve and inspect Transformer language models.

MODEL is a model folder or file (GGUF, safetensors), a run folder (its best checkpoint), `owner/name[@revision]` on the
Hugging Face hub, or `stories`, the small model that ships with the package.
"""

VERBS = {
    "demo": ("demo:app", "Train a small model on generated stories or source-target pairs, and run it."),
    "train": ("train:train", "Train a tokenizer and a model on your own text, or continue from a model."),
    "data": ("data:app", "Check training data."),
    "tokenizer": ("tokenizer:app", "Train a tokenizer; encode and decode text."),
    "generate": ("generate:generate", "Continue a prompt."),
    "inspect": ("inspect:inspect", "Show a model's activations: in the terminal, as a page, picture or JSON."),
    "serve": ("serve:serve", "Serve models over HTTP, with a page that inspects them."),
    "translate": ("translate:translate", "Translate texts with an encoder-decoder."),
    "embed": ("embed:embed", "Embed texts: compare them, or print their vectors."),
    "fill": ("fill:fill", "Predict the masked tokens of a text, with a masked language model."),
    "chat": ("chat:chat", "Chat with a model."),
    "eval": ("evaluate:evaluate", "Measure loss, perplexity and bits per byte on a text."),
    "show": ("show:show", "Show a model's sizes, memory, tokenizer and chat template."),
    "convert": ("convert:convert", "Convert a model to a Hugging Face folder or a GGUF file."),
    "verify": ("verify:verify", "Compare a model with transformers, activation by activation."),
    "bench": ("bench:bench", "Measure prefill and decode speed against this machine's limits."),
}

USAGE = {  # of verbs with optional positional arguments, which generated usage lines omit
    "train": "--out PATH [OPTIONS] DATA...",
    "generate": "[OPTIONS] MODEL [PROMPT]",
    "serve": "[OPTIONS] MODEL...",
    "translate": "[OPTIONS] MODEL [TEXT]...",
    "embed": "[OPTIONS] MODEL [TEXT]...",
    "eval": "[OPTIONS] MODEL DATA...",
}
CONFIG_HELP = (
    "`--config FILE.toml` reads options from a file, such as `steps = 500`; those on the command line override them."
)

app = App(
    name="glassformer",
    help=HELP,
    help_epilogue=CONFIG_HELP,
    help_format="markdown",
    version_flags=["--version"],
    default_parameter=Parameter(negative_iterable=()),
)
for verb, (target, summary) in VERBS.items():
    usage = {"usage": f"Usage: glassformer {verb} {USAGE[verb]}"} if verb in USAGE else {}
    app.command(f"glassformer.cli.{target}", name=verb, help=summary, **usage)
app.register_install_completion_command(help="Install completion for your shell.")


def main(arguments: list[str] | None = None) -> None:
    """Run one command. Exit status: 0 success, 1 error, 2 wrong usage, 130 interrupted, 141 closed output."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a character that the terminal cannot show is escaped
    try:
        app.config = _config_file(tokens)
        app(_bind_dashes(tokens) or ["--help"], exit_on_error=False, print_error=True, result_action="return_value")
    except GlassformerError as error:
        _fail(_with_option_names(str(error), _arguments(tokens)), 1)
    except CycloptsError:
        sys.exit(2)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the pipe is closed: nothing can be flushed
        sys.exit(141)
    except OSError as error:  # a full disk, a read-only file system, no temporary folder
        name = "" if error.filename is None else f"{os.fspath(error.filename)}: "
        _fail(f"{name}{error.strerror or error}", 1)


def _config_file(tokens: list[str]) -> list[Toml]:
    """Remove `--config FILE.toml` from the arguments: its keys are options of the verb; flags override them."""
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


def _bind_dashes(tokens: list[str]) -> list[str]:
    """Rewrite values that the parser would take for options, such as `-` and `---`.

    The value of an option becomes `--option=-`; a lone `-` that is none moves behind `--`.
    """
    end = tokens.index("--") if "--" in tokens else len(tokens)
    options, rest = tokens[:end], tokens[end + 1 :]
    result: list[str] = []
    lone: list[str] = []
    for token in options:
        dashed = token.startswith("-") and not token.lstrip("-")[:1].isalpha()
        if dashed and result and _takes_value(options, result[-1]):
            result[-1] += f"={token}"
        elif token == "-":
            lone.append(token)
        else:
            result.append(token)
    return [*result, "--", *lone, *rest] if lone else [*result, *tokens[end:]]


def _takes_value(tokens: list[str], name: str) -> bool:
    """Return whether `name` is an option of the verb in `tokens`, and no flag."""
    if not name.startswith("--") or "=" in name:
        return False
    try:
        return _arguments(tokens).match(name)[2] is UNSET
    except ValueError:  # no such option
        return False


def _arguments(tokens: list[str]) -> ArgumentCollection:
    """Return the arguments of the verb in `tokens`."""
    try:
        return app.parse_commands(tokens)[1][-1].assemble_argument_collection(parse_docstring=False)
    except (CycloptsError, ValueError):  # no such verb
        return ArgumentCollection()


def _with_option_names(message: str, arguments: ArgumentCollection) -> str:
    """Replace the names of parameters in an error message by those of options: max_tokens by --max-tokens.

    A name without an underscore is replaced at the start only: elsewhere it may be an ordinary word.
    """
    options = {
        name.removeprefix("--").replace("-", "_"): name
        for argument in arguments
        if argument.index is None
        for name in argument.names
        if name.startswith("--")
    }

    def option_name(match: re.Match[str]) -> str:
        word = match[0]
        return options.get(word, word) if "_" in word or match.start() == 0 else word

    return re.sub(r"(?<![\w./'\"-])[a-z][\w.]*\b(?![/'\"(=])", option_name, message)


def _fail(message: str, status: int) -> None:
    print(f"glassformer: {message}", file=sys.stderr)
    sys.exit(status)
