"""`glassformer demo seq2seq`, with one second of training per model."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest

import glassformer
from glassformer.toys import dates_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("demo") / "pairs"


def run_demo(folder, *options):
    """Return stdout of the demo in a subprocess, without the shape checks of the tests."""
    command = [sys.executable, "-m", "glassformer", "demo", "seq2seq", "--seconds", "1", "--threads", "1"]
    done = subprocess.run([*command, "--out", str(folder), *options], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture(scope="module")
def shown(folder):
    """The JSON output of one run."""
    return json.loads(run_demo(folder, "--task", "copy", "--json"))


@pytest.mark.slow
def test_demo_scores_three_systems(shown, folder):
    assert [row["name"] for row in shown["systems"]] == ["RNN", "RNN + attention", "Transformer"]
    for row, system in zip(shown["systems"], dates_recipe.SYSTEMS, strict=True):
        translator = glassformer.load(folder / system)
        assert row["parameters"] == sum(p.numel() for p in translator.model.parameters())
        assert row["scores"]["exact"] == dates_recipe.score(translator, "copy").exact
        assert sum(bucket["count"] for bucket in row["scores"]["by_length"]) == row["scores"]["count"] == 1000
        assert row["target_tokens"] > 0


@pytest.mark.slow
def test_alignments_are_drawn_for_models_with_attention(shown, folder):
    assert "alignment" not in shown["systems"][0]
    for row in shown["systems"][1:]:
        root = ET.parse(row["alignment"]).getroot()
        assert root.tag.endswith("svg")
        cells = [e for e in root.iter() if e.get("class") == "cell"]
        assert cells
    assert {path.name for path in folder.glob("*.svg")} == {"rnn-attention.svg", "transformer.svg"}


@pytest.mark.slow
def test_demo_text_output(folder, shown):
    """A second run writes to the next free folder and prints a table, two drawings and the next command."""
    output = run_demo(folder, "--task", "reverse")
    assert output.count("share of attention") == 2
    assert [line.split()[0] for line in output.splitlines() if line.startswith(("RNN ", "Transformer "))].count(
        "RNN"
    ) >= 2
    assert f"glassformer translate {folder}-2/transformer" in output
