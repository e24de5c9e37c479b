"""Damaged files of a training run: `make soak` runs more of the same mutations."""

import pytest
from mutate import run_mutations
from mutated_runs import check_any, finished


def test_run_to_damage_has_every_kind_of_file():
    assert {"run.json", "metrics.jsonl", "data/index.json", "checkpoints/step-000004/state.json"} <= finished().keys()


@pytest.mark.slow
def test_resuming_a_damaged_run_goes_on_or_raises_one_error():
    assert run_mutations(check_any, range(100)) == []
