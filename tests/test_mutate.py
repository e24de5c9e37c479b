"""The seeded mutations: repeatable and different; the watched process reports each kind of failure."""

import json
import os
import random
import time

from mutate import mutate_bytes, mutate_json, mutate_json_file, mutate_lines, run_mutations

from glassformer.errors import ConfigError

VALUE = {"model": {"vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]]}, "flags": [True, 0.5, "text"], "none": None}
KINDS = ("returns", "raises our error", "raises", "panics", "allocates", "hangs", "crashes")


class PanicException(BaseException):
    """Like a panic of a Rust library: no Exception."""


def kind_of(rng: random.Random) -> str:
    return rng.choice(KINDS)


def odd_check(rng: random.Random) -> None:
    match kind_of(rng):
        case "raises our error":
            raise ConfigError("expected")
        case "raises":
            raise ValueError("not expected")
        case "panics":
            raise PanicException("unwrap")
        case "allocates":
            bytearray(1 << 30)
        case "hangs":
            time.sleep(60)
        case "crashes":
            os._exit(7)


def test_mutations_are_repeatable_and_differ():
    data = json.dumps(VALUE).encode()
    for mutate, whole in (
        (mutate_json, VALUE),
        (mutate_json_file, data),
        (mutate_lines, b"a b\nc d\n"),
        (mutate_bytes, data),
    ):
        results = [repr(mutate(whole, random.Random(seed))) for seed in range(300)]
        assert results == [repr(mutate(whole, random.Random(seed))) for seed in range(300)]
        assert len(set(results)) > 200
    assert json.loads(data) == VALUE  # the original is unchanged


def test_every_kind_of_failure_is_reported_with_its_seed():
    seeds = {kind_of(random.Random(seed)): seed for seed in range(100)}
    failures = run_mutations(odd_check, [seeds[kind] for kind in KINDS] * 2, memory_bytes=256 << 20, seconds=2)
    expected = {
        "raises": "ValueError: not expected",
        "panics": "PanicException: unwrap",
        "allocates": "MemoryError",
        "hangs": "no result after 2 seconds",
        "crashes": "the process ended with exit code 7",
    }
    assert len(failures) == 2 * len(expected)
    for failure, (kind, message) in zip(failures, list(expected.items()) * 2, strict=True):
        assert failure.startswith(f"seed {seeds[kind]}: {message}"), failure
