"""The Jinja environment of chat templates: the settings of `transformers`, and text with a recorded origin.

A template comes with a model and is untrusted code. Jinja's immutable sandbox gives it no access to Python's objects;
`render_worker.py` bounds its time and memory. Every literal of the template is `TrackedText`, so that the output tells
which of its characters the template wrote.
"""

from __future__ import annotations

import ast
import json
from bisect import bisect_right
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import update_wrapper
from types import CodeType
from typing import Any

import jinja2
import jinja2.compiler
import jinja2.ext
import jinja2.filters
import jinja2.nodes as nodes
import jinja2.sandbox
from markupsafe import Markup

from glassformer.text.chat.tracked_text import (
    TrackedMarkup,
    TrackedText,
    format_percent,
    join_texts,
    mark_escaped,
    mark_safe,
    message_text,
    template_text,
    written_by_template,
)

FILE_NAME = "<template>"
UNTRACKED_METHODS = frozenset("center expandtabs ljust rjust translate zfill".split())
UNTRACKED_FILTERS = "center forceescape pprint striptags tojson truncate urlencode urlize wordwrap xmlattr".split()


class GenerationBlock(jinja2.ext.Extension):
    """`{% generation %} ... {% endgeneration %}`, which encloses the assistant's reply; rendered as a plain block."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's declaration)

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _CodeGenerator(jinja2.compiler.CodeGenerator):
    """Generates code in which the literals of the template are `TrackedText`."""

    environment: Sandbox

    def visit_Const(self, node: nodes.Const, frame: Any) -> None:
        if isinstance(node.value, str):
            self.write(self._literal(node.value))
        else:
            super().visit_Const(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Any) -> None:
        if frame.eval_ctx.volatile or frame.eval_ctx.autoescape:
            super().visit_Concat(node, frame)
            return
        self.write("environment.concat(map(environment.to_text, (")
        for item in node.nodes:
            self.visit(item, frame)
            self.write(", ")
        self.write(")))")

    def _output_child_to_const(self, node: Any, frame: Any, finalize: Any) -> str:
        if not isinstance(node, nodes.TemplateData | nodes.Const):
            raise nodes.Impossible  # work is done when the template is rendered, so that an error has its line
        return super()._output_child_to_const(node, frame, finalize)

    def _output_const_repr(self, group: Any) -> str:
        return self._literal("".join(group))

    def _literal(self, text: str) -> str:
        self.environment.literals.append(template_text(text))
        return f"environment.literals[{len(self.environment.literals) - 1}]"


class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The environment of one template.

    literals: the literals of the template
    untracked: names of the operations of the last rendering that lost the origin of text which the template wrote
    """

    code_generator_class = _CodeGenerator
    concat = staticmethod(join_texts)  # pyright: ignore
    intercepted_binops = frozenset("%")

    def __init__(self, source: str):
        """Compile a template.

        Raises:
            jinja2.TemplateSyntaxError: The template is not valid Jinja, or is nested too deeply for Python; `lineno`
                is the line.
        """
        self.literals: list[TrackedText] = []
        self.untracked: set[str] = set()
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[GenerationBlock, jinja2.ext.loopcontrols],
            optimized=False,
            finalize=self.to_text,
        )
        self.filters |= {
            "format": _format,
            "indent": _indent,
            "join": _join,
            "replace": _replace,
            "title": _title,
            "tojson": _tojson,
        }
        self.filters["string"] = lambda value: value if isinstance(value, str) else self.to_text(value)
        self.filters |= {"safe": mark_safe, "escape": mark_escaped, "e": mark_escaped}
        self.filters |= {name: self._untracked_filter(name) for name in UNTRACKED_FILTERS}
        self.globals |= {"raise_exception": _raise, "namespace": _Namespace, "dict": _DictFunction()}
        self.globals["strftime_now"] = lambda format: self._now.strftime(format)
        self._template = jinja2.Template.from_code(self, self.compile(source), self.make_globals(None))

    def render(self, data: Mapping[str, Any], now: datetime) -> str:
        """Return the output; exceptions of Jinja and of the template propagate."""
        self._now = now
        self.untracked.clear()
        return self._template.render(data)

    def to_text(self, value: Any) -> Any:
        """Return a value as text, as Jinja outputs it."""
        if not isinstance(value, str | jinja2.Undefined) and written_by_template(value):
            self.untracked.add(f"text of a {type(value).__name__}")
        return str(value)

    def getattr(self, obj: Any, attribute: str) -> Any:
        if type(obj) is str and attribute in ("join", "replace"):
            obj = message_text(obj)
        elif attribute in UNTRACKED_METHODS and written_by_template(obj):
            self.untracked.add(attribute)
        return super().getattr(obj, attribute)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, str) and not hasattr(left, "__html__"):
            return format_percent(left, right)
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        owner = getattr(value, "__self__", None)
        if isinstance(owner, TrackedMarkup) and value.__name__ == "format":
            value = Markup(owner).format
        plain = super().wrap_str_format(value)
        if plain is None or isinstance(value.__self__, Markup) or value.__name__ != "format":
            return plain
        return lambda *args, **options: _Formatter(self).vformat(value.__self__, args, options)

    def _untracked_filter(self, name: str) -> Callable[..., Any]:
        function: Any = self.filters[name]

        def call(*args: Any, **options: Any) -> Any:
            if any(map(written_by_template, args)):
                self.untracked.add(name)
            result = function(*args, **options)
            return mark_safe(result) if isinstance(result, Markup) else result

        return update_wrapper(call, function)  # with the attributes by which Jinja passes a context

    def handle_exception(self, source: str | None = None) -> Any:
        raise  # the lines of the traceback are those of the template already

    def _compile(self, source: str, filename: str) -> CodeType:
        """Compile generated Python code so that its line numbers are those of the template."""
        pairs = [pair.split("=") for pair in source.rpartition("debug_info = '")[2].rstrip("'\n").split("&") if pair]
        lines = [(int(python), int(template)) for template, python in pairs]

        def template_line(line: int | None) -> int:
            at = bisect_right(lines, (line or 1, 1 << 62))
            return lines[at - 1][1] if at else 1

        try:
            tree = ast.parse(source, filename)
        except SyntaxError as error:
            raise jinja2.TemplateSyntaxError(str(error.msg), template_line(error.lineno)) from error
        for node in ast.walk(tree):
            if hasattr(node, "lineno"):
                node.lineno = node.end_lineno = template_line(node.lineno)  # pyright: ignore
                node.col_offset = node.end_col_offset = 0  # pyright: ignore
        try:
            return compile(tree, filename, "exec")
        except SyntaxError as error:
            raise jinja2.TemplateSyntaxError(str(error.msg), error.lineno or 1) from error


class _Formatter(jinja2.sandbox.SandboxedFormatter):
    """`str.format` that preserves the origin of the text it combines."""

    def vformat(self, format_string: str, args: Any, kwargs: Any) -> Any:
        plain = super().vformat(format_string, args, kwargs)
        from_template = isinstance(format_string, TrackedText) and format_string.is_from_template
        pieces: list[str] = []
        number = 0
        for literal, field, spec, conversion in self.parse(format_string):
            pieces.append(template_text(literal) if from_template else literal)
            if field is None:
                continue
            if not field or field[0] in ".[":
                field, number = f"{number}{field}", number + 1
            value = self.convert_field(self.get_field(field, args, kwargs)[0], conversion)
            spec = super().vformat(spec, args, kwargs) if spec else ""
            pieces.append(value if isinstance(value, str) and not spec else self.format_field(value, spec))
        joined = join_texts(pieces)
        return joined if joined == plain else plain


class _Namespace(jinja2.utils.Namespace):
    """`namespace(...)` that rejects names that begin with an underscore."""

    def __init__(*args: Any, **names: Any):  # pyright: ignore
        self, *rest = args
        names = dict(*rest, **names)
        for name in names:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, names)  # pyright: ignore

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if str(name).startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot have an attribute that begins with _, got {name!r}")


class _DictFunction:
    """`dict(...)` and `dict.fromkeys(...)`."""

    def __call__(self, *args: Any, **items: Any) -> dict[Any, Any]:
        return dict(*args, **items)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _raise(message: str) -> None:
    raise jinja2.exceptions.TemplateError(str(message))


# ---- filters


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@jinja2.pass_eval_context
def _join(eval_ctx: Any, value: Any, d: str = "", attribute: Any = None) -> str:
    if eval_ctx.autoescape:
        return jinja2.filters.sync_do_join(eval_ctx, value, d, attribute)
    if attribute is not None:
        value = map(jinja2.filters.make_attrgetter(eval_ctx.environment, attribute), value)
    return _tracked(d).join(map(str, value))


@jinja2.pass_eval_context
def _replace(eval_ctx: Any, s: Any, old: Any, new: Any, count: int | None = None) -> str:
    if eval_ctx.autoescape:
        return jinja2.filters.do_replace(eval_ctx, s, old, new, count)
    return _tracked(s).replace(str(old), str(new), -1 if count is None else count)


def _indent(s: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    if not isinstance(s, TrackedText):
        return jinja2.filters.do_indent(s, width, first, blank)
    indent = width if isinstance(width, str) else " " * width
    lines = (s + "\n").splitlines()  # Jinja preserves a line end at the end
    lines = [*lines[:1], *(indent + line if line or blank else line for line in lines[1:])]
    text = message_text("\n").join(lines)
    return indent + text if first else text


def _format(value: Any, *args: Any, **options: Any) -> str:
    if isinstance(value, TrackedMarkup) or (args and options):
        return jinja2.filters.do_format(value, *args, **options)
    return format_percent(str(value), options or args)


def _title(s: Any) -> str:
    text = jinja2.filters.do_title(s)
    return s.recased(text) if isinstance(s, TrackedText) else text


def _tracked(value: Any) -> TrackedText:
    text = str(value)
    return text if isinstance(text, TrackedText) else message_text(text)
