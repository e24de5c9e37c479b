"""docs/glass.md lists every view with its description and a line of Python that runs."""

import re
from pathlib import Path

import pytest
from generate.scripted import make_tokenizer
from inspect_subjects import subject
from tiny import tiny_encoder_decoder

import glassformer
from glassformer.inspect.present.web_build import ALIASES, PICTURES, picture_of
from glassformer.inspect.views.registry import VIEWS
from glassformer.models.translator import Translator

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "glass.md").read_text()
ROWS = re.findall(r"^\| `(\w+)` \| (.*?) \| `(.*)` \| (\w+) \|$", GUIDE, re.MULTILINE)


@pytest.fixture(scope="module")
def subjects():
    lm = glassformer.load("stories", device="cpu")
    one, two = (lm.trace(f"Once Max got a key. Soon {name} found a shell.") for name in ("Ann", "Ben"))
    tokenizer = make_tokenizer()
    sizes = {"encoder.vocab_size": tokenizer.vocab_size, "vocab_size": tokenizer.vocab_size}
    pair = Translator(tiny_encoder_decoder("separate", family="pair", **sizes), tokenizer).trace(
        "the cat", "the cat sat"
    )
    return {"lm": lm, "t": one, "other": two, "p": pair}


def test_every_view_is_listed_with_its_description():
    assert [(name, meaning) for name, meaning, _, _ in ROWS] == [(name, view.meaning) for name, view in VIEWS.items()]
    assert all(picture_of(name) == picture for name, _, _, picture in ROWS)


@pytest.mark.parametrize(("name", "code"), [(name, code) for name, _, code, _ in ROWS])
def test_python_examples_run(subjects, name, code):
    assert eval(code, dict(subjects)).receipt.python
    subject = code.split(".")[0]
    assert subject == ("lm" if VIEWS[name].of == "model" else "p" if name == "alignment" else "t")


def test_edit_and_sweep_examples_run(subjects):
    """Run each code block of that section, with a model of each kind."""
    chapter = GUIDE.split("## Edits")[1].split("## ")[0]
    kinds = {"rnn": ("recurrent encoder-decoders", "additive"), "embedder": ("encoders", "bert")}
    known = {name: subject(*of)[0] for name, of in kinds.items()}
    known |= {
        **subjects,
        "translator": subjects["p"].lm,
        "r": known["rnn"].trace("the cat", "a cat sat"),
        "print": print,
    }
    before = known["translator"].translate("the cat sat")
    for block in re.findall(r"```python\n(.*?)```", chapter, re.DOTALL):
        exec(block.replace("\ntranslator.translate", "\nunder = translator.translate"), known)
    assert known["under"] != before, "the knockout has no effect"


def test_pictures_are_registered_in_the_page():
    source = (ROOT / "web" / "src" / "views" / "index.ts").read_text()
    registered = set(re.findall(r'register\(\{\s*id: "(\w+)"', source))
    assert {picture_of(name) for name in (*VIEWS, *PICTURES.values(), *ALIASES)} <= registered


def test_unknown_views_raise_attribute_error(subjects):
    for one in (subjects["lm"], subjects["t"]):
        with pytest.raises(AttributeError, match="'wiew'"):
            one.wiew()
    with pytest.raises(AttributeError):
        subjects["t"].anatomy()
