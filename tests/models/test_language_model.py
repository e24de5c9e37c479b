"""LanguageModel: load, generate, score, save, and compatibility with transformers."""

import inspect
import json
import math
import shutil

import pytest
import torch
import transformers
from generate.scripted import END, make_tokenizer
from tiny import FAMILIES, TOLERANCE, assert_near, random_ids, run, tiny

import glassformer
from glassformer.errors import CapacityError, CheckpointError, ConfigError, RequestError, TokenizerError
from glassformer.formats import save_model
from glassformer.generate import prefill
from glassformer.kernels.native.modules import choose_native
from glassformer.kernels.placement import choose_device, choose_dtype
from glassformer.models.language_model import LanguageModel
from glassformer.models.load import load

TEXT = "the cat sat on the mat. 吾輩は猫である。"
GREEDY = {"temperature": 0.0}


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def lm(tokenizer):
    return LanguageModel(tiny("qwen3", vocab_size=tokenizer.vocab_size), tokenizer)


@pytest.fixture(scope="module")
def folder(lm, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved")
    lm.save(path)
    return path


@pytest.fixture
def bare(tmp_path):
    """A model folder without a tokenizer."""
    save_model(tiny("llama"), tmp_path / "bare")
    return tmp_path / "bare"


def assert_same_weights(a, b):
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


# ---- saving and loading


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_opens_a_saved_model(family, tokenizer, tmp_path):
    """Ids, logits, greedy text and the end token are the same in transformers."""
    ours = LanguageModel(tiny(family, vocab_size=tokenizer.vocab_size, tied_head=False), tokenizer)
    ours.save(tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in (TEXT, "", " two  spaces\n\n", "é🙂\u200d👍🏽 naïve", "x = 10_000 # ok"):
        assert theirs(text)["input_ids"] == ours.tokenizer.encode(text)
    ids = ours.encode(TEXT)
    with torch.no_grad():
        assert_near(run(ours.model, torch.tensor([ids])), model(torch.tensor([ids])).logits, TOLERANCE)
    assert model.generation_config.eos_token_id == theirs.eos_token_id == tokenizer.eos_id
    room = model.config.max_position_embeddings - len(ids)
    expected = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=room, pad_token_id=0)[0, len(ids) :]
    found = ours.generate(TEXT, **GREEDY).continuations[0]
    assert list(found.ids) == [i for i in expected.tolist() if i != tokenizer.eos_id]
    assert found.text == theirs.decode(found.ids)
    assert len(set(found.ids)) > 4


def test_saved_then_loaded_model_is_equal(lm, folder):
    again = load(folder)
    assert_same_weights(again.model, lm.model)
    assert (again.config, again.end_ids, again.path) == (lm.config, lm.end_ids, str(folder))
    assert again.generate(TEXT, seed=3, max_tokens=12) == lm.generate(TEXT, seed=3, max_tokens=12)
    assert not again.model.training


def test_save_to_the_folder_it_was_loaded_from(folder, lm, tmp_path):
    """The weights are memory-mapped from the file that is replaced."""
    shutil.copytree(folder, tmp_path / "copy")
    one = load(tmp_path / "copy")
    one.save(tmp_path / "copy")
    assert_same_weights(one.model, lm.model)
    assert_same_weights(load(tmp_path / "copy").model, lm.model)


def test_all_end_tokens_are_saved(lm, tokenizer, tmp_path):
    """An instruct model may have several end tokens; all of them are loaded again."""
    LanguageModel(lm.model, tokenizer, end_ids=[7, 9]).save(tmp_path)
    assert load(tmp_path).end_ids == {7, 9, tokenizer.eos_id}
    (tmp_path / "generation_config.json").unlink()
    assert load(tmp_path).end_ids == {7, 9, tokenizer.eos_id}, "config.json has them too"


# ---- generating


def test_reported_seed_reproduces_the_text(lm):
    one, other = (lm.generate("the", max_tokens=20) for _ in range(2))
    assert one.seed is not None
    assert one.seed != other.seed
    assert one.continuations != other.continuations
    assert lm.generate("the", max_tokens=20, seed=one.seed) == one
    assert lm.generate("the", max_tokens=20, seed=5).seed == 5
    assert lm.generate("the", max_tokens=20, **GREEDY).seed is None


def test_first_continuation_does_not_depend_on_n(lm):
    one, five = (lm.generate("the", n=n, max_tokens=12, seed=8) for n in (1, 5))
    assert one.continuations[0] == five.continuations[0]
    assert len({c.text for c in five.continuations}) == 5


def test_logprobs_equal_score(lm):
    found = lm.generate("the cat", max_tokens=20, seed=1, logprobs=3, temperature=1.7, top_k=40)
    one = found.continuations[0]
    score = lm.score([*found.prompt_ids, *one.ids], top=3)
    for ours, theirs in zip(one.tokens, score.tokens[len(found.prompt_ids) :], strict=True):
        assert ours.id == theirs.id
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
        assert [t for t, _ in ours.top] == [t for t, _ in theirs.top]
        assert [p for _, p in ours.top] == sorted((p for _, p in ours.top), reverse=True)


def test_score_is_the_sum_of_log_probabilities(lm, monkeypatch):
    monkeypatch.setattr(prefill, "PREFILL_CHUNK", 5)  # shorter than the text
    ids = lm.encode(TEXT)
    score = lm.score(TEXT, top=2)
    logprobs = run(lm.model, torch.tensor([ids]))[0].double().softmax(-1).log()
    expected = [logprobs[t, ids[t + 1]].item() for t in range(len(ids) - 1)]
    assert [t.id for t in score.tokens] == ids
    assert score.tokens[0].logprob is None
    assert [t.logprob for t in score.tokens[1:]] == pytest.approx(expected, abs=1e-4)
    assert score.logprob == pytest.approx(sum(expected), abs=1e-3)
    assert score.perplexity == pytest.approx(math.exp(-sum(expected) / len(expected)), rel=1e-4)
    assert score.n_bytes == len(TEXT.encode())
    assert score.tokens[3].top[0] == pytest.approx((logprobs[2].argmax().item(), logprobs[2].max().item()), abs=1e-4)
    assert lm.score(ids).n_bytes is None


def test_text_never_becomes_a_control_token(lm, tokenizer):
    """The name of the end token in a prompt is ordinary text, alone and within words."""
    for text in (END, f"a{END}b", f"{END}{END}"):
        ids = lm.encode(text)
        assert tokenizer.eos_id not in ids
        assert tokenizer.decode(ids) == text
        assert lm.generate(text, max_tokens=1, seed=0).prompt_ids == tuple(ids)
        assert tokenizer.eos_id not in [t.id for t in lm.score(text).tokens]


def test_empty_text_begins_a_document(lm, tokenizer):
    assert lm.generate("", max_tokens=2, seed=0).prompt_ids == (tokenizer.eos_id,)


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("a", {"temperatur": 1.0}, "unknown option 'temperatur'; known: .*temperature"),
        ("a", {"temperature": -1.0}, "temperature must be a number from 0"),
        ("a", {"temperature": 0.0, "top_k": 3}, "top_k has no effect at temperature 0"),
        ("a", {"temperature": 0.0, "seed": 3}, "seed has no effect at temperature 0"),
        ("a", {"stop": ""}, "stop strings must not be empty"),
        ("a", {"max_tokens": 0}, "max_tokens must be a whole number from 1"),
        ("a", {"max_tokens": -1}, "max_tokens must be a whole number from 1, got -1"),
        ("a", {"logit_bias": {100_000: 1.0}}, "logit_bias: token id 100000"),
        ([], {}, "prompt is empty"),
        ([5, 100_000], {}, "token id 100000 is out of range: allowed are 0 to 299"),
        ([5, -1], {}, "token id -1"),
    ],
)
def test_invalid_requests_raise_request_error(lm, prompt, options, message):
    """`generate` raises, and `stream` raises before the first event."""
    for ask in (lm.generate, lm.stream):
        with pytest.raises(RequestError, match=message):
            ask(prompt, **options)


encode = inspect.unwrap(LanguageModel.encode)  # without the type checker of the tests, which would raise first


def test_ids_may_be_numpy_or_torch(lm):
    ids = random_ids(lm.config, 1, 5)[0]
    for given in (ids, list(ids), ids.numpy(), tuple(ids.tolist())):
        found = encode(lm, given)
        assert found == ids.tolist()
        assert all(type(token) is int for token in found)


@pytest.mark.parametrize("prompt", [["the", "cat"], [1.5], [None]])
def test_invalid_prompt_types_raise(lm, prompt):
    with pytest.raises(RequestError, match="text or token ids"):
        encode(lm, prompt)


def test_too_long_texts_raise_capacity_error(lm):
    with pytest.raises(CapacityError, match=r"40 tokens and max_tokens 25 does not fit.*64"):
        lm.stream([1] * 40, max_tokens=25)
    with pytest.raises(CapacityError, match="64 tokens does not fit"):
        lm.generate([1] * 64)
    with pytest.raises(CapacityError, match=r"65 tokens.*64"):
        lm.score([1] * 65)
    assert len(lm.score([1] * 64).tokens) == 64


@pytest.mark.parametrize(
    ("text", "top", "message"),
    [
        ([], 0, "two tokens.*has 0"),
        ([3], 0, "two tokens.*has 1"),
        ([3, 300], 0, "300 is out of range"),
        ([3, 4], -1, "top"),
    ],
)
def test_invalid_score_requests_raise(lm, text, top, message):
    with pytest.raises(RequestError, match=message):
        lm.score(text, top=top)


# ---- without a tokenizer


def test_folder_without_tokenizer_accepts_ids(bare, tmp_path):
    one = load(bare)
    assert one.tokenizer is None
    found = one.generate([1, 2, 3], max_tokens=6, **GREEDY)
    assert (found.text, len(found.continuations[0].ids)) == ("", 6)
    assert len(one.score([1, 2, 3]).tokens) == 3
    for ask in (one.generate, one.stream, one.score):
        with pytest.raises(RequestError, match="no tokenizer: pass the prompt as token ids"):
            ask("the cat")
    with pytest.raises(RequestError, match="stop strings need a tokenizer"):
        one.generate([1], stop="a")
    one.save(tmp_path / "repeatable")
    assert_same_weights(load(tmp_path / "repeatable").model, one.model)


def test_tokenizer_larger_than_the_model_raises(tokenizer, tmp_path):
    save_model(tiny("qwen3"), tmp_path)
    tokenizer.save(tmp_path)
    with pytest.raises(TokenizerError, match="tokenizer has 300 tokens, and the model 97"):
        load(tmp_path)


# ---- model names


def test_run_folder_loads_its_best_checkpoint(lm, folder, tmp_path):
    """`best` and `last` are links to checkpoints; the path is that of the checkpoint."""
    checkpoints = tmp_path / "run" / "checkpoints"
    shutil.copytree(folder, checkpoints / "step-000010")
    LanguageModel(tiny("qwen3", 5, vocab_size=lm.config.vocab_size), lm.tokenizer).save(checkpoints / "step-000020")
    (checkpoints / "last").symlink_to("step-000020")
    assert load(tmp_path / "run").path.endswith("step-000020")
    (checkpoints / "best").symlink_to("step-000010")
    best = load(tmp_path / "run")
    assert best.path == str(checkpoints / "step-000010")
    assert_same_weights(best.model, lm.model)


@pytest.mark.parametrize(
    ("name", "why"),
    [("nowhere", "is not a folder or"), ("empty", "has no config.json"), ("file", "is not a folder or")],
)
def test_invalid_path_error_lists_alternatives(name, why, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match=rf"{name} {why}.*: .*run folder.*stories"):
        glassformer.load(tmp_path / name)


def test_empty_path_raises():
    with pytest.raises(CheckpointError, match="the model is empty text"):
        glassformer.load("")


# ---- device and dtype


def test_devices():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    for wrong in ("gpu", "meta", "cpu:1", "cuda:x", "", "cuda:99", "CUDA"):
        with pytest.raises(ConfigError, match=r"allowed are auto, cpu, cuda, cuda:N and mps"):
            choose_device(wrong)


SMALL, LARGE = 1_000_000, 1_000_000_000
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


@pytest.mark.parametrize(
    ("requested", "device", "stored", "size", "dtype"),
    [
        ("float32", "cuda", BF16, LARGE, F32),
        ("bfloat16", "cpu", F32, SMALL, BF16),
        ("float16", "cpu", F32, SMALL, F16),
        ("auto", "cpu", F32, SMALL, F32),
        ("auto", "cpu", BF16, SMALL, F32),
        ("auto", "cpu", BF16, LARGE, BF16),
        ("auto", "cpu", F16, LARGE, F32),
        ("auto", "cuda", BF16, SMALL, BF16),
        ("auto", "cuda", F16, LARGE, F16),
    ],
)
def test_dtypes(requested, device, stored, size, dtype):
    choice = choose_dtype(requested, device=device, stored=stored, n_parameters=size)
    assert getattr(torch, choice.value) == dtype
    assert choice.because


@pytest.mark.parametrize("wrong", ["half", "fp32", "", "Float32"])
def test_unknown_dtype_raises(wrong, folder):
    with pytest.raises(ConfigError, match="dtype must be auto, float32, bfloat16, float16"):
        load(folder, dtype=wrong)


def test_unknown_device_raises(folder):
    with pytest.raises(ConfigError, match="'tpu'"):
        load(folder, device="tpu")


def test_bfloat16_in_memory_and_on_disk(lm, folder, tmp_path):
    """A small model saved in bfloat16 is loaded in float32 on a CPU, with the same rounded weights."""
    half = load(folder, dtype="bfloat16")
    assert {p.dtype for p in half.model.parameters() if p.ndim > 1} == {BF16}
    ids = random_ids(lm.config, 1, 20)
    logits, exact = run(half.model, ids), run(lm.model, ids)
    native = choose_native(half.config, half.device, BF16) is not None  # activations are float32 then
    assert logits.dtype == half.dtype == (F32 if native else BF16)
    off = (logits.float() - exact).norm() / exact.norm()
    assert 1e-4 < off < 0.1
    assert len(half.generate(TEXT, max_tokens=10, seed=1, logprobs=2).continuations[0].ids) == 10
    half.save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    again = load(tmp_path, device="cpu")
    assert {p.dtype for p in again.model.parameters()} == {F32}
    assert all(
        torch.equal(a.bfloat16(), b) for a, b in zip(again.model.parameters(), half.model.parameters(), strict=True)
    )
