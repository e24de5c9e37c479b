"""Sandbox for chat templates: Jinja with the settings of `transformers`, resource limits and marked literals.

A template comes with a model and is untrusted code. It runs in Jinja's immutable sandbox on copies of plain data. A
counter in every loop and macro stops infinite loops and recursion, and the size of every value is limited. Neither
needs a clock or a thread.

A message must not forge a special token. The template's own literals are therefore marked: where a literal flows to the
output, each special token in it is enclosed in two characters that no input contains. Conditions, arguments and
comparisons see the literals without marks. `chat_template.py` removes the marks from the output.
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

MAX_STEPS = 1_000_000  # loop iterations, calls and filters
MAX_SIZE = 16_000_000  # characters of a string or items of a list
MAX_OUTPUT = 64_000_000  # total characters of output, including output captured in variables
MAX_PRODUCT = 1_000_000_000  # product of the sizes of a call's arguments: bounds the result of `replace` and `join`
MAX_NUMBER = 10**12  # largest operand of arithmetic
VALUE_FILTERS = ("default", "d", "join")  # filters whose arguments flow to the output
TOKEN_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token")


class GenerationBlock(jinja2.ext.Extension):
    """`{% generation %} ... {% endgeneration %}`, which encloses the assistant's reply; rendered as a plain block."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's declaration)

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Environment of one rendering; counts its steps and its output."""

    intercepted_binops = frozenset(("*", "**", "+", "%"))

    def __init__(self, now: datetime | None = None, trust: Callable[[Any], Any] = str):
        """Create the environment.

        Args:
            now: The time that `strftime_now` formats; None means the current time.
            trust: Marks a string that is a special token or a role, and returns any other value unchanged.
        """
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[GenerationBlock, jinja2.ext.loopcontrols],
            finalize=self.count_output,
        )
        self.steps = self.size = 0
        self.trust, self.concat_values = trust, _concat
        self.filters = {name: _Filter(function, self) for name, function in self.filters.items()}
        self.filters["tojson"] = _Filter(_tojson, self)
        for name in ("random", "urlize"):
            self.filters.pop(name)
        strftime = (now or datetime.now()).strftime
        functions = {"raise_exception": _raise, "strftime_now": lambda text: strftime(text), "namespace": _Namespace}
        self.globals = functions | {"range": _range, "dict": lambda *args, **options: dict(*args, **options)}

    def tick(self, n_chars: int = 0) -> str:
        """Count a step that outputs `n_chars` characters of template text."""
        self.steps, self.size = self.steps + 1, self.size + n_chars
        if self.steps > MAX_STEPS or self.size > MAX_OUTPUT:
            raise _LimitError(f"stopped after {self.steps} steps and {self.size} characters")
        return ""

    def count_output(self, value: Any) -> Any:
        """Count the output of `{{ value }}` and return the value."""
        self.size += _size(value)
        if self.size > MAX_OUTPUT:
            raise _LimitError(f"stopped after {self.size} characters")
        return value

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if operator == "+":
            _check(_size(left) + _size(right))
        elif operator == "%" and isinstance(left, str):
            _check_call([left, *(right if isinstance(right, tuple) else (right,))])
            _check_format(left)
        elif operator == "*" and not numbers:
            factors = [value if isinstance(value, int) else _size(value) for value in (left, right)]
            _check(abs(factors[0] * factors[1]))
        elif numbers and (max(abs(left), abs(right)) > MAX_NUMBER or (operator == "**" and abs(right) > 64)):
            raise _LimitError(f"stopped: {left} {operator} {right} is too large")
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, function: Any, /, *args: Any, **options: Any) -> Any:  # pyright: ignore
        self.tick()
        owner = getattr(getattr(function, "__wrapped__", function), "__self__", None)  # Jinja wraps `"...".format`
        if owner is not self and not isinstance(function, jinja2.runtime.Macro):
            _check_call([owner, *args, *options.values()])
            if getattr(function, "__name__", "").startswith("format"):
                _check_format(str(owner))
        result = super().call(context, function, *args, **options)
        _check(_size(result))
        return result


class _Filter:
    """A Jinja filter that counts as a step and whose arguments and result are limited in size."""

    def __init__(self, function: Callable[..., Any], sandbox: Sandbox):
        update_wrapper(self, function)  # copies the attributes by which Jinja passes a context
        self.function, self.sandbox = function, sandbox

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.sandbox.tick()
        _check_call([*args, *options.values()])
        if self.function.__name__ == "do_format":
            _check_format(str(args[0]))
        result = self.function(*args, **options)
        _check(_size(result))
        return result


class _LimitError(jinja2.exceptions.SecurityError):
    """A template exceeded a limit."""


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple | dict) else 0


def _check(size: float) -> None:
    if size > MAX_SIZE:
        raise _LimitError(f"stopped: a value has {size} characters or items, at most {MAX_SIZE} are allowed")


def _check_call(values: Iterable[Any]) -> None:
    """Limit the product of the argument sizes, which bounds the results of replace, join, indent and center."""
    product = 1
    for value in values:
        product *= max(1, abs(value) if isinstance(value, int) else _size(value))
    if product > MAX_PRODUCT:
        raise _LimitError(f"stopped: the product of the sizes of a call's arguments exceeds {MAX_PRODUCT}")


def _check_format(template: str) -> None:
    if regex.search(r"\d{5}|%[^%a-zA-Z]*\*", template):
        raise _LimitError(f"stopped: the format {template!r:.40} has a width of 5 digits or more, or a variable width")


def _range(*numbers: int) -> range:
    values = range(*numbers)
    if values and abs(values[-1] - values[0]) // abs(values.step) > MAX_STEPS:
        raise _LimitError(f"stopped: range({', '.join(map(str, numbers))}) is longer than {MAX_STEPS}")
    return values


def _raise(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


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


def render_template(code: CodeType, data: Mapping[str, Any], now: datetime, trust: Callable[[Any], Any]) -> str:
    """Return the output of a compiled template; exceptions of Jinja and of the template propagate."""
    sandbox = Sandbox(now, trust)
    return jinja2.Template.from_code(sandbox, code, sandbox.make_globals(None)).render(**data)


def _concat(*values: Any) -> str:
    """Concatenate values as Jinja's `~` does, with a limit on the size."""
    texts = [str(value) for value in values]
    _check(sum(map(len, texts)))
    return "".join(texts)


def compile_template(source: str, mark: Callable[[str], str] | None) -> CodeType:
    """Compile a template with a counter in every loop and macro.

    Args:
        source: The Jinja template.
        mark: Applied to each literal that flows to the output.

    Raises:
        jinja2.TemplateSyntaxError: The template is not valid Jinja; `lineno` is the line.
    """
    sandbox = Sandbox()
    tree = sandbox.parse(source)
    macros = {node.name for node in tree.find_all(nodes.Macro)} | {"namespace", "caller"}
    for node in tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):
        size = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        tick = _sandbox_call("tick", [nodes.Const(size)], node.lineno)
        node.body.insert(0, nodes.ExprStmt(tick).set_lineno(node.lineno))
    if mark is not None:
        _Marker(mark, macros).visit(tree)
    _ConcatLimiter().visit(tree)
    return sandbox.compile(tree)


def _sandbox_call(name: str, args: list[Any], line: int) -> nodes.Node:
    """Return a node that calls a method of the sandbox; a template cannot access it by name."""
    return nodes.Call(nodes.EnvironmentAttribute(name), args, [], None, None).set_lineno(line)


class _ConcatLimiter(NodeTransformer):
    """Replaces `a ~ b` by a call of `_concat`, which limits the size."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _sandbox_call("concat_values", node.nodes, node.lineno)


class _Marker(NodeTransformer):
    """Marks the literals of a template where they flow to its output, and only there."""

    def __init__(self, mark: Callable[[str], str], macros: set[str]):
        self.mark, self.macros, self.assigned = mark, macros, False

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:
        return nodes.TemplateData(self.mark(node.data)).set_lineno(node.lineno)

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        node.nodes = [self.flow(item) for item in node.nodes]
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        node.defaults = [self.flow(item) for item in node.defaults]
        return self.generic_visit(node)

    def visit_For(self, node: nodes.For) -> nodes.Node:
        if isinstance(node.iter, nodes.List | nodes.Tuple):
            node.iter = self.flow(node.iter)
        return self.generic_visit(node)

    def visit_Assign(self, node: nodes.Assign) -> nodes.Node:
        self.assigned = True  # a role in a variable may be compared later, so it is not marked
        node.node = self.flow(node.node)
        self.assigned = False
        return node

    def flow(self, node: Any) -> Any:
        """Mark the literals of an expression whose value flows to the output."""
        if isinstance(node, nodes.TemplateData):
            return self.visit_TemplateData(node)
        if isinstance(node, nodes.Const) and isinstance(node.value, str):
            return nodes.Const(self.mark(node.value)).set_lineno(node.lineno)
        if (isinstance(node, nodes.Name) and node.name in TOKEN_NAMES) or (_is_role(node) and not self.assigned):
            return _sandbox_call("trust", [node], node.lineno)
        if isinstance(node, nodes.Add):
            node.left, node.right = self.flow(node.left), self.flow(node.right)
        elif isinstance(node, nodes.Concat):
            node.nodes = [self.flow(item) for item in node.nodes]
        elif isinstance(node, nodes.CondExpr):
            node.expr1 = self.flow(node.expr1)
            node.expr2 = node.expr2 and self.flow(node.expr2)
        elif isinstance(node, nodes.Or | nodes.And):
            node.left, node.right = self.flow(node.left), self.flow(node.right)
        elif isinstance(node, nodes.List | nodes.Tuple):
            node.items = [self.flow(item) for item in node.items]
        elif isinstance(node, nodes.Dict):
            for item in node.items:
                item.value = self.flow(item.value)
        elif isinstance(node, nodes.Getitem) and isinstance(node.node, nodes.Dict):
            node.node = self.flow(node.node)
        elif isinstance(node, nodes.Filter):
            node.node = node.node and self.flow(node.node)
            if node.name in VALUE_FILTERS:
                node.args = [self.flow(item) for item in node.args]
        elif isinstance(node, nodes.Call) and isinstance(node.node, nodes.Name) and node.node.name in self.macros:
            node.args = [self.flow(item) for item in node.args]
            for keyword in node.kwargs:
                keyword.value = self.flow(keyword.value)
        return node


def _is_role(node: Any) -> bool:
    """Return whether a node is `message.role` or `message['role']`; `trust` marks only known roles."""
    if isinstance(node, nodes.Getattr):
        return node.attr == "role"
    return isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and node.arg.value == "role"
