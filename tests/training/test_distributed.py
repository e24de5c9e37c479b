"""Test that two gloo processes have the losses of one process with the same global batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distributed_child import BATCH, STEPS, runs, seq2seq_runs
from safetensors.torch import load_file
from tiny_runs import losses, make_tokenizer, metrics, tiny_run
from tiny_seq2seq import seq2seq_run

from glassformer.training.run.distributed import SINGLE_PROCESS, is_torchrun, local_device

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """A folder with each run made by two processes, and by one."""
    folder = tmp_path_factory.mktemp("distributed")
    tokenizer = make_tokenizer(folder / "tokenizer")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)]),
    }
    child = [str(HERE / "distributed_child.py"), str(folder / "two"), tokenizer]
    done = subprocess.run([*command, *child], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    for name, settings in runs().items():
        tiny_run(folder / "one" / name, tokenizer, **settings)
    for name, settings in seq2seq_runs().items():
        seq2seq_run(folder / "one" / name, **settings)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamw", "muon", "pairs", "recurrent"])
def test_two_processes_have_the_losses_of_one(together, name):
    one, two = together / "one" / name, together / "two" / name
    assert len(losses(two)) == STEPS
    assert losses(two) == pytest.approx(losses(one), rel=1e-5, abs=0)
    assert losses(one)[-1] < 0.98 * losses(one)[0]  # they had something to agree on
    for a, b in zip(metrics(one), metrics(two), strict=True):
        assert a["tokens"] == b["tokens"]
        assert a.get("held_out_loss", 0) == pytest.approx(b.get("held_out_loss", 0), rel=1e-5)
        assert a.get("exact") == b.get("exact")
    weights = [load_file(folder / "checkpoints" / "last" / "model.safetensors") for folder in (one, two)]
    for tensor in weights[0]:
        if tensor.endswith(".k.bias"):
            continue  # softmax takes no notice of it: its gradient is noise
        torch.testing.assert_close(weights[0][tensor], weights[1][tensor], rtol=1e-3, atol=2e-5, msg=tensor)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_sequences_are_disjoint_and_count_every_token_once(together, name):
    accumulate = runs()[name].get("accumulate", 1)
    read = [json.loads((together / "two" / f"{name}-{rank}.json").read_text()) for rank in (0, 1)]
    assert [len(rows) for rows in read] == [STEPS * accumulate * BATCH // 2] * 2
    epoch = metrics(together / "two" / name)[-1]["tokens"] // 2
    first = [{digest for digest, _ in rows[: len(rows) // 4]} for rows in read]
    assert epoch > 0
    assert not first[0] & first[1]
    counted = sum(count for rows in read for _, count in rows)
    assert counted == metrics(together / "two" / name)[-1]["tokens"]
    assert counted == metrics(together / "one" / name)[-1]["tokens"]


def test_only_the_first_process_writes(together):
    steps = [r["step"] for r in metrics(together / "two" / "adamw") if "loss" in r]
    assert steps == list(range(1, STEPS + 1))


def test_single_process_is_rank_0_of_1():
    values = torch.ones(3)
    assert SINGLE_PROCESS.first
    assert SINGLE_PROCESS.broadcast(5) == 5
    assert torch.equal(SINGLE_PROCESS.all_reduce(values), torch.ones(3))
    assert not is_torchrun({})
    assert local_device({}, "auto") == "auto"
