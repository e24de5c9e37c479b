"""Damaged model files of every format: a model, or an error of ours; no crash, hang or large allocation."""

from functools import partial

import pytest
from model_mutations import GROUPS, NAMES, check, check_one_of
from mutate import run_mutations


@pytest.mark.parametrize("group", GROUPS)
def test_mutated_model_files_load_or_raise(group):
    assert run_mutations(partial(check_one_of, group), range(100)) == []


@pytest.mark.soak
@pytest.mark.parametrize("name", NAMES)
def test_many_mutated_model_files(name):
    assert run_mutations(partial(check, name), range(20_000)) == []
