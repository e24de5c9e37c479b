"""torch.compile: equal blocks share one graph, taps leave no operations, and decoding does not recompile."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def found():
    path = f"{HERE.parent}:{HERE.parent.parent}"
    run = subprocess.run(
        [sys.executable, HERE / "compiled.py"], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout)


def test_blocks_compile_once_without_taps(found):
    plain = found["plain"]
    assert plain["layers"] == 6
    assert plain["graphs"] == 1, "a block depends on its index or its name"
    assert plain["off"] < 1e-4
    assert plain["operations"] > 20
    assert plain["traceless"]
    assert plain["tap changes graph"], "the comparison above cannot fail"


def test_training_compiles_once_per_kind_of_batch(found):
    assert found["training"]["gradient"]
    assert found["training"]["full sequences"] == 1
    assert found["training"]["packed"] <= 3


@pytest.mark.parametrize(("kind", "most"), [("full", 3), ("windows", 6), ("uneven", 4), ("source", 2), ("latents", 3)])
def test_decoding_does_not_recompile(found, kind, most):
    """Each kind of layer has a graph for prefill, one for decoding, and one for any size to which the cache grows."""
    graphs = found[kind]["graphs"]
    assert found[kind]["off"] < 1e-4
    assert graphs[-1] == graphs[min(24, len(graphs) - 1)], graphs
    assert graphs[-1] <= most
