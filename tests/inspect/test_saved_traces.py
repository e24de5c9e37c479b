"""A saved trace is checked against the model and its digest before it is used."""

import json
import shutil

import mutated_traces
import pytest
import torch
from mutate import run_mutations
from safetensors.torch import load_file, save_file
from test_trace import language, text

from glassformer.errors import CheckpointError
from glassformer.inspect.record.store import tensor_file


@pytest.fixture
def saved(tmp_path):
    language("gpt2").trace(text(language("gpt2"))).save(tmp_path / "t")
    about = json.loads((tmp_path / "t" / "trace.json").read_text())
    return tmp_path / "t", about, load_file(tmp_path / "t" / about["tensors"])


def write(folder, about, numbers):
    """Write a saved trace whose digest fits its contents."""
    about = about | {"tensors": tensor_file(about, numbers)}
    save_file(numbers, folder / about["tensors"])
    (folder / "trace.json").write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": [0, -1, 5]}, "ids must be tokens from 0 to 96, got -1 to 5"),
        ({"ids": [0, 5000]}, "ids must be tokens from 0 to 96, got 0 to 5000"),
        ({"ids": []}, "ids must have 1 to 64 tokens, got 0"),
        ({"ids": [1] * 65}, "ids must have 1 to 64 tokens, got 65"),
        ({"ids": ["1"]}, r"ids\[0\]: input should be a valid integer"),
        ({"ids": [True]}, r"ids\[0\]: input should be a valid integer"),
        ({"ids": [1, 2], "n_prompt": 1}, "must have the shape"),
        ({"n_prompt": -5}, "n_prompt must be from 1 to 11, got -5"),
        ({"n_prompt": 999}, "n_prompt must be from 1 to 11, got 999"),
        ({"n_prompt": "x"}, "n_prompt: input should be a valid integer"),
        ({"finish": "why"}, "finish: input should be"),
        ({"budget": 0}, "budget must be above 0"),
        ({"rereads": [99]}, "rereads must be lengths from 1 to 11"),
        ({"source": [1]}, "this one has none"),
        ({"edits": [{"op": "ablate", "point": "blocks.9.attn.z"}]}, "no point 'blocks.9.attn.z'"),
        ({"edits": [{"op": "ablate"}]}, "point is missing"),
        ({"edits": [{"op": "ablate", "point": "embed.out", "position": 3 * 10**9}]}, "position must be from 0"),
        ({"format": 1}, "has format 1, and this version reads 2: record the trace again"),
    ],
)
def test_a_description_that_does_not_fit_the_model(saved, change, message):
    folder, about, numbers = saved
    write(folder, about | change, numbers)
    with pytest.raises(CheckpointError, match=message):
        language("gpt2").load_trace(folder)


@pytest.mark.parametrize("name", ["../elsewhere.safetensors", "/etc/passwd", "trace-0.safetensors", ""])
def test_tensors_are_read_from_the_folder_only(saved, name):
    folder, about, _ = saved
    shutil.copy(folder / about["tensors"], folder.parent / "elsewhere.safetensors")
    (folder / "trace.json").write_text(json.dumps(about | {"tensors": name}))
    with pytest.raises(CheckpointError, match="tensors must be the name of a file of the folder"):
        language("gpt2").load_trace(folder)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("blocks.1.resid_pre", lambda v: v.double(), "a dtype of the model, got .* and torch.float64"),
        ("blocks.1.attn.v", lambda v: v.int(), "and torch.int32"),
        ("blocks.1.resid_pre", lambda v: v[1:], r"blocks.1.resid_pre must have the shape \[11, 48\]"),
        ("blocks.1.resid_pre", lambda v: v * torch.nan, "blocks.1.resid_pre holds NaN or infinity, and no edit"),
        ("last_logits", lambda v: v[:9], r"last_logits must have the shape \[97\]"),
        ("blocks.1.attn.k_rot", None, "no complete trace: 'blocks.1.attn.k_rot'"),
    ],
)
def test_tensors_that_do_not_fit_the_model(saved, name, change, message):
    folder, about, numbers = saved
    numbers = {key: value for key, value in numbers.items() if key != name or change is not None}
    if change is not None:
        numbers[name] = change(numbers[name]).contiguous()
    write(folder, about, numbers)
    with pytest.raises(CheckpointError, match=message):
        language("gpt2").load_trace(folder)


def test_other_contents_under_the_name_of_a_digest(saved):
    folder, about, numbers = saved
    numbers["blocks.1.resid_pre"][3, 7] += 1
    save_file(numbers, folder / about["tensors"])
    with pytest.raises(CheckpointError, match="the contents differ from the digest in the name trace-"):
        language("gpt2").load_trace(folder)
    numbers["blocks.1.resid_pre"][3, 7] -= 1
    save_file(numbers, folder / about["tensors"])
    (folder / "trace.json").write_text(json.dumps(about | {"ids": [*about["ids"][:-1], 3]}))
    with pytest.raises(CheckpointError, match="the contents differ from the digest"):
        language("gpt2").load_trace(folder)


@pytest.mark.parametrize("kind", mutated_traces.CHECKS)
def test_damaged_traces_raise_checkpoint_error(kind):
    """Or load as a trace whose values and views can be computed."""
    assert run_mutations(mutated_traces.CHECKS[kind], range(100)) == []
