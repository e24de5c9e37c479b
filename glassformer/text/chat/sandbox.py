"""Chat templates in a sandbox: Jinja as `transformers` runs it, bounded, and its words told apart from its data.

A template comes with a model, so it is a stranger's program.  It runs in Jinja's immutable sandbox, on copies of plain
data; a counter in every loop and macro ends one that would not, and no value grows past a bound.  None of this needs a
clock or a thread.

So that a message cannot forge a control token, the template's own words are marked, not the message's: wherever a
string of the template flows to its output, what in it belongs to a control token is put between two characters that no
input holds.  Conditions, arguments and comparisons see the strings unmarked.  `chat.py` reads the marks again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import update_wrapper
from types import CodeType
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes as nodes
import jinja2.sandbox
import regex
from jinja2.visitor import NodeTransformer

MAX_STEPS = 1_000_000  # turns of loops, calls and filters
MAX_SIZE = 16_000_000  # characters of a string, items of a list
MAX_WRITTEN = 64_000_000  # characters written in all, also to variables
MAX_PRODUCT = 1_000_000_000  # of the sizes of a call's arguments: more than `replace` or `join` can make of them
MAX_NUMBER = 10**12  # larger numbers are not multiplied or raised to powers
VALUE_FILTERS = ("default", "d", "join")  # whose arguments flow to the output
NAMES = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token")


class GenerationBlock(jinja2.ext.Extension):
    """`{% generation %} ... {% endgeneration %}`: what the assistant writes; here a block like any other."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's own declaration)

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The environment of one rendering, which counts what it does."""

    intercepted_binops = frozenset(("*", "**", "+", "%"))

    def __init__(self, now: datetime | None = None, trust: Callable[[Any], Any] = str):
        """now: what `strftime_now` tells;  trust: marks the name of a control token, or a role."""
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[GenerationBlock, jinja2.ext.loopcontrols],
            finalize=self.written,
        )
        self.steps = self.size = 0
        self.trust, self.joined = trust, _joined
        self.filters = {name: _Filter(made, self) for name, made in self.filters.items()}
        self.filters["tojson"] = _Filter(_tojson, self)
        for name in ("random", "urlize"):
            self.filters.pop(name)
        form = (now or datetime.now()).strftime
        known = {"raise_exception": _raise, "strftime_now": lambda text: form(text), "namespace": _Namespace}
        self.globals = known | {"range": _range, "dict": lambda *args, **options: dict(*args, **options)}

    def tick(self, n_chars: int = 0) -> str:
        """A step, which writes so many characters of the template's own."""
        self.steps, self.size = self.steps + 1, self.size + n_chars
        if self.steps > MAX_STEPS or self.size > MAX_WRITTEN:
            raise _Stopped(f"stopped after {self.steps} steps and {self.size} characters")
        return ""

    def written(self, value: Any) -> Any:
        """What `{{ value }}` writes, counted."""
        self.size += _size(value)
        if self.size > MAX_WRITTEN:
            raise _Stopped(f"stopped after {self.size} characters")
        return value

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if operator == "+":
            _check(_size(left) + _size(right))
        elif operator == "%" and isinstance(left, str):
            _check_call([left, *(right if isinstance(right, tuple) else (right,))])
            _check_format(left)
        elif operator == "*" and not numbers:
            factors = [one if isinstance(one, int) else _size(one) for one in (left, right)]
            _check(abs(factors[0] * factors[1]))
        elif numbers and (max(abs(left), abs(right)) > MAX_NUMBER or (operator == "**" and abs(right) > 64)):
            raise _Stopped(f"stopped: {left} {operator} {right} is too large")
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, made: Any, /, *args: Any, **options: Any) -> Any:  # pyright: ignore
        self.tick()
        owner = getattr(getattr(made, "__wrapped__", made), "__self__", None)  # Jinja wraps `"...".format`
        if owner is not self and not isinstance(made, jinja2.runtime.Macro):
            _check_call([owner, *args, *options.values()])
            if getattr(made, "__name__", "").startswith("format"):
                _check_format(str(owner))
        found = super().call(context, made, *args, **options)
        _check(_size(found))
        return found


class _Filter:
    """The same filter, which counts as a step and neither takes nor makes what is too large."""

    def __init__(self, made: Callable[..., Any], sandbox: Sandbox):
        update_wrapper(self, made)  # Jinja keeps on the function what it wants to be called with
        self.made, self.sandbox = made, sandbox

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.sandbox.tick()
        _check_call([*args, *options.values()])
        if self.made.__name__ == "do_format":
            _check_format(str(args[0]))
        found = self.made(*args, **options)
        _check(_size(found))
        return found


class _Stopped(jinja2.exceptions.SecurityError):
    """A template went beyond a bound."""


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple | dict) else 0


def _check(size: float) -> None:
    if size > MAX_SIZE:
        raise _Stopped(f"stopped: a value of {size} characters or items is too large")


def _check_call(values: Iterable[Any]) -> None:
    """What a function can make of its arguments is at most their sizes multiplied: replace, join, indent, center."""
    product = 1
    for value in values:
        product *= max(1, abs(value) if isinstance(value, int) else _size(value))
    if product > MAX_PRODUCT:
        raise _Stopped("stopped: the arguments of a call are too large")


def _check_format(form: str) -> None:
    if regex.search(r"\d{5}|%[^%a-zA-Z]*\*", form):
        raise _Stopped(f"stopped: {form!r:.40} pads too far")


def _range(*numbers: int) -> range:
    found = range(*numbers)
    if found and abs(found[-1] - found[0]) // abs(found.step) > MAX_STEPS:
        raise _Stopped(f"stopped: range({', '.join(map(str, numbers))}) is too long")
    return found


def _raise(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _Namespace(jinja2.utils.Namespace):
    """`namespace(...)` that keeps no name of Python's own machinery."""

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
        raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}")


def run(code: CodeType, data: Mapping[str, Any], now: datetime, trust: Callable[[Any], Any]) -> str:
    """The output of a compiled template.  Raises what Jinja raises."""
    sandbox = Sandbox(now, trust)
    return jinja2.Template.from_code(sandbox, code, sandbox.make_globals(None)).render(**data)


def _joined(*values: Any) -> str:
    """Jinja's `~`, bounded."""
    texts = [str(value) for value in values]
    _check(sum(map(len, texts)))
    return "".join(texts)


def compiled(source: str, mark: Callable[[str], str] | None) -> CodeType:
    """The template with a counter in every loop and macro; `mark` is applied to strings that are output.

    Raises jinja2.TemplateSyntaxError, which knows its line.
    """
    sandbox = Sandbox()
    tree = sandbox.parse(source)
    macros = {node.name for node in tree.find_all(nodes.Macro)} | {"namespace", "caller"}
    for node in tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):
        size = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        tick = _own("tick", [nodes.Const(size)], node.lineno)
        node.body.insert(0, nodes.ExprStmt(tick).set_lineno(node.lineno))
    if mark is not None:
        _Marker(mark, macros).visit(tree)
    _Joiner().visit(tree)
    return sandbox.compile(tree)


def _own(name: str, args: list[Any], line: int) -> nodes.Node:
    """A call of a method of the sandbox, which no template can name."""
    return nodes.Call(nodes.EnvironmentAttribute(name), args, [], None, None).set_lineno(line)


class _Joiner(NodeTransformer):
    """`a ~ b` as a call that is bounded."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _own("joined", node.nodes, node.lineno)


class _Marker(NodeTransformer):
    """Marks the strings of a template where they flow to its output, and only there."""

    def __init__(self, mark: Callable[[str], str], macros: set[str]):
        self.mark, self.macros, self.assigned = mark, macros, False

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:
        return nodes.TemplateData(self.mark(node.data)).set_lineno(node.lineno)

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        node.nodes = [self.flow(one) for one in node.nodes]
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        node.defaults = [self.flow(one) for one in node.defaults]
        return self.generic_visit(node)

    def visit_For(self, node: nodes.For) -> nodes.Node:
        if isinstance(node.iter, nodes.List | nodes.Tuple):
            node.iter = self.flow(node.iter)
        return self.generic_visit(node)

    def visit_Assign(self, node: nodes.Assign) -> nodes.Node:
        self.assigned = True  # a role that is kept may be compared later, so it stays as it is
        node.node = self.flow(node.node)
        self.assigned = False
        return node

    def flow(self, node: Any) -> Any:
        """An expression whose value flows on to the output."""
        if isinstance(node, nodes.TemplateData):
            return self.visit_TemplateData(node)
        if isinstance(node, nodes.Const) and isinstance(node.value, str):
            return nodes.Const(self.mark(node.value)).set_lineno(node.lineno)
        if (isinstance(node, nodes.Name) and node.name in NAMES) or (_is_role(node) and not self.assigned):
            return _own("trust", [node], node.lineno)
        if isinstance(node, nodes.Add):
            node.left, node.right = self.flow(node.left), self.flow(node.right)
        elif isinstance(node, nodes.Concat):
            node.nodes = [self.flow(one) for one in node.nodes]
        elif isinstance(node, nodes.CondExpr):
            node.expr1 = self.flow(node.expr1)
            node.expr2 = node.expr2 and self.flow(node.expr2)
        elif isinstance(node, nodes.Or | nodes.And):
            node.left, node.right = self.flow(node.left), self.flow(node.right)
        elif isinstance(node, nodes.List | nodes.Tuple):
            node.items = [self.flow(one) for one in node.items]
        elif isinstance(node, nodes.Dict):
            for pair in node.items:
                pair.value = self.flow(pair.value)
        elif isinstance(node, nodes.Getitem) and isinstance(node.node, nodes.Dict):
            node.node = self.flow(node.node)
        elif isinstance(node, nodes.Filter):
            node.node = node.node and self.flow(node.node)
            if node.name in VALUE_FILTERS:
                node.args = [self.flow(one) for one in node.args]
        elif isinstance(node, nodes.Call) and isinstance(node.node, nodes.Name) and node.node.name in self.macros:
            node.args = [self.flow(one) for one in node.args]
            for pair in node.kwargs:
                pair.value = self.flow(pair.value)
        return node


def _is_role(node: Any) -> bool:
    """`message.role` or `message['role']`: a word that `chat.py` has checked."""
    if isinstance(node, nodes.Getattr):
        return node.attr == "role"
    return isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and node.arg.value == "role"
