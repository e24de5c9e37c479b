"""`glassformer inspect`: show the activations of a model on a text, in the terminal or as HTML, PNG or JSON."""

from __future__ import annotations

import json as json_of
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from glassformer.cli.common import IgnoreKeys, Json, Machine, open_any, print_json, progress, say, working
from glassformer.errors import RequestError

if TYPE_CHECKING:
    from glassformer.inspect.edits.edit import Edit
    from glassformer.inspect.trace.trace import Trace
    from glassformer.inspect.views.focus import Focus
    from glassformer.inspect.views.registry import ViewSpec
    from glassformer.models.embedder import Embedder
    from glassformer.models.language_model import LanguageModel
    from glassformer.models.translator import Translator

    AnyModel = LanguageModel | Translator | Embedder

SUFFIXES = (".html", ".png", ".json")


def inspect(
    model: str,
    text: str,
    *,
    target: str | None = None,
    max_tokens: int = 0,
    view: str | None = None,
    edit: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    out: Path | None = None,
    bake: Literal["chosen", "all"] = "chosen",
    json: Json = False,
    ignore_key: IgnoreKeys = (),
    machine: Machine = Machine(),
    **parameters: str,
) -> None:
    """Show the activations of a model on a text: tokens, an attention head, one cell, the logit lens.

    Parameters
    ----------
    model
        A model folder, a run folder, `stories` or `smollm2`: a decoder-only, encoder-decoder or encoder-only model.
    text
        The prompt or the source. `-` reads stdin.
    target
        For models with a source: the target; by default the model generates it. For other models: the parameter of this
        name of the view, such as the token of `attribution`, which is `--target-token` for models with a source.
    max_tokens
        Generate this many tokens first, greedily. For models with a source: the maximal length of the target.
    view
        Show one view instead of the overview: cell, lens, roles, block, ... (a wrong name lists all). Its parameters
        are options: --layer 2 --head 3 --position 5. Without them, layer, head, query and key are those of the head
        that contributes most to the next token. `--other TEXT` is the other text of `fork` and `changed`.
    edit
        An edit of the activations, as JSON: '{"op": "ablate", "point": "blocks.2.attn.z", "head": 3}'. Can be repeated.
    out
        Write a file instead: .html (the page with its numbers), .png or .json.
    bake
        What an .html report contains: `chosen`, or `all` layers, heads and tokens.
    """
    parameters = {name.replace("-", "_"): value for name, value in parameters.items()}
    suffix = _suffix(out, view, bake)
    spec, given_focus = _find_view(view), _focus_options(view, parameters)
    lm = open_any(model, machine, ignore_key, quiet=json)
    target = _view_target(spec, lm, target, parameters)
    prompt = sys.stdin.read() if text == "-" else text
    make_trace, edits = _tracer(lm, target, max_tokens), _read_edits(edit)
    without_edits = partial(make_trace, prompt)
    with working("tracing", quiet=json):
        trace = make_trace(prompt, edit=edits)
        focus = _find_focus(trace, given_focus, parameters)
    if suffix == ".html":
        from glassformer.inspect.present.report import export_html

        assert out is not None
        with progress(quiet=json) as advance:
            size = export_html(
                trace, out, focus=focus, before=without_edits() if edits else None, name=model, bake=bake,
                advance=advance, view=view, text=prompt,
            )  # fmt: skip
        _report_file(out, size, json)
        return
    if spec is None:
        panels, data = _overview(lm, trace, focus, prompt)
    else:
        options = _view_options(spec, trace, focus, prompt, parameters, without_edits, make_trace)
        with working(spec.name, quiet=json):
            panels, data = _run_view(spec, lm, trace, options)
    data = {"model": lm.path or model} | data
    if suffix is None:
        print_json(data) if json else _draw(panels)
        return
    assert out is not None
    if suffix == ".png":
        from glassformer.inspect.drawing.png import render_png

        content = render_png(panels)
    else:
        content = json_of.dumps(data, ensure_ascii=False, indent=1).encode() + b"\n"
    from glassformer.atomic import replacing

    with replacing(out) as new:
        new.write_bytes(content)
    _report_file(out, len(content), json)


def _draw(panels: list[Any]) -> None:
    from glassformer.cli.terminal_panels import Terminal

    Terminal().draw(panels)


def _suffix(path: Path | None, view: str | None, bake: str) -> str | None:
    """Return the suffix of the output file. RequestError if it is unknown, or options conflict."""
    suffix = None if path is None else path.suffix.lower()
    if suffix is not None and suffix not in SUFFIXES:
        raise RequestError(f"--out must end in {', '.join(SUFFIXES)}, got {str(path)!r}", param="out")
    if path is not None and not path.parent.is_dir():
        raise RequestError(f"--out: the folder {str(path.parent)!r} does not exist", param="out")
    if bake != "chosen" and suffix != ".html":
        raise RequestError("--bake needs a report: add --out NAME.html", param="bake")
    return suffix


def _find_view(name: str | None) -> ViewSpec | None:
    """Return the view. RequestError lists all views if the name is unknown."""
    if name is None:
        return None
    from glassformer.inspect.views.registry import VIEWS, find_view

    try:
        return find_view(name)
    except RequestError as error:
        raise RequestError(f"{error}; all views: {', '.join(VIEWS)}", param="view") from None


def _focus_options(view: str | None, parameters: dict[str, str]) -> dict[str, int | None]:
    """Return the requested layer, head, query (or position) and key. RequestError for unknown options."""
    found: dict[str, int | None] = {}
    for name, value in parameters.items():
        option = "query" if name == "position" else name
        if option in ("layer", "head", "query", "key"):
            if not re.fullmatch(r"-?\d{1,9}", value):
                raise RequestError(f"--{name} must be a whole number, got {value!r:.60}", param=name)
            found[option] = int(value)
        elif view is None:
            known = "--layer, --head, --query and --key; other options belong to a view: add --view"
            raise RequestError(f"unknown option --{name}; without --view the options are {known}", param=name)
    return found


def _view_target(spec: ViewSpec | None, lm: AnyModel, target: str | None, parameters: dict[str, str]) -> str | None:
    """Move `--target` or `--target-token` to a view's parameter `target`; return the target of the trace."""
    if spec is None or "target" not in spec.parameters:
        return target
    if (token := parameters.pop("target_token", None)) is not None:
        parameters["target"] = token
    if target is None or lm.kind in ("encoder-decoder", "recurrent"):
        return target
    if token is not None:
        raise RequestError("--target and --target-token are the same here: leave one out", param="target")
    parameters["target"] = target
    return None


def _tracer(lm: AnyModel, target: str | None, max_tokens: int) -> Callable[..., Trace]:
    """Return the function that traces a text with these options. RequestError if one has no effect."""
    if lm.kind in ("encoder-decoder", "recurrent"):
        return partial(lm.trace, target=target, max_tokens=max_tokens or None)
    if target is not None:
        raise RequestError("--target needs a model with a source; this one has none", param="target")
    if lm.kind == "encoder" and max_tokens:
        raise RequestError("--max-tokens has no effect on an encoder-only model", param="max_tokens")
    return partial(lm.trace, **({"max_tokens": max_tokens, "temperature": 0.0} if max_tokens else {}))


def _find_focus(trace: Trace, where: dict[str, int | None], parameters: dict[str, str]) -> Focus:
    from glassformer.inspect.views.focus import focus

    kind: Any = parameters.get("attention")
    return focus(trace, **where, attention=kind if kind in ("cross", "encoder") else "attn")


def _read_edits(edits: tuple[str, ...]) -> tuple[Edit, ...]:
    from glassformer.inspect.edits.reader import EditReader

    found = []
    for text in edits:
        try:
            data = json_of.loads(text)
        except json_of.JSONDecodeError as error:
            raise RequestError(f"--edit is not JSON: {error}; got {text[:80]!r}", param="edit") from None
        found += data if isinstance(data, list) else [data]
    return EditReader().read(found)


def _view_options(
    view: ViewSpec, t: Trace, focus: Focus, prompt: str, parameters: dict[str, str], without_edits: Callable[[], Trace],
    make_trace: Callable[..., Trace],
) -> dict[str, Any]:  # fmt: skip
    """Return a view's parameters; the focus and this text fill those that are missing.

    Args:
        without_edits: Traces the same text without edits, the default `other` of `fork` and `changed`.
        make_trace: Traces another text.
    """
    from glassformer.inspect.present.paths import format_value
    from glassformer.inspect.views.support import UNAVAILABLE

    if reason := UNAVAILABLE[t.kind].get(view.name):
        raise RequestError(reason, param="view")
    defaults = {"layer": focus.layer, "head": focus.head, "query": focus.query, "key": focus.key}
    defaults |= {"position": focus.query, "text": prompt, "token": t.ids[focus.query], "tokens": t.ids}
    defaults["word"] = _longest_word(prompt)
    optional = {"lens": ("position",), "alignment": ("layer", "head")}.get(view.name, ())  # None means all
    filled = {
        name: format_value(defaults[name])
        for name in view.parameters
        if name in defaults and name not in parameters and name not in optional
    }
    if t.edits and "other" in view.parameters and "other" not in parameters:
        return view.read(parameters | filled | {"other": ""}, find=lambda _: without_edits())
    return view.read(parameters | filled, find=make_trace)


def _longest_word(text: str) -> str:
    return max(re.findall(r" ?[^\W\d_]+", text), key=lambda word: len(word.strip()), default=text[:1])


def _run_view(view: ViewSpec, lm: AnyModel, t: Trace, options: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Return one view as panels and as data."""
    from glassformer.inspect.drawing.draw import draw
    from glassformer.inspect.trace.trace import Trace
    from glassformer.inspect.views.result import plain

    subject: Any = lm if view.of == "model" else t
    result = view.function(subject, **options)
    shown = {name: "another text" if isinstance(value, Trace) else value for name, value in options.items()}
    return draw(view, subject, result), {"view": view.name, "parameters": shown, "data": plain(result)}


def _overview(lm: AnyModel, t: Trace, focus: Focus, prompt: str) -> tuple[list[Any], dict[str, Any]]:
    """Return the views at one focus that the model supports: text, head with a cell, alignment, lens."""
    from glassformer.inspect.drawing.trace_panels import note
    from glassformer.inspect.views.focus import focus as find_focus
    from glassformer.inspect.views.registry import VIEWS

    where = {"layer": focus.layer, "head": focus.head, "query": focus.query, "key": focus.key}
    cell: dict[str, Any] = {"cell": where}
    if lm.kind == "encoder-decoder":
        cross = find_focus(t, layer=focus.layer, head=focus.head, query=focus.query, attention="cross")
        cell = {"alignment": {}, "cell": where | {"key": cross.key, "attention": "cross"}}
    views = {
        "encoder": {"tokens": {"text": prompt}} | cell,
        "recurrent": {"summary": {}, "alignment": {}},
    }.get(lm.kind, {"summary": {}} | cell | {"lens": {"position": focus.query}})
    panels: list[Any] = []
    data: dict[str, Any] = {"focus": where | {"because": focus.because}}
    for name, options in views.items():
        try:
            drawn, found = _run_view(VIEWS[name], lm, t, options)
        except RequestError as error:  # a recurrent model without attention has no alignment
            drawn, found = [note(str(error))], {"data": {"error": str(error)}}
        if name == "cell" and lm.kind == "decoder":
            drawn.insert(1, note(f"why this head: {focus.because}"))
        panels += drawn
        data[name] = found["data"]
    return panels, data


def _report_file(path: Path, size: int, json: bool) -> None:
    if json:
        print_json({"out": str(path), "bytes": size})
    else:
        say(f"wrote {path}, {size / 1e6:.2f} MB")
