"""docs/views.md, the table of families and views, is what every view really does on a model of every family.

After a change, `python tests/inspect/views/test_matrix.py` writes it anew: each refusal in it must be justified.
"""

import sys
from pathlib import Path

import pytest

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[3])]

from generate.writers import make_tokenizer
from inspect_subjects import KINDS, subject

from glassformer.errors import RequestError
from glassformer.inspect.views.registry import VIEWS
from glassformer.inspect.views.result import plain

DOCUMENT = Path(__file__).parents[3] / "docs" / "views.md"
NUMBERS = {
    "anatomy": 1, "times": 1, "tokens": 2, "merges": 2, "embedding": 3, "embedding_map": 3, "tracks": 4, "changed": 4,
    "qkv": 5, "cell": 6, "heads": 7, "grid": 8, "roles": 9, "block": 10, "lens": 11, "attribution": 11, "sampling": 11,
    "summary": 11, "cache": 12, "cache_speed": 12, "fork": 13, "alignment": 14,
}  # fmt: skip
ASKED = {
    "tokens": {"text": "a cat"}, "merges": {"word": "cat"}, "embedding": {"token": 7},
    "embedding_map": {"tokens": (7, 8, 9, 30)}, "qkv": {"layer": 1, "head": 2, "position": 1},
    "cell": {"layer": 1, "head": 2, "query": 2, "key": 1}, "heads": {"layer": 1, "position": 1},
    "block": {"layer": 1, "position": 1}, "grid": {"layer": 1},
}  # fmt: skip
TIED = ("qkv", "cell", "heads", "grid", "block", "lens", "attribution", "sampling", "alignment")  # by an identity


def refusals():
    """Family -> view -> the reason, or None where it is served."""
    found = {}
    for kind, families in KINDS.items():
        for family in families:
            model, trace, other = subject(kind, family)
            row = found[family] = {}
            for name in NUMBERS:
                view = VIEWS[name]
                given = ASKED.get(name, {}) | ({"other": other} if "other" in view.parameters else {})
                try:
                    result = view.function(model if view.of == "model" else trace, **given)
                except RequestError as error:
                    row[name] = str(error)
                else:
                    assert plain(result)["receipt"]["python"], (family, name)
                    assert name not in TIED or abs(result.receipt.error) < 1e-3, (family, name, result.receipt)
                    row[name] = None
    return found


def written(found):
    """The document."""
    reasons = list(dict.fromkeys(why for row in found.values() for why in row.values() if why is not None))
    lines = [
        "# Which views are served for which models", "",
        "Written by `python tests/inspect/views/test_matrix.py` from what each view does on a small model of each",
        "family; the tests hold it to that. ✓ is served; a number is the reason, below, with which it refuses.", "",
    ]  # fmt: skip
    for kind, families in KINDS.items():
        lines += [f"## {kind.capitalize()}", "", "| view | | " + " | ".join(families) + " |"]
        lines += ["| --- | --- |" + " --- |" * len(families)]
        for name, number in NUMBERS.items():
            marks = (found[family][name] for family in families)
            cells = " | ".join("✓" if why is None else str(reasons.index(why) + 1) for why in marks)
            lines.append(f"| {number} | `{name}` | {cells} |")
        lines.append("")
    lines += ["## Why they refuse", ""] + [f"{i}. {why}" for i, why in enumerate(reasons, 1)]
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def found():
    return refusals()


def test_every_view_has_its_number():
    assert NUMBERS.keys() == VIEWS.keys()
    assert make_tokenizer().vocab_size > 30


def test_the_document_is_what_they_do(found):
    assert written(found) == DOCUMENT.read_text("utf-8"), "write it anew: python tests/inspect/views/test_matrix.py"


def test_views_1_to_8_and_10_to_13_never_refuse_a_decoder(found):
    for family in KINDS["decoders"]:
        refused = {name for name, why in found[family].items() if why is not None and NUMBERS[name] not in (9, 14)}
        assert not refused, (family, refused)
        assert found[family]["alignment"] is not None


def test_alignment_is_of_what_reads_a_source(found):
    served = {family for family, row in found.items() if row["alignment"] is None}
    assert served == {*KINDS["encoder-decoders"], *KINDS["recurrent encoder-decoders"]} - {"no attention"}


if __name__ == "__main__":
    DOCUMENT.write_text(written(refusals()), "utf-8")
