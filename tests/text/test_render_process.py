# ruff: noqa: E501  (templates)
"""Child processes that render templates: limits of time and memory, errors with lines, threads, ends and forks."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from costly_templates import check_ends

from glassformer.text.chat.render_process import MAX_PROCESSES, RenderError, TemplateRenderer

NOW = "2024-02-29T12:00:00"
ROOT = Path(__file__).parents[2]
FOREVER = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.fixture(scope="module")
def renderer():
    renderer = TemplateRenderer(cpu_seconds=0.2, memory_bytes=96 << 20)
    yield renderer
    renderer.close()


def render(renderer: TemplateRenderer, source: str, **data) -> str:
    return renderer.render(source, {"messages": []} | data, {}, NOW).text


def children(renderer: TemplateRenderer) -> list[int]:
    return [process._child.pid for process in renderer._idle]


def has_ended(pid: int) -> bool:
    """Return whether a process has ended, after at most 10 s."""
    for _ in range(1000):
        try:
            os.kill(pid, 0)
            if (status := Path(f"/proc/{pid}/stat")).exists() and status.read_text().split(") ")[1].startswith("Z"):
                return True
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    return False


BIG = "{% set x = 'ab ' * 3000000 %}"
TIME = {
    "loops": FOREVER,
    "macro calls": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "case of a long text, often": BIG + "{% for i in range(90000) %}{% set y = x | upper %}{% endfor %}",
    "equal texts, often": BIG + "{% set z = x ~ '' %}{% for i in range(90000) %}{% if x == z %}{% endif %}{% endfor %}",
    "search, often": BIG + "{% for i in range(90000) %}{% if 'b ac' in x %}{% endif %}{% endfor %}",
    "sums": "{% for i in range(90000) %}{% set y = range(99999) | sum %}{% endfor %}",
    "slices": "{{ [1] | slice(900000000) | list | length }}",
    "words": BIG + "{{ x | wordwrap(1) | length }}",
    "one long operation": "{% set a = [1] * 1000 %}{% set b = [1] * 1000 %}{% for i in range(1) %}"
    "{% set a = [[[[a] * 1000] * 1000] * 1000] * 1000 %}{% set b = [[[[b] * 1000] * 1000] * 1000] * 1000 %}{{ a == b }}{% endfor %}",
    "text of an error": "{% set a = ['x'] * 1000 %}{% set a = [a] * 1000 %}{% set a = [a] * 1000 %}{{ [].index([a] * 9) }}",
    "message of an error": "{{ raise_exception([[[['x'] * 999] * 999] * 999] * 999) }}",
    "power": "{{ 3 ** (10 ** 9) }}",
}
MEMORY = {
    "text": "{{ 'a' * 10 ** 10 }}",
    "doubled by +": "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "doubled by ~": "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "doubled by join": "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = [n.x, n.x] | join %}{% endfor %}",
    "doubled by replace": "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x.replace('a', n.x) %}{% endfor %}",
    "doubled list": "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "doubled blocks": "{% set x = 'abc' %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 60,
    "output": "{% for i in range(99999) %}" + "a" * 10_000 + "{% endfor %}",
    "replace": "{{ ('a' * 1000000).replace('a', 'a' * 1000000) }}",
    "join": "{{ (['a' * 1600000] * 200) | join | length }}",
    "batch": "{{ [1] | batch(400000000, 0) | list | length }}",
    "json": "{{ [[[[1]]]] | tojson(indent=900000000) | length }}",
    "center": "{{ 'a' | center(10 ** 10) }}",
    "ljust": "{{ '\U0001f3be'.ljust(900000000) | length }}",
    "width in %": "{{ '%9999999999d' % 1 }}",
    "widths in %": "{{ (('%(a)9999d' * 400000) % {'a': 1}) | length }}",
    "width in format": "{{ '{:>9999999999}'.format(1) }}",
    "widths in format": "{{ (('{0:>9999}' * 40000).format('a')) | length }}",
    "values of a list": "{% set n = namespace(l=[]) %}{% for i in range(2000) %}{% set n.l = n.l + ['a' * 1600000] %}{% endfor %}",
    "nested lists": "{% set a = ['x' * 1000] * 1000 %}{% set b = [a] * 1000 %}{% set c = [b] * 1000 %}{{ c }}",
    "date": "{{ strftime_now('%Y' * 90000000) }}",
}


@pytest.mark.parametrize("name", TIME)
def test_template_that_takes_too_long_is_stopped_at_its_line(renderer, name):
    with pytest.raises(
        RenderError, match=r"stopped: it takes more than 0.2 s|stopped: it needs more than 96 MB"
    ) as error:
        render(renderer, "\n\n" + TIME[name])
    assert error.value.line == 3
    assert render(renderer, "{{ 1 + 1 }}") == "2"


@pytest.mark.parametrize("name", MEMORY)
def test_template_that_needs_too_much_memory_is_stopped(renderer, name):
    """The error is about memory, or about time where it takes long to fill the memory, or about a size."""
    with pytest.raises(RenderError, match=r"stopped|OverflowError|ValueError") as error:
        render(renderer, "\n\n" + MEMORY[name])
    assert error.value.line == (None if name == "output" else 3), "the output is joined behind the last line"
    assert render(renderer, "{{ 1 + 1 }}") == "2"


def test_random_costly_templates_end_with_a_result_or_an_error_with_its_line(renderer):
    ends = check_ends(renderer, seed=0, count=60)
    assert sum(ends.values()) == 60
    assert ends["rendered"]
    assert ends["error"]


@pytest.mark.parametrize(
    ("source", "message", "line"),
    [
        ("a\n" + "{% for a in [1] %}" * 25 + "{% endfor %}" * 25, "too many statically nested blocks", 2),
        ("a\n" + "{% if true %}" * 110 + "{% endif %}" * 110, "too many levels of indentation", 2),
        ("a\nb\n{% break %}", "'break' outside loop", 3),
        ("\n{{ '1e999' | float | int }}", "OverflowError", 2),
        ("\n{{ 'a' | truncate(-1) }}", "AssertionError", 2),
        ("\n{{ range(10 ** 9) | list }}", "OverflowError: Range too big", 2),
        ("\n{% macro f(n) %}\n{{ f(n + 1) }}{% endmacro %}{{ f(0) }}", "calls itself without end", 3),
        ("\n{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}", "calls itself without end", 2),
        ("\n{{" + "(" * 5000 + "1" + ")" * 5000 + "}}", "nested too deeply", None),
        ("\n{{" + "-" * 100000 + "1}}", "nested too deeply", None),
        ("\n{{ 9 ** 9 ** 9 ** 9 ** 9 }}", "Exceeds the limit", 2),
        ("\n{{ 10 ** 5000 }}", "ValueError: Exceeds the limit", 2),
        ("\n{% include 'x' %}", "no loader", 2),
        ("\n{% extends 'x' %}", "no loader", 2),
        ("a\n{% set x = 1 %}\n{{ x.y.z }}", "has no attribute 'y'", 3),
        ("\n{{ 1 + 'a' }}", r"TypeError: unsupported operand type\(s\) for \+: 'int' and 'str'", 2),
    ],
)
def test_error_has_the_line_of_the_template(renderer, source, message, line):
    with pytest.raises(RenderError, match=message) as error:
        render(renderer, source)
    assert error.value.line == line


def test_output_is_bounded_by_the_size_of_the_messages(renderer):
    """So a template cannot make the tokenizer work without end."""
    with pytest.raises(RenderError, match=r"stopped: its output has 2500000 characters, at most 100\d{4} are allowed"):
        render(renderer, "{{ '<|x|>' * 500000 }}")
    text = "x" * 2_500_000
    assert render(renderer, "{{ t }}{{ t }}", t=text) == text * 2


def test_sizes_of_results_add_and_do_not_multiply(renderer):
    """Long texts are combined by `~` and `format`, and output grows by accumulation, within the memory limit."""
    text = "x" * 64_000
    assert render(renderer, "{{ " + " ~ ".join(["t"] * 6) + " }}", t=text) == text * 6
    assert render(renderer, "{{ '{}{}{}'.format(t, t, t) }}{{ namespace(a=t, b=t).a }}", t=text) == text * 4
    source = "{% set n = namespace(o='') %}{% for i in range(15) %}{% set n.o = n.o ~ t %}{% endfor %}{{ n.o }}"
    assert render(renderer, source, t=text) == text * 15


@pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="needs Linux")
def test_operating_system_limits_the_memory_of_the_child(renderer):
    render(renderer, "x")
    limits = Path(f"/proc/{children(renderer)[0]}/limits").read_text()
    assert f"Max address space         {96 << 20}" in limits
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY, "this process is not limited"


def test_children_are_started_when_needed_and_kept(renderer):
    new = TemplateRenderer()
    assert not children(new)
    assert [render(new, source) for source in ("a", "b", "{{ 1 }}")] == ["a", "b", "1"]
    (child,) = children(new)
    with pytest.raises(RenderError):
        render(new, "{{ x.y }}")
    assert render(new, "c") == "c"
    assert children(new) == [child], "an error of a template does not end the child"
    new.close()
    assert has_ended(child)


def test_threads_render_at_the_same_time():
    renderer = TemplateRenderer()
    with ThreadPoolExecutor(12) as pool:
        texts = list(
            pool.map(lambda i: render(renderer, f"{{{{ {i} }}}}" * 50 + "{{ t }}", t=f"t{i}" * 5000), range(60))
        )
    assert texts == [str(i) * 50 + f"t{i}" * 5000 for i in range(60)]
    assert 1 <= len(children(renderer)) <= MAX_PROCESSES
    renderer.close()


def test_killed_child_is_replaced():
    renderer = TemplateRenderer()
    render(renderer, "a")
    (child,) = children(renderer)
    os.kill(child, signal.SIGKILL)
    assert has_ended(child)
    assert render(renderer, "b") == "b"
    assert children(renderer) != [child]
    renderer.close()


def test_interrupted_rendering_ends_its_child():
    """After Ctrl-C the answer of the interrupted rendering must not reach the next one."""
    renderer = TemplateRenderer(cpu_seconds=60)
    render(renderer, "a")
    (child,) = children(renderer)
    interrupt = threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT))
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        render(renderer, FOREVER)
    assert has_ended(child)
    assert render(renderer, "b") == "b"
    renderer.close()


def run(code: str) -> subprocess.Popen:
    code = f"from glassformer.text.chat.render_process import RENDERER\nimport os, sys\n{code}"
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)


PRINT_CHILD = """
RENDERER.render("x", {"messages": []}, {}, "2024-01-01")
print(RENDERER._idle[0]._child.pid, flush=True)
"""


@pytest.mark.parametrize("end", ["", "sys.stdin.read(); os._exit(1)", "os.kill(os.getpid(), 9)"])
def test_children_end_with_their_parent(end):
    with run(PRINT_CHILD + end) as parent:
        child = int(parent.communicate()[0])
    assert has_ended(child)


def test_forked_process_starts_its_own_child():
    code = """
pid = os.fork()
text = RENDERER.render("{{ t }}", {"messages": [], "t": str(pid > 0)}, {}, "2024-01-01").text
print(text, RENDERER._idle[0]._child.pid, flush=True)
if pid:
    os.waitpid(pid, 0)
    print(RENDERER.render("{{ t }}", {"messages": [], "t": "again"}, {}, "2024-01-01").text)
"""
    with run(PRINT_CHILD + code) as parent:
        output = parent.communicate()[0].split()
    child, again = output[0], output.pop()
    assert again == "again"
    answers = dict(zip(output[1::2], output[2::2], strict=True))
    assert answers["True"] == child
    assert answers["False"] != child


def test_worker_imports_only_jinja():
    code = "import sys, glassformer.text.chat.render_worker; print(*{m.split('.')[0] for m in sys.modules})"
    output = subprocess.run([sys.executable, "-S", "-c", f"import sys; sys.path[:] = {sys.path!r}; {code}"],
                            capture_output=True, text=True, check=True, cwd=ROOT).stdout  # fmt: skip
    modules = {name for name in output.split() if name not in sys.stdlib_module_names and not name.startswith("_")}
    assert modules == {"glassformer", "jinja2", "markupsafe"}
