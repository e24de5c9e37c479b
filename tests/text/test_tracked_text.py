"""Text that knows its origin: random expressions give the text of plain Jinja, and exact origins."""

import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import _compile_jinja_template

from glassformer.text.chat.sandbox import Sandbox
from glassformer.text.chat.tracked_text import TrackedText

NOW = datetime.datetime(2024, 2, 29)
OWN, FOREIGN = "<|ab>C", "xyZ!"  # the letters of literals and of messages; neither contains the other, in either case
DATA = {"m": {"a": " xyZ x\n", "b": "Zx!x", "n": 3, "l": ["xy", "Z"]}}

literals = st.text(OWN + " ", max_size=6).map(repr)
atoms = st.one_of(
    literals, st.sampled_from(["m.a", "m['b']", "m.l[0]", "(m.l | join)", "(m.a | first)", "m.missing", "m.n"])
)
UNARY = [  # operations on text; each must carry the origin of every character
    "({} ~ '')", "({} | string | trim)", "({} | lower)", "({} | upper)", "({} | capitalize)", "({} | title)",
    "({} | string).strip('<x ')", "({} | string).lstrip()", "({} | string).rstrip('>x')", "({} | string)[1:]",
    "({} | string)[::-1]", "({} | string | reverse)", "({} | string)[-3:-1]", "({} | string | list | join('a'))",
    "({} | string | list | first | default('a'))", "({} | string | indent(2, true, true))",
    "({} | string | indent('b'))",
    "({} | string).split('x')[0]", "({} | string).split('|')[-1]", "({} | string).rsplit('x', 1)[-1]",
    "({} | string).rsplit('ab', 1)[0]", "('a' ~ {}).split()[0]", "('a' ~ {}).rsplit(none, 1)[-1]", "({} | string * 2)",
    "({} | string).partition('x')[2]", "({} | string).rpartition('|')[0]", "({} ~ 'b').splitlines()[0]",
    "({} ~ 'b\\nb').splitlines(true)[-1]", "({} | string).removeprefix('<')", "({} | string).removesuffix('x')",
    "({} | string).swapcase()", "({} | string).casefold()", "({} | string | safe)",
    "({} | string | last | default('b'))",
    "('<%s|' % {})", "('<%s|%s%%' | format({}, 'a'))", "('{{}}|{{0}}'.replace('0', '') ~ {})", "('<{{}}>'.format({}))",
]  # fmt: skip
BINARY = [
    "({} ~ {})", "(({} | string) + ({} | string))", "({} | string).replace('x', {} | string)",
    "({} | replace('|', {} | string))", "({} | string).join(['a', {}|string, 'b'])", "([{}, m.a, {}] | join('<'))",
    "('%s%s' % ({}, {}))", "('{{1}}a{{0}}'.format({}, {}))", "('{{k}}{{j}}'.format(k={}, j={}))",
    "('%(k)s<%(j)s' % dict(k={}, j={}))", "(({} | string).split(m.b[0]) | join({} | string))", "({} or {})",
    "({} if m.n > 2 else {})", "([{}, {}] | map('string') | map('upper') | list)[1]", "dict(k={}, j={}).j",
]  # fmt: skip
UNTRACKED = [
    "({} | string | center(20))", "({} | wordwrap(3))", "([{}] | tojson)", "({} | string | truncate(9, true, ''))",
    "([{}, 'a'] | string)", "({} | string).zfill(9)", "({} | pprint)",
]  # fmt: skip


def expressions(unary: list[str]) -> st.SearchStrategy[str]:
    return st.recursive(
        atoms,
        lambda inner: st.one_of(
            st.tuples(st.sampled_from(unary), inner).map(lambda pair: pair[0].format(pair[1])),
            st.tuples(st.sampled_from(BINARY), inner, inner).map(lambda parts: parts[0].format(*parts[1:])),
        ),
        max_leaves=8,
    )


def render_both(expression: str) -> tuple[str, str, Sandbox]:
    """Return the text, with its origin as a str of "0" and "1", and the environment; compares with `transformers`."""
    source = f"{{% set v = {expression} %}}{{{{ v }}}}"
    try:
        wanted = _compile_jinja_template(source).render(DATA)
    except (ValueError, TypeError, LookupError) as error:
        sandbox = Sandbox(source)
        with pytest.raises(type(error)):
            sandbox.render(DATA, NOW)
        return "", "", sandbox
    sandbox = Sandbox(source)
    text = sandbox.render(DATA, NOW)
    assert text == wanted
    return text, text._origin if isinstance(text, TrackedText) else "0" * len(text), sandbox


@given(expressions(UNARY))
@settings(max_examples=400, deadline=None)
def test_origin_of_every_character_is_exact(expression):
    text, origin, sandbox = render_both(expression)
    assert not sandbox.untracked
    for char, mark in zip(text, origin, strict=True):
        if char.lower() in OWN.lower():
            assert mark == "1", (text, origin)
        elif char.lower() in FOREIGN.lower():
            assert mark == "0", (text, origin)


@given(expressions(UNARY[:12] + UNTRACKED))
@settings(max_examples=400, deadline=None)
def test_text_of_a_message_never_counts_as_the_template_s(expression):
    """With operations that lose the origin, too; the loss of the template's own text is reported."""
    text, origin, sandbox = render_both(expression)
    for char, mark in zip(text, origin, strict=True):
        assert mark == "0" or char.lower() not in FOREIGN.lower(), (text, origin)
        if char.lower() in OWN.lower() and mark == "0":
            assert sandbox.untracked
