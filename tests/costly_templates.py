"""Random chat templates that combine filters, methods and operators with values that make them costly."""

import random
from collections import Counter
from collections.abc import Iterator
from itertools import islice

from jinja2.filters import FILTERS

from glassformer.text.chat.render_process import RenderError, TemplateRenderer

VALUES = (
    "'ab ' * 4000000", "'x' * 10 ** 9", "[1] * 3000000", "[[['x' * 999] * 999] * 999] * 999", "range(99999) | list",
    "m", "10 ** 12", "-1", "1e999 | float", "'{0:>99999}' * 40000", "'%99999d' * 9999", "none", "'\U0001f3be'", "m.a",
    "(1, 2)", "dict(a=m, b=[m] * 999)", "missing", "namespace(a=1)", "'<|x|>' * 100000", "true", "9 ** 99",
    "cycler(1, 2)", "lipsum(n=1000)", "joiner('x' * 10 ** 7)",
)  # fmt: skip
METHODS = (
    "append casefold center copy count encode expandtabs find format format_map fromkeys get index isalnum items join "
    "keys ljust partition removeprefix replace rsplit split splitlines startswith strip swapcase title translate upper "
    "zfill"
).split()
OPERATORS = "+ - * / // % ** ~ == < in".split()


def costly_templates(seed: int) -> Iterator[str]:
    """Yield templates without end. The expression is on line 2; it reads the variable `m`, an object with a text."""
    rng = random.Random(seed)

    def value() -> str:
        return f"({rng.choice(VALUES)})"

    def filtered() -> str:
        return rng.choice(list(FILTERS))

    def arguments() -> str:
        return ", ".join(value() for _ in range(rng.randrange(3)))

    while True:
        expression = rng.choice([
            f"{value()} | {filtered()}({arguments()})", f"{value()}.{rng.choice(METHODS)}({arguments()})",
            f"{value()} {rng.choice(OPERATORS)} {value()}", f"{value()} | map('{filtered()}') | list",
            f"{value()}[{value()}:{value()}]", f"{value()} | {filtered()} | {filtered()}",
        ])  # fmt: skip
        output = "{{ y | length if y is sequence else y }}"
        yield f"\n{{% for i in range(3) %}}{{% set y = {expression} %}}{output}{{% endfor %}}"


def check_ends(renderer: TemplateRenderer, seed: int, count: int) -> Counter[str]:
    """Render `count` templates; each must end with a result or an error that has its line. Return how they ended."""
    ends: Counter[str] = Counter()
    for source in islice(costly_templates(seed), count):
        error = None
        try:
            renderer.render(source, {"messages": [], "m": {"a": "text"}}, {}, "2024-01-01")
        except RenderError as raised:
            error = raised
        if error is None:
            ends["rendered"] += 1
            continue
        limit = next((word for word in ("processor time", "memory", "characters") if word in error.problem), "")
        assert error.line == 2 or limit == "processor time", (source, error)  # the time may end while memory is freed
        assert "ended with status" not in error.problem, (source, error)
        ends[limit or "error"] += 1
    return ends
