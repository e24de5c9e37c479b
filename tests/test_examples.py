"""Every script in examples/ runs and prints what its docstring promises."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
EXPECTED = {
    "1_generate": "perplexity of",
    "2_inspect": "the most probable next token",
    "3_ablate": "answer without that head:",
    "4_train": "One day",
    "5_serve": "python",
}


def test_there_are_five_examples():
    assert [path.stem for path in EXAMPLES] == list(EXPECTED)


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path, tmp_path):
    run = subprocess.run([sys.executable, path], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert EXPECTED[path.stem] in run.stdout
