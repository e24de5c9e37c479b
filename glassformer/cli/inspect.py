"""`glassformer inspect`: see inside a model while it reads a text; in the terminal, as a page, a picture or JSON."""

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

ENDINGS = (".html", ".png", ".json")


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
    """See inside a model while it reads a text: tokens, a head, one cell worked out, what each block would say.

    Parameters
    ----------
    model
        A model folder, a run folder, or `stories`: one that writes, one that reads a source, or an encoder.
    text
        What the model reads. `-` reads stdin.
    target
        Of a model that reads a source: what is written from it; left out, what the model writes.
    max_tokens
        First let the model write so many tokens more, the likeliest each time; of one that reads a source, at most so
        many of the target.
    view
        One view instead of the overview: cell, lens, roles, block, ... (a wrong name lists all). Its parameters are
        options: --layer 2 --head 3 --position 5. Layer, head, query and key left out are those of a head that plays
        a role on this text. `--other TEXT` is the other text of `fork` and `changed`.
    edit
        A change to what flows through the model, as JSON: '{"op": "ablate", "point": "blocks.2.attn.z", "head": 3}'.
        May be given several times.
    out
        Write a file instead: .html (the page, with its numbers inside), .png or .json.
    bake
        What an .html report holds: `chosen`, or `all` layers, heads and tokens.
    """
    ending = _ending(out, view, bake)
    shown, place_of = _view(view), _taken(view, parameters)
    lm = open_any(model, machine, ignore_key, quiet=json)
    given = sys.stdin.read() if text == "-" else text
    read, edits = _reading(lm, target, max_tokens), _edits(edit)
    before = partial(read, given)
    with working("reading", quiet=json):
        trace = read(given, edit=edits)
        place = _place(trace, place_of, parameters)
    if ending == ".html":
        from glassformer.inspect.present.report import export_html

        assert out is not None
        with progress(quiet=json) as advance:
            size = export_html(
                trace, out, place=place, before=before() if edits else None, name=model, bake=bake, advance=advance,
                view=view, text=given,
            )  # fmt: skip
        _told(out, size, json)
        return
    if shown is None:
        panels, data = _overview(lm, trace, place, given)
    else:
        options_of_view = _options(shown, trace, place, given, parameters, before, read)
        with working(shown.name, quiet=json):
            panels, data = _one(shown, lm, trace, options_of_view)
    data = {"model": lm.path or model} | data
    if ending is None:
        print_json(data) if json else _draw(panels)
        return
    assert out is not None
    if ending == ".png":
        from glassformer.inspect.drawing.png import png

        content = png(panels)
    else:
        content = json_of.dumps(data, ensure_ascii=False, indent=1).encode() + b"\n"
    from glassformer.atomic import replacing

    with replacing(out) as new:
        new.write_bytes(content)
    _told(out, len(content), json)


def _draw(panels: list[Any]) -> None:
    from glassformer.cli.terminal_panels import Terminal

    Terminal().draw(panels)


def _ending(path: Path | None, view: str | None, bake: str) -> str | None:
    """Which kind of file is to be written. RequestError for one that is not known."""
    ending = None if path is None else path.suffix.lower()
    if ending is not None and ending not in ENDINGS:
        raise RequestError(f"--out must end in {', '.join(ENDINGS)}, got {str(path)!r}", param="out")
    if path is not None and not path.parent.is_dir():
        raise RequestError(f"--out: there is no folder {str(path.parent)!r}", param="out")
    if bake != "chosen" and ending != ".html":
        raise RequestError("--bake is of a report: give --out NAME.html", param="bake")
    return ending


def _view(name: str | None) -> ViewSpec | None:
    """RequestError lists the views where there is none of this name."""
    if name is None:
        return None
    from glassformer.inspect.views.registry import VIEWS, find_view

    if name not in VIEWS:
        nearest = str(_error(find_view, name)).split("; ")[-1]
        raise RequestError(f"there is no view {name!r}; {nearest}. All of them: {', '.join(VIEWS)}", param="view")
    return VIEWS[name]


def _error(function: Any, *arguments: Any) -> RequestError | None:
    try:
        function(*arguments)
    except RequestError as error:
        return error
    return None


def _taken(view: str | None, parameters: dict[str, str]) -> dict[str, int | None]:
    """Layer, head, query and key as they were given; `position` is a query too. RequestError for what nobody takes."""
    found: dict[str, int | None] = {}
    for name, value in parameters.items():
        of_place = "query" if name == "position" else name
        if of_place in ("layer", "head", "query", "key"):
            if not re.fullmatch(r"-?\d{1,9}", value):
                raise RequestError(f"--{name} must be a whole number, got {value!r:.60}", param=name)
            found[of_place] = int(value)
        elif view is None:
            known = "--layer, --head, --query and --key; others are of one view: give --view"
            raise RequestError(f"unknown option --{name}; without --view there are {known}", param=name)
    return found


def _reading(lm: AnyModel, target: str | None, max_tokens: int) -> Callable[..., Trace]:
    """How this kind of model reads a text. RequestError for an option that has no effect on it."""
    if lm.kind in ("encoder-decoder", "recurrent"):
        return partial(lm.trace, target=target, max_tokens=max_tokens or None)
    if target is not None:
        raise RequestError("--target is of models that read a source, and this one reads none", param="target")
    if lm.kind == "encoder" and max_tokens:
        raise RequestError("--max-tokens has no effect on an encoder: it writes nothing", param="max_tokens")
    return partial(lm.trace, **({"max_tokens": max_tokens, "temperature": 0.0} if max_tokens else {}))


def _place(trace: Trace, asked: dict[str, int | None], given: dict[str, str]) -> Focus:
    from glassformer.inspect.views.focus import focus

    which: Any = given.get("attention")
    return focus(trace, **asked, attention=which if which in ("cross", "encoder") else "attn")


def _edits(given: tuple[str, ...]) -> list[Edit]:
    from glassformer.inspect.edits.edit import from_json

    found = []
    for text in given:
        try:
            data = json_of.loads(text)
        except json_of.JSONDecodeError as error:
            raise RequestError(f"--edit is not JSON: {error}; got {text[:80]!r}", param="edit") from None
        found += [from_json(one) for one in (data if isinstance(data, list) else [data])]
    return found


def _options(
    view: ViewSpec, t: Trace, place: Focus, text: str, given: dict[str, str], before: Callable[[], Trace],
    read: Callable[..., Trace],
) -> dict[str, Any]:  # fmt: skip
    """What the view takes: what was given, and where more is needed, the place worth seeing and this text.

    before: the same text without the edits, beside which `fork` and `changed` put it. read: another text.
    """
    from glassformer.inspect.present.paths import format_value
    from glassformer.inspect.views.support import REFUSED

    if why := REFUSED[t.kind].get(view.name):
        raise RequestError(why, param="view")
    usual = {"layer": place.layer, "head": place.head, "query": place.query, "key": place.key, "position": place.query}
    usual |= {"text": text, "token": t.ids[place.query], "tokens": t.ids, "word": _word(text)}
    whole = {"lens": ("position",), "alignment": ("layer", "head")}.get(view.name, ())  # of all, where none is named
    filled = {
        name: format_value(usual[name])
        for name in view.parameters
        if name in usual and name not in given and name not in whole
    }
    if t.edits and "other" in view.parameters and "other" not in given:
        return view.read(given | filled | {"other": ""}, find=lambda _: before())
    return view.read(given | filled, find=read)


def _word(text: str) -> str:
    return max(re.findall(r" ?[^\W\d_]+", text), key=lambda word: len(word.strip()), default=text[:1])


def _one(view: ViewSpec, lm: AnyModel, t: Trace, options: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """One view, drawn, and as data."""
    from glassformer.inspect.drawing.draw import draw
    from glassformer.inspect.trace.trace import Trace
    from glassformer.inspect.views.result import plain

    subject: Any = lm if view.of == "model" else t
    result = view.function(subject, **options)
    said = {name: "another text" if isinstance(value, Trace) else value for name, value in options.items()}
    return draw(view, subject, result), {"view": view.name, "parameters": said, "data": plain(result)}


def _overview(lm: AnyModel, t: Trace, place: Focus, text: str) -> tuple[list[Any], dict[str, Any]]:
    """The text, and what of a head, a cell, an alignment and the lens this kind of model has, all at one place."""
    from glassformer.inspect.drawing.panels import Line
    from glassformer.inspect.views.focus import focus
    from glassformer.inspect.views.registry import VIEWS

    where = {"layer": place.layer, "head": place.head, "query": place.query, "key": place.key}
    cell: dict[str, Any] = {"cell": where}
    if lm.kind == "encoder-decoder":
        to = focus(t, layer=place.layer, head=place.head, query=place.query, attention="cross")
        cell = {"alignment": {}, "cell": where | {"key": to.key, "attention": "cross"}}
    asked = {
        "encoder": {"tokens": {"text": text}} | cell,
        "recurrent": {"summary": {}, "alignment": {}},
    }.get(lm.kind, {"summary": {}} | cell | {"lens": {"position": place.query}})
    panels: list[Any] = []
    data: dict[str, Any] = {"place": where | {"because": place.because}}
    for name, options in asked.items():
        try:
            drawn, said = _one(VIEWS[name], lm, t, options)
        except RequestError as error:  # a model without attention has no alignment
            drawn, said = [Line(((str(error), "soft"),))], {"data": {"refused": str(error)}}
        if name == "cell" and lm.kind == "decoder":
            drawn.insert(1, Line(((f"why this head: {place.because}", "soft"),)))
        panels += drawn
        data[name] = said["data"]
    return panels, data


def _told(path: Path, size: int, json: bool) -> None:
    if json:
        print_json({"out": str(path), "bytes": size})
    else:
        say(f"wrote {path}, {size / 1e6:.2f} MB")
