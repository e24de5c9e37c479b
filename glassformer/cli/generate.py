"""`glassformer generate`: continue a prompt."""

from __future__ import annotations

import math
import secrets
import sys
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from glassformer.cli.common import IgnoreKeys, Json, Machine, open_model, out, print_json, say
from glassformer.errors import RequestError

if TYPE_CHECKING:
    from glassformer.models.language_model import Continuation, LanguageModel, TokenScore


def generate(
    model: str,
    prompt: str = "",
    *,
    ids: Annotated[str, Parameter(help="Token ids instead of a prompt: 1,2,3")] = "",
    max_tokens: int | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    logit_bias: Annotated[tuple[str, ...], Parameter(negative="", help="TOKEN_ID=NUMBER; may be repeated")] = (),
    seed: int | None = None,
    stop: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    n: int = 1,
    logprobs: int | None = None,
    json: Json = False,
    ignore_key: IgnoreKeys = (),
    machine: Machine = Machine(),
) -> None:
    """Continue a prompt; the text streams to stdout during generation.

    Parameters
    ----------
    model
        A decoder-only model: a model folder or file, a run folder, `stories`, `smollm2`, or a name on the hub.
    prompt
        The text to continue; if empty, the model begins a document. `-` reads stdin.
    max_tokens
        The maximal number of tokens; by default the model generates until an end token or a full context.
    temperature
        Divides the logits: below 1 less random, above 1 more; 0 always takes the most likely token.
    top_k
        Sample from the k most likely tokens only.
    top_p
        Sample from the smallest set of tokens whose probabilities sum to p or more.
    min_p
        Sample from tokens at least p times as likely as the most likely one.
    seed
        The same seed gives the same text.
    stop
        End the text before this string; may be repeated.
    n
        Generate this many continuations from one prefill of the prompt.
    logprobs
        Show each token's log-probability, and this many of the most likely tokens.
    """
    from glassformer.models.language_model import LanguageModel

    lm = open_model(LanguageModel, model, machine, ignore_key, quiet=json)
    source: str | list[int] = _ids(ids) if ids else sys.stdin.read() if prompt == "-" else prompt
    if ids and prompt:
        raise RequestError("pass a prompt or --ids, not both", param="ids")
    options: dict[str, Any] = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "logit_bias": _bias(logit_bias),
        "seed": seed,
        "stop": stop,
        "n": n,
        "logprobs": logprobs,
    }
    if n == 1 and logprobs is None and not json and lm.tokenizer is not None:
        if seed is None and temperature:
            options["seed"] = secrets.randbits(32)
        stream(lm, source, **options)
        if options["seed"] != seed:
            say(f"seed {options['seed']}")
        return
    found = lm.generate(source, **options)
    if json:
        print_json({"model": lm.path, "prompt_ids": found.prompt_ids, "seed": found.seed} | _choices(lm, found))
        return
    for i, one in enumerate(found.continuations):
        if n > 1:
            say(f"--- {i + 1} of {n} ({one.finish})")
        if logprobs is not None:
            _table(lm, one)
        else:
            shown = one.text if lm.tokenizer else " ".join(map(str, one.ids))
            out.print((source if isinstance(source, str) else "") + shown, markup=False)
    if found.seed is not None and seed is None:
        say(f"seed {found.seed}")


def stream(lm: LanguageModel, prompt: str | list[int], **options: Any) -> str:
    """Print the prompt and stream its continuation to stdout; return the continuation."""
    events = lm.stream(prompt, **options)
    if isinstance(prompt, str):
        out.print(prompt, end="", markup=False)
    texts = []
    for event in events:
        texts.append(event.text)
        out.print(event.text, end="", markup=False)
        sys.stdout.flush()
    out.print()
    return "".join(texts)


def _ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise RequestError(f"--ids must be whole numbers such as 1,2,3, got {text!r}", param="ids") from None


def _bias(pairs: tuple[str, ...]) -> dict[int, float] | None:
    try:
        return {int(token): float(value) for token, value in (pair.split("=") for pair in pairs)} or None
    except ValueError:
        raise RequestError(f"--logit-bias must be ID=NUMBER, got {' '.join(pairs)!r}", param="logit_bias") from None


def _text(lm: LanguageModel, token: int) -> str:
    return lm.tokenizer.token_text(token) if lm.tokenizer else str(token)


def _token(lm: LanguageModel, token: TokenScore) -> dict[str, Any]:
    top = [{"id": i, "text": _text(lm, i), "logprob": p} for i, p in token.top]
    return {"id": token.id, "text": _text(lm, token.id), "logprob": token.logprob, "top": top}


def _choices(lm: LanguageModel, found: Any) -> dict[str, Any]:
    with_tokens = any(t.logprob is not None for c in found.continuations for t in _with_end(c))
    return {
        "continuations": [
            {"text": c.text, "ids": c.ids, "finish": c.finish}
            | ({"tokens": [_token(lm, t) for t in _with_end(c)]} if with_tokens else {})
            for c in found.continuations
        ]
    }


def _with_end(one: Continuation) -> tuple[TokenScore, ...]:
    return one.tokens if one.end is None else (*one.tokens, one.end)


def _table(lm: LanguageModel, one: Continuation) -> None:
    """Print one line per token: log-probability, probability, text, and the most likely tokens."""
    for token in _with_end(one):
        rivals = "  ".join(f"{_text(lm, i)!r} {_percent(p)}" for i, p in token.top)
        out.print(
            f"{token.logprob:8.3f} {_percent(token.logprob or 0.0)}  {_text(lm, token.id)!r:20} {rivals}", markup=False
        )


def _percent(logprob: float) -> str:
    return f"{100 * math.exp(logprob):5.1f}%"
