"""`make soak`: damaged files of every format, each read in a process with a memory limit and a watchdog.

A module `mutated_*` in tests/ has the checks of some formats: CHECKS, name -> function of a seeded generator.
`pytest tests/soak -m soak -k NAME --mutations N` runs N mutations of one format.
"""

import mutated_data
import mutated_models
import mutated_runs
import mutated_tokenizers
import mutated_traces
import pytest
from mutate import run_mutations

CHECKS = {f"tokenizer-{name}": check for name, check in mutated_tokenizers.CHECKS.items()}
CHECKS |= {f"run-{name}": check for name, check in mutated_runs.CHECKS.items()}
CHECKS |= {f"data-{name}": check for name, check in mutated_data.CHECKS.items()}
CHECKS |= {f"model-{name}": check for name, check in mutated_models.CHECKS.items()}
CHECKS |= {f"trace-{name}": check for name, check in mutated_traces.CHECKS.items()}


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", CHECKS)
def test_damaged_files_load_or_raise_one_error(request, name):
    if "soak" not in request.config.getoption("markexpr"):
        pytest.skip("long test: run make soak")
    assert run_mutations(CHECKS[name], range(request.config.getoption("mutations"))) == []
