"""`make llama-cpp`: llama.cpp gives equal token ids, greedy tokens and logits for our GGUF files.

GLASSFORMER_LLAMA_CPP must name the Python interpreter of an environment with llama-cpp-python; the make target
creates it.
"""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from generate.scripted import TEXTS, make_tokenizer
from tiny import random_ids, randomise_sharp
from tiny_encoders import embedder
from tiny_gguf import FACTORS, FAMILIES, VARIANTS, gguf_config, gguf_model

from glassformer.cli import main
from glassformer.config import LongScaling, PoolingConfig, YarnScaling
from glassformer.formats.gguf.tokenizer_keys import PRE_TOKENIZER_BY_NAME
from glassformer.generate.llama_cpp_process import save_without_tokenizer
from glassformer.models.language_model import LanguageModel
from glassformer.models.load import load
from glassformer.nn.model import Decoder
from glassformer.nn.step import Step
from glassformer.text.tokenizer import Tokenizer
from glassformer.text.train import train_tokenizer

pytestmark = pytest.mark.llama_cpp
CHILD = Path(__file__).with_name("llama_cpp_child.py")
TEXT = " ".join(TEXTS)
SAMPLES = [
    TEXT,
    "a  b\n\n c\t12345 it's 'LL <|endoftext|>",
    "Ünïcödé ﷽ 👩‍👩‍👧 \u200d",
    "def f(x):\n    return x ** 2\r\n",
]
LETTERS = [
    "the cat sat on the mat. The dog's hat, wasn't it?  2 hats!!\n\n and 12345 + 678 = 13023; x_1 <= $3.50",
    "camelCase HTTPServer iPhone I'LL we've \t tabs\r\nlines   ",
    "Größe naïve café 猫である 123",
]
LENGTH = 24
# Tolerances, relative to the largest logit. llama.cpp evaluates GELU with a float16 table, and multiplies quantized
# matrices by quantized activations, which can route a token to another expert.
NEAR = {"F32": 2e-5, "Q8_0": 8e-2, "Q4_0": 8e-2}
NEAR_WITH_GELU, NEAR_WITH_EXPERTS = 3e-3, 0.3
CONTEXT = 256  # llama.cpp's minimum; it selects the LongRoPE factors by context size, not by text length

# Where llama-cpp-python 0.3.36 differs from the format: it ignores the windows of phi3, assumes YaRN betas of 32 and 1,
# and rounds the ends of the ramp (the theta used here makes both ends whole numbers).
YARN = {"*.attention.rope.theta": 42.05, "*.attention.rope.scaling": YarnScaling(4.0, 16, 32.0, 1.0, 1.2, False)}
LONG = LongScaling(FACTORS[:4], FACTORS[4:], 24, 1.2)
SHORT = {"context_length": 1024, "*.attention.rope.scaling": replace(LONG, original_context=512)}
LATENT = {"*.attention.rope.scaling": YarnScaling(4.0, 16, 32.0, 1.0, 1.2)}
COMPATIBLE = {
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "phi3": {"*.attention.window": None} | SHORT,
    "gpt_oss": YARN,
}
MORE = {
    "phi3": [{"context_length": 64, "*.attention.rope.scaling": LONG}],
    "gpt_oss": [{"*.attention.rope.scaling": None}],
}
SETTINGS = [(family, changes) for family in FAMILIES for changes in (*VARIANTS.get(family, []), *MORE.get(family, []))]


def compatible_config(family, changes, **sizes):
    return gguf_config(family, **(COMPATIBLE.get(family, {}) | changes | sizes))


def run_llama_cpp(path, **request):
    """Return llama.cpp's output for a GGUF file, from a child process."""
    python = os.environ.get("GLASSFORMER_LLAMA_CPP")
    if not python:
        pytest.skip("make llama-cpp")
    request = {"path": str(path), "context": CONTEXT, "texts": [], "length": 0} | request
    run = subprocess.run([python, CHILD], input=json.dumps(request), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def assert_same_logits(ours, ids, logits, kind):
    batch = torch.tensor([ids])
    with torch.no_grad():
        expected = ours.model(batch, Step.of(batch))[0]
    off = (torch.tensor(logits) - expected).abs().max() / expected.abs().max()
    print(f"{ours.config.family} {kind}: logits off by {off:.1e}")
    layer, near = ours.config.layers[0], NEAR[kind]
    if layer.mlp.activation in ("gelu", "gelu_tanh"):
        near = max(near, NEAR_WITH_GELU)
    if any(one.experts is not None for one in ours.config.layers) and kind != "F32":
        near = NEAR_WITH_EXPERTS
    assert off <= near


@pytest.fixture(scope="module", params=FAMILIES)
def lm(request):
    """Return a model overfitted on one text, so that rounding never changes a greedy token."""
    tokenizer = make_tokenizer()
    config = compatible_config(request.param, {}, vocab_size=tokenizer.vocab_size)
    model = randomise_sharp(Decoder(config))
    ids = torch.tensor([tokenizer.encode(TEXT)])[:, :64]
    rate, steps = (1e-2, 400) if config.logit_softcap else (3e-3, 150)  # soft-capped logits grow slowly
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=rate, weight_decay=0.0)
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(model(ids, Step.of(ids))[0, :-1], ids[0, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.02
    return LanguageModel(model.eval(), tokenizer)


@pytest.mark.parametrize("kind", NEAR)
def test_greedy_tokens_and_logits(lm, kind, tmp_path):
    lm.save_gguf(tmp_path / "a.gguf", kind)
    ours = load(tmp_path / "a.gguf")
    ids = ours.encode(TEXT)
    prompts = [ids[:4], ids[10:20], ids[:30]] if kind == "F32" else [ids[:4], ids[:12]]  # within the training text
    theirs = run_llama_cpp(tmp_path / "a.gguf", texts=SAMPLES, prompts=prompts, length=LENGTH)
    assert theirs["tokens"] == [ours.encode(text) for text in SAMPLES]
    generated = [ours.generate(p, max_tokens=LENGTH, temperature=0.0).continuations[0].ids for p in prompts]
    assert theirs["generated"] == [list(ids) for ids in generated]
    for prompt, new_ids, logits in zip(prompts, generated, theirs["logits"], strict=True):
        assert_same_logits(ours, [*prompt, *new_ids], logits, kind)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_bench_compares_equal_tokens(capfd, family, tmp_path):
    """`glassformer bench --compare llama.cpp`: both continue the same prompts, single sequences and batches."""
    if "GLASSFORMER_LLAMA_CPP" not in os.environ:
        pytest.skip("make llama-cpp")
    save_without_tokenizer(gguf_model(family), tmp_path / "a.gguf", "F32")
    sizes = "--rounds 2 --batch 1 --batch 3 --prefill 8 --prompt-tokens 6 --new-tokens 5"
    main(["bench", str(tmp_path / "a.gguf"), "--compare", "llama.cpp", "--json", *sizes.split()])
    found = json.loads(capfd.readouterr().out)
    assert found["compare"]["version"]
    assert found["memory"]["llama.cpp"] > 0
    for work in found["workloads"]:
        side = work["sides"]["llama.cpp"]
        assert len(side["seconds"]) == 2
        assert side["equal_tokens"] == work["batch"] * (work["new_tokens"] + 1)


@pytest.mark.parametrize("kind", ["Q4_K_M", "Q6_K"])
@pytest.mark.parametrize("width", [256, 96])
def test_mixed_types(kind, width, tmp_path):
    """Random weights in super-blocks of 256, and in the types that replace them for shorter rows."""
    tokenizer = make_tokenizer()
    sizes = {"d_model": width, "*.mlp.d_ff": 2 * width, "vocab_size": tokenizer.vocab_size}
    model = randomise_sharp(Decoder(compatible_config("llama", sizes)))
    LanguageModel(model, tokenizer).save_gguf(tmp_path / "a.gguf", kind)
    ours = load(tmp_path / "a.gguf", dtype="float32")
    ids = random_ids(ours.config, 1, 40)[0].tolist()
    theirs = run_llama_cpp(tmp_path / "a.gguf", prompts=[ids])
    assert_same_logits(ours, ids, theirs["logits"][0], "Q4_0")  # llama.cpp quantizes activations


PRE_TOKENIZERS = ["gpt-2", "llama-bpe", "dbrx", "qwen2", "gpt-4o", "tekken", "smollm", "falcon", "seed-coder"]


@pytest.mark.parametrize("pre", [*PRE_TOKENIZERS, "deepseek-coder", "deepseek-llm", "deepseek-v3"])
def test_token_ids(pre, tmp_path):
    """Each pre-tokenizer that a GGUF file can name.

    The texts avoid the known differences of llama.cpp: combining marks, the second byte of ü as a digit in "falcon",
    and merged digits in "deepseek-llm".
    """
    pattern = "qwen2" if pre == "deepseek-llm" else "o200k"
    layout = json.loads(train_tokenizer([" ".join(LETTERS)] * 3, vocab_size=600, pattern=pattern).backend.json)
    layout["pre_tokenizer"] = PRE_TOKENIZER_BY_NAME[pre]
    layout["model"]["ignore_merges"] = pre in ("llama-bpe", "tekken")
    tokenizer = Tokenizer(json.dumps(layout), {"add_bos_token": False})
    config = compatible_config("qwen3", {}, vocab_size=tokenizer.vocab_size)
    LanguageModel(randomise_sharp(Decoder(config)), tokenizer).save_gguf(tmp_path / "a.gguf", "F32")
    ours = load(tmp_path / "a.gguf")
    theirs = run_llama_cpp(tmp_path / "a.gguf", prompts=[], texts=LETTERS)["tokens"]
    assert theirs == [ours.encode(text) for text in LETTERS] == [tokenizer.encode(text) for text in LETTERS]


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize("pool", ["mean", "cls", "lasttoken"])
def test_embeddings(family, pool, tmp_path):
    """Embeddings of text encoders. llama.cpp uses the tanh approximation of GELU."""
    ours = embedder(family, PoolingConfig(pools=(pool,), after=("normalize",)))
    ours.save_gguf(tmp_path / "a.gguf", "F32")
    texts = ["the cat sat on the mat.", "a dog ate", "The hats, a kitten?"]
    theirs = run_llama_cpp(tmp_path / "a.gguf", embed=texts, context=ours.max_tokens)
    assert theirs["tokens"] == [ours.tokenizer.encode(text) for text in texts]
    off = (torch.nn.functional.normalize(torch.tensor(theirs["vectors"]), dim=-1) - ours.embed(texts)).abs().max()
    print(f"{family} {pool}: vectors off by {off:.1e}")
    assert off <= NEAR_WITH_GELU


@pytest.mark.parametrize(("family", "changes"), SETTINGS, ids=[f"{name}{i}" for i, (name, _) in enumerate(SETTINGS)])
def test_logits_of_variants(family, changes, tmp_path):
    """Random weights with other rope scalings, windows, norms or heads."""
    tokenizer = make_tokenizer()
    config = compatible_config(family, changes, vocab_size=tokenizer.vocab_size)
    ours = LanguageModel(randomise_sharp(Decoder(config)), tokenizer)
    ours.save_gguf(tmp_path / "a.gguf", "F32")
    ids = random_ids(config, 1, 40)[0].tolist()
    theirs = run_llama_cpp(tmp_path / "a.gguf", prompts=[ids])
    assert_same_logits(ours, ids, theirs["logits"][0], "F32")
