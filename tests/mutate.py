"""Seeded mutations of JSON values, text and bytes, and a watched process that reads what they give.

A fuzz test of a format has one function, `check(rng)`: it makes a damaged file of a valid one with `rng`, and reads it.
It may return or raise a GlassformerError; anything else is a failure. `run_mutations` calls it with one seed after the
other in a child process with a memory limit and a watchdog, so that an endless loop, a huge allocation or a crash of a
library is a failure with a seed, too. The child imports the module of `check`: it must be a function of a module (or a
functools.partial of one).
"""

import copy
import json
import multiprocessing
import random
import resource
import struct
import traceback
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from typing import Any

from glassformer.errors import GlassformerError

NUMBERS = (0, 1, -1, 3, 255, 2**31 - 1, 2**32 - 1, 10**9, 4 * 10**9, 2**40, 2**63, 2**64 - 1, 10**30)
STRINGS = ("", " ", "a", "\0", "\n", "\ud800", "é" * 300, "x" * 10_000, "../../etc", "null", "<s>", "1", "%s{}")
PARTS = ([], {}, [[]], {"": None}, [None], ["a", 1], {"content": "a"}, {"content": 1}, {"type": "a"}, {"type": None})
ODD_VALUES = (None, True, False, *NUMBERS, 0.5, -0.0, 1e308, float("nan"), float("inf"), *STRINGS, *PARTS)


# ---- mutations


def mutate_json(value: Any, rng: random.Random, n: int | None = None) -> Any:
    """Return a copy of a JSON value with `n` changes, each at a random node. Default: one to three changes."""
    root = [copy.deepcopy(value)]
    for _ in range(n or rng.choice((1, 1, 2, 3))):
        _mutate_node(*_random_node(root, rng), root, rng)
    return root[0]


def mutate_json_file(data: bytes, rng: random.Random) -> bytes:
    """Return the bytes of a JSON file with a change of its values, or of its text and encoding."""
    if rng.random() < 0.15:
        return mutate_bytes(data, rng)
    value = mutate_json(json.loads(data), rng)
    if rng.random() < 0.03:
        return json.dumps(value).encode()[:-1] + b', "a": ' + rng.choice((b"[", b'{"a":')) * 100_000
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    return text.encode("utf-8", "surrogatepass")  # a lone surrogate is an escape, or bytes that are not UTF-8


def mutate_lines(data: bytes, rng: random.Random) -> bytes:
    """Return a text file with lines removed, repeated, exchanged, joined or replaced, or with changed bytes."""
    if rng.random() < 0.25:
        return mutate_bytes(data, rng)
    lines = data.split(b"\n")
    for _ in range(rng.choice((1, 1, 2, 3))):
        at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
        match rng.choice(("remove", "repeat", "exchange", "join", "replace", "insert", "append", "cut")):
            case "remove" if len(lines) > 1:
                del lines[at]
            case "repeat":
                lines[at:at] = [lines[other]] * rng.choice((1, 1, 2, 300))
            case "exchange":
                lines[at], lines[other] = lines[other], lines[at]
            case "join" if at + 1 < len(lines):
                lines[at : at + 2] = [lines[at] + rng.choice((b"", b" ", b"\t")) + lines[at + 1]]
            case "replace":
                lines[at] = _odd_text(rng)
            case "insert":
                lines.insert(at, _odd_text(rng))
            case "append":
                lines[at] += rng.choice((b"", b" ")) + _odd_text(rng)
            case _:
                lines[at] = lines[at][: rng.randrange(len(lines[at]) + 1)]
    return b"\n".join(lines)


def mutate_bytes(data: bytes, rng: random.Random, header: int | None = None) -> bytes:
    """Return `data` with one to four bytes or ranges changed, cut, inserted, repeated or removed.

    header: Half of the changes fall into this many first bytes. Default: all bytes are equally likely.
    """
    mutated = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if not mutated:
            break
        at = rng.randrange(min(header, len(mutated)) if header and rng.random() < 0.5 else len(mutated))
        match rng.choice(("byte", "bit", "number", "cut", "insert", "repeat", "remove")):
            case "byte":
                mutated[at] = rng.randrange(256)
            case "bit":
                mutated[at] ^= 1 << rng.randrange(8)
            case "number":
                size = rng.choice((4, 8))
                number = rng.choice(NUMBERS) % (1 << 8 * size)
                mutated[at : at + size] = struct.pack("<Q", number)[:size]
            case "cut":
                del mutated[at:]
            case "insert":
                mutated[at:at] = rng.randbytes(rng.randint(1, 9))
            case "repeat":
                mutated[at:at] = mutated[at : at + rng.randint(1, 64)]
            case "remove":
                del mutated[at : at + rng.randint(1, 9)]
    return bytes(mutated)


def _random_node(root: list[Any], rng: random.Random) -> tuple[Any, Any]:
    """Return a container inside `root` and the key of a random item of it. Each level is equally likely to be it."""
    parent, key = root, 0
    while isinstance(parent[key], (list, dict)) and parent[key] and rng.random() < 0.8:
        parent = parent[key]
        key = rng.choice(list(parent)) if isinstance(parent, dict) else rng.randrange(len(parent))
    return parent, key


def _mutate_node(parent: Any, key: Any, root: list[Any], rng: random.Random) -> None:
    """Change the item `parent[key]`, its key, or what stands beside it."""
    match rng.choice(("odd", "odd", "odd", "other", "remove", "rename", "repeat", "wrap", "near", "deep")):
        case "other":  # a value of another place of the file
            other, other_key = _random_node(root, rng)
            parent[key] = copy.deepcopy(other[other_key])
        case "remove" if parent is not root:
            del parent[key]
        case "rename" if isinstance(parent, dict):
            parent[rng.choice((*STRINGS, key + "x"))] = parent.pop(key)
        case "repeat" if isinstance(parent, list) and parent is not root:
            parent[key:key] = [copy.deepcopy(parent[key])] * rng.choice((1, 2, 50))
        case "wrap":
            parent[key] = [parent[key]] if rng.random() < 0.5 else {"a": parent[key]}
        case "near":
            parent[key] = _near(parent[key], rng)
        case "deep":
            for _ in range(rng.choice((3, 90, 200))):
                parent[key] = [parent[key]]
        case _:
            parent[key] = copy.deepcopy(rng.choice(ODD_VALUES))


def _near(value: Any, rng: random.Random) -> Any:
    """Return a value of the same type: a number next to it, a text with a changed character, a shorter list."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return rng.choice((value + 1, value - 1, -value, value * 1000, str(value)))
    if isinstance(value, str):
        at = rng.randint(0, len(value))
        return value[:at] + rng.choice(("", rng.choice(STRINGS), rng.choice("aé▁ ]>\\"))) + value[at + 1 :]
    if isinstance(value, list):
        return rng.sample(value, rng.randint(0, len(value)))
    return value


def _odd_text(rng: random.Random) -> bytes:
    return str(rng.choice(ODD_VALUES)).encode("utf-8", "surrogatepass")


# ---- the watched process


def run_mutations(
    check: Callable[[random.Random], object],
    seeds: Iterable[int],
    *,
    memory_bytes: int = 1 << 30,
    seconds: float = 60,
) -> list[str]:
    """Call `check(random.Random(seed))` for each seed in a child process; return one line per failure.

    Args:
        check: Returns, or raises a GlassformerError. Any other exception is a failure.
        seeds: The seeds. A seed alone repeats its mutation.
        memory_bytes: What the child may allocate beyond what it has after the imports.
        seconds: Time without a result after which the child is killed: a failure of this seed.
    """
    failures: list[str] = []
    remaining = list(seeds)
    context = multiprocessing.get_context("spawn")  # a fork would inherit the locks of other threads
    while remaining:
        ours, theirs = context.Pipe()
        child = context.Process(target=_run_child, args=(theirs, check, remaining, memory_bytes), daemon=True)
        child.start()
        theirs.close()
        try:
            assert ours.poll(300), "the child process did not start"
            ours.recv()
            while remaining and ours.poll(seconds):
                if failure := ours.recv():
                    failures.append(f"seed {remaining[0]}: {failure}")
                del remaining[0]
            if not remaining:
                child.join(10)  # it removes its temporary files
            else:
                failures.append(f"seed {remaining.pop(0)}: no result after {seconds:g} seconds")
        except EOFError:
            child.join(10)
            failures.append(f"seed {remaining.pop(0)}: the process ended with exit code {child.exitcode}")
        finally:
            child.kill()
            child.join()
            ours.close()
    return failures


def _run_child(
    connection: Connection, check: Callable[[random.Random], object], seeds: list[int], memory_bytes: int
) -> None:
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + memory_bytes, resource.RLIM_INFINITY))
    connection.send(None)
    for seed in seeds:
        failure = None
        try:
            check(random.Random(seed))
        except GlassformerError:
            pass
        except BaseException as error:  # a panic of a Rust library is no Exception
            frame = traceback.extract_tb(error.__traceback__)[-1]
            failure = f"{type(error).__name__}: {str(error)[:200]} ({frame.filename}:{frame.lineno})"
        connection.send(failure)
