"""Damaged model files of every format: a model, or an error of ours; no crash, hang or large allocation."""

from functools import partial

import pytest
from mutate import run_mutations
from mutated_models import GROUPS, check_one_of


@pytest.mark.parametrize("group", GROUPS)
def test_mutated_model_files_load_or_raise(group):
    assert run_mutations(partial(check_one_of, group), range(100)) == []
