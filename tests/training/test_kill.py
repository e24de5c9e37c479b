"""Run a few of the kill cycles of tests/soak/kill_cycles.py (`make soak` runs 200)."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "soak" / "kill_cycles.py"


@pytest.mark.slow
def test_killed_runs_are_bit_identical():
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "6", "--seed", "1"], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    kills = re.search(r"6 cycles, (\d+) kills, 0 wrong", done.stdout)
    assert kills, done.stdout
    assert int(kills[1]) >= 6
