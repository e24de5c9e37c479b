"""Loading needs at most 1.1 times the memory of the weights; memory-mapped loading needs almost none."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import randomise, tiny_config

from glassformer.families import ShapeConfig, expand
from glassformer.formats import save_model
from glassformer.nn.model import Decoder

HERE = Path(__file__).parent


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="resident memory is read from Linux's /proc")
@pytest.mark.parametrize("family", ["llama", "gpt2"])  # tensors used as stored; transposed tensors
def test_memory_of_loading(family, tmp_path, capsys):
    shape = ShapeConfig(family, d_model=512, n_layers=6, n_heads=8, d_ff=2048, vocab_size=12_000, context=64)
    save_model(randomise(Decoder(expand(shape))), tmp_path / "large")  # 100 MB, a quarter of it the embedding
    save_model(randomise(Decoder(tiny_config(family))), tmp_path / "small")
    run = subprocess.run(
        [sys.executable, HERE / "memory_of_loading.py", tmp_path],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(HERE.parent.parent)},
    )  # fmt: skip
    measurements = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(measurements) == 3
    for got in measurements:
        print("{options}: peak {peak:.3f}, after {after:.3f} of {weights:,} bytes".format(**got))
        assert got["peak"] <= 1.1
        if got["options"] != "{}":
            assert got["after"] > 0.9, "the measurement did not register the weights"
        elif family == "llama":
            assert got["peak"] < 0.1, "mapped weights were copied to memory"
