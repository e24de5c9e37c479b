"""`make llama-cpp`: llama.cpp reads the GGUF files that we write as we do: token ids, greedy tokens, logits.

Needs the interpreter of an environment with llama-cpp-python in GLASSFORMER_LLAMA_CPP, which the target makes.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from generate.writers import TEXTS, make_tokenizer
from weights.test_gguf_files import with_whole_blocks

from glassformer.lm import LanguageModel, load
from glassformer.nn.step import Step

pytestmark = pytest.mark.llama_cpp
CHILD = Path(__file__).with_name("llama_cpp_child.py")
TEXT = " ".join(TEXTS)
SAMPLES = [
    TEXT,
    "a  b\n\n c\t12345 it's 'LL <|endoftext|>",
    "Ünïcödé ﷽ 👩‍👩‍👧 \u200d",
    "def f(x):\n    return x ** 2\r\n",
]
LENGTH = 24
NEAR = {
    "F32": 1e-3,
    "Q8_0": 8e-2,
    "Q4_0": 8e-2,
}  # of the largest logit: there quantized matrices meet quantized activations


@pytest.fixture(scope="module", params=["gpt2", "llama", "qwen3"])
def lm(request):
    """A model that has learned a text by heart: which token comes next is never a matter of rounding."""
    tokenizer = make_tokenizer()
    model = with_whole_blocks(request.param, vocab_size=tokenizer.vocab_size)
    ids = torch.tensor([tokenizer.encode(TEXT)])[:, : model.config.context_length]
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=3e-3, weight_decay=0.0)
    for _ in range(150):
        loss = torch.nn.functional.cross_entropy(model(ids, Step.of(ids))[0, :-1], ids[0, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.02
    return LanguageModel(model.eval(), tokenizer)


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_0"])
def test_the_same_tokens(lm, kind, tmp_path):
    python = os.environ.get("GLASSFORMER_LLAMA_CPP")
    if not python:
        pytest.skip("make llama-cpp")
    lm.save_gguf(tmp_path / "a.gguf", kind)
    ours = load(tmp_path / "a.gguf")
    ids = ours.encode(TEXT)
    prompts = [ids[:4], ids[10:20], ids[:30]]
    asked = {"path": str(tmp_path / "a.gguf"), "texts": SAMPLES, "prompts": prompts, "length": LENGTH}
    run = subprocess.run([python, CHILD], input=json.dumps(asked), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    theirs = json.loads(run.stdout)
    assert theirs["tokens"] == [ours.encode(text) for text in SAMPLES]
    written = [ours.generate(p, max_tokens=LENGTH, temperature=0.0).continuations[0].ids for p in prompts]
    assert theirs["written"] == [list(row) for row in written]
    for prompt, row, logits in zip(prompts, written, theirs["logits"], strict=True):
        whole = torch.tensor([[*prompt, *row]])
        with torch.no_grad():
            mine = ours.model(whole, Step.of(whole))[0]
        off = (torch.tensor(logits) - mine).abs().max() / mine.abs().max()
        print(f"{lm.config.family} {kind}: logits off by {off:.1e}")
        assert off <= NEAR[kind]
